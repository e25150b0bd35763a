// SPDX-License-Identifier: Apache-2.0
//! `Expect: 100-continue`: the backend decides whether it wants the body (RFC 9110 §10.1.1). The client's body is not
//! read, and so `100 Continue` is not said, before the backend has said it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use http::header::EXPECT;
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, Sleep};

use crate::limits::EXPECT_TIMEOUT;

/// Whether a body may be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The backend has said nothing yet.
    #[default]
    Waiting,
    /// It wants the body, or has taken too long to say so.
    Wanted,
    /// The exchange is over: nobody wants it any more.
    Over,
}

#[derive(Debug, Default)]
struct Shared {
    state: State,
    waker: Option<Waker>,
}

/// Holds back a request's body until the backend asks for it; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation(Arc<Mutex<Shared>>);

/// Whether a request waits for `100 Continue` before it sends its body.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get_all(EXPECT).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Expectation {
    /// Takes an interim response of the backend.
    pub(crate) fn hear(&self, status: StatusCode) {
        if status == StatusCode::CONTINUE {
            self.change(State::Wanted);
        }
    }

    /// Whether the client still waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).state == State::Waiting
    }

    /// The exchange is over.
    pub(crate) fn end(&self) {
        self.change(State::Over);
    }

    fn change(&self, to: State) {
        let waker = {
            let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.state == State::Waiting {
                shared.state = to;
            }
            shared.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The reading side of an [`Expectation`].
pub(crate) struct Wait {
    of: Expectation,
    /// A backend that knows nothing of the header waits for the body as the client waits for it.
    limit: Pin<Box<Sleep>>,
}

impl Wait {
    pub(crate) fn new(of: Expectation) -> Self {
        Self { of, limit: Box::pin(tokio::time::sleep_until(Instant::now() + EXPECT_TIMEOUT)) }
    }

    /// Resolves when the body is wanted, to `false` when it never will be.
    pub(crate) fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        {
            let mut shared = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
            match shared.state {
                State::Wanted => return Poll::Ready(true),
                State::Over => return Poll::Ready(false),
                State::Waiting => shared.waker = Some(cx.waker().clone()),
            }
        }
        if self.limit.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.of.change(State::Wanted);
        Poll::Ready(true)
    }
}

/// Ends an exchange when it is dropped, with the answer's body.
#[derive(Debug)]
pub(crate) struct EndOnDrop(pub(crate) Expectation);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_backend_or_the_clock_asks_for_the_body_and_an_end_does_not() {
        let all = [
            ("the backend", Some(StatusCode::CONTINUE), false, true, Duration::ZERO),
            ("another interim response", Some(StatusCode::EARLY_HINTS), false, true, EXPECT_TIMEOUT),
            ("the clock", None, false, true, EXPECT_TIMEOUT),
            ("the end", None, true, false, Duration::ZERO),
        ];
        for (name, interim, ends, wanted, after) in all {
            let (expectation, begun) = (Expectation::default(), Instant::now());
            let mut wait = Wait::new(expectation.clone());
            if let Some(status) = interim {
                expectation.hear(status);
            }
            if ends {
                drop(EndOnDrop(expectation.clone()));
            }
            assert_eq!(poll_fn(|cx| wait.poll_wanted(cx)).await, wanted, "{name}");
            // The timer of the runtime counts in milliseconds.
            assert!(begun.elapsed() >= after && begun.elapsed() < after + Duration::from_millis(2), "{name}");
        }
    }
}
