// SPDX-License-Identifier: Apache-2.0
//! The verdict: CUSTOM, then DENY, then ALLOW; without an ALLOW policy everything else is allowed.

mod matching;

use meltemi_model::authz::Policy;

use crate::facts::Facts;
use crate::set::PolicySet;

pub(crate) use self::matching::{Sense, clause_matches};

/// A rule of a policy, as indices into the [`PolicySet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Index of the policy.
    pub policy: u32,
    /// Index of its rule.
    pub rule: u32,
}

/// A verdict. It is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, by this rule, or because no ALLOW policy applies.
    Allow {
        /// What allows.
        by: Option<Rule>,
    },
    /// Denied, by this rule, or because ALLOW policies apply and none matches.
    Deny {
        /// What denies.
        by: Option<Rule>,
    },
    /// A policy that applies is not known: treated as denied. The index is into [`PolicySet::missing`].
    Undecided {
        /// The first that is missing.
        missing: u32,
    },
}

impl Decision {
    /// Whether bytes may flow.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Judges. Allocates nothing.
pub fn decide(set: &PolicySet, facts: &Facts<'_>) -> Decision {
    // CUSTOM asks an external authorizer; none is attached here, and what cannot be asked is denied.
    for (policy, custom) in set.custom() {
        if let Some(rule) = first_match(custom, facts, Sense::Deny) {
            return Decision::Deny { by: Some(Rule { policy, rule }) };
        }
    }
    for (policy, deny) in set.deny() {
        if let Some(rule) = first_match(deny, facts, Sense::Deny) {
            return Decision::Deny { by: Some(Rule { policy, rule }) };
        }
    }
    if !set.missing().is_empty() {
        return Decision::Undecided { missing: 0 };
    }
    let mut restricted = false;
    for (policy, allow) in set.allow() {
        restricted = true;
        if let Some(rule) = first_match(allow, facts, Sense::Allow) {
            return Decision::Allow { by: Some(Rule { policy, rule }) };
        }
    }
    if restricted { Decision::Deny { by: None } } else { Decision::Allow { by: None } }
}

/// The first rule that matches.
pub(crate) fn first_match(policy: &Policy, facts: &Facts<'_>, sense: Sense) -> Option<u32> {
    let matches =
        |rule: &meltemi_model::authz::Rule| rule.clauses.iter().all(|c| clause_matches(c, facts, sense));
    policy.rules.iter().position(matches).and_then(|index| u32::try_from(index).ok())
}

#[cfg(test)]
mod tests;
