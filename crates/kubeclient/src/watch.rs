// SPDX-License-Identifier: Apache-2.0
//! Watches that reconnect quickly, and the record of which of them are behind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use meltemi_runtime::backoff::Backoff;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// First pause after a failed watch; doubled each time.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause. An API that is back is noticed within this time.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Each pause is longer by up to this share of it, so that watches do not reconnect in step.
const JITTER: f64 = 0.2;

/// A failed watch that has not failed again for this long follows again: an attempt takes 3 s at most until it fails.
const QUIET: Duration = Duration::from_secs(6);

/// Annotation of a component's Lease: how many watches of the API it has.
pub const WATCHES: &str = "meltemi.dev/watches";
/// Annotation of a component's Lease: the watches that are behind, each with its reason; empty when none is.
pub const BEHIND: &str = "meltemi.dev/behind";
/// Longest value of [`BEHIND`], in bytes.
const MAX_ANNOTATION: usize = 1024;

/// Pauses between attempts of a watch: from `MIN_PAUSE` to `MAX_PAUSE`.
#[derive(Clone, Debug)]
pub struct WatchBackoff(Backoff);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(Backoff::new(MIN_PAUSE, MAX_PAUSE))
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.mul_f64(1.0 + rand::random::<f64>() * JITTER))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// How a watch stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It follows the API.
    Current,
    /// It has not listed its objects yet, or lists them again after it lost its place.
    Listing(Instant),
    /// Attempts failed: since when, when the last one did, and why. That an attempt succeeded shows only with the next change,
    /// so a watch counts as current again when it has not failed for [`QUIET`].
    Failed { since: Instant, last: Instant, error: String },
}

impl State {
    fn is_healed(&self, now: Instant) -> bool {
        matches!(self, Self::Failed { last, .. } if now.saturating_duration_since(*last) > QUIET)
    }
}

/// The watches of a process and how each stands; clones share the record.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<Mutex<BTreeMap<String, State>>>);

impl Watches {
    /// Follows the objects of an API for ever. An error is not the end of the stream: it reconnects after [`WatchBackoff`], and
    /// lists again where it lost its place. `name` is what the record calls it.
    pub fn follow<K>(
        &self,
        name: &str,
        api: Api<K>,
        config: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let (name, watches) = (name.to_owned(), self.clone());
        watches.states().insert(name.clone(), State::Listing(Instant::now()));
        StreamBackoff::new(watcher::watcher(api, config), WatchBackoff::default())
            .inspect(move |event| watches.record(&name, event))
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record<K>(&self, name: &str, event: &watcher::Result<Event<K>>) {
        let mut states = self.states();
        let Some(state) = states.get_mut(name) else { return };
        match (event, &*state) {
            (Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone), _) => *state = State::Current,
            // The time of the first failure counts: that is how long it has been behind.
            (Ok(Event::Init | Event::InitApply(_)), State::Listing(_) | State::Failed { .. }) => {}
            (Ok(Event::Init | Event::InitApply(_)), State::Current) => {
                *state = State::Listing(Instant::now())
            }
            (Err(error), known) => {
                let last = Instant::now();
                let since = match known {
                    State::Listing(since) => *since,
                    State::Failed { since, .. } if !known.is_healed(last) => *since,
                    State::Failed { .. } | State::Current => last,
                };
                *state = State::Failed { since, last, error: error.to_string() };
            }
        }
    }

    /// Takes a watch out of the record: its stream is dropped, or about to be.
    pub fn forget(&self, name: &str) {
        self.states().remove(name);
    }

    /// How many watches there are.
    pub fn count(&self) -> usize {
        self.states().len()
    }

    /// The record as annotations of a Lease: how many watches there are, and those that are behind.
    pub fn annotations(&self, now: Instant) -> BTreeMap<String, String> {
        let mut behind = self.behind(now).join("; ");
        behind.truncate(behind.floor_char_boundary(MAX_ANNOTATION));
        [(WATCHES.to_owned(), self.count().to_string()), (BEHIND.to_owned(), behind)].into()
    }

    /// The watches that do not follow the API now: each with its name, for how long, and the last error if there was one.
    pub fn behind(&self, now: Instant) -> Vec<String> {
        let say = |(name, state): (&String, &State)| match state {
            State::Current => None,
            State::Listing(since) => {
                Some(format!("{name}: listing for {} s", now.duration_since(*since).as_secs()))
            }
            State::Failed { .. } if state.is_healed(now) => None,
            State::Failed { since, error, .. } => {
                Some(format!("{name}: {error} (for {} s)", now.duration_since(*since).as_secs()))
            }
        };
        self.states().iter().filter_map(say).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_begin_anew_after_success() {
        let mut backoff = WatchBackoff::default();
        let pauses: Vec<Duration> = backoff.by_ref().take(12).collect();
        assert!(pauses[0] >= MIN_PAUSE && pauses[0] < MIN_PAUSE * 2, "{pauses:?}");
        assert!(pauses.iter().all(|p| *p <= MAX_PAUSE.mul_f64(1.0 + JITTER)), "{pauses:?}");
        assert!(pauses[11] >= MAX_PAUSE, "{pauses:?}");
        kube::runtime::utils::Backoff::reset(&mut backoff);
        assert!(backoff.next().is_some_and(|p| p < MIN_PAUSE * 2));
    }

    #[test]
    fn a_watch_is_behind_from_its_first_failure_until_it_follows_again() {
        let watches = Watches::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        watches.states().insert("pods".into(), State::Listing(begun));
        assert_eq!(watches.behind(at(3)), ["pods: listing for 3 s"]);
        watches.record::<()>("pods", &Ok(Event::InitDone));
        assert!(watches.behind(at(3)).is_empty());
        watches
            .states()
            .insert("pods".into(), State::Failed { since: begun, last: begun, error: "refused".into() });
        watches.record::<()>("pods", &Err(watcher::Error::NoResourceVersion));
        watches.record::<()>("pods", &Ok(Event::Init));
        let behind = watches.behind(at(5));
        assert!(behind.len() == 1 && behind[0].ends_with("(for 5 s)"), "{behind:?}");
        assert!(watches.behind(at(60)).is_empty(), "no failure for long: it follows, and nothing changes");
        watches.record("pods", &Ok(Event::Apply(())));
        assert!(watches.behind(at(5)).is_empty());
        assert_eq!(watches.count(), 1);
    }
}
