// SPDX-License-Identifier: Apache-2.0
//! What policies say that change nothing: AUDIT policies, and policies on trial (`istio.io/dry-run`). For the access log.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use meltemi_model::authz::Action;
use meltemi_policy::{Facts, PolicySet};

/// Rules that are looked at, at most.
const MOST: usize = 8;

/// `dry_run=deny policy=NS/NAME rule=I` for each rule on trial that matches, `audit` for those of AUDIT policies. Where ALLOW
/// policies are on trial and none of them matches, they would deny. None when there is nothing to say.
pub(crate) fn text(set: &PolicySet, facts: &Facts<'_>) -> Option<String> {
    let mut found = BTreeSet::new();
    meltemi_policy::reports(set, facts, |rule| {
        found.insert((rule.policy, rule.rule));
        if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let mut said: Vec<String> = Vec::new();
    if set.would_not_allow(facts) {
        said.push("dry_run=deny policy=none rule=none".to_owned());
    }
    for (index, rule) in &found {
        let Some(policy) = set.policies().get(*index as usize) else { continue };
        let word = match (&policy.action, policy.dry_run) {
            (Action::Audit, _) => "audit",
            (Action::Allow, true) => "dry_run=allow",
            (_, _) => "dry_run=deny",
        };
        said.push(format!("{word} policy={} rule={rule}", policy.name));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use meltemi_model::NamespacedName;
    use meltemi_model::authz::{
        Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, ValueMatch,
    };

    use super::*;

    fn policy(name: &str, action: Action, dry_run: bool, port: u16) -> Arc<Policy> {
        let at = Predicate {
            attribute: Attribute::DestinationPort,
            values: vec![ValueMatch::Port(port)],
            not_values: Vec::new(),
        };
        let clause = Clause { origin: ClauseOrigin::To, matches: vec![Match { predicates: vec![at] }] };
        let rules = vec![Rule { clauses: vec![clause] }];
        let scope = Scope::WorkloadSelector;
        Arc::new(Policy { name: NamespacedName::new("a", name), scope, action, dry_run, rules })
    }

    #[test]
    fn what_would_be_is_said_and_what_is_in_force_is_not() {
        let nowhere = IpAddr::from([0, 0, 0, 0]);
        let facts = Facts {
            source: None,
            source_ip: nowhere,
            destination_ip: nowhere,
            destination_port: 80,
            sni: None,
            http: None,
        };
        let cases = [
            (vec![], None),
            (vec![policy("p", Action::Deny, false, 80)], None),
            (vec![policy("p", Action::Audit, false, 80)], Some("audit policy=a/p rule=0")),
            (vec![policy("p", Action::Audit, false, 81)], None),
            (vec![policy("p", Action::Deny, true, 80)], Some("dry_run=deny policy=a/p rule=0")),
            (vec![policy("p", Action::Allow, true, 80)], Some("dry_run=allow policy=a/p rule=0")),
            (vec![policy("p", Action::Allow, true, 81)], Some("dry_run=deny policy=none rule=none")),
            (
                vec![policy("p", Action::Allow, true, 81), policy("q", Action::Audit, false, 80)],
                Some("dry_run=deny policy=none rule=none; audit policy=a/q rule=0"),
            ),
        ];
        for (policies, expected) in cases {
            let set = PolicySet::compile(policies.clone()).unwrap();
            assert_eq!(text(&set, &facts).as_deref(), expected, "{policies:?}");
        }
    }
}
