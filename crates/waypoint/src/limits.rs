// SPDX-License-Identifier: Apache-2.0
//! Limits: every bound that a client can run into, in one place.

use std::time::Duration;

/// Header fields of a request at most (cookie crumbs and repeated names count each); more is 431.
pub(crate) const MAX_HEADERS: usize = 100;
/// Bytes of a request's head at most, as HTTP/1.1 text or as a decoded HTTP/2 header list; more is 431.
pub(crate) const MAX_HEAD_BYTES: usize = 60 * 1024;
/// Bytes that HTTP/1.1 holds of a connection that reads faster than it is answered. More than a head, and 8 KiB at least.
pub(crate) const MAX_BUFFER: usize = 64 * 1024;
/// Bytes of a chunk's size line with its extensions at most; extensions are dropped anyway.
pub(crate) const MAX_CHUNK_LINE: usize = 256;
/// Bytes of a host with its port at most: the longest DNS name, and `:65535`.
pub(crate) const MAX_HOST: usize = 253 + 1 + 6;
/// Requests that one HTTP/2 connection may have open.
pub(crate) const MAX_STREAMS: u32 = 100;
/// Streams that a client resets before they were looked at, or that its own errors reset, until the connection ends with
/// ENHANCE_YOUR_CALM.
pub(crate) const MAX_RESETS: usize = 64;
/// Requests given up by the client within [`EARLY`] until the connection is closed, when they are also more than half of
/// its requests.
pub(crate) const MAX_EARLY_RESETS: u32 = 200;
/// A request that is given up sooner than this was not waited for.
pub(crate) const EARLY: Duration = Duration::from_secs(1);
/// Bytes that wait for the receiver's window, for each HTTP/2 stream of a client or of a backend.
pub(crate) const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Window of an HTTP/2 stream, of a client or of a backend: what is held of a body that nobody takes.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// Window of an HTTP/2 connection: never the narrower one, for bodies that nobody takes would hold up all others.
pub(crate) const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Handshakes of tunnels that one source address may have under way.
pub(crate) const MAX_HANDSHAKES: usize = 64;
/// A connection to a backend without a request is closed after this time.
pub(crate) const UPSTREAM_IDLE: Duration = Duration::from_secs(60);
/// A connection to a backend takes no further request after this time.
pub(crate) const UPSTREAM_LIFETIME: Duration = Duration::from_secs(3600);
/// How often HTTP/2 clients are asked whether they are there.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(30);
/// How long they may take to answer.
pub(crate) const PING_LIMIT: Duration = Duration::from_secs(20);
/// How long the body of a request with `Expect: 100-continue` is held back for a backend that says nothing: it may be one
/// that does not know the header, and waits for the body.
pub(crate) const EXPECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is read on after its last answer, when the client still sends a request's body: closed at once,
/// the client's kernel would discard the answer.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// A proxy that is told to end accepts connections until none has come for this time: clients learn of its end from its
/// endpoints, sooner or later.
pub(crate) const DRAIN_QUIET: Duration = Duration::from_secs(3);
/// Pause after an `accept` that failed, e.g. for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take, and how much all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request's head to its end; and from the opening of a connection to a gateway's listener to
    /// its first byte.
    pub head: Duration,
    /// A connection without a request, from its opening or from the last answer on. While fewer than a quarter of the
    /// places for connections are left, `head` is the limit.
    pub idle: Duration,
    /// A pause of the client, on a port that declares no protocol, before its first bytes say whether it speaks HTTP: after
    /// it the connection is TCP, whose server may have to speak first; the client of such a server waits so long for each
    /// connection. One that had said nothing is HTTP after all, if it then speaks HTTP before the server speaks. Where
    /// policies do not let it be TCP, its first byte is waited for as long as `head`.
    pub detect: Duration,
    /// Between two parts of a request's body, until the backend has begun to answer. gRPC has no such limit: its calls
    /// may be silent, and are bounded by the number of streams and connections.
    pub body: Duration,
    /// How often streams are judged again whose token may have expired.
    pub token_check: Duration,
    /// An answer of which the client takes nothing.
    pub stall: Duration,
    /// How long a proxy that is told to end keeps connections of HTTP/1.1 that are idle: clients learn of its end with their
    /// next answer, and one that is closed may be about to ask. It accepts nothing after this time either. Less than the
    /// drain, after which everything ends.
    pub drain: Duration,
    /// Connections of clients on all listeners of a gateway, or tunnels to a waypoint; a further one is closed unread.
    pub connections: usize,
    /// KiB of heads that all open requests hold together, each at least one; further requests are answered with 503.
    pub heads: usize,
    /// Requests under way to one endpoint of a backend, over all connections to it.
    pub upstream_requests: usize,
    /// Requests that wait for one of them to end; a further one is answered with 503 and the flag `UO`.
    pub upstream_waiting: usize,
    /// Longest time that a request waits so; then it is answered in the same way.
    pub upstream_wait: Duration,
    /// Copies of requests that are under way at once; of further requests none is made.
    pub copies: usize,
    /// How long a copy may take, to the end of its answer.
    pub copy: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(15),
            idle: Duration::from_secs(300),
            detect: Duration::from_secs(1),
            body: Duration::from_secs(60),
            token_check: Duration::from_secs(30),
            stall: Duration::from_secs(300),
            drain: Duration::from_secs(20),
            connections: 16_384,
            heads: 128 * 1024,
            upstream_requests: 4096,
            upstream_waiting: 1024,
            upstream_wait: Duration::from_secs(10),
            copies: 1024,
            copy: Duration::from_secs(30),
        }
    }
}
