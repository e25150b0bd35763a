// SPDX-License-Identifier: Apache-2.0
//! Replay: a request that can be sent more than once, as far as its body is short.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::body::{Body, Broken, copy_frame, held_size};

/// Bytes that a body may take to be kept for another attempt, each of its frames counted ([`held_size`]); a request with a longer
/// one is not sent again once more than this has been sent of it.
pub(crate) const MAX_REPLAY: usize = 64 * 1024;

/// A request, to be sent again.
pub(crate) struct Replay {
    /// All but the body.
    head: Request<()>,
    tape: Arc<Mutex<Tape>>,
}

/// A body, and what was read of it.
struct Tape {
    inner: Body,
    frames: Vec<Frame<Bytes>>,
    size: usize,
    /// The body was read to its end, and all of it is here.
    is_whole: bool,
    /// Not all that was read of it is here.
    is_lost: bool,
    /// The attempt that may read on; those before it have ended.
    attempt: u64,
}

/// The body of one attempt.
struct Played {
    tape: Arc<Mutex<Tape>>,
    attempt: u64,
    /// Frames that this attempt has read of the tape.
    at: usize,
    hint: SizeHint,
    is_empty: bool,
}

fn lock(tape: &Mutex<Tape>) -> MutexGuard<'_, Tape> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replay {
    /// The request for the first attempt, and what the others are made of.
    pub(crate) fn record(request: Request<Body>) -> (Request<Body>, Self) {
        let (parts, inner) = request.into_parts();
        let (hint, is_empty) = (inner.size_hint(), inner.is_end_stream());
        let tape =
            Tape { inner, frames: Vec::new(), size: 0, is_whole: is_empty, is_lost: false, attempt: 0 };
        let tape = Arc::new(Mutex::new(tape));
        let body = Played { tape: tape.clone(), attempt: 0, at: 0, hint, is_empty };
        let head = Request::from_parts(parts.clone(), ());
        (Request::from_parts(parts, body.boxed_unsync()), Self { head, tape })
    }

    /// The request for another attempt; none when its body was too long to be kept, or has broken off. The attempt before
    /// it reads no further.
    pub(crate) fn request(&self) -> Option<Request<Body>> {
        let mut tape = lock(&self.tape);
        if tape.is_lost {
            return None;
        }
        tape.attempt += 1;
        let is_empty = tape.is_whole && tape.frames.is_empty();
        let read: u64 = tape.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let (rest, mut hint) = (tape.inner.size_hint(), SizeHint::new());
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint.set_lower(rest.lower() + read);
        let body = Played { tape: self.tape.clone(), attempt: tape.attempt, at: 0, hint, is_empty };
        Some(self.head.clone().map(|()| body.boxed_unsync()))
    }
}

impl HttpBody for Played {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let mut tape = lock(&this.tape);
        if tape.attempt != this.attempt {
            return Poll::Ready(Some(Err("the request is sent again".into())));
        }
        if let Some(frame) = tape.frames.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(copy_frame(frame))));
        }
        if tape.is_whole {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut tape.inner).poll_frame(cx));
        match &frame {
            None => tape.is_whole = !tape.is_lost,
            Some(Err(_)) => tape.lose(),
            Some(Ok(frame)) => {
                tape.record(frame);
                this.at += 1;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        if self.is_empty {
            return true;
        }
        let tape = lock(&self.tape);
        tape.attempt == self.attempt && self.at >= tape.frames.len() && tape.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Tape {
    fn record(&mut self, frame: &Frame<Bytes>) {
        self.size += held_size(frame);
        if self.is_lost || self.size > MAX_REPLAY {
            return self.lose();
        }
        self.frames.push(copy_frame(frame));
        self.is_whole = self.inner.is_end_stream();
    }

    fn lose(&mut self) {
        self.is_lost = true;
        self.frames = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::body::full;

    /// What a frame takes beside its content.
    const FRAME: usize = size_of::<Frame<Bytes>>();

    struct InParts(VecDeque<usize>);

    impl HttpBody for InParts {
        type Data = Bytes;
        type Error = Broken;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
            Poll::Ready(self.0.pop_front().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; size])))))
        }
    }

    fn body(parts: &[usize]) -> Body {
        BodyExt::boxed_unsync(InParts(parts.iter().copied().collect()))
    }

    async fn read(body: Body) -> Option<usize> {
        body.collect().await.ok().map(|body| body.to_bytes().len())
    }

    #[tokio::test]
    async fn a_short_body_is_sent_again_and_a_long_one_is_not() {
        for (parts, again) in [
            (vec![], true),
            (vec![5], true),
            (vec![5, 7, 1], true),
            (vec![MAX_REPLAY - FRAME], true),
            (vec![MAX_REPLAY - FRAME, 1], false),
            (vec![MAX_REPLAY - FRAME + 1], false),
            // A frame takes more than its byte.
            (vec![1; MAX_REPLAY / (FRAME + 1)], true),
            (vec![1; MAX_REPLAY / (FRAME + 1) + 1], false),
        ] {
            let size: usize = parts.iter().sum();
            let (request, replay) = Replay::record(Request::put("/").body(body(&parts)).unwrap());
            assert_eq!(read(request.into_body()).await, Some(size), "{parts:?}");
            for _ in 0..2 {
                let next = replay.request();
                assert_eq!(next.is_some(), again, "{parts:?}");
                if let Some(next) = next {
                    assert_eq!(next.method(), "PUT");
                    assert_eq!(read(next.into_body()).await, Some(size), "{parts:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_was_read_in_part_is_read_from_its_begin_and_only_by_the_last_attempt() {
        let (request, replay) = Replay::record(Request::put("/").body(body(&[3, 4, 5])).unwrap());
        let mut first = request.into_body();
        first.frame().await.unwrap().unwrap();
        let second = replay.request().unwrap().into_body();
        assert!(first.frame().await.unwrap().is_err(), "two attempts do not read at the same time");
        assert_eq!(read(second).await, Some(12));
    }

    #[tokio::test]
    async fn a_request_without_a_body_has_none_again() {
        let (request, replay) = Replay::record(Request::get("/").body(full("")).unwrap());
        assert!(request.body().is_end_stream());
        assert!(replay.request().unwrap().body().is_end_stream());
    }
}
