// SPDX-License-Identifier: Apache-2.0
//! Activity of a downstream connection: limits for idle connections, stalled readers and early resets.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use meltemi_policy::Revocation;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::limits::{EARLY, Limits, MAX_EARLY_RESETS};

/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// How long an answer may wait for its client once it is no longer allowed. hyper asks a body for more only when the client
/// has room, and only then the body breaks off.
const REVOKED_STALL: Duration = Duration::from_secs(5);

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// No request for [`Limits::idle`]: closed in good order.
    Idle,
    /// An answer of which nothing was taken for [`Limits::stall`], or for [`REVOKED_STALL`] when it is no longer allowed.
    Stalled,
    /// More requests were given up at once than waited for.
    Resets,
}

/// The life signs of one connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    begun: Instant,
    open: AtomicU32,
    total: AtomicU32,
    early: AtomicU32,
    /// When the last request ended, in milliseconds after `begun`.
    last: AtomicU64,
    answers: Mutex<Vec<Weak<Handed>>>,
    too_many: Notify,
}

/// When a part of an answer was handed out that nobody has come back from yet: milliseconds after the connection's begin,
/// and one; 0 while the answer is asked for more.
#[derive(Debug)]
pub(crate) struct Handed {
    at: AtomicU64,
    revocation: Revocation,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    pulse: Arc<Pulse>,
    begun: Instant,
    answered: bool,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            open: AtomicU32::new(0),
            total: AtomicU32::new(0),
            early: AtomicU32::new(0),
            last: AtomicU64::new(0),
            answers: Mutex::default(),
            too_many: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A request begins.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        Ticket { pulse: self.clone(), begun: Instant::now(), answered: false }
    }

    /// An answer whose body is sent, as long as it is permitted.
    pub(crate) fn answer(&self, revocation: Revocation) -> Arc<Handed> {
        let handed = Arc::new(Handed { at: AtomicU64::new(0), revocation });
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|a| a.strong_count() > 0);
        answers.push(Arc::downgrade(&handed));
        handed
    }

    /// A part of an answer is handed out, or (false) asked for.
    pub(crate) fn hand(&self, handed: &Handed, out: bool) {
        handed.at.store(if out { self.now() + 1 } else { 0 }, Ordering::Relaxed);
    }

    /// Whether a request is under way.
    pub(crate) fn busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    fn look(&self, limits: &Limits, crowded: bool) -> Option<Ending> {
        let now = self.now();
        let over = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) >= limit.as_millis();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|a| a.strong_count() > 0);
        let stalled = |handed: Arc<Handed>| {
            let since = handed.at.load(Ordering::Relaxed);
            let limit = if since > 0 && handed.revocation.has_come() { REVOKED_STALL } else { limits.stall };
            since > 0 && over(since - 1, limit.min(limits.stall))
        };
        if answers.iter().filter_map(Weak::upgrade).any(stalled) {
            return Some(Ending::Stalled);
        }
        let limit = if crowded { limits.head.min(limits.idle) } else { limits.idle };
        let idle = !self.busy() && answers.is_empty() && over(self.last.load(Ordering::Relaxed), limit);
        idle.then_some(Ending::Idle)
    }

    /// Resolves when the connection has to end. While it is `crowded`, idle connections give way to others sooner: after
    /// [`Limits::head`].
    pub(crate) async fn ending(&self, limits: &Limits, crowded: impl Fn() -> bool) -> Ending {
        let look = LOOK.min(limits.idle / 4).min(limits.stall / 4).max(Duration::from_millis(10));
        loop {
            tokio::select! {
                () = self.too_many.notified() => return Ending::Resets,
                () = tokio::time::sleep(look) => {
                    if let Some(ending) = self.look(limits, crowded()) {
                        return ending;
                    }
                }
            }
        }
    }
}

impl Ticket {
    /// The request is answered: what the client does now is no longer giving it up.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let pulse = &self.pulse;
        pulse.last.store(pulse.now(), Ordering::Relaxed);
        pulse.open.fetch_sub(1, Ordering::Relaxed);
        if !self.answered && self.begun.elapsed() < EARLY {
            let early = pulse.early.fetch_add(1, Ordering::Relaxed) + 1;
            if early >= MAX_EARLY_RESETS && early > pulse.total.load(Ordering::Relaxed) / 2 {
                pulse.too_many.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use meltemi_policy::{Facts, Permit, PolicySet, Revoker, admit};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_idle_and_not_while_a_request_is_open() {
        let limits = Limits::default();
        let pulse = Pulse::new();
        let ticket = pulse.ticket();
        let none = tokio::time::timeout(limits.idle * 3, pulse.ending(&limits, || false)).await;
        assert!(none.is_err());
        ticket.answered();
        let begun = Instant::now();
        assert_eq!(pulse.ending(&limits, || false).await, Ending::Idle);
        assert!(
            begun.elapsed() >= limits.idle && begun.elapsed() <= limits.idle + LOOK,
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_gives_way_when_it_is_crowded() {
        let (limits, begun) = (Limits::default(), Instant::now());
        assert_eq!(Pulse::new().ending(&limits, || true).await, Ending::Idle);
        assert!(
            begun.elapsed() >= limits.head && begun.elapsed() <= limits.head + LOOK,
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_ends_the_connection_and_a_silent_backend_does_not() {
        let limits = Limits::default();
        let pulse = Pulse::new();
        let (permit, _revoker) = permit();
        let handed = pulse.answer(permit.revocation());
        pulse.hand(&handed, false);
        assert!(tokio::time::timeout(limits.stall * 3, pulse.ending(&limits, || false)).await.is_err());
        pulse.hand(&handed, true);
        assert_eq!(pulse.ending(&limits, || false).await, Ending::Stalled);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_ends_soon_after_it_is_no_longer_allowed() {
        let limits = Limits::default();
        let (pulse, (permit, revoker)) = (Pulse::new(), permit());
        let handed = pulse.answer(permit.revocation());
        pulse.hand(&handed, true);
        tokio::time::sleep(limits.stall / 2).await;
        let begun = Instant::now();
        revoker.revoke("policy change");
        assert_eq!(pulse.ending(&limits, || false).await, Ending::Stalled);
        assert!(begun.elapsed() <= LOOK + REVOKED_STALL, "{:?}", begun.elapsed());
    }

    fn permit() -> (Permit, Revoker) {
        let nowhere = IpAddr::from([0, 0, 0, 0]);
        let facts = Facts {
            source: None,
            source_ip: nowhere,
            destination_ip: nowhere,
            destination_port: 1,
            sni: None,
            http: None,
        };
        admit(&PolicySet::default(), &facts, 0).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_given_up_at_once_end_the_connection_and_some_among_many_do_not() {
        let limits = Limits::default();
        let pulse = Pulse::new();
        for n in 0..MAX_EARLY_RESETS * 3 {
            let ticket = pulse.ticket();
            if n % 3 > 0 {
                ticket.answered();
            }
        }
        assert!(tokio::time::timeout(Duration::from_secs(1), pulse.ending(&limits, || false)).await.is_err());
        let pulse = Pulse::new();
        (0..MAX_EARLY_RESETS).for_each(|_| drop(pulse.ticket()));
        assert_eq!(pulse.ending(&limits, || false).await, Ending::Resets);
    }
}
