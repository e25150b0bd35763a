// SPDX-License-Identifier: Apache-2.0
//! Time of a comparison of 1,000 rules with 1,000, in the shapes that policies have.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use meltemi_analysis::{Attached, Layer, Place, compare};
use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, PathTemplate, Policy, Predicate, Rule, Scope,
    StringMatch, ValueMatch,
};
use meltemi_policy::ValidPolicy;

const RULES: usize = 1_000;
/// What a comparison may take at most.
const LONGEST: Duration = Duration::from_secs(5);

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
    Attached { policy: ValidPolicy::new(policy).expect("a valid policy"), guard: Vec::new() }
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

/// A rule of predicates with values and not-values in one match.
fn mixed(predicates: Vec<(Attribute, Vec<ValueMatch>, Vec<ValueMatch>)>) -> Rule {
    let predicates = predicates
        .into_iter()
        .map(|(attribute, values, not_values)| Predicate { attribute, values, not_values })
        .collect();
    Rule { clauses: vec![Clause { origin: ClauseOrigin::Unknown, matches: vec![Match { predicates }] }] }
}

fn text(value: impl Into<String>) -> ValueMatch {
    ValueMatch::String(StringMatch::parse(&value.into()))
}

/// Numbers that look random and are the same each time.
fn noise(seed: usize, below: usize) -> usize {
    let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x % below as u64) as usize
}

fn header(k: usize) -> Attribute {
    Attribute::Header(format!("x-{k}").as_str().into())
}

/// Rules that somebody writes to keep the comparison busy: rule `i`, of the old side or of the new one.
type Hostile = fn(usize, usize) -> Rule;

const HOSTILE: &[(&str, Hostile)] = &[
    ("twenty headers each", |i, side| {
        let one =
            |k: usize| (header((i + k) % 60), vec![text(format!("{}", noise(i * 64 + k + side, 5)))], vec![]);
        mixed((0..20).map(one).collect())
    }),
    ("not, everywhere", |i, side| {
        mixed(vec![
            (
                Attribute::SourcePrincipal,
                vec![],
                vec![text(who(i + side).1.remove(0)), text(who(i + 7).1.remove(0))],
            ),
            (Attribute::Method, vec![], vec![text(["GET", "PUT", "POST", "DELETE"][noise(i, 4)])]),
            (Attribute::Path, vec![], vec![text(format!("/a{i}*")), text(format!("*z{}", i + side))]),
            (header(i % 30), vec![], vec![text(format!("{}", noise(i, 9)))]),
        ])
    }),
    ("prefixes times suffixes", |i, side| {
        let path = if i % 2 == 0 { format!("/p{}*", i + side) } else { format!("*s{}", i + side) };
        mixed(vec![(Attribute::Path, vec![text(path)], vec![])])
    }),
    ("templates", |i, side| {
        let template = match i % 4 {
            0 => format!("/{{*}}/a{}/{{**}}", i + side),
            1 => format!("/b{}/{{*}}/{{*}}", i % 40),
            2 => format!("/{{*}}/{{*}}/c{}", i + side),
            _ => format!("/d{}/{{**}}/e{i}", i % 30),
        };
        let template = ValueMatch::PathTemplate(PathTemplate(template.as_str().into()));
        mixed(vec![(Attribute::Path, vec![template], vec![])])
    }),
    ("ranges across ranges", |i, side| {
        let range = |seed: usize| {
            let (bits, length) = (noise(seed, 1 << 24) as u32, 8 + noise(seed + 9, 20));
            ValueMatch::Cidr(
                format!("{}/{length}", std::net::Ipv4Addr::from_bits(10 << 24 | bits))
                    .parse()
                    .expect("a range"),
            )
        };
        mixed(vec![
            (Attribute::SourceIp, vec![range(i), range(i + 1)], vec![range(i + 5 + side)]),
            (Attribute::DestinationIp, vec![range(3 * i)], vec![]),
            (Attribute::RemoteIp, vec![], vec![range(7 * i)]),
        ])
    }),
    ("a riddle of headers", |i, side| {
        // Three of 230 headers each, present or not: satisfiability where it is hardest.
        let one = |k: usize| {
            let (name, is) = (header(noise(i * 3 + k + side * 5000, 230)), noise(i * 7 + k + 1, 2) == 0);
            if is { (name, vec![text("1")], vec![]) } else { (name, vec![], vec![text("1")]) }
        };
        let mut all: Vec<_> = Vec::new();
        for k in 0..3 {
            let next = one(k);
            if all.iter().all(|(name, _, _)| *name != next.0) {
                all.push(next);
            }
        }
        mixed(all)
    }),
    ("claims", |i, side| {
        let claim = |k: usize| Attribute::RequestAuthClaim([std::sync::Arc::from(format!("c{k}"))].into());
        let one = |k: usize| {
            (
                claim((i + k) % 12),
                vec![text(format!("v{}*", noise(i + k + side, 40)))],
                vec![text(format!("*{}", noise(i, 9)))],
            )
        };
        mixed((0..3).map(one).collect())
    }),
];

/// No shape takes long: what cannot be decided within bounds is UNKNOWN by name.
fn hostile(place: &Place) {
    for (name, shape) in HOSTILE {
        for action in [Action::Allow, Action::Deny] {
            let side =
                |side: usize| vec![policy("p", action.clone(), (0..RULES).map(|i| shape(i, side)).collect())];
            let (old, new) = (side(0), side(1));
            let begin = Instant::now();
            let found = compare(place, &old, &new);
            let time = begin.elapsed();
            println!(
                "{name} ({action:?}): {time:.2?}, {} newly allowed, {} newly denied, {} unknown{}",
                found.newly_allowed.len(),
                found.newly_denied.len(),
                found.unknown.len(),
                found.unknown.first().map(|u| format!(": {}", u.reason)).unwrap_or_default()
            );
            assert!(time < LONGEST, "{name} took {time:?}");
        }
    }
}

fn place() -> Place {
    Place {
        target: "Service ns/web".into(),
        enforced_at: "waypoint ns/waypoint".into(),
        layer: Layer::Request,
        port: 80,
        host: "web".into(),
        identities: Vec::new(),
        reach: None,
        ports: vec![],
        other_ports: vec![],
    }
}

fn comparisons(criterion: &mut Criterion) {
    let place = place();
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
    if std::env::args().all(|arg| arg != "--test") {
        hostile(&place);
    }
}

criterion_group!(benches, comparisons);
criterion_main!(benches);
