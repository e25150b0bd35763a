// SPDX-License-Identifier: Apache-2.0
//! Which policies apply where, when a set is made anew, and what a refused policy does.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_model::{NamespacedName, Workload, WorkloadUid};
use meltemi_policy::{Decision, Facts, decide};

use crate::snapshot::{Delta, Snapshot};

fn policy(namespace: &str, name: &str, scope: Scope, rules: Vec<Rule>) -> Policy {
    Policy { name: NamespacedName::new(namespace, name), scope, action: Action::Allow, dry_run: false, rules }
}

fn put(policy: Policy) -> Delta {
    Delta::Policy(Box::new(policy))
}

/// A rule with a prefix that has no text: the engine does not take it.
fn bad() -> Vec<Rule> {
    let values = vec![ValueMatch::String(StringMatch::Prefix("".into()))];
    let predicates = vec![Predicate { attribute: Attribute::SourcePrincipal, values, not_values: vec![] }];
    vec![Rule { clauses: vec![Clause { origin: ClauseOrigin::From, matches: vec![Match { predicates }] }] }]
}

fn pod(namespace: &str, named: &[(&str, &str)]) -> Workload {
    let mut pod = Workload::empty(WorkloadUid::pod("Kubernetes", namespace, "a"), namespace, "a");
    pod.authorization_policies = named.iter().map(|(ns, name)| NamespacedName::new(*ns, *name)).collect();
    pod
}

fn names(snapshot: &Snapshot, pod: &Workload) -> Vec<String> {
    snapshot.policies_for(pod).policies().iter().map(|p| p.name.to_string()).collect()
}

fn decision(snapshot: &Snapshot, pod: &Workload) -> Decision {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let facts = Facts {
        source: None,
        source_ip: ip,
        destination_ip: ip,
        destination_port: 80,
        sni: None,
        http: None,
    };
    decide(&snapshot.policies_for(pod), &facts)
}

#[test]
fn policies_apply_by_scope_and_by_name_and_a_set_is_kept_until_one_changes() {
    let mut snapshot = Snapshot::default();
    snapshot.apply([
        put(policy("b", "local", Scope::Namespace, vec![])),
        put(policy("a", "local", Scope::Namespace, vec![])),
        put(policy("root", "mesh", Scope::Global, vec![])),
        put(policy("a", "picked", Scope::WorkloadSelector, vec![])),
        put(policy("a", "other", Scope::WorkloadSelector, vec![])),
    ]);
    let (plain, picky) = (pod("a", &[]), pod("a", &[("a", "picked"), ("a", "picked"), ("a", "local")]));
    assert_eq!(names(&snapshot, &plain), ["a/local", "root/mesh"]);
    assert_eq!(names(&snapshot, &picky), ["a/local", "a/picked", "root/mesh"]);

    let before = (snapshot.policies_for(&plain), snapshot.policies_for(&picky));
    let same = |snapshot: &Snapshot| {
        let now = (snapshot.policies_for(&plain), snapshot.policies_for(&picky));
        (Arc::ptr_eq(&before.0, &now.0), Arc::ptr_eq(&before.1, &now.1))
    };
    assert_eq!(same(&snapshot), (true, true), "asked again");
    let old = snapshot.clone();
    snapshot.apply([put(policy("a", "other", Scope::WorkloadSelector, vec![Rule::default()]))]);
    assert_eq!(same(&snapshot), (true, true), "a policy that neither has");
    snapshot.apply([put(policy("b", "local", Scope::Namespace, vec![Rule::default()]))]);
    assert_eq!(same(&snapshot), (true, true), "a policy of another namespace");
    snapshot.apply([put(policy("a", "picked", Scope::WorkloadSelector, vec![Rule::default()]))]);
    assert_eq!(same(&snapshot), (true, false), "a policy that one names");
    snapshot.apply([Delta::PolicyGone(NamespacedName::new("root", "mesh"))]);
    assert_eq!(same(&snapshot), (false, false), "a policy of the mesh");
    assert_eq!(names(&snapshot, &picky), ["a/local", "a/picked"]);
    // A reader of an older snapshot still sees the older policies.
    assert_eq!(names(&old, &picky), ["a/local", "a/picked", "root/mesh"]);
    assert!(!decision(&old, &picky).is_allow() && decision(&snapshot, &picky).is_allow());
    // What a workload names may go and come.
    snapshot.apply([Delta::PolicyGone(NamespacedName::new("a", "picked"))]);
    assert_eq!(snapshot.policies_for(&picky).missing(), [NamespacedName::new("a", "picked")]);
}

#[test]
fn a_refused_policy_leaves_the_last_good_one_or_nothing() {
    let mut snapshot = Snapshot::default();
    let (a, b) = (pod("a", &[]), pod("b", &[]));
    let everything = || vec![Rule::default()];
    let errors = snapshot.apply([put(policy("a", "p", Scope::Namespace, bad()))]);
    assert_eq!(
        errors[0].to_string(),
        "policy a/p is not valid rule[0] clause[0]: principals: \"*\" has no text beside its `*`"
    );
    assert_eq!(decision(&snapshot, &a), Decision::Undecided { missing: 0 }, "where it would apply");
    assert!(decision(&snapshot, &b).is_allow(), "and nowhere else");
    assert!(snapshot.refused(&NamespacedName::new("a", "p")).is_some());

    snapshot.apply([put(policy("a", "p", Scope::Namespace, everything()))]);
    assert!(decision(&snapshot, &a).is_allow() && snapshot.refused(&NamespacedName::new("a", "p")).is_none());
    snapshot.apply([put(policy("a", "p", Scope::Namespace, bad()))]);
    assert!(decision(&snapshot, &a).is_allow(), "the last good one stays");

    let name = NamespacedName::new("root", "x");
    let refused = Delta::PolicyRefused { name: name.clone(), scope: None, reason: "unknown action".into() };
    snapshot.apply([refused]);
    assert!(
        !decision(&snapshot, &a).is_allow() && !decision(&snapshot, &b).is_allow(),
        "it could apply anywhere"
    );
    snapshot.apply([Delta::PolicyGone(name)]);
    assert!(decision(&snapshot, &b).is_allow());
}
