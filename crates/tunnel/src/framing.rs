// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as far as tunnels need it (RFC 9113): CONNECT streams and nothing else, without I/O of its own.
//!
//! [`conn::Conn`] is the state of one connection, behind one lock; [`receive::Receiver`] reads the peer's bytes into it,
//! [`driver::Driver`] carries bytes between it and the socket, and [`stream::Stream`] is a stream's end for its user. What is
//! to be sent waits in one queue, in order, and leaves with one write for all that was queued meanwhile.

pub(crate) mod conn;
pub(crate) mod driver;
mod entry;
mod events;
mod frame;
pub(crate) mod head;
mod hpack;
mod huffman;
mod pace;
pub(crate) mod ping;
pub(crate) mod probe;
mod queue;
mod receive;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
use std::io;
use std::sync::Arc;

/// Error codes (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reason(pub(crate) u32);

impl Reason {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            0 => "NO_ERROR",
            1 => "PROTOCOL_ERROR",
            2 => "INTERNAL_ERROR",
            3 => "FLOW_CONTROL_ERROR",
            4 => "SETTINGS_TIMEOUT",
            5 => "STREAM_CLOSED",
            6 => "FRAME_SIZE_ERROR",
            7 => "REFUSED_STREAM",
            8 => "CANCEL",
            9 => "COMPRESSION_ERROR",
            10 => "CONNECT_ERROR",
            11 => "ENHANCE_YOUR_CALM",
            12 => "INADEQUATE_SECURITY",
            13 => "HTTP_1_1_REQUIRED",
            other => return write!(f, "error {other}"),
        };
        f.write_str(name)
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Why a stream, or the connection under it, has ended before its end.
#[derive(Clone, Debug)]
pub(crate) enum Broken {
    /// The stream was reset, by this side or the other.
    Reset(Reason),
    /// The peer says that it has not looked at the stream: another connection may take it.
    Unprocessed,
    /// The connection failed.
    Connection(Arc<io::Error>),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reset(reason) => write!(f, "stream reset: {reason}"),
            Self::Unprocessed => f.write_str("the peer takes no further streams"),
            Self::Connection(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Broken {}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        let kind = match &broken {
            Broken::Reset(_) | Broken::Unprocessed => io::ErrorKind::ConnectionReset,
            Broken::Connection(error) => error.kind(),
        };
        Self::new(kind, broken)
    }
}
