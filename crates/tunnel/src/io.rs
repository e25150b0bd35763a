// SPDX-License-Identifier: Apache-2.0
//! A tunnel's stream as a byte stream, for a proxy that speaks HTTP inside it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framing::Reason;
use crate::framing::stream::Stream;

/// A stream as [`AsyncRead`] and [`AsyncWrite`]; dropped before its end it is reset.
#[derive(Debug)]
pub struct TunnelIo {
    stream: Stream,
    unread: Bytes,
    ended: bool,
    /// Of the tunnel: it is in use as long as this lives.
    _lease: Option<Arc<()>>,
}

impl TunnelIo {
    /// Around a stream.
    pub fn new(stream: Stream) -> Self {
        Self { stream, unread: Bytes::new(), ended: false, _lease: None }
    }

    /// Around a stream that was dialled, with the lease of its tunnel.
    pub fn holding(stream: Stream, lease: Arc<()>) -> Self {
        Self { stream, unread: Bytes::new(), ended: false, _lease: Some(lease) }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.stream.release(data.len());
                    this.unread = data;
                }
                Some(Err(broken)) => return Poll::Ready(Err(broken.into())),
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
        let capacity = ready!(this.stream.poll_capacity(cx))?;
        let mut part = Bytes::copy_from_slice(&data[..capacity.min(data.len())]);
        let length = part.len();
        match this.stream.poll_send(cx, &mut part) {
            Poll::Ready(Err(broken)) => Poll::Ready(Err(broken.into())),
            // Another stream was faster.
            Poll::Pending if part.len() == length => Poll::Pending,
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(length - part.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.ended = true;
        this.stream.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.reset(Reason::CANCEL);
        }
        // After an end of ours the stream tells by itself that we only read no further.
    }
}
