// SPDX-License-Identifier: Apache-2.0
//! The registry of open connections and requests: everything that holds a permit, judged again with every change.
//!
//! Register, then check: an entry is in the registry before its first judgement reads the state, so that no change falls
//! between. An entry leaves when its guard is dropped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meltemi_model::WorkloadUid;
use meltemi_policy::{Permit, Revoker};

use crate::denial::Denial;

/// How long something may wait for a policy that it needs and that is not known yet.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Entries at most; more are refused.
const BOUND: usize = 200_000;
/// Parts of the registry, each with a lock of its own: every connection and request takes one twice, on every core.
const PARTS: u64 = 64;

type Judge<S> = Arc<dyn Fn(&S) -> Result<(Permit, Revoker), Denial> + Send + Sync>;

/// What a message of the control plane has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Anything.
    All,
    /// Only these workloads (by uid) and Services (by `<namespace>/<hostname>`).
    Addresses(HashSet<String>),
}

/// What the verdict on an entry depends on, beside the policies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DependsOn {
    Everything,
    Workload(WorkloadUid),
}

struct Entry<S> {
    judge: Judge<S>,
    depends_on: DependsOn,
    revoker: Option<Revoker>,
    /// Why a newer state denied this entry while its first judgement, on an older one, was still running.
    overtaken: Option<String>,
    /// Undecided since this look of the clock.
    undecided: Option<tokio::time::Instant>,
    label: Arc<str>,
}

type Part<S> = Mutex<HashMap<u64, Entry<S>>>;

struct Shared<S> {
    parts: Vec<Part<S>>,
    next: AtomicU64,
    /// Of all parts together; for the bound.
    open: AtomicUsize,
    bound: usize,
}

impl<S> Shared<S> {
    fn lock(part: &Part<S>) -> MutexGuard<'_, HashMap<u64, Entry<S>>> {
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part that holds an entry.
    fn part_of(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Entry<S>>> {
        let index = usize::try_from(id % PARTS).unwrap_or_default();
        Self::lock(&self.parts[index])
    }

    /// All parts, one after the other.
    fn each(&self) -> impl Iterator<Item = MutexGuard<'_, HashMap<u64, Entry<S>>>> {
        self.parts.iter().map(Self::lock)
    }
}

/// Open connections; clones share them.
pub struct Registry<S>(Arc<Shared<S>>);

impl<S> Clone for Registry<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> std::fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("open", &self.len()).finish()
    }
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self::with_bound(BOUND)
    }
}

impl<S> Registry<S> {
    fn with_bound(bound: usize) -> Self {
        let parts = (0..PARTS).map(|_| Part::default()).collect();
        Self(Arc::new(Shared { parts, next: AtomicU64::default(), open: AtomicUsize::default(), bound }))
    }
}

/// Keeps an entry in the registry.
pub struct Guard(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        std::mem::replace(&mut self.0, Box::new(|| ()))();
    }
}

impl<S: Send + Sync + 'static> Registry<S> {
    /// Registers, judges by the state that `load` gives afterwards, and keeps watching: with every change.
    ///
    /// # Errors
    /// The denial, or that too much is open.
    pub fn open(
        &self,
        label: Arc<str>,
        load: impl FnOnce() -> Arc<S>,
        judge: impl Fn(&S) -> Result<(Permit, Revoker), Denial> + Send + Sync + 'static,
    ) -> Result<(Permit, Guard), Denial> {
        self.register(label, DependsOn::Everything, load, Arc::new(judge))
    }

    /// As [`Registry::open`], of something whose verdict depends on the policies and on one workload: other addresses that
    /// change leave it alone.
    ///
    /// # Errors
    /// The denial, or that too much is open.
    pub fn open_to_workload(
        &self,
        workload: WorkloadUid,
        label: Arc<str>,
        load: impl FnOnce() -> Arc<S>,
        judge: impl Fn(&S) -> Result<(Permit, Revoker), Denial> + Send + Sync + 'static,
    ) -> Result<(Permit, Guard), Denial> {
        self.register(label, DependsOn::Workload(workload), load, Arc::new(judge))
    }

    fn register(
        &self,
        label: Arc<str>,
        depends_on: DependsOn,
        load: impl FnOnce() -> Arc<S>,
        judge: Judge<S>,
    ) -> Result<(Permit, Guard), Denial> {
        let shared = &self.0;
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        if shared.open.fetch_add(1, Ordering::Relaxed) >= shared.bound {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Denial::OverCapacity { limit: shared.bound });
        }
        let entry = Entry {
            judge: judge.clone(),
            depends_on,
            revoker: None,
            overtaken: None,
            undecided: None,
            label,
        };
        shared.part_of(id).insert(id, entry);
        let all = shared.clone();
        let guard = Guard(Box::new(move || {
            all.part_of(id).remove(&id);
            all.open.fetch_sub(1, Ordering::Relaxed);
        }));
        let (permit, revoker) = judge(&load())?;
        if let Some(entry) = shared.part_of(id).get_mut(&id) {
            if let Some(reason) = entry.overtaken.take() {
                revoker.revoke(reason);
            }
            entry.revoker = Some(revoker);
        }
        Ok((permit, guard))
    }

    /// Judges again what `changes` may have touched, and what is undecided; takes back what is denied now. What is undecided
    /// keeps its verdict for [`PATIENCE`]. Returns how many were taken back.
    ///
    /// One part of the registry is locked at a time: who registers in another one meanwhile reads the new state.
    pub fn judge_again(&self, state: &S, changes: &Changes) -> usize {
        let now = tokio::time::Instant::now();
        self.0.each().map(|mut part| judge_part(&mut part, state, changes, now)).sum()
    }

    /// As [`Registry::judge_again`], and lets other tasks run between the parts: with ten thousand open it takes long.
    pub async fn judge_again_in_parts(&self, state: &S, changes: &Changes) -> usize {
        let (now, mut revoked) = (tokio::time::Instant::now(), 0);
        for part in &self.0.parts {
            let is_empty = {
                let mut part = Shared::<S>::lock(part);
                revoked += judge_part(&mut part, state, changes, now);
                part.is_empty()
            };
            if !is_empty {
                tokio::task::yield_now().await;
            }
        }
        revoked
    }

    /// Whether something waits for a policy that is not known.
    pub fn has_undecided(&self) -> bool {
        self.0.each().any(|part| part.values().any(|e| e.undecided.is_some()))
    }
}

/// Judges again what is in one part; how much was taken back.
fn judge_part<S>(
    part: &mut HashMap<u64, Entry<S>>,
    state: &S,
    changes: &Changes,
    now: tokio::time::Instant,
) -> usize {
    let touched = part.values_mut().filter(|entry| entry.is_touched(changes));
    touched.map(|entry| entry.judge_again(state, now)).filter(|revoked| *revoked).count()
}

impl<S> Entry<S> {
    fn is_touched(&self, changes: &Changes) -> bool {
        match (changes, &self.depends_on) {
            (Changes::All, _) | (_, DependsOn::Everything) => true,
            (Changes::Addresses(names), DependsOn::Workload(uid)) => {
                self.undecided.is_some() || names.contains(&*uid.0)
            }
        }
    }

    /// Judges again; whether it was taken back.
    fn judge_again(&mut self, state: &S, now: tokio::time::Instant) -> bool {
        let denial = match (self.judge)(state) {
            Ok(_) => {
                (self.undecided, self.overtaken) = (None, None);
                return false;
            }
            Err(denial) => denial,
        };
        if denial.is_transient() && now.duration_since(*self.undecided.get_or_insert(now)) < PATIENCE {
            return false;
        }
        let reason = format!("connection closed due to policy change: {denial}");
        match &self.revoker {
            Some(revoker) => revoker.revoke(reason),
            None => self.overtaken = Some(reason),
        }
        true
    }
}

impl<S> Registry<S> {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of what is open, sorted.
    pub fn labels(&self) -> Vec<Arc<str>> {
        let mut labels: Vec<_> = self
            .0
            .each()
            .flat_map(|part| part.values().map(|e| e.label.clone()).collect::<Vec<_>>())
            .collect();
        labels.sort();
        labels
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use meltemi_policy::{Facts, PolicySet, admit};

    use super::*;

    /// Judges by a state that is simply whether it is allowed.
    fn judge(allowed: &bool) -> Result<(Permit, Revoker), Denial> {
        let nowhere = IpAddr::from([0, 0, 0, 0]);
        let facts = Facts {
            source: None,
            source_ip: nowhere,
            destination_ip: nowhere,
            destination_port: 1,
            sni: None,
            http: None,
        };
        let no = || Denial::Ambiguous { reason: "no" };
        if *allowed { admit(&PolicySet::default(), &facts, 0).map_err(|_| no()) } else { Err(no()) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_first_judgement_is_not_missed() {
        let registry = Registry::<bool>::default();
        let other = registry.clone();
        // The old state is read; before the verdict is noted the new one is published and judged by.
        let read = move || {
            other.judge_again(&false, &Changes::All);
            Arc::new(true)
        };
        let (permit, _guard) = registry.open("x".into(), read, judge).unwrap();
        let revoked = tokio::time::timeout(Duration::from_secs(1), permit.revoked()).await;
        assert!(revoked.is_ok_and(|reason| reason.contains("policy change")));
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_denied_is_taken_back() {
        let registry = Registry::<bool>::default();
        let (permit, guard) = registry.open("x".into(), || Arc::new(true), judge).unwrap();
        assert_eq!(registry.judge_again(&true, &Changes::All), 0);
        assert!(tokio::time::timeout(Duration::from_secs(1), permit.revoked()).await.is_err());
        assert_eq!(registry.judge_again(&false, &Changes::All), 1);
        assert!(permit.revoked().await.contains("no"));
        drop(guard);
        assert!(registry.is_empty() && registry.open("y".into(), || Arc::new(false), judge).is_err());
        let many: Vec<_> =
            (0..1000).map(|_| registry.open("z".into(), || Arc::new(true), judge).unwrap()).collect();
        assert_eq!(registry.judge_again_in_parts(&true, &Changes::All).await, 0);
        assert_eq!(registry.judge_again_in_parts(&false, &Changes::All).await, many.len());
    }

    #[tokio::test]
    async fn what_is_over_the_bound_is_denied_and_what_is_open_goes_on() {
        let registry = Registry::<bool>::with_bound(100);
        let open = || registry.open("x".into(), || Arc::new(true), judge);
        let mut held: Vec<_> = (0..100).map(|_| open().unwrap()).collect();
        for _ in 0..3 {
            assert_eq!(open().unwrap_err().to_string(), "100 connections are open");
        }
        assert_eq!(registry.len(), 100);
        drop(held.pop());
        held.push(open().expect("room for one"));
        assert!(open().is_err());
        assert_eq!(registry.judge_again(&false, &Changes::All), 100, "all of them are still judged");
        drop(held);
        // What is denied takes no place.
        assert!((0..200).all(|_| registry.open("x".into(), || Arc::new(false), judge).is_err()));
        assert!(open().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_other_addresses_judges_nothing_again() {
        let registry = Registry::<bool>::default();
        let uid = WorkloadUid::pod("Kubernetes", "ns", "mine");
        let addresses = |name: &str| Changes::Addresses(HashSet::from([name.to_owned()]));
        let own = addresses(&uid.0);
        let workload = registry.open_to_workload(uid, "w".into(), || Arc::new(true), judge).unwrap();
        let everything = registry.open("e".into(), || Arc::new(true), judge).unwrap();
        assert_eq!(registry.judge_again(&false, &addresses("ns/other.example")), 1, "only what may read it");
        assert!(everything.0.revoked().await.contains("no"));
        drop(everything);
        assert_eq!(registry.judge_again(&false, &own), 1);
        assert!(workload.0.revoked().await.contains("no"));
        assert_eq!(registry.labels(), [Arc::from("w")]);
    }

    #[tokio::test]
    async fn what_many_cores_open_and_close_is_counted_and_no_change_is_missed() {
        use std::sync::atomic::AtomicBool;
        let (registry, allowed) = (Registry::<bool>::default(), Arc::new(AtomicBool::new(true)));
        let open = |registry: Registry<bool>, allowed: Arc<AtomicBool>| {
            let load = move || Arc::new(allowed.load(Ordering::SeqCst));
            registry.open("x".into(), load, judge)
        };
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (registry, allowed) = (registry.clone(), allowed.clone());
                std::thread::spawn(move || {
                    let opened = (0..500).filter_map(|_| open(registry.clone(), allowed.clone()).ok());
                    opened.collect::<Vec<_>>()
                })
            })
            .collect();
        allowed.store(false, Ordering::SeqCst);
        registry.judge_again(&false, &Changes::All);
        let held: Vec<_> = workers.into_iter().flat_map(|w| w.join().expect("a worker")).collect();
        assert_eq!(registry.len(), held.len());
        for (permit, _) in &held {
            let revoked = tokio::time::timeout(Duration::from_secs(5), permit.revoked()).await;
            assert!(revoked.is_ok(), "allowed by a state that is over");
        }
        drop(held);
        assert!(registry.is_empty() && registry.labels().is_empty());
    }
}
