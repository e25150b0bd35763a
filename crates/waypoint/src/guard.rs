// SPDX-License-Identifier: Apache-2.0
//! Guard: a client's connection as HTTP is read from it: which version, how it is framed, how long it may take.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::limits::{LINGER, Limits};
use crate::pulse::Pulse;
use crate::strict::Framing;

/// What an HTTP/2 client with prior knowledge begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connection that HTTP is read from.
pub(crate) struct Guard<IO> {
    io: IO,
    /// What was read to tell the version.
    prefix: Vec<u8>,
    /// None for HTTP/2.
    framing: Option<Framing>,
    /// Something was read in two ways: nothing further is.
    refused: bool,
    pulse: Arc<Pulse>,
    limits: Limits,
    reading: Timer,
    writing: Timer,
    /// The writing side has ended.
    ended: bool,
    lingering: Timer,
}

/// A deadline that is armed while something is waited for.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Timer {
    fn stop(&mut self) {
        self.armed = false;
    }

    /// Whether it has passed since it was first polled after a stop.
    fn passed(&mut self, cx: &mut Context<'_>, limit: Duration) -> bool {
        let at = || Instant::now() + limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.armed {
            self.armed = true;
            sleep.as_mut().reset(at());
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// Reads the first bytes, for which the client has the time `first`: they tell the version. `prefix` was read of them
/// already. None when the client ends or takes too long.
pub(crate) async fn guard<IO>(
    mut io: IO,
    mut prefix: Vec<u8>,
    first: Duration,
    limits: Limits,
    pulse: Arc<Pulse>,
) -> Option<(Speaks, Guard<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if prefix.is_empty() {
        prefix.reserve(PREFACE.len());
        let first = tokio::time::timeout(first, io.read_buf(&mut prefix)).await;
        if first.is_err() || prefix.is_empty() {
            return None;
        }
    }
    let rest = async {
        while prefix.len() < PREFACE.len() && PREFACE.starts_with(&prefix) {
            let mut more = (&mut io).take((PREFACE.len() - prefix.len()) as u64);
            if more.read_buf(&mut prefix).await.ok().filter(|n| *n > 0).is_none() {
                break;
            }
        }
    };
    tokio::time::timeout(limits.head, rest).await.ok()?;
    let speaks = if prefix.starts_with(PREFACE) { Speaks::Http2 } else { Speaks::Http1 };
    let framing = (speaks == Speaks::Http1).then(Framing::new);
    let guard = Guard {
        io,
        prefix,
        framing,
        refused: false,
        pulse,
        limits,
        reading: Timer::default(),
        writing: Timer::default(),
        ended: false,
        lingering: Timer::default(),
    };
    Some((speaks, guard))
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.drain(..n);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            // Hand out the rest of the injected terminator, then report EOF.
            return if this.prefix.is_empty() { Poll::Ready(Ok(())) } else { this.poll_bytes(cx, buf) };
        }
        let before = buf.filled().len();
        let polled = this.poll_bytes(cx, buf);
        let Some(framing) = &mut this.framing else { return polled };
        if polled.is_pending() {
            // While a request is under way its client waits for this proxy: do not run the head timer.
            if !framing.in_head() || this.pulse.busy() {
                this.reading.stop();
            } else if this.reading.passed(cx, this.limits.head) {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the request's head is too slow",
                )));
            }
            return Poll::Pending;
        }
        if let Err(at) = framing.feed(&buf.filled()[before..]) {
            // Make hyper reject the request: put a NUL at the offending byte and end the head, since hyper parses a head only
            // when it is complete. It answers the complete requests before it, then sends 400 and closes the connection.
            this.refused = true;
            this.prefix = b"\r\n\r\n".to_vec();
            buf.filled_mut()[before + at] = 0;
            buf.set_filled(before + at + 1);
        }
        if !framing.in_head() {
            this.reading.stop();
        }
        polled
    }
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    /// Reads and discards what the client still sends of a request that was answered, until it ends or takes too long. A
    /// client of HTTP/2 may send a stream before it reads GOAWAY: closed at once, the kernel would discard that for a reset,
    /// and the client would not know that it may ask again.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sends = self.refused || self.framing.as_ref().is_none_or(|framing| !framing.in_head());
        if !sends {
            return Poll::Ready(());
        }
        let mut discarded = [0; 8 * 1024];
        loop {
            if self.lingering.passed(cx, LINGER) {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::new(&mut discarded);
            match std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> Guard<IO> {
    fn written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.writing.stop();
        } else if self.writing.passed(cx, self.limits.stall) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
        }
        polled
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, data);
        this.written(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, data);
        this.written(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            std::task::ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.ended = true;
        }
        this.poll_linger(cx).map(Ok)
    }
}
