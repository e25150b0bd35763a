// SPDX-License-Identifier: Apache-2.0
//! More rows than one index holds: several indexes side by side, a policy too large for any, and a set that is changed
//! until its base is built again. Each against the naive evaluator.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::IpAddr;
use std::ops::ControlFlow;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_policy::{Decision, Facts, PolicySet, ValidPolicy, decide, reports};

#[path = "support/naive.rs"]
mod naive;

fn text(attribute: Attribute, value: String) -> Predicate {
    Predicate {
        attribute,
        values: vec![ValueMatch::String(StringMatch::Exact(value.into()))],
        not_values: vec![],
    }
}

fn port(port: u16) -> Predicate {
    Predicate {
        attribute: Attribute::DestinationPort,
        values: vec![ValueMatch::Port(port)],
        not_values: vec![],
    }
}

fn clause(matches: Vec<Match>) -> Clause {
    Clause { origin: ClauseOrigin::Unknown, matches }
}

/// A rule of 32 x 32 conjunctions: a principal of its own and a port, and a namespace and a service's SNI.
fn product(rule: usize) -> Rule {
    let from = (0..32).map(|i| Match {
        predicates: vec![text(Attribute::SourcePrincipal, format!("td/ns/n{i}/sa/r{rule}")), port(i as u16)],
    });
    let to = (0..32).map(|i| Match {
        predicates: vec![
            text(Attribute::SourceNamespace, format!("n{i}")),
            text(Attribute::ConnectionSni, format!("s{i}")),
        ],
    });
    Rule { clauses: vec![clause(from.collect()), clause(to.collect())] }
}

fn policy(name: usize, rules: Vec<Rule>) -> Policy {
    let name = NamespacedName::new("ns", format!("p{name:05}"));
    Policy { name, scope: Scope::Namespace, action: Action::Allow, dry_run: false, rules }
}

fn agree(set: &PolicySet, policies: &[Policy], namespace: usize, account: usize) {
    let source = format!("spiffe://td/ns/n{namespace}/sa/r{account}").parse().unwrap();
    let (ip, sni) = (IpAddr::from([10, 0, 0, 1]), format!("s{namespace}"));
    let facts = Facts {
        source: Some(&source),
        source_ip: ip,
        destination_ip: ip,
        destination_port: namespace as u16,
        sni: Some(&sni),
        http: None,
    };
    let wanted = naive::judge(policies, false, &facts, &[]);
    let seen = match decide(set, &facts) {
        Decision::Allow { by } => naive::Verdict::Allow(by.map(|by| (by.policy as usize, by.rule as usize))),
        Decision::Deny { by } => naive::Verdict::Deny(by.map(|by| (by.policy as usize, by.rule as usize))),
        other => panic!("{other:?}"),
    };
    assert_eq!(seen, wanted, "n{namespace} r{account}");
    let mut reported = Vec::new();
    reports(set, &facts, |by| {
        reported.push((by.policy as usize, by.rule as usize));
        ControlFlow::Continue(())
    });
    assert_eq!(reported, naive::reported(policies, &facts));
}

#[test]
fn several_indexes_and_a_policy_too_large_for_one() {
    // 270 rules of 1,024 rows are more than the 262,144 of an index, in one policy and in many.
    let many: Vec<Policy> = (0..270).map(|i| policy(i, vec![product(i)])).collect();
    let one = vec![policy(0, (0..270).map(product).collect())];
    for policies in [many, one] {
        let set = PolicySet::compile(policies.iter().cloned().map(Into::into)).unwrap();
        for (namespace, account) in [(0, 0), (31, 0), (7, 128), (0, 255), (3, 256), (31, 269), (5, 270)] {
            agree(&set, &policies, namespace, account);
        }
    }
}

#[test]
fn values_inside_of_each_other_cost_no_more_than_others() {
    // Whatever begins below seven prefixes that thousands of rules name has all their rows when it is put together.
    const MANY: usize = 4000;
    let rule = |values: Vec<String>| {
        let values = values.iter().map(|v| ValueMatch::String(StringMatch::parse(v))).collect();
        let predicates =
            vec![Predicate { attribute: Attribute::SourcePrincipal, values, not_values: vec![] }];
        Rule { clauses: vec![clause(vec![Match { predicates }])] }
    };
    let shared: Vec<String> = (0..8).map(|i| format!("{}*", &"td/ns/n1"[..=i.min(7)])).collect();
    let shared = (0..MANY).map(|_| rule(shared.clone()));
    let own = (0..MANY).map(|i| rule(vec![format!("td/ns/n1/sa/r{}*", MANY + i)]));
    // In turn, so that no word of a set is full.
    let policies = [policy(0, own.zip(shared).flat_map(|(a, b)| [a, b]).collect())];
    let set = PolicySet::compile(policies.iter().cloned().map(Into::into)).unwrap();
    assert!(set.index_bytes() / (2 * MANY) < 250, "{} bytes for each rule", set.index_bytes() / (2 * MANY));
    for (namespace, account) in [(1, 0), (1, MANY), (1, 2 * MANY - 1), (2, 7), (0, 0)] {
        agree(&set, &policies, namespace, account);
    }
}

#[test]
fn changed_until_the_base_is_built_again() {
    let simple = |i: usize, account: usize| {
        let rule = Rule {
            clauses: vec![clause(vec![Match {
                predicates: vec![text(Attribute::SourcePrincipal, format!("td/ns/n1/sa/r{account}"))],
            }])],
        };
        policy(i, vec![rule])
    };
    let mut policies: Vec<Policy> = (0..300).map(|i| simple(i, i)).collect();
    let mut valid: Vec<ValidPolicy> = policies.iter().map(|p| ValidPolicy::new(p.clone()).unwrap()).collect();
    let mut set = PolicySet::new(valid.clone(), Vec::new());
    let mut indexed_anew = 0;
    for step in 0..200 {
        let (at, account) = ((step * 37) % policies.len(), 1000 + step);
        if step % 5 == 4 {
            policies.remove(at);
            valid.remove(at);
        } else {
            let number: usize = policies[at].name.name[1..].parse().unwrap();
            policies[at] = simple(number, account);
            valid[at] = ValidPolicy::new(policies[at].clone()).unwrap();
        }
        let rows = set.index_rows();
        set = set.updated(valid.clone(), Vec::new());
        // A small index beside the base only adds rows; that there are fewer means that the base was built.
        indexed_anew += usize::from(set.index_rows() < rows);
        for who in [account, (step * 37) % 300, step] {
            agree(&set, &policies, 1, who);
        }
    }
    assert!((1..20).contains(&indexed_anew), "{indexed_anew} of 200");
    assert!(set.index_rows() < 2 * policies.len());
}
