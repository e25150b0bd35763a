// SPDX-License-Identifier: Apache-2.0
//! Time of a comparison of 1,000 rules with 1,000, in the shapes that policies have.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use meltemi_analysis::{Attached, Layer, Place, compare};
use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};

const RULES: usize = 1_000;

fn rule(fields: &[(Attribute, Vec<String>)]) -> Rule {
    let clause = |(attribute, values): &(Attribute, Vec<String>)| {
        let values = values.iter().map(|v| ValueMatch::String(StringMatch::parse(v))).collect();
        let predicate = Predicate { attribute: attribute.clone(), values, not_values: Vec::new() };
        Clause { origin: ClauseOrigin::Unknown, matches: vec![Match { predicates: vec![predicate] }] }
    };
    Rule { clauses: fields.iter().map(clause).collect() }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Attached {
    let name = NamespacedName::new("ns", name);
    let policy = Policy { name, scope: Scope::WorkloadSelector, action, dry_run: false, rules };
    Attached { policy: Arc::new(policy), guard: Vec::new() }
}

fn who(index: usize) -> (Attribute, Vec<String>) {
    (Attribute::SourcePrincipal, vec![format!("cluster.local/ns/n{}/sa/s{index}", index % 50)])
}

fn paths(texts: Vec<String>) -> (Attribute, Vec<String>) {
    (Attribute::Path, texts)
}

fn methods(index: usize) -> (Attribute, Vec<String>) {
    let all = ["GET", "POST", "PUT", "DELETE"];
    (Attribute::Method, all[..1 + index % 4].iter().map(ToString::to_string).collect())
}

/// A caller, methods and a path each; the other side writes each rule differently, and one in fifty really is.
fn services(changed: bool) -> Vec<Attached> {
    let one = |i: usize| {
        let end = if changed && i.is_multiple_of(50) { "/x/*" } else { "/*" };
        rule(&[
            who(i),
            methods(i + usize::from(changed && i % 50 == 7)),
            paths(vec![format!("/api/v{i}{end}"), format!("/api/v{i}")]),
        ])
    };
    let deny = rule(&[paths(vec!["*/internal".to_owned(), "/api/v1/admin*".to_owned()])]);
    vec![
        policy("allow", Action::Allow, (0..RULES).map(one).collect()),
        policy("deny", Action::Deny, vec![deny]),
    ]
}

/// All callers times all paths: 1,000 rules of one pair each, against 1,000 rules that list the same pairs otherwise.
fn grid(by_path: bool) -> Vec<Attached> {
    let (callers, places) = (32, 32);
    let rules = (0..callers * places).take(RULES + 24).map(|i| {
        let (caller, place) = if by_path { (i % callers, i / callers) } else { (i / places, i % places) };
        rule(&[who(caller), paths(vec![format!("/p{place}/*")])])
    });
    vec![policy("grid", Action::Allow, rules.collect())]
}

/// The grid in one rule.
fn product() -> Vec<Attached> {
    let callers = (0..32).flat_map(|i| who(i).1).collect();
    let places = (0..32).map(|i| format!("/p{i}/*")).collect();
    vec![policy(
        "product",
        Action::Allow,
        vec![rule(&[(Attribute::SourcePrincipal, callers), paths(places)])],
    )]
}

/// Prefixes inside of prefixes and suffixes, all for one caller.
fn nested(changed: bool) -> Vec<Attached> {
    let one = |i: usize| {
        let path = if i % 10 == 9 { format!("*.x{i}") } else { format!("/a/{}/{}*", i % 7, i) };
        rule(&[who(0), paths(vec![path])])
    };
    let rules = (0..RULES).filter(|i| !changed || i % 100 != 5).map(one);
    vec![policy("nested", Action::Allow, rules.collect())]
}

fn comparisons(criterion: &mut Criterion) {
    let place = Place {
        target: "Service ns/web".into(),
        enforced_at: "waypoint ns/waypoint".into(),
        layer: Layer::Request,
        port: 80,
        host: "web".into(),
        identities: Vec::new(),
        reach: None,
        ports: vec![],
        other_ports: vec![],
    };
    let mut group = criterion.benchmark_group("1000 rules against 1000");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(5));
    let cases = [
        ("callers, methods and paths", services(false), services(true), 10, 30),
        ("grid, listed in another order", grid(false), grid(true), 0, 0),
        ("grid against its product", grid(false), product(), 0, 0),
        ("nested prefixes and suffixes", nested(false), nested(true), 0, 8),
    ];
    for (name, old, new, allowed, denied) in &cases {
        let found = compare(&place, old, new);
        assert!(found.unknown.is_empty(), "{name}: {:?}", found.unknown);
        println!(
            "{name}: {} newly allowed, {} newly denied",
            found.newly_allowed.len(),
            found.newly_denied.len()
        );
        assert_eq!((found.newly_allowed.len(), found.newly_denied.len()), (*allowed, *denied), "{name}");
        group.bench_function(*name, |b| b.iter(|| compare(&place, old, new)));
    }
    group.finish();
}

criterion_group!(benches, comparisons);
criterion_main!(benches);
