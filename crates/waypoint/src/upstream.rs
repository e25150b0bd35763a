// SPDX-License-Identifier: Apache-2.0
//! The bytes of a connection to a backend. One that answers before it has read a request's body may close its
//! reading side: what it has answered is read all the same.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is known of writing to a backend; shared by the connection and the exchange on it.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    failed: AtomicBool,
    strict: AtomicBool,
}

impl Writing {
    /// Reports failures to write from now on: after a change of protocol both directions are independent.
    pub(crate) fn report_failures(&self) {
        self.strict.store(true, Ordering::Relaxed);
    }

    /// Whether a failure was kept back: the connection is of no use for another request.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// A connection to a backend whose failure to take a request does not hide its answer.
pub(crate) struct Upstream<IO> {
    io: IO,
    /// After a failure what else is written is discarded, and reading tells how the connection ended.
    writing: Arc<Writing>,
}

impl<IO> Upstream<IO> {
    pub(crate) fn new(io: IO, writing: Arc<Writing>) -> Self {
        Self { io, writing }
    }

    /// The outcome of writing `length` bytes.
    fn written(&self, polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Err(error)) if !self.writing.strict.load(Ordering::Relaxed) => {
                tracing::debug!(%error, "a backend takes no more of a request");
                self.writing.failed.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(length))
            }
            other => other,
        }
    }

    /// Whether bytes are discarded.
    fn is_deaf(&self) -> Result<bool, io::Error> {
        match (self.writing.has_failed(), self.writing.strict.load(Ordering::Relaxed)) {
            (true, true) => Err(io::ErrorKind::BrokenPipe.into()),
            (failed, _) => Ok(failed),
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
        let writing = Arc::new(Writing::default());
        let mut upstream = Upstream::new(near, writing.clone());
        upstream.write_all(&[b'x'; 1000]).await.unwrap();
        upstream.flush().await.unwrap();
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        // After a change of protocol a failure is one.
        assert!(writing.has_failed());
        writing.report_failures();
        assert!(upstream.write_all(b"x").await.is_err());
    }
}
