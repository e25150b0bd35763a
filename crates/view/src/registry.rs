// SPDX-License-Identifier: Apache-2.0
//! The registry of open connections and requests: everything that holds a permit, judged again with every change.
//!
//! Register, then check: an entry is in the registry before its first judgement reads the state, so that no change falls
//! between. An entry leaves when its guard is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meltemi_policy::{Permit, Revoker};

use crate::denied::Denied;

/// How long something may wait for a policy that it needs and that is not known yet.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Entries at most; more are refused.
const BOUND: usize = 200_000;

type Judge<S> = Arc<dyn Fn(&S) -> Result<(Permit, Revoker), Denied> + Send + Sync>;

struct Entry<S> {
    judge: Judge<S>,
    revoker: Option<Revoker>,
    /// Denied by a newer state than the one that its first judgement read, which is still under way.
    overtaken: Option<String>,
    /// Undecided since this look of the clock.
    undecided: Option<tokio::time::Instant>,
    label: Arc<str>,
}

/// Open connections; clones share them.
pub struct Registry<S> {
    entries: Arc<Mutex<HashMap<u64, Entry<S>>>>,
    next: Arc<AtomicU64>,
}

impl<S> Clone for Registry<S> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), next: self.next.clone() }
    }
}

impl<S> std::fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("open", &self.len()).finish()
    }
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self { entries: Arc::default(), next: Arc::default() }
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
    /// Registers, judges by the state that `load` gives afterwards, and keeps watching.
    ///
    /// # Errors
    /// The denial, or that too much is open.
    pub fn open(
        &self,
        label: Arc<str>,
        load: impl FnOnce() -> Arc<S>,
        judge: impl Fn(&S) -> Result<(Permit, Revoker), Denied> + Send + Sync + 'static,
    ) -> Result<(Permit, Guard), Denied> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let judge: Judge<S> = Arc::new(judge);
        {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries.len() >= BOUND {
                let text = format!("{BOUND} connections are open");
                return Err(Denied { text, policy: None, rule: None, clause: None, missing: false });
            }
            entries.insert(
                id,
                Entry { judge: judge.clone(), revoker: None, overtaken: None, undecided: None, label },
            );
        }
        let all = self.entries.clone();
        let guard = Guard(Box::new(move || {
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }));
        let (permit, revoker) = judge(&load())?;
        if let Some(entry) = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
            if let Some(reason) = entry.overtaken.take() {
                revoker.revoke(reason);
            }
            entry.revoker = Some(revoker);
        }
        Ok((permit, guard))
    }

    /// Judges everything again; takes back what is denied now. What is undecided keeps its verdict for [`PATIENCE`].
    /// Returns how many were taken back.
    pub fn judge_again(&self, state: &S) -> usize {
        let now = tokio::time::Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut revoked = 0;
        for entry in entries.values_mut() {
            let denied = match (entry.judge)(state) {
                Ok(_) => {
                    (entry.undecided, entry.overtaken) = (None, None);
                    continue;
                }
                Err(denied) => denied,
            };
            if denied.missing && now.duration_since(*entry.undecided.get_or_insert(now)) < PATIENCE {
                continue;
            }
            let reason = format!("connection closed due to policy change: {}", denied.text);
            match &entry.revoker {
                Some(revoker) => revoker.revoke(reason),
                None => entry.overtaken = Some(reason),
            }
            revoked += 1;
        }
        revoked
    }

    /// Whether something waits for a policy that is not known.
    pub fn has_undecided(&self) -> bool {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().any(|e| e.undecided.is_some())
    }
}

impl<S> Registry<S> {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of what is open, sorted.
    pub fn labels(&self) -> Vec<Arc<str>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut labels: Vec<_> = entries.values().map(|e| e.label.clone()).collect();
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
    fn judge(allowed: &bool) -> Result<(Permit, Revoker), Denied> {
        let nowhere = IpAddr::from([0, 0, 0, 0]);
        let facts = Facts {
            source: None,
            source_ip: nowhere,
            destination_ip: nowhere,
            destination_port: 1,
            sni: None,
            http: None,
        };
        let no = || Denied { text: "no".into(), policy: None, rule: None, clause: None, missing: false };
        if *allowed { admit(&PolicySet::default(), &facts, 0).map_err(|_| no()) } else { Err(no()) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_first_judgement_is_not_missed() {
        let registry = Registry::<bool>::default();
        let other = registry.clone();
        // The old state is read; before the verdict is noted the new one is published and judged by.
        let read = move || {
            other.judge_again(&false);
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
        assert_eq!(registry.judge_again(&true), 0);
        assert!(tokio::time::timeout(Duration::from_secs(1), permit.revoked()).await.is_err());
        assert_eq!(registry.judge_again(&false), 1);
        assert!(permit.revoked().await.contains("no"));
        drop(guard);
        assert!(registry.is_empty() && registry.open("y".into(), || Arc::new(false), judge).is_err());
    }
}
