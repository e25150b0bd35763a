// SPDX-License-Identifier: Apache-2.0
//! Time of a decision at layer 4, hit and miss, by number of rules.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::{Facts, PolicySet, decide};

fn set(rules: usize) -> PolicySet {
    let rule = |index: usize| {
        let principal = format!("cluster.local/ns/n{index}/sa/s{index}");
        let values = vec![ValueMatch::String(StringMatch::Exact(principal.into()))];
        let predicate = Predicate { attribute: Attribute::SourcePrincipal, values, not_values: Vec::new() };
        let matches = vec![Match { predicates: vec![predicate] }];
        Rule { clauses: vec![Clause { origin: ClauseOrigin::From, matches }] }
    };
    PolicySet::compile([Arc::new(Policy {
        name: NamespacedName::new("default", "p"),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: (0..rules).map(rule).collect(),
    })])
    .unwrap()
}

fn layer4(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer 4");
    for rules in [1, 100, 10_000] {
        let set = set(rules);
        for (what, index) in [("hit", rules - 1), ("miss", rules)] {
            let id = SpiffeId::parse(&format!("spiffe://cluster.local/ns/n{index}/sa/s{index}")).unwrap();
            let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let facts = Facts {
                source: Some(&id),
                source_ip: ip,
                destination_ip: ip,
                destination_port: 80,
                sni: None,
                http: None,
            };
            group.bench_function(BenchmarkId::new(what, rules), |b| {
                b.iter(|| decide(black_box(&set), black_box(&facts)))
            });
        }
    }
}

criterion_group!(benches, layer4);
criterion_main!(benches);
