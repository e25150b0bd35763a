// SPDX-License-Identifier: Apache-2.0
//! Retry: how often, how soon and how many at a time. Only what no application has got is tried again, as by the default of
//! Istio's waypoints (`reset-before-request`), or what it may get twice (RFC 9110 §9.2.2).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::served::BackendRef;

/// Attempts for one request, the first included.
pub(crate) const ATTEMPTS: u32 = 3;
/// Longest pause before the second attempt; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(25);
/// Of the requests to a service that wait for an answer, one in so many may be a retry.
const SHARE: usize = 5;
/// Retries that a service may have under way however few its requests are.
const MIN_RETRIES: usize = 32;
/// Services whose budgets are kept, until those without requests are dropped.
const MAX_BUDGETS: usize = 1024;

/// A pause of random length before an attempt, so that requests that failed together do not come back together.
pub(crate) fn pause(attempt: u32) -> Duration {
    let longest = PAUSE * (1 << attempt.saturating_sub(1).min(8));
    longest.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// The budgets of all services.
#[derive(Debug, Default)]
pub(crate) struct Budgets(RwLock<HashMap<BackendRef, Arc<Budget>>>);

/// Retries of a service are bounded by its requests: one that fails as a whole does not get three times as many.
#[derive(Debug, Default)]
struct Budget {
    requests: AtomicUsize,
    retries: AtomicUsize,
}

/// A request that waits for its answer; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Budget>);

/// A retry under way; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Retry(Arc<Budget>);

impl Budgets {
    /// Counts a request to a service.
    pub(crate) fn enter(&self, service: &BackendRef) -> Waiting {
        // All that a request does, but for the first one to a service.
        if let Some(budget) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(service) {
            return Waiting::new(budget.clone());
        }
        let mut budgets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= MAX_BUDGETS {
            budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
        }
        Waiting::new(budgets.entry(service.clone()).or_default().clone())
    }
}

impl Waiting {
    fn new(budget: Arc<Budget>) -> Self {
        budget.requests.fetch_add(1, Ordering::Relaxed);
        Self(budget)
    }

    /// Counts a retry of this request; `None` when too many are under way.
    pub(crate) fn retry(&self) -> Option<Retry> {
        let budget = &self.0;
        let limit = (budget.requests.load(Ordering::Relaxed) / SHARE).max(MIN_RETRIES);
        let retry = Retry(budget.clone());
        (budget.retries.fetch_add(1, Ordering::Relaxed) < limit).then_some(retry)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedHostname;

    use super::*;

    #[test]
    fn retries_are_a_share_of_the_requests_of_their_service() {
        let budgets = Budgets::default();
        let service = |n: usize| {
            BackendRef::Service(
                NamespacedHostname::new("default", format!("s{n}.default.svc.cluster.local")),
                80,
            )
        };
        let few = budgets.enter(&service(1));
        let held: Vec<_> = (0..MIN_RETRIES).map(|_| few.retry().unwrap()).collect();
        assert!(few.retry().is_none() && few.retry().is_none());
        assert!(budgets.enter(&service(2)).retry().is_some(), "another service has its own");
        drop(held);
        assert!(few.retry().is_some(), "what has ended is not counted");
        let many: Vec<_> = (0..MIN_RETRIES * SHARE * 2).map(|_| budgets.enter(&service(1))).collect();
        let held: Vec<_> = std::iter::from_fn(|| many[0].retry()).collect();
        assert_eq!(held.len(), (many.len() + 1) / SHARE);
    }

    #[test]
    fn services_without_requests_are_forgotten() {
        let budgets = Budgets::default();
        let service = |n: usize| {
            BackendRef::Service(
                NamespacedHostname::new("default", format!("s{n}.default.svc.cluster.local")),
                80,
            )
        };
        let waiting = budgets.enter(&service(0));
        for n in 1..MAX_BUDGETS * 3 {
            drop(budgets.enter(&service(n)));
        }
        assert!(budgets.0.read().unwrap().len() <= MAX_BUDGETS);
        let held: Vec<_> = std::iter::from_fn(|| waiting.retry()).collect();
        assert!(
            budgets.enter(&service(0)).retry().is_none() && held.len() == MIN_RETRIES,
            "its budget is kept"
        );
    }

    #[test]
    fn pauses_grow_and_differ() {
        for attempt in 1..4 {
            let longest = PAUSE * (1 << (attempt - 1));
            let pauses: Vec<_> = (0..20).map(|_| pause(attempt)).collect();
            assert!(pauses.iter().all(|p| *p >= longest / 2 && *p <= longest), "{pauses:?}");
            assert!(pauses.iter().any(|p| *p != pauses[0]), "{pauses:?}");
        }
    }
}
