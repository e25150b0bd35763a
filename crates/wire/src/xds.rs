// SPDX-License-Identifier: Apache-2.0
//! Delta xDS: a server that keeps every client's view in step with a store, and a client that applies what it
//! is sent.


pub mod server;
pub mod store;

/// Largest message either side accepts: the first answer holds the whole mesh.
pub const MAX_MESSAGE: usize = 200 << 20;
