// SPDX-License-Identifier: Apache-2.0
//! SPDY/3.1, the server's side, as far as Kubernetes clients use it.

mod dictionary;
mod frame;
mod session;

pub(super) use session::{Session, Stream, session};

/// Header in which client and server agree on what is spoken over the streams.
pub(super) const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
