// SPDX-License-Identifier: Apache-2.0
//! Which rule: what a verdict and a report point at.

/// A rule of a policy, as indices into the [`crate::PolicySet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Index of the policy.
    pub policy: u32,
    /// Index of its rule.
    pub rule: u32,
    /// Index of the clause with which it matched: its last, for all of them hold. None when it has no clauses.
    pub clause: Option<u32>,
}
