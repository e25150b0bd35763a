// SPDX-License-Identifier: Apache-2.0
//! Whether the peer of a dialled tunnel answers: HTTP/2 pings, regular ones and more while somebody waits for it.
//!
//! A network that is gone for some seconds leaves tunnels whose next retransmission is as far away. Streams that are open
//! keep such a tunnel, for it may recover; new ones take another. So a tunnel becomes *suspect* long before it is given up.

use std::io;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::framing::conn::Shared;
use crate::framing::ping::ping;
use crate::server::{PING_EVERY, PING_LIMIT};

/// A tunnel whose peer was heard this recently is used without a question; a request that has waited for as long asks.
const RECENT: Duration = Duration::from_secs(1);
/// A ping without an answer for so long makes the tunnel suspect.
pub(crate) const SUSPECT: Duration = Duration::from_secs(2);

/// What is known of the peer of one tunnel.
#[derive(Debug)]
pub(crate) struct Liveness {
    heard: Mutex<Instant>,
    asked: Notify,
    suspect: watch::Sender<bool>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { heard: Mutex::new(Instant::now()), asked: Notify::new(), suspect: watch::channel(false).0 }
    }
}

impl Liveness {
    /// Whether new streams had better not use the tunnel.
    pub(crate) fn is_suspect(&self) -> bool {
        *self.suspect.borrow()
    }

    /// Resolves when the tunnel becomes suspect, or the peer has not answered for `limit`. To be polled while an answer of
    /// the peer is waited for: the peer is asked whether it is there, at once if it was not heard for a while.
    pub(crate) async fn lost(&self, limit: Duration) {
        let mut suspect = self.suspect.subscribe();
        let mut ask_at = (self.heard() + RECENT).max(Instant::now());
        // Since when an answer is waited for.
        let mut asked: Option<Instant> = None;
        loop {
            let due = asked.map_or(ask_at, |asked| asked + limit);
            tokio::select! {
                // The sender lives in `self`: the channel cannot close.
                _ = suspect.wait_for(|suspect| *suspect) => return,
                () = tokio::time::sleep_until(due) => {}
            }
            match asked.take() {
                None => {
                    self.asked.notify_one();
                    asked = Some(Instant::now());
                }
                Some(asked) if self.heard() < asked => return,
                Some(_) => ask_at = Instant::now(),
            }
        }
    }

    fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the peer has just been heard.
    pub(crate) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Pings the peer every [`PING_EVERY`], and whenever somebody asks; resolves when it has not answered for
    /// [`PING_LIMIT`]. Progresses only while its connection does.
    pub(crate) async fn watch(self: Arc<Self>, shared: &Shared) -> io::Error {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PING_EVERY) => {}
                () = self.asked.notified() => {}
            }
            let pong = ping(shared);
            tokio::pin!(pong);
            let answered = match tokio::time::timeout(SUSPECT, &mut pong).await {
                Ok(answered) => Ok(answered),
                Err(_) => {
                    self.suspect.send_replace(true);
                    tokio::time::timeout(PING_LIMIT - SUSPECT, &mut pong).await
                }
            };
            match answered {
                Ok(Ok(())) => {
                    self.hear();
                    self.suspect.send_replace(false);
                }
                Ok(Err(broken)) => return broken.into(),
                Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer no longer answers"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::conn::Role;
    use crate::framing::probe::Probe;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_ping_is_suspect_and_then_gone() {
        let (probe, liveness) = (Probe::new(Role::Client), Arc::new(Liveness::default()));
        let begun = Instant::now();
        let suspected = async {
            while !liveness.is_suspect() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            begun.elapsed()
        };
        let gone = async { (liveness.clone().watch(&probe.shared).await, begun.elapsed()) };
        let (suspected, (error, gone)) = tokio::join!(suspected, gone);
        let within =
            |took: Duration, limit: Duration| (limit..limit + Duration::from_millis(300)).contains(&took);
        assert!(within(suspected, PING_EVERY + SUSPECT), "{suspected:?}");
        assert!(error.kind() == io::ErrorKind::TimedOut && within(gone, PING_EVERY + PING_LIMIT), "{gone:?}");
    }
}
