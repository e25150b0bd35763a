// SPDX-License-Identifier: Apache-2.0
//! Pings of ours: whether the peer is there, and whether it has heard that we leave.

use std::task::{Context, Poll, Waker};

use super::conn::{Conn, Leaving, Shared, lock};
use super::{Broken, Reason, frame};

/// What pings say.
const ALIVE: [u8; 8] = *b"meltemi?";
pub(super) const LEAVE: [u8; 8] = *b"meltemi.";

#[derive(Debug, Default)]
pub(super) struct Pings {
    sent: u64,
    answered: u64,
    waiting: Option<Waker>,
}

impl Pings {
    pub(super) fn wake(&mut self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

impl Conn {
    /// The peer has answered a ping.
    pub(super) fn on_pong(&mut self, payload: &[u8]) {
        if payload == ALIVE && self.pings.answered < self.pings.sent {
            self.pings.answered += 1;
            self.pings.wake();
        }
        if payload == LEAVE && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Told;
            let last = self.last;
            self.push(|out| frame::goaway(last, Reason::NO_ERROR, out));
        }
    }

    fn poll_pong(&mut self, cx: &Context<'_>, number: u64) -> Poll<Result<(), Broken>> {
        if let Some(broken) = self.broken() {
            return Poll::Ready(Err(broken));
        }
        if self.pings.answered >= number {
            return Poll::Ready(Ok(()));
        }
        self.pings.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Asks the peer whether it is there; resolves when it has answered. One asks at a time.
pub(crate) async fn ping(shared: &Shared) -> Result<(), Broken> {
    let number = {
        let mut conn = lock(shared);
        conn.pings.sent += 1;
        conn.push(|out| frame::write(frame::PING, 0, 0, &ALIVE, out));
        conn.pings.sent
    };
    std::future::poll_fn(|cx| lock(shared).poll_pong(cx, number)).await
}
