// SPDX-License-Identifier: Apache-2.0
//! The verdict: CUSTOM, then DENY, then ALLOW; without an ALLOW policy everything else is allowed.

use std::ops::ControlFlow;

use crate::facts::Facts;
pub use crate::rule::Rule;
use crate::set::PolicySet;

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
    /// The provider of this CUSTOM rule is to be asked; what it allows goes on with [`resume`]. Who has no such provider
    /// denies.
    Ask {
        /// What asks.
        by: Rule,
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

/// Judges. Allocates nothing, but where a path or host of a policy has to be compared in other forms than its own. Of several
/// rules that could decide, the first of the first policy does.
pub fn decide(set: &PolicySet, facts: &Facts<'_>) -> Decision {
    ask(set, facts, 0)
}

/// Goes on after the provider of a CUSTOM rule ([`Decision::Ask`]) has allowed: asks the next provider, or decides. Every
/// provider is asked at most once, in the order in which policies name them.
pub fn resume(set: &PolicySet, facts: &Facts<'_>, allowed: Rule) -> Decision {
    let provider = set.policy(allowed.policy).map(|policy| &policy.action);
    let asked = set.asking().iter().position(|(name, _)| {
        matches!(provider, Some(meltemi_model::authz::Action::Custom { provider }) if provider == name)
    });
    match asked {
        Some(asked) => ask(set, facts, asked + 1),
        // That rule is not of this set: nothing is known to have been allowed.
        None => ask(set, facts, 0),
    }
}

fn ask(set: &PolicySet, facts: &Facts<'_>, from: usize) -> Decision {
    for (_, stage) in &set.asking()[from..] {
        if let Some(by) = stage.first(facts) {
            return Decision::Ask { by };
        }
    }
    if let Some(by) = set.denying().first(facts) {
        return Decision::Deny { by: Some(by) };
    }
    if !set.missing().is_empty() {
        return Decision::Undecided { missing: 0 };
    }
    let allow = set.allowing();
    if allow.is_empty() {
        return Decision::Allow { by: None };
    }
    match allow.first(facts) {
        Some(by) => Decision::Allow { by: Some(by) },
        None => Decision::Deny { by: None },
    }
}

/// Calls for rules of AUDIT policies and of dry runs that match; the verdict does not change by it. In no order, and for
/// some rules more than once, until told to stop.
pub fn reports(set: &PolicySet, facts: &Facts<'_>, mut with: impl FnMut(Rule) -> ControlFlow<()>) {
    let mut flow = ControlFlow::Continue(());
    for stage in set.auditing() {
        stage.each(facts, |rule| {
            flow = with(rule);
            flow
        });
        if flow.is_break() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
