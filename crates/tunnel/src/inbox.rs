// SPDX-License-Identifier: Apache-2.0
//! What has arrived on a stream and nobody has taken yet.
//!
//! HTTP/2 counts bytes that are not read; what a frame costs beside its bytes it does not. Many small frames that nobody
//! reads would take far more memory than the window says, or end the tunnel for everybody on it. So the task that drives
//! a tunnel takes out what its readers leave there and puts it together. The window stays as it is: it is given back for
//! what a reader has taken.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

/// Parts smaller than this are put together, to one of this size at most.
const PART: usize = 64 * 1024;
/// Shortest time between two looks at all streams of a tunnel.
const PAUSE: Duration = Duration::from_millis(1);

type Next = Option<Result<Bytes, h2::Error>>;

/// What a peer sends on one stream.
#[derive(Debug)]
pub(crate) struct Inbox(Arc<Mutex<Arrived>>);

#[derive(Debug)]
struct Arrived {
    recv: RecvStream,
    parts: VecDeque<Bytes>,
    /// Behind `parts`, and still growing.
    last: BytesMut,
    /// Bytes taken out of `recv` whose window is not given back.
    taken: usize,
    /// How it ended, when that was found before its reader came for it.
    end: Option<Next>,
    reader: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    /// The next part; none at the end.
    pub(crate) fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Next> {
        lock(&self.0).poll_data(cx)
    }

    /// The next part; none at the end.
    pub(crate) async fn data(&self) -> Next {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Gives the peer room for as much as was taken.
    pub(crate) fn release(&self, bytes: usize) -> Result<(), h2::Error> {
        let mut arrived = lock(&self.0);
        arrived.taken = arrived.taken.saturating_sub(bytes);
        arrived.recv.flow_control().release_capacity(bytes)
    }

    /// Whether the peer has ended, and everything was taken.
    pub(crate) fn is_end_stream(&self) -> bool {
        let arrived = lock(&self.0);
        arrived.parts.is_empty() && arrived.last.is_empty() && arrived.recv.is_end_stream()
    }
}

impl Arrived {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(part)));
        }
        if !self.last.is_empty() {
            return Poll::Ready(Some(Ok(self.last.split().freeze())));
        }
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        let polled = self.recv.poll_data(cx);
        match &polled {
            Poll::Ready(Some(Ok(data))) => self.taken += data.len(),
            Poll::Pending => self.reader = Some(cx.waker().clone()),
            Poll::Ready(_) => {}
        }
        polled
    }

    /// Takes out what is there. It never waits: the waker that is left in the stream is the reader's.
    fn gather(&mut self) {
        while self.end.is_none() && self.recv.flow_control().used_capacity() > self.taken {
            match self.recv.poll_data(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(data))) => {
                    self.taken += data.len();
                    self.put(data);
                }
                Poll::Ready(end) => self.end = Some(end),
                Poll::Pending => {
                    // Its waker was replaced by ours.
                    self.reader.take().into_iter().for_each(Waker::wake);
                    return;
                }
            }
        }
    }

    fn put(&mut self, data: Bytes) {
        if !self.last.is_empty() && self.last.len() + data.len() > PART {
            self.parts.push_back(self.last.split().freeze());
        }
        if data.len() < PART / 2 {
            // Copied: a small part may be all that is left of a large buffer.
            self.last.extend_from_slice(&data);
        } else {
            let last = self.last.split().freeze();
            self.parts.extend((!last.is_empty()).then_some(last));
            self.parts.push_back(data);
        }
    }
}

/// All streams of a tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inboxes(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    open: Vec<Weak<Mutex<Arrived>>>,
    looked: Option<Instant>,
}

impl Inboxes {
    /// An inbox for a stream.
    pub(crate) fn inbox(&self, recv: RecvStream) -> Inbox {
        let arrived = Arrived {
            recv,
            parts: VecDeque::new(),
            last: BytesMut::new(),
            taken: 0,
            end: None,
            reader: None,
        };
        let arrived = Arc::new(Mutex::new(arrived));
        lock(&self.0).open.push(Arc::downgrade(&arrived));
        Inbox(arrived)
    }

    /// Takes out what readers have left in their streams; to be called whenever the tunnel has been driven.
    pub(crate) fn gather(&self) {
        let mut streams = lock(&self.0);
        let now = Instant::now();
        if streams.looked.is_some_and(|at| now.duration_since(at) < PAUSE) {
            return;
        }
        streams.looked = Some(now);
        streams.open.retain(|stream| {
            let stream = stream.upgrade();
            stream.iter().for_each(|stream| lock(stream).gather());
            stream.is_some()
        });
    }
}
