// SPDX-License-Identifier: Apache-2.0
//! Why something is refused: one line, and what it came from.

use meltemi_model::NamespacedName;
use meltemi_policy::{Decision, Explanation};

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection closed due to policy rejection: {text}")]
pub struct Denied {
    /// One line.
    pub text: String,
    /// The policy that decided or came closest.
    pub policy: Option<NamespacedName>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// The clause.
    pub clause: Option<String>,
    /// Something that applies is not known (yet).
    pub missing: bool,
}

impl From<Explanation> for Denied {
    fn from(why: Explanation) -> Self {
        let missing = matches!(why.decision, Decision::Undecided { .. });
        Self { text: why.text, policy: why.policy, rule: why.rule, clause: why.clause, missing }
    }
}
