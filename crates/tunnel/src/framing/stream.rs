// SPDX-License-Identifier: Apache-2.0
//! A stream's end for its user. Dropped before its end it is reset.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;

use super::conn::{Shared, lock};
use super::head::Request;
use super::{Broken, Reason};

/// One stream of a tunnel.
pub struct Stream {
    shared: Shared,
    id: u32,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

impl Stream {
    /// Asks for a stream; waits while the peer has as many as it wants.
    pub(crate) async fn connect(
        shared: &Shared,
        authority: &str,
        headers: &HeaderMap,
    ) -> Result<Self, Broken> {
        let opened = std::future::poll_fn(|cx| lock(shared).poll_connect(cx, authority, headers)).await;
        opened.map(|id| Self::of(shared, id))
    }

    /// A stream that was opened.
    pub(super) fn of(shared: &Shared, id: u32) -> Self {
        Self { shared: shared.clone(), id }
    }

    /// The next stream that the peer asks for.
    pub(crate) fn accepted(shared: &Shared) -> Option<(Self, Request)> {
        let mut conn = lock(shared);
        while let Some(id) = conn.accepted.pop_front() {
            let Some(entry) = conn.streams.get_mut(&id) else { continue };
            let Some(request) = entry.request.take() else { continue };
            entry.is_held = true;
            return Some((Self::of(shared, id), request));
        }
        None
    }

    /// The status of the peer's answer.
    pub(crate) async fn status(&self) -> Result<u16, Broken> {
        std::future::poll_fn(|cx| {
            let mut conn = lock(&self.shared);
            let failure = conn.broken();
            let Some(entry) = conn.streams.get_mut(&self.id) else { return Poll::Pending };
            if let Some(status) = entry.status {
                return Poll::Ready(Ok(status));
            }
            if let Some(broken) = entry.broken.clone().or(failure) {
                return Poll::Ready(Err(broken));
            }
            remember(&mut entry.reader, cx);
            Poll::Pending
        })
        .await
    }

    /// Resolves when the peer has given up, or is gone. Nobody may read meanwhile.
    pub(crate) async fn given_up(&self) {
        std::future::poll_fn(|cx| {
            let mut conn = lock(&self.shared);
            let failed = conn.failure.is_some();
            match conn.streams.get_mut(&self.id) {
                Some(entry) if entry.broken.is_none() && !failed => {
                    remember(&mut entry.reader, cx);
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Counts it as given up by the peer; see [`super::conn::Conn::abandon`].
    pub(crate) fn abandon(&self) {
        lock(&self.shared).abandon();
    }

    /// Answers with a status, which may be the end.
    pub(crate) fn respond(&self, status: u16, is_end: bool) -> Result<(), Broken> {
        lock(&self.shared).respond(self.id, status, is_end)
    }

    /// The next part; `None` at the end. What is taken has to be released.
    pub(crate) fn poll_data(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let mut conn = lock(&self.shared);
        let failure = conn.broken();
        let Some(entry) = conn.streams.get_mut(&self.id) else { return Poll::Ready(failure.map(Err)) };
        if let Some(part) = entry.take() {
            return Poll::Ready(Some(Ok(part)));
        }
        if entry.recv_end {
            return Poll::Ready(None);
        }
        if let Some(broken) = entry.broken.clone().or(failure) {
            return Poll::Ready(Some(Err(broken)));
        }
        remember(&mut entry.reader, cx);
        Poll::Pending
    }

    /// See [`Stream::poll_data`].
    pub(crate) async fn data(&self) -> Option<Result<Bytes, Broken>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Gives the peer room for as much as was taken.
    pub(crate) fn release(&self, bytes: usize) {
        lock(&self.shared).release(self.id, bytes);
    }

    /// How many bytes may be sent: at least one.
    pub(crate) fn poll_capacity(&self, cx: &Context<'_>) -> Poll<Result<usize, Broken>> {
        let mut conn = lock(&self.shared);
        let capacity = match conn.usable(self.id) {
            Ok(entry) => conn.capacity(entry),
            Err(broken) => return Poll::Ready(Err(broken)),
        };
        if capacity > 0 {
            return Poll::Ready(Ok(capacity));
        }
        if let Some(entry) = conn.streams.get_mut(&self.id) {
            remember(&mut entry.writer, cx);
        }
        Poll::Pending
    }

    /// Sends `data`, as far as there is capacity; ready when all of it is queued. The capacity that was seen before may be
    /// another stream's by now: they share the window of the connection, and a peer ends a tunnel that exceeds it.
    pub(crate) fn poll_send(&self, cx: &Context<'_>, data: &mut Bytes) -> Poll<Result<(), Broken>> {
        while !data.is_empty() {
            let mut conn = lock(&self.shared);
            let capacity = match conn.usable(self.id) {
                Ok(entry) => conn.capacity(entry),
                Err(broken) => return Poll::Ready(Err(broken)),
            };
            if capacity == 0 {
                if let Some(entry) = conn.streams.get_mut(&self.id) {
                    remember(&mut entry.writer, cx);
                }
                return Poll::Pending;
            }
            let part = data.split_to(capacity.min(data.len()));
            if let Err(broken) = conn.send(self.id, part) {
                return Poll::Ready(Err(broken));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends this side; in vain where the stream is over already.
    pub(crate) fn end(&self) {
        lock(&self.shared).end(self.id);
    }

    /// Resets the stream, behind what was sent.
    pub(crate) fn reset(&self, reason: Reason) {
        lock(&self.shared).reset(self.id, reason);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.shared).drop_stream(self.id);
    }
}
