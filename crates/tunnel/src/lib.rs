// SPDX-License-Identifier: Apache-2.0
//! HBONE: accept and dial over mutual TLS, HTTP/2 CONNECT, pool, byte copy.
//!
//! It knows peers and bytes and never decides: who may reach an application is proven by a [`meltemi_policy::Permit`],
//! which [`deliver`] takes by value. How the tunnel is framed does not show.

pub mod client;
pub mod copy;
pub mod deliver;
mod inbox;
pub mod io;
mod liveness;
pub mod server;
pub mod target;

pub use client::{Dial, DialError, Pool};
pub use copy::{Copied, Stream, relay, splice};
pub use deliver::{Delivered, deliver};
pub use io::TunnelIo;
pub use server::{Connect, Incoming, accept};
pub use target::{InvalidTarget, Target};

/// Streams of one connection at most.
const MAX_STREAMS: u32 = 200;
/// Header block at most, in bytes.
const MAX_HEADERS: u32 = 64 * 1024;
/// Connections that a client puts on one tunnel; a further one gets a tunnel of its own.
const STREAMS_PER_TUNNEL: u32 = 100;
/// Window of a stream: what may be in flight for one connection, and what is held of one that nobody reads. Less would cost
/// throughput where peers are far from each other.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Window of a tunnel: not the narrower one, for streams that nobody reads would hold up all others.
const CONNECTION_WINDOW: u32 = STREAMS_PER_TUNNEL * STREAM_WINDOW;
/// Bytes of a stream that wait for the connection at most, whatever window the peer gives.
const SEND_BUFFER: usize = 128 * 1024;
/// Largest frame that is accepted: a read's worth. What is held of a smaller one may be a buffer of this size.
const FRAME: u32 = 64 * 1024;
