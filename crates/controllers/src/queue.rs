// SPDX-License-Identifier: Apache-2.0
//! Work queues: each key is queued once, worked on by one worker at a time, and tried again with backoff.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use meltemi_runtime::Tasks;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;

const FIRST_RETRY: Duration = Duration::from_millis(10);
/// Longest pause: what failed during an outage of the API is done within this time after it.
const LAST_RETRY: Duration = Duration::from_secs(3);

/// What a reconciliation wants next: nothing, or to be called again after a while.
pub(crate) type Outcome = Result<Option<Duration>, kube::Error>;

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    /// Asked for while running.
    again: HashSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    failures: HashMap<Key, u32>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

/// The queue; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Queue(Arc<Shared>);

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a reconciliation now.
    pub(crate) fn add(&self, key: Key) {
        let mut state = self.state();
        if state.running.contains(&key) {
            state.again.insert(key);
        } else if state.queued.insert(key.clone()) {
            state.ready.push_back(key);
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Asks for a reconciliation later.
    pub(crate) fn add_after(&self, key: Key, after: Duration) {
        self.state().later.insert((Instant::now() + after, key));
        self.0.wake.notify_one();
    }

    /// The next key, or when to look again.
    fn take(&self) -> Result<Key, Option<Instant>> {
        let mut state = self.state();
        let now = Instant::now();
        while let Some((due, _)) = state.later.first() {
            if *due > now {
                break;
            }
            if let Some((_, key)) = state.later.pop_first() {
                if state.running.contains(&key) {
                    state.again.insert(key);
                } else if state.queued.insert(key.clone()) {
                    state.ready.push_back(key);
                }
            }
        }
        match state.ready.pop_front() {
            Some(key) => {
                state.queued.remove(&key);
                state.running.insert(key.clone());
                Ok(key)
            }
            None => Err(state.later.first().map(|(due, _)| *due)),
        }
    }

    fn done(&self, name: &str, key: Key, outcome: Outcome) {
        let mut state = self.state();
        state.running.remove(&key);
        let after = match outcome {
            Ok(after) => {
                state.failures.remove(&key);
                after
            }
            Err(error) => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures += 1;
                let after = FIRST_RETRY.saturating_mul(1 << (*failures - 1).min(16)).min(LAST_RETRY);
                // A conflict is the ordinary way to learn of a change; the first failures may be one, too.
                if *failures > 4 && !is_conflict(&error) {
                    tracing::warn!(controller = name, %key, %error, "reconciliation failed");
                } else {
                    tracing::debug!(controller = name, %key, %error, "reconciliation failed");
                }
                Some(after)
            }
        };
        if state.again.remove(&key) && state.queued.insert(key.clone()) {
            state.ready.push_back(key.clone());
        }
        if let Some(after) = after {
            state.later.insert((Instant::now() + after, key));
        }
    }

    /// Works on the queue with up to `concurrency` keys at a time, once `synced` has resolved.
    pub(crate) fn run<S, F, Fut>(
        &self,
        tasks: &Tasks,
        name: &'static str,
        concurrency: usize,
        synced: S,
        reconcile: F,
    ) where
        S: Future<Output = ()> + Send + 'static,
        F: Fn(Key) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let queue = self.clone();
        let mut drain = tasks.drain();
        tasks.spawn(name, async move {
            tokio::select! {
                () = queue.work(name, concurrency, synced, reconcile) => {}
                () = drain.started() => {}
            }
            Ok::<_, Infallible>(())
        });
    }

    async fn work<S, F, Fut>(&self, name: &str, concurrency: usize, synced: S, reconcile: F)
    where
        S: Future<Output = ()>,
        F: Fn(Key) -> Fut,
        Fut: Future<Output = Outcome>,
    {
        synced.await;
        let mut running = FuturesUnordered::new();
        loop {
            let mut wait = None;
            while running.len() < concurrency {
                match self.take() {
                    Ok(key) => {
                        let work = reconcile(key.clone());
                        running.push(async move { (key, work.await) });
                    }
                    Err(due) => {
                        wait = due;
                        break;
                    }
                }
            }
            let timer = async {
                match wait {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((key, outcome)) = running.next() => self.done(name, key, outcome),
                () = self.0.wake.notified() => {}
                () = timer => {}
            }
        }
    }
}

/// Whether the object has changed since it was read, or exists already.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the object is gone.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Success when the object was gone already.
pub(crate) fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_runs_alone_again_when_asked_and_backs_off() {
        let queue = Queue::default();
        let (runs, inside) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        for _ in 0..3 {
            queue.add(Key::new("a", "x"));
        }
        let reconcile = {
            let (queue, runs, inside) = (queue.clone(), runs.clone(), inside.clone());
            move |key: Key| {
                let (queue, runs, inside) = (queue.clone(), runs.clone(), inside.clone());
                async move {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one worker per key");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    match runs.fetch_add(1, Ordering::SeqCst) {
                        0 => {
                            queue.add(key);
                            Ok(None)
                        }
                        1..=3 => Err(kube::Error::LinesCodecMaxLineLengthExceeded),
                        _ => Ok(None),
                    }
                }
            }
        };
        let work = queue.work("test", 4, async {}, reconcile);
        let _ = tokio::time::timeout(Duration::from_secs(60), work).await;
        assert_eq!(
            runs.load(Ordering::SeqCst),
            5,
            "once for all adds, once for the one inside, three retries"
        );
        assert!(begun.elapsed() >= Duration::from_secs(60));
        assert!(queue.state().failures.is_empty());
    }
}
