// SPDX-License-Identifier: Apache-2.0
//! Ends connections of peers that say nothing at first, or that do not read what they are sent. HTTP servers limit the
//! time for a request's head, but wait without limit for the first bytes, and for room in the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::places::Place;

/// Bytes that a peer must have sent in the first time limit: the length of HTTP/2's preface.
pub const FIRST_BYTES: usize = 24;

/// Time limits of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the first [`FIRST_BYTES`].
    pub first: Duration,
    /// For the peer to take any of what is written.
    pub write: Duration,
}

/// Lifts the limit on writes from a stream whose peer may stop to read, e.g. a pager behind a terminal session.
#[derive(Clone, Debug, Default)]
pub struct Patience(Arc<AtomicBool>);

impl Patience {
    /// Lifts the limit for the rest of the stream's life.
    pub fn grant(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream that fails with `TimedOut` when its peer exceeds a limit. It carries its place among the connections, so
/// that the place stays taken when an HTTP connection has become a session.
#[derive(Debug)]
pub struct TimedStream<S> {
    inner: S,
    limits: Limits,
    /// First bytes that have not arrived yet.
    missing: usize,
    /// The end of the time for them.
    first: Pin<Box<Sleep>>,
    /// The end of the time for the write that waits for the peer.
    write: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    _place: Option<Place>,
}

impl<S> TimedStream<S> {
    /// Limits a stream; the time for the first bytes begins now.
    pub fn new(inner: S, limits: Limits, place: Option<Place>) -> Self {
        let first = Box::pin(tokio::time::sleep(limits.first));
        Self {
            inner,
            limits,
            missing: FIRST_BYTES,
            first,
            write: None,
            patience: Patience::default(),
            _place: place,
        }
    }

    /// Lifts the limit on writes later.
    pub fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// Passes on the result of a write, or fails if none could go on for too long.
    fn after_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() || self.patience.0.load(Ordering::Relaxed) {
            self.write = None;
            return result;
        }
        let limit = self.limits.write;
        let timer = self.write.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                this.missing = this.missing.saturating_sub(buf.filled().len() - before);
                Poll::Ready(result)
            }
            Poll::Pending if this.missing > 0 => {
                ready!(this.first.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer says nothing")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.after_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.after_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        this.after_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.after_write(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    const LIMITS: Limits = Limits { first: Duration::from_secs(5), write: Duration::from_secs(7) };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_or_stops_within_the_first_bytes_is_ended() {
        for said in [0, 1, FIRST_BYTES - 1] {
            let (mut peer, ours) = duplex(1024);
            let mut ours = TimedStream::new(ours, LIMITS, None);
            let begun = Instant::now();
            peer.write_all(&vec![b'x'; said]).await.unwrap();
            let error = ours.read_exact(&mut [0; FIRST_BYTES]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{said}");
            assert_eq!(begun.elapsed().as_secs(), 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_begun_may_be_silent() {
        let (mut peer, ours) = duplex(1024);
        let mut ours = TimedStream::new(ours, LIMITS, None);
        peer.write_all(&[b'x'; FIRST_BYTES]).await.unwrap();
        ours.read_exact(&mut [0; FIRST_BYTES]).await.unwrap();
        let later = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            peer.write_all(b"y").await.unwrap();
        };
        let (read, ()) = tokio::join!(ours.read_u8(), later);
        assert_eq!(read.unwrap(), b'y');
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_ended_and_one_that_reads_slowly_is_not() {
        let (mut peer, ours) = duplex(10);
        let mut ours = TimedStream::new(ours, LIMITS, None);
        let slowly = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(6)).await;
                peer.read_exact(&mut [0; 10]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(&[0; 100]), slowly);
        written.unwrap();
        let error = ours.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_with_patience_waits_for_its_reader() {
        let (mut peer, ours) = duplex(10);
        let mut ours = TimedStream::new(ours, LIMITS, None);
        ours.patience().grant();
        let later = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            peer.read_exact(&mut [0; 20]).await.unwrap();
        };
        let (written, _) = tokio::join!(ours.write_all(&[0; 20]), later);
        written.unwrap();
    }
}
