// SPDX-License-Identifier: Apache-2.0
//! Carries bytes between a connection's state and its socket. Whatever was queued when it runs leaves with one write.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use super::Reason;
use super::conn::{Conn, Role, Shared, lock};
use super::frame;
use super::queue::Out;
use super::receive::Receiver;
use crate::tls::{Read, Tls};

/// Bytes that are encrypted ahead of the socket at most.
const BATCH: usize = 256 * 1024;
/// Reads in a row; then others have their turn.
const READS: usize = 2;

#[derive(Debug)]
pub(crate) struct Driver {
    tls: Tls,
    receiver: Receiver,
    pub(crate) shared: Shared,
    taken: Vec<Out>,
}

impl Driver {
    pub(crate) fn new(role: Role, tls: Tls) -> Self {
        let shared = Arc::new(Mutex::new(Conn::new(role)));
        Self { tls, receiver: Receiver::new(role), shared, taken: Vec::new() }
    }

    /// Drives the connection; ready when it has ended. After that it must not be polled again.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let driven = self.drive(cx);
        if let Poll::Ready(ended) = &driven {
            let mut conn = lock(&self.shared);
            let error = match (ended, conn.farewell) {
                (Err(error), _) => io::Error::new(error.kind(), error.to_string()),
                (Ok(()), None | Some(Reason::NO_ERROR)) => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the tunnel was closed")
                }
                (Ok(()), Some(reason)) => {
                    let text = format!("the peer has closed the tunnel: {reason}");
                    io::Error::new(io::ErrorKind::UnexpectedEof, text)
                }
            };
            conn.fail(error);
        }
        driven
    }

    /// Drives it until the peer has said that it speaks HTTP/2.
    pub(crate) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll(cx)? {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Pending if self.receiver.has_begun() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut is_crowded, is_hostile) = {
            let mut conn = lock(&self.shared);
            if let Some(error) = &conn.failure {
                return Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())));
            }
            if !conn.driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                conn.driver = Some(cx.waker().clone());
            }
            (conn.is_crowded(), conn.is_hostile())
        };
        if is_hostile {
            return Poll::Ready(Err(self.close(cx, Reason::ENHANCE_YOUR_CALM)));
        }
        if is_crowded {
            is_crowded = self.poll_write(cx)?.is_pending();
        }
        // A peer that takes no answers is not listened to.
        let read = if is_crowded { Read::Some } else { self.read(cx)? };
        match read {
            Read::Some => {}
            Read::End => return Poll::Ready(Ok(())),
            Read::Wrong(reason) => return Poll::Ready(Err(self.close(cx, reason))),
        }
        let written = self.poll_write(cx)?;
        if lock(&self.shared).is_done() {
            ready!(written);
            self.close(cx, Reason::NO_ERROR);
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Reads what there is, up to a bound.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Read> {
        for _ in 0..READS {
            match self.poll_read(cx)? {
                Poll::Ready(Read::Some) => {}
                Poll::Ready(other) => return Ok(other),
                Poll::Pending => return Ok(Read::Some),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Read::Some)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Read>> {
        let (shared, receiver) = (&self.shared, &mut self.receiver);
        self.tls.poll_read(cx, || {
            let mut conn = lock(shared);
            move |bytes: &[u8]| receiver.receive(&mut conn, bytes)
        })
    }

    /// Writes what is queued; ready when nothing is.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tls.poll_flush(cx))?;
            lock(&self.shared).take_out(BATCH, &mut self.taken);
            if self.taken.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let parts = self.taken.iter().flat_map(|out| match out {
                Out::Frames(frames) => [frames.as_slice(), &[]],
                Out::Data { head, data, .. } => [head.as_slice(), data],
            });
            let written = self.tls.write(parts);
            self.taken.clear();
            written?;
        }
    }

    /// Says why this is the end, as far as the socket takes it now.
    fn close(&mut self, cx: &mut Context<'_>, reason: Reason) -> io::Error {
        {
            let mut conn = lock(&self.shared);
            let last = conn.last;
            conn.push(|out| frame::goaway(last, reason, out));
        }
        let _ = self.poll_write(cx);
        self.tls.close(cx);
        io::Error::other(format!("the peer broke the protocol: {reason}"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        lock(&self.shared).fail(io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel was closed"));
    }
}

/// Of one who may still ask for streams; when all are dropped the connection ends with its last stream.
#[derive(Debug)]
pub(crate) struct User(pub(crate) Shared);

impl Drop for User {
    fn drop(&mut self) {
        lock(&self.0).leave_to_streams();
    }
}
