// SPDX-License-Identifier: Apache-2.0
//! Mirror: the bodies of requests that are copied (Gateway API `RequestMirror`). The original never waits for a copy: one
//! that is not taken as fast is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::body::{Body, Broken, Received, copy_frame, held_size};

/// Bytes that a copy may be behind its original.
const MAX_BEHIND: usize = 256 * 1024;

/// Where the body of a copy comes from.
pub(crate) struct Feed {
    frames: mpsc::UnboundedSender<Frame<Bytes>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that were not taken yet.
    behind: AtomicUsize,
    /// The original was read to its end.
    is_whole: AtomicBool,
}

/// The body of a copy.
struct Copied {
    frames: mpsc::UnboundedReceiver<Frame<Bytes>>,
    state: Arc<State>,
    hint: SizeHint,
    is_empty: bool,
}

/// The original's body, of which copies are made.
struct Original {
    inner: Received,
    feeds: Vec<Feed>,
}

/// A body for a copy of `original`, and what it is fed by.
pub(crate) fn copy(original: &Received) -> (Body, Feed) {
    let (sender, frames) = mpsc::unbounded_channel();
    let (state, is_empty) = (Arc::new(State::default()), original.is_end_stream());
    let copied = Copied { frames, state: state.clone(), hint: original.size_hint(), is_empty };
    (copied.boxed_unsync(), Feed { frames: sender, state })
}

/// The original's body as it is sent on, while the copies get what is read of it.
pub(crate) fn feed(inner: Received, feeds: Vec<Feed>) -> Body {
    match feeds.is_empty() {
        true => inner.boxed_unsync(),
        false => Original { inner, feeds }.boxed_unsync(),
    }
}

impl Feed {
    /// Whether the copy still takes what comes.
    fn push(&self, frame: &Frame<Bytes>) -> bool {
        let length = held_size(frame);
        let behind = self.state.behind.fetch_add(length, Ordering::Relaxed) + length;
        behind <= MAX_BEHIND && self.frames.send(copy_frame(frame)).is_ok()
    }
}

impl HttpBody for Original {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.feeds.retain(|feed| feed.push(frame));
        }
        let has_ended = match &frame {
            Some(Ok(_)) => this.inner.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if has_ended {
            for feed in this.feeds.drain(..) {
                feed.state.is_whole.store(true, Ordering::Release);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.frames.poll_recv(cx)) {
            Some(frame) => {
                this.state.behind.fetch_sub(held_size(&frame), Ordering::Relaxed);
                Some(Ok(frame))
            }
            None if this.is_empty || this.state.is_whole.load(Ordering::Acquire) => None,
            // Half a request must not look whole.
            None => Some(Err("the original has broken off, or is too far ahead".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Copied, Feed) {
        let (sender, frames) = mpsc::unbounded_channel();
        let state = Arc::new(State::default());
        let copied = Copied { frames, state: state.clone(), hint: SizeHint::default(), is_empty: false };
        (copied, Feed { frames: sender, state })
    }

    fn data(length: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![b'x'; length]))
    }

    #[tokio::test]
    async fn a_copy_is_whole_when_its_original_is() {
        let (copied, feed) = pair();
        assert!(feed.push(&data(3)) && feed.push(&data(4)));
        feed.state.is_whole.store(true, Ordering::Release);
        drop(feed);
        assert_eq!(copied.collect().await.unwrap().to_bytes().len(), 7);
    }

    #[tokio::test]
    async fn half_an_original_does_not_look_whole() {
        let (copied, feed) = pair();
        assert!(feed.push(&data(3)));
        drop(feed);
        assert!(copied.collect().await.is_err());
    }

    #[tokio::test]
    async fn a_copy_that_is_too_far_behind_is_given_up() {
        let (mut copied, feed) = pair();
        let most = MAX_BEHIND - size_of::<Frame<Bytes>>();
        assert!(feed.push(&data(most)));
        assert!(copied.frame().await.unwrap().is_ok());
        assert!(feed.push(&data(most)), "what was taken does not count");
        assert!(!feed.push(&data(1)));
        drop(copied);
        let (copied, feed) = pair();
        drop(copied);
        assert!(!feed.push(&data(1)), "nobody takes it");
        // A byte in a frame of its own takes more than a byte.
        let (_copied, feed) = pair();
        let held = (0..MAX_BEHIND).take_while(|_| feed.push(&data(1))).count();
        assert!((1..=MAX_BEHIND / size_of::<Frame<Bytes>>()).contains(&held), "{held}");
    }
}
