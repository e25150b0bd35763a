// SPDX-License-Identifier: Apache-2.0
//! Balance: the endpoint of a service for a request. Of two that are drawn the one with fewer requests under way, and none
//! that keeps failing while there are others (outlier ejection).

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use meltemi_state::Route;
use tokio::time::Instant;

use crate::context::Context;
use crate::forward::{Unreached, host, pool_key, resolve};
use crate::metrics::ResponseFlag;
use crate::pool::HttpVersion;
use crate::served::BackendRef;

/// Endpoints that are drawn at most until one is found that neither was tried nor is ejected. When nearly all are ejected,
/// draws run out and ejected ones get their part: they may be better than nothing.
const DRAWS: u32 = 16;
/// Failures in a row after which an endpoint is ejected.
const MAX_FAILURES: u32 = 5;
/// Duration of the first ejection; each further one is longer by as much.
const EJECTION: Duration = Duration::from_secs(30);
/// Longest ejection; an endpoint that does not fail for as long after one begins anew.
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Endpoints whose failures are remembered, until those that are not ejected are forgotten.
const MAX_HOSTS: usize = 4096;

/// Chooses an endpoint of a service, preferably none of `tried`. `version` is that of the connection; `None` for TCP, whose
/// connections are not compared.
///
/// # Errors
/// `UH`: there is none.
pub(crate) fn choose_endpoint(
    context: &Context,
    backend: &BackendRef,
    version: Option<HttpVersion>,
    tried: &[SocketAddr],
) -> Result<Route, Unreached> {
    let (now, total) = (Instant::now(), Cell::new(0));
    let random = |n: u32| {
        total.set(n);
        rand::random::<u32>() % n
    };
    let mut first: Option<(usize, Route)> = None;
    // Whether it was tried, too.
    let mut spare: Option<(bool, Route)> = None;
    for _ in 0..DRAWS {
        let route = resolve(context, backend, &mut { random })?;
        // The draw is by capacity: there is nothing to choose from one.
        if total.get() <= 1 {
            return Ok(route);
        }
        let is_tried = tried.contains(&host(&route));
        if is_tried || context.outliers.is_ejected(host(&route), now) {
            if spare.as_ref().is_none_or(|(was_tried, _)| *was_tried && !is_tried) {
                spare = Some((is_tried, route));
            }
            continue;
        }
        let Some(version) = version else { return Ok(route) };
        let load = context.upstreams.load(&pool_key(&route, version));
        match first.take() {
            Some((least, other)) => return Ok(if load < least { route } else { other }),
            None => first = Some((load, route)),
        }
    }
    let none = || Unreached {
        flag: ResponseFlag::NoHealthyUpstream,
        reason: format!("{backend:?} has no endpoint"),
    };
    first.map(|(_, route)| route).or(spare.map(|(_, route)| route)).ok_or_else(none)
}

/// Whether an answer says that the endpoint could not do its work; other statuses are the application's.
pub(crate) fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// What is known of endpoints that have failed.
#[derive(Debug, Default)]
pub(crate) struct Outliers {
    hosts: Mutex<HashMap<SocketAddr, Health>>,
    /// How many there are: while nothing fails, no request asks for the lock.
    known: AtomicUsize,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
struct Health {
    /// In a row.
    failures: u32,
    /// How often it was ejected.
    ejections: u32,
    /// The end of its last ejection.
    until: Option<Instant>,
}

impl Health {
    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Outliers {
    fn hosts(&self) -> MutexGuard<'_, HashMap<SocketAddr, Health>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ejected(&self, host: SocketAddr, now: Instant) -> bool {
        self.known.load(Ordering::Relaxed) > 0
            && self.hosts().get(&host).is_some_and(|health| health.is_ejected(now))
    }

    /// Takes down how an exchange with an endpoint has ended, or a connection to it. Returns the duration of the ejection
    /// that begins by it.
    pub(crate) fn report(&self, host: SocketAddr, succeeded: bool, now: Instant) -> Option<Duration> {
        if succeeded && self.known.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut hosts = self.hosts();
        if succeeded {
            let health = hosts.get_mut(&host)?;
            health.failures = 0;
            if health.until.is_none_or(|until| now >= until + MAX_EJECTION) {
                hosts.remove(&host);
                self.known.store(hosts.len(), Ordering::Relaxed);
            }
            return None;
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, health| health.is_ejected(now));
        }
        hosts.entry(host).or_default();
        self.known.store(hosts.len(), Ordering::Relaxed);
        let health = hosts.get_mut(&host)?;
        // What was under way when it was ejected does not count again.
        if health.is_ejected(now) {
            return None;
        }
        health.failures += 1;
        if health.failures < MAX_FAILURES {
            return None;
        }
        (health.failures, health.ejections) = (0, health.ejections.saturating_add(1));
        let duration = EJECTION.saturating_mul(health.ejections).min(MAX_EJECTION);
        health.until = Some(now + duration);
        Some(duration)
    }
}

impl Context {
    /// Takes down how an exchange with an endpoint has ended, and tells when that ejects it.
    pub(crate) fn report_endpoint(&self, host: SocketAddr, succeeded: bool) {
        if let Some(duration) = self.outliers.report(host, succeeded, Instant::now()) {
            self.metrics.ejected();
            tracing::warn!(
                endpoint = %host, seconds = duration.as_secs(), failures = MAX_FAILURES,
                "endpoint ejected: it fails again and again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn fail(outliers: &Outliers, times: u32, now: Instant) -> Option<Duration> {
        (0..times).filter_map(|_| outliers.report(address(1), false, now)).last()
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_them_does_not() {
        let (outliers, now) = (Outliers::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(fail(&outliers, MAX_FAILURES - 1, now), None);
            outliers.report(address(1), true, now);
        }
        assert!(outliers.hosts().is_empty(), "what succeeds is forgotten");
        assert_eq!(fail(&outliers, MAX_FAILURES, now), Some(EJECTION));
        assert!(outliers.is_ejected(address(1), now) && !outliers.is_ejected(address(2), now));
        // What was under way does not make it longer, nor shorter.
        assert_eq!(fail(&outliers, 100, now), None);
        outliers.report(address(1), true, now);
        assert!(outliers.is_ejected(address(1), now + EJECTION - Duration::from_millis(1)));
        assert!(!outliers.is_ejected(address(1), now + EJECTION));
    }

    #[test]
    fn an_endpoint_that_fails_again_is_ejected_for_longer_up_to_a_bound() {
        let (outliers, mut now) = (Outliers::default(), Instant::now());
        for n in 1..20 {
            let duration = fail(&outliers, MAX_FAILURES, now).unwrap();
            assert_eq!(duration, (EJECTION * n).min(MAX_EJECTION));
            now += duration;
        }
        outliers.report(address(1), true, now + MAX_EJECTION);
        assert_eq!(fail(&outliers, MAX_FAILURES, now + MAX_EJECTION), Some(EJECTION));
    }

    #[test]
    fn endpoints_that_failed_once_are_not_remembered_without_bound() {
        let (outliers, now) = (Outliers::default(), Instant::now());
        fail(&outliers, MAX_FAILURES, now);
        for n in 0..20_000 {
            outliers.report(address(n), false, now);
        }
        assert!(outliers.hosts().len() <= MAX_HOSTS);
        assert!(outliers.is_ejected(address(1), now));
    }
}
