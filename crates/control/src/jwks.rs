// SPDX-License-Identifier: Apache-2.0
//! Keys of issuers: fetched by one task, kept, and handed to proxies inside of the rules that need them. Proxies fetch
//! nothing.
//!
//! A set that cannot be fetched again is used for a day (`KEPT`) after the last time that it could be; then it is gone, and
//! proxies refuse every token of its issuer. There are no other keys to fall back to.

mod address;
mod fetch;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meltemi_model::l7::JwtRule;
use meltemi_runtime::Tasks;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use address::Permitted;
pub use fetch::{FetchError, Fetcher};

/// How long a set is used before it is fetched again.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// How long a set is used at most, when it cannot be fetched again.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The pause after a failure; it doubles with each.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Fetches that are under way at once.
const FETCHES: usize = 8;
/// Sets that are kept.
const SETS: usize = 1000;
/// Time for a fetch whose rule names none, and at most.
const TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the keys of an issuer are to be had.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// At this address.
    Keys(Arc<str>),
    /// Where this issuer's discovery document says (OpenID Connect Discovery 1.0 §4).
    Issuer(Arc<str>),
}

impl Source {
    /// Where the keys of a rule are to be fetched; `None` when it holds them, or is for no issuer.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        match (&rule.jwks, &rule.jwks_uri, &rule.issuer) {
            (Some(_), _, _) => None,
            (None, Some(uri), _) => Some(Self::Keys(uri.clone())),
            (None, None, Some(issuer)) => Some(Self::Issuer(issuer.clone())),
            (None, None, None) => None,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keys(uri) => f.write_str(uri),
            Self::Issuer(issuer) => write!(f, "issuer {issuer}"),
        }
    }
}

/// What is known of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys, as JSON.
    pub keys: Option<Arc<str>>,
    /// Why the last fetch brought none; `None` as well before the first has ended.
    pub fault: Option<String>,
}

#[derive(Debug)]
struct Record {
    timeout: Duration,
    keys: Option<Arc<str>>,
    fetched: Instant,
    fault: Option<String>,
    failures: u32,
    next: Instant,
    under_way: bool,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Source, Record>,
    /// Sources over the bound.
    over: BTreeSet<Source>,
}

/// The sets that rules need, and what is known of them; clones share them.
#[derive(Clone, Debug)]
pub struct Keys {
    state: Arc<Mutex<State>>,
    wanted: Arc<Notify>,
    version: Arc<watch::Sender<u64>>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { state: Arc::default(), wanted: Arc::default(), version: Arc::new(watch::channel(0).0) }
    }
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which sets are needed, each with the time that its rules have for a fetch: others are forgotten.
    pub fn want_sets(&self, sources: BTreeMap<Source, Option<Duration>>) {
        let mut state = self.lock();
        state.records.retain(|source, _| sources.contains_key(source));
        state.over.clear();
        let now = Instant::now();
        for (source, timeout) in sources {
            let timeout = timeout.unwrap_or(TIMEOUT).min(LONGEST_TIMEOUT);
            if let Some(known) = state.records.get_mut(&source) {
                known.timeout = timeout;
            } else if state.records.len() >= SETS {
                state.over.insert(source);
            } else {
                let record = Record {
                    timeout,
                    keys: None,
                    fetched: now,
                    fault: None,
                    failures: 0,
                    next: now,
                    under_way: false,
                };
                state.records.insert(source, record);
            }
        }
        drop(state);
        self.wanted.notify_one();
    }

    /// What is known of a set.
    pub fn find_set(&self, source: &Source) -> Found {
        let state = self.lock();
        match state.records.get(source) {
            Some(record) => Found { keys: record.keys.clone(), fault: record.fault.clone() },
            None if state.over.contains(source) => {
                Found { keys: None, fault: Some(format!("more than {SETS} key sets are to be fetched")) }
            }
            None => Found::default(),
        }
    }

    /// Changes when something is known of a set that was not.
    pub fn follow_changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes the sets that are due, at most so many, and says when the next one is.
    fn take_due(&self, now: Instant, most: usize) -> (Vec<(Source, Duration)>, Option<Instant>) {
        let mut state = self.lock();
        let waiting = state.records.iter_mut().filter(|(_, record)| !record.under_way);
        let (mut due, mut next) = (Vec::new(), None);
        for (source, record) in waiting {
            if record.next <= now && due.len() < most {
                record.under_way = true;
                due.push((source.clone(), record.timeout));
            } else {
                next = next.into_iter().chain([record.next]).min();
            }
        }
        (due, next)
    }

    /// Takes the outcome of a fetch.
    fn take_outcome(&self, source: &Source, outcome: Result<String, FetchError>, now: Instant) {
        let mut state = self.lock();
        let Some(record) = state.records.get_mut(source) else { return };
        record.under_way = false;
        let before = (record.keys.clone(), record.fault.clone());
        match outcome {
            Ok(keys) => {
                record.keys = Some(keys.into());
                (record.fetched, record.fault, record.failures) = (now, None, 0);
                record.next = now + REFRESH;
            }
            Err(error) => {
                tracing::warn!(%source, %error, "keys cannot be fetched");
                record.fault = Some(error.to_string());
                let pause = PAUSE.saturating_mul(1 << record.failures.min(16));
                record.failures = record.failures.saturating_add(1);
                record.next = now + pause.min(LONGEST_PAUSE);
                if now.duration_since(record.fetched) >= KEPT {
                    record.keys = None;
                }
            }
        }
        let changed = before != (record.keys.clone(), record.fault.clone());
        drop(state);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

/// Fetches what rules need, as long as they need it.
pub fn start(tasks: &Tasks, keys: Keys, fetcher: Fetcher) {
    let mut drain = tasks.drain();
    let fetcher = Arc::new(fetcher);
    tasks.spawn("keys of issuers", async move {
        let mut fetches = JoinSet::new();
        loop {
            let (due, next) = keys.take_due(Instant::now(), FETCHES.saturating_sub(fetches.len()));
            for (source, timeout) in due {
                let fetcher = fetcher.clone();
                fetches.spawn(async move {
                    let outcome = fetcher.fetch(&source, timeout).await;
                    (source, outcome)
                });
            }
            // One that waits for a place is due when a fetch has ended.
            let next = next.filter(|_| fetches.len() < FETCHES);
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.started() => return Ok::<(), Infallible>(()),
                () = keys.wanted.notified() => {}
                Some(ended) = fetches.join_next() => match ended {
                    Ok((source, outcome)) => keys.take_outcome(&source, outcome, Instant::now()),
                    Err(error) => tracing::error!(%error, "a fetch of keys has ended by itself"),
                },
                () = wait => {}
            }
        }
    });
}

#[cfg(test)]
mod tests;
