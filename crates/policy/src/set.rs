// SPDX-License-Identifier: Apache-2.0
//! The policies of one workload or target, sorted by what they do.

use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy};

/// Compiled policies; immutable.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    policies: Vec<Arc<Policy>>,
    custom: Vec<u32>,
    deny: Vec<u32>,
    allow: Vec<u32>,
    audit: Vec<u32>,
    missing: Vec<NamespacedName>,
}

impl PolicySet {
    /// From policies, in any order.
    pub fn compile(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        Self::with_missing(policies, Vec::new())
    }

    /// From policies, and the names of those that apply too but are not known (yet): nothing is allowed meanwhile.
    pub fn with_missing(
        policies: impl IntoIterator<Item = Arc<Policy>>,
        missing: Vec<NamespacedName>,
    ) -> Self {
        let mut set = Self { policies: policies.into_iter().collect(), missing, ..Self::default() };
        for (index, policy) in set.policies.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            match policy.action {
                // Reported only; never part of the verdict.
                _ if policy.dry_run => set.audit.push(index),
                Action::Custom { .. } => set.custom.push(index),
                Action::Deny => set.deny.push(index),
                Action::Allow => set.allow.push(index),
                Action::Audit => set.audit.push(index),
            }
        }
        set
    }

    /// A policy by its index in a decision.
    pub fn policy(&self, index: u32) -> Option<&Arc<Policy>> {
        self.policies.get(index as usize)
    }

    /// All policies.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// Names of policies that are not known.
    pub fn missing(&self) -> &[NamespacedName] {
        &self.missing
    }

    /// Whether nothing restricts: no policy and none missing.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.missing.is_empty()
    }

    pub(crate) fn custom(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.at(&self.custom)
    }

    pub(crate) fn deny(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.at(&self.deny)
    }

    pub(crate) fn allow(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.at(&self.allow)
    }

    /// AUDIT policies and dry runs.
    pub fn reported(&self) -> impl Iterator<Item = (u32, &Policy)> {
        self.at(&self.audit)
    }

    fn at<'a>(&'a self, indices: &'a [u32]) -> impl Iterator<Item = (u32, &'a Policy)> {
        indices.iter().map(|index| (*index, &*self.policies[*index as usize]))
    }
}
