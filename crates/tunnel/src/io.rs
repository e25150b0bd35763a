// SPDX-License-Identifier: Apache-2.0
//! A tunnel's stream as a byte stream, for a proxy that speaks HTTP inside it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::copy::Stream;

/// A stream as [`AsyncRead`] and [`AsyncWrite`]; dropped before its end it is reset.
#[derive(Debug)]
pub struct TunnelIo {
    stream: Stream,
    unread: Bytes,
    ended: bool,
    /// Of the tunnel: it is in use as long as this lives.
    lease: Option<Arc<()>>,
}

impl TunnelIo {
    /// Around a stream.
    pub fn new(stream: Stream) -> Self {
        Self { stream, unread: Bytes::new(), ended: false, lease: None }
    }

    /// Around a stream that was dialled, with the lease of its tunnel.
    pub fn holding(stream: Stream, lease: Arc<()>) -> Self {
        Self { stream, unread: Bytes::new(), ended: false, lease: Some(lease) }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.stream.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.stream.recv.release(data.len()).map_err(io::Error::other)?;
                    this.unread = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..n]);
        this.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.stream.send.reserve_capacity(data.len());
        let granted = match ready!(this.stream.send.poll_capacity(cx)) {
            Some(Ok(n)) => n.min(data.len()),
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let part = Bytes::copy_from_slice(&data[..granted]);
        this.stream.send.send_data(part, false).map_err(io::Error::other)?;
        Poll::Ready(Ok(granted))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.ended = true;
            this.stream.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.send.send_reset(Reason::CANCEL);
        } else if self.lease.is_some() && !self.stream.recv.is_end_stream() {
            // After an end of our own: nothing was cut off, we only read no further.
            self.stream.send.send_reset(Reason::NO_ERROR);
        }
        // Otherwise what is still to be sent must not be thrown away by a reset. An accepting side that has ended tells
        // NO_ERROR behind it by itself (RFC 9113 §8.1).
    }
}
