// SPDX-License-Identifier: Apache-2.0
//! The engine and a naive evaluator agree on random policies and requests: the verdict, the rule that decides, whom is
//! asked after a provider has allowed, and what is reported; whether the index was built at once or change by change.
//!
//! Some hundred cases by default; `PROPTEST_CASES=1000000` for as many as one likes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy};
use meltemi_policy::{Decision, Facts, PolicySet, ValidPolicy, decide, explain, reports, resume};
use proptest::prelude::*;

#[path = "support/naive.rs"]
mod naive;
#[path = "support/nested.rs"]
mod nested;
#[path = "support/world.rs"]
mod world;

use naive::Verdict;

fn verdict(decision: Decision) -> Verdict {
    let place = |by: meltemi_policy::Rule| (by.policy as usize, by.rule as usize);
    match decision {
        Decision::Allow { by } => Verdict::Allow(by.map(place)),
        Decision::Deny { by } => Verdict::Deny(by.map(place)),
        Decision::Ask { by } => Verdict::Ask(by.policy as usize, by.rule as usize),
        Decision::Undecided { .. } => Verdict::Undecided,
    }
}

fn valid(policies: &[Policy]) -> Vec<ValidPolicy> {
    policies.iter().map(|p| ValidPolicy::new(p.clone()).unwrap()).collect()
}

/// Some policies, named in order.
fn policies() -> impl Strategy<Value = Vec<Policy>> {
    prop::collection::vec(world::policy(), 0..5).prop_map(|mut all| {
        for (index, policy) in all.iter_mut().enumerate() {
            policy.name = NamespacedName::new("ns", format!("p{index:03}"));
        }
        all
    })
}

fn names(missing: bool) -> Vec<NamespacedName> {
    missing.then(|| NamespacedName::new("ns", "late")).into_iter().collect()
}

/// Everything that a set says of a request, against the specification.
fn agree(
    set: &PolicySet,
    policies: &[Policy],
    missing: bool,
    facts: &Facts<'_>,
) -> Result<(), TestCaseError> {
    let mut decision = decide(set, facts);
    let mut asked: Vec<&str> = Vec::new();
    loop {
        let wanted = naive::judge(policies, missing, facts, &asked);
        prop_assert_eq!(verdict(decision), wanted);
        let (Decision::Allow { by: Some(by) } | Decision::Deny { by: Some(by) } | Decision::Ask { by }) =
            decision
        else {
            break;
        };
        let policy = &policies[by.policy as usize];
        let clauses = policy.rules[by.rule as usize].clauses.len() as u32;
        prop_assert_eq!(by.clause, clauses.checked_sub(1));
        let (Decision::Ask { by }, Action::Custom { provider }) = (decision, &policy.action) else { break };
        asked.push(provider);
        decision = resume(set, facts, by);
    }
    let mut reported = BTreeSet::new();
    reports(set, facts, |rule| {
        reported.insert((rule.policy as usize, rule.rule as usize));
        ControlFlow::Continue(())
    });
    let first: Vec<_> = naive::reported(policies, facts);
    let seen: BTreeSet<usize> = reported.iter().map(|(policy, _)| *policy).collect();
    prop_assert_eq!(seen, first.iter().map(|(policy, _)| *policy).collect());
    prop_assert!(first.iter().all(|one| reported.contains(one)));
    Ok(())
}

/// The rule that an explanation of a denial names has the clause that it names, and that clause does not hold.
fn explained(set: &PolicySet, policies: &[Policy], facts: &Facts<'_>) -> Result<(), TestCaseError> {
    let why = explain(set, facts);
    prop_assert_eq!(why.decision, decide(set, facts));
    if why.decision != (Decision::Deny { by: None }) {
        return Ok(());
    }
    let policy = policies.iter().find(|p| Some(&p.name) == why.policy.as_ref());
    let policy = policy.ok_or_else(|| TestCaseError::fail("no policy is named"))?;
    prop_assert_eq!(&policy.action, &Action::Allow);
    if let Some((rule, clause)) = why.rule.zip(why.failed) {
        let rule = &policy.rules[rule as usize];
        let holds = |index: usize| naive::clause(&rule.clauses[index], facts, true);
        prop_assert!(!holds(clause as usize), "the clause that is named holds");
        prop_assert!((0..clause as usize).all(holds), "an earlier clause failed");
    } else {
        let rules =
            policies.iter().filter(|p| p.action == Action::Allow && !p.dry_run).flat_map(|p| &p.rules);
        prop_assert_eq!(rules.count(), 0, "there are rules, and none is named");
    }
    Ok(())
}

proptest! {
    /// A part of a checked policy needs no check, and a DENY that has lost conditions denies no less.
    #[test]
    fn what_is_left_of_a_valid_policy_is_valid(
        policy in world::policy(),
        keep in any::<u8>(),
        requests in prop::collection::vec(world::request(), 4),
    ) {
        let whole = ValidPolicy::new(Policy { action: Action::Deny, dry_run: false, ..policy }).unwrap();
        let kept = |text: String| (text.len() as u8 & keep).count_ones().is_multiple_of(2);
        let rules = whole.retain_rules(|rule| kept(format!("{rule:?}")));
        let predicates = whole.retain_predicates(|_, predicate| kept(format!("{predicate:?}")));
        for part in [&rules, &predicates, &ValidPolicy::deny_everything(whole.name.clone(), whole.scope)] {
            prop_assert_eq!(&ValidPolicy::new(Policy::clone(part)).unwrap(), part);
        }
        prop_assert!(rules.rules.iter().all(|rule| whole.rules.contains(rule)));
        let [whole, predicates] = [whole, predicates].map(|policy| PolicySet::new(vec![policy], Vec::new()));
        for request in &requests {
            let facts = request.facts();
            prop_assert!(decide(&whole, &facts).is_allow() || !decide(&predicates, &facts).is_allow());
        }
    }

    #[test]
    fn the_engine_decides_as_the_specification(
        policies in policies(),
        requests in prop::collection::vec(world::request(), 8),
        missing in prop::bool::weighted(0.1),
    ) {
        let set = PolicySet::new(valid(&policies), names(missing));
        for request in &requests {
            agree(&set, &policies, missing, &request.facts())?;
            explained(&set, &policies, &request.facts())?;
        }
    }

    #[test]
    fn what_the_index_cannot_hold_is_checked_rule_by_rule(
        policies in prop::collection::vec(world::wide_policy(), 1..3),
        requests in prop::collection::vec(world::request(), 8),
    ) {
        let set = PolicySet::new(valid(&policies), Vec::new());
        for request in &requests {
            agree(&set, &policies, false, &request.facts())?;
        }
    }

    #[test]
    fn patterns_that_begin_one_another(policy in nested::policy(), values in prop::collection::vec(1..40usize, 1..4)) {
        let set = PolicySet::new(valid(std::slice::from_ref(&policy)), Vec::new());
        let mut request = nested::request(&values);
        agree(&set, std::slice::from_ref(&policy), false, &request.facts())?;
        request.http = None;
        agree(&set, std::slice::from_ref(&policy), false, &request.facts())?;
    }

    #[test]
    fn ranges_that_hold_one_another(
        policy in nested::ranges(),
        addresses in prop::collection::vec((0..112u32, any::<bool>()), 1..6),
    ) {
        let set = PolicySet::new(valid(std::slice::from_ref(&policy)), Vec::new());
        for (bits, v4) in addresses {
            agree(&set, std::slice::from_ref(&policy), false, &nested::connection(bits, v4).facts())?;
        }
    }

    #[test]
    fn change_by_change_is_as_good_as_at_once(
        first in policies(),
        changes in prop::collection::vec((0..6usize, prop::option::of(world::policy())), 1..6),
        requests in prop::collection::vec(world::request(), 4),
    ) {
        let mut policies = first;
        let mut kept = valid(&policies);
        let mut set = PolicySet::new(kept.clone(), Vec::new());
        for (at, change) in changes {
            // Removed, replaced, or put in; everything else stays the same value.
            let at = at.min(policies.len());
            if at < policies.len() {
                policies.remove(at);
                kept.remove(at);
            }
            if let Some(policy) = change {
                kept.insert(at, ValidPolicy::new(policy.clone()).unwrap());
                policies.insert(at, policy);
            }
            set = set.updated(kept.clone(), Vec::new());
            for request in &requests {
                agree(&set, &policies, false, &request.facts())?;
            }
        }
    }
}
