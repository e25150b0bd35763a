// SPDX-License-Identifier: Apache-2.0
//! The permit: proof that something was allowed, and the way to take it back. Only [`admit`] and [`admit_after`] make one.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::decide::{Decision, Rule, decide, resume};
use crate::facts::Facts;
use crate::set::PolicySet;

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    revoked: Option<Arc<str>>,
    wakers: Vec<Waker>,
}

/// Allowed. Consumed by whoever opens the way to an application.
#[derive(Debug)]
#[must_use = "a permit that is not used lets nothing through"]
pub struct Permit {
    generation: u64,
    shared: Arc<Shared>,
}

/// Says whether a permit was taken back, to somebody who cannot wait for it.
#[derive(Clone, Debug)]
pub struct Revocation(Arc<Shared>);

/// Takes a permit back.
#[derive(Clone, Debug)]
pub struct Revoker(Arc<Shared>);

/// Judges, and mints a permit when allowed. `generation` is that of the policies.
///
/// # Errors
/// The decision that refuses.
pub fn admit(set: &PolicySet, facts: &Facts<'_>, generation: u64) -> Result<(Permit, Revoker), Decision> {
    mint(decide(set, facts), generation)
}

/// Goes on after the provider of a CUSTOM rule has allowed ([`crate::resume`]), and mints a permit when allowed.
///
/// # Errors
/// The decision that refuses, or asks the next provider.
pub fn admit_after(
    set: &PolicySet,
    facts: &Facts<'_>,
    allowed: Rule,
    generation: u64,
) -> Result<(Permit, Revoker), Decision> {
    mint(resume(set, facts, allowed), generation)
}

fn mint(decision: Decision, generation: u64) -> Result<(Permit, Revoker), Decision> {
    if !decision.is_allow() {
        return Err(decision);
    }
    let shared = Arc::new(Shared::default());
    Ok((Permit { generation, shared: shared.clone() }, Revoker(shared)))
}

impl Permit {
    /// Generation of the policies that allowed it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it was taken back, for as long as somebody asks.
    pub fn revocation(&self) -> Revocation {
        Revocation(self.shared.clone())
    }

    /// Resolves with the reason when it is taken back.
    pub async fn revoked(&self) -> Arc<str> {
        poll_fn(|cx| {
            let mut state = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = &state.revoked {
                return Poll::Ready(reason.clone());
            }
            if !state.wakers.iter().any(|w| w.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Revocation {
    /// Whether the permit was taken back.
    pub fn has_come(&self) -> bool {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).revoked.is_some()
    }
}

impl Revoker {
    /// Takes the permit back, with the reason for the log; the first reason stays.
    pub fn revoke(&self, reason: impl Into<Arc<str>>) {
        let wakers = {
            let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.revoked.get_or_insert_with(|| reason.into());
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}
