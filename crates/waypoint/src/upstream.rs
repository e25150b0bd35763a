// SPDX-License-Identifier: Apache-2.0
//! Upstream: the bytes of a connection to a backend. One that answers before it has read a request's body may close its
//! reading side: what it has answered is read all the same.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a backend whose failure to take a request does not hide its answer.
pub(crate) struct Upstream<IO> {
    io: IO,
    /// Writing has failed: what else is written is discarded, and reading tells how it ended.
    deaf: bool,
    /// Failures to write are reported: it is no exchange of HTTP any more.
    strict: Arc<AtomicBool>,
}

impl<IO> Upstream<IO> {
    /// `strict` may be set later: when the protocol changes, after which both directions are independent.
    pub(crate) fn new(io: IO, strict: Arc<AtomicBool>) -> Self {
        Self { io, deaf: false, strict }
    }

    /// The outcome of writing `length` bytes.
    fn written(&mut self, polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Err(error)) if !self.strict.load(Ordering::Relaxed) => {
                tracing::debug!(%error, "a backend takes no more of a request");
                self.deaf = true;
                Poll::Ready(Ok(length))
            }
            other => other,
        }
    }

    /// Whether bytes are discarded.
    fn is_deaf(&self) -> Result<bool, io::Error> {
        match (self.deaf, self.strict.load(Ordering::Relaxed)) {
            (true, true) => Err(io::ErrorKind::BrokenPipe.into()),
            (deaf, _) => Ok(deaf),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Upstream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Upstream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_deaf()? {
            return Poll::Ready(Ok(data.len()));
        }
        let polled = Pin::new(&mut this.io).poll_write(cx, data);
        this.written(polled, data.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = data.iter().map(|part| part.len()).sum();
        if this.is_deaf()? {
            return Poll::Ready(Ok(length));
        }
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, data);
        this.written(polled, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_deaf()? {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.written(polled.map_ok(|()| 0), 0).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_although_the_rest_of_the_request_cannot_be_written() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let strict = Arc::new(AtomicBool::new(false));
        let mut upstream = Upstream::new(near, strict.clone());
        upstream.write_all(&[b'x'; 1000]).await.unwrap();
        upstream.flush().await.unwrap();
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        // After a change of protocol a failure is one.
        strict.store(true, Ordering::Relaxed);
        assert!(upstream.write_all(b"x").await.is_err());
    }
}
