// SPDX-License-Identifier: Apache-2.0
//! Shutdown as a value: graceful first, forced when the deadline has passed.
//!
//! The trigger's owner calls [`DrainTrigger::start`] once. A listener that sees [`DrainWatch::started`] stops
//! accepting; a connection may go on until [`DrainWatch::forced`] and must then close. A dropped trigger
//! counts as forced: an owner that died must not leave connections behind.

use std::time::Duration;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Forced,
}

/// Starts a drain; one per component.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Phase>);

/// Sees a drain; cloned into every task.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<Phase>);

/// A new pair.
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (tx, rx) = watch::channel(Phase::Serving);
    (DrainTrigger(tx), DrainWatch(rx))
}

impl DrainTrigger {
    /// Starts the graceful phase, waits until every watch is dropped or `deadline` has passed, then forces.
    pub async fn start(self, deadline: Duration) {
        self.0.send_replace(Phase::Draining);
        let _ = tokio::time::timeout(deadline, self.0.closed()).await;
        self.0.send_replace(Phase::Forced);
    }
}

impl DrainWatch {
    /// Resolves when the graceful phase begins: stop accepting.
    pub async fn started(&mut self) {
        let _ = self.0.wait_for(|p| *p >= Phase::Draining).await;
    }

    /// Resolves when the deadline has passed: close now.
    pub async fn forced(&mut self) {
        let _ = self.0.wait_for(|p| *p >= Phase::Forced).await;
    }

    /// Whether the graceful phase has begun.
    pub fn is_started(&self) -> bool {
        *self.0.borrow() >= Phase::Draining || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn forces_after_the_deadline_only() {
        let (trigger, mut watch) = channel();
        let begun = tokio::time::Instant::now();
        let drain = async { trigger.start(Duration::from_secs(5)).await };
        let seen = async {
            watch.started().await;
            assert_eq!(begun.elapsed(), Duration::ZERO);
            watch.forced().await;
            assert_eq!(begun.elapsed(), Duration::from_secs(5));
        };
        tokio::join!(drain, seen);
    }

    #[tokio::test]
    async fn a_dropped_trigger_forces() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.forced().await;
        assert!(watch.is_started());
    }
}
