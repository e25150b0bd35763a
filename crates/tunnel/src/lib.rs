// SPDX-License-Identifier: Apache-2.0
//! HBONE: accept and dial over mutual TLS, HTTP/2 CONNECT, pool, byte copy.
//!
//! It knows peers and bytes and never decides: who may reach an application is proven by a [`meltemi_policy::Permit`],
//! which [`deliver()`] takes by value. How the tunnel is framed does not show.

pub mod client;
pub mod copy;
pub mod deliver;
mod framing;
pub mod io;
mod liveness;
pub mod server;
pub mod target;
mod tls;

pub use client::{Dial, DialError, Patience, Pool};
pub use copy::{Copied, relay_outbound, splice_outbound};
pub use deliver::{Delivered, deliver};
pub use framing::stream::Stream;
pub use io::TunnelIo;
pub use server::{Connect, Incoming, accept};
pub use target::{InvalidTarget, Target};

/// Streams of one connection at most.
const MAX_STREAMS: u32 = 200;
/// Header block at most, in bytes.
const MAX_HEADERS: u32 = 64 * 1024;
/// Connections that a client puts on one tunnel; a further one gets a tunnel of its own.
const STREAMS_PER_TUNNEL: u32 = 100;
/// Window of a stream at first: what may be held of one that nobody reads.
const BASE_WINDOW: u32 = 64 * 1024;
/// Window of a stream at most, once its peer has filled what it had and its reader kept up. Less would cost throughput where
/// peers are far from each other.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// What the streams of one tunnel, and all of a process, have beyond their first windows.
const EXTRA_PER_TUNNEL: u32 = 16 * 1024 * 1024;
const EXTRA_PER_PROCESS: u32 = 256 * 1024 * 1024;
/// Window of a tunnel: never the narrower one, for streams that nobody reads would hold up all others.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of a stream that wait for the connection at most, whatever window the peer gives.
const SEND_BUFFER: usize = 128 * 1024;
/// Largest frame that is accepted: a read's worth.
const FRAME: u32 = 64 * 1024;

/// What a fuzzer makes of a peer and a user of streams, of the accepting or the dialling side; panics where something does
/// not hold that must.
#[doc(hidden)]
pub fn probe(is_server: bool, data: &[u8]) {
    framing::probe::drive(is_server, data);
}
