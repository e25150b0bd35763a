// SPDX-License-Identifier: Apache-2.0
//! Time of a decision by number of rules and by their shape, hit and miss; memory of the index for each rule; time of a
//! change.
//!
//! At the end comes a table with the ratio to one rule: what the figures of a busy machine still tell.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

#[path = "decide/shapes.rs"]
mod shapes;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy, Scope};
use meltemi_policy::{Facts, PolicySet, ValidPolicy, decide};

use shapes::{Request, SHAPES, Shape};

const SIZES: [usize; 4] = [1, 100, 10_000, 100_000];
/// Different requests that are judged in turn.
const REQUESTS: usize = 64;
/// Rules of a policy.
const RULES: usize = 500;

fn policies(shape: &Shape, n: usize) -> Vec<ValidPolicy> {
    let policy = |first: usize| {
        let rules = (first..n.min(first + RULES)).map(|i| (shape.rule)(i, n)).collect();
        let name = NamespacedName::new("default", format!("p{first:06}"));
        ValidPolicy::new(Policy {
            name,
            scope: Scope::Namespace,
            action: Action::Allow,
            dry_run: false,
            rules,
        })
        .unwrap()
    };
    (0..n).step_by(RULES).map(policy).collect()
}

/// The best time of each measurement, in nanoseconds, by bench and size.
static BEST: Mutex<BTreeMap<(String, usize), f64>> = Mutex::new(BTreeMap::new());

fn note(what: &str, n: usize, time: Duration, iterations: u64) {
    let each = time.as_secs_f64() * 1e9 / iterations as f64;
    let mut best = BEST.lock().unwrap_or_else(PoisonError::into_inner);
    best.entry((what.to_owned(), n)).and_modify(|b| *b = b.min(each)).or_insert(each);
}

fn decisions(c: &mut Criterion) {
    for shape in SHAPES {
        let what = format!("L{} {}", shape.layer, shape.name);
        let mut group = c.benchmark_group(&what);
        for n in SIZES {
            // Made when it is needed: not for what is filtered out.
            let set = OnceCell::new();
            let made = || {
                let set = PolicySet::new(policies(shape, n), Vec::new());
                let bytes = Duration::from_nanos(set.index_bytes() as u64);
                note(&format!("{what}|bytes"), n, bytes, n as u64);
                set
            };
            for (case, hit) in [("hit", true), ("miss", false)] {
                // Spread over the rules by a step that has nothing in common with their number.
                let at = |i: usize| if hit { (i * 7919 + n / 2) % n } else { n + i };
                let requests: Vec<Request> = (0..REQUESTS).map(|i| (shape.request)(at(i), n)).collect();
                let facts: Vec<Facts<'_>> = requests.iter().map(Request::facts).collect();
                group.bench_function(BenchmarkId::new(case, n), |b| {
                    let set = set.get_or_init(made);
                    assert!(facts.iter().all(|f| decide(set, f).is_allow() == hit), "{what} {case} {n}");
                    b.iter_custom(|iterations| {
                        let start = Instant::now();
                        for i in 0..iterations {
                            black_box(decide(black_box(set), black_box(&facts[i as usize % REQUESTS])));
                        }
                        let time = start.elapsed();
                        if iterations > 100 {
                            note(&format!("{what}|{case}"), n, time, iterations);
                        }
                        time
                    });
                });
            }
        }
        group.finish();
    }
}

/// One of many policies with one rule each changes, again and again.
fn changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("change one policy of");
    let shape = &SHAPES[4];
    for n in [10_000, 100_000] {
        let one = |i: usize, version: usize| {
            let rules = vec![(shape.rule)(i + version * n, n)];
            let name = NamespacedName::new("default", format!("p{i:06}"));
            ValidPolicy::new(Policy {
                name,
                scope: Scope::Namespace,
                action: Action::Allow,
                dry_run: false,
                rules,
            })
            .unwrap()
        };
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            let start: Vec<ValidPolicy> = (0..n).map(|i| one(i, 0)).collect();
            let whole = Instant::now();
            let set = PolicySet::new(start.clone(), Vec::new());
            note("build|all at once", n, whole.elapsed(), 1);
            b.iter_custom(|iterations| {
                let (mut policies, mut set, mut time) = (start.clone(), set.clone(), Duration::ZERO);
                for i in 0..iterations as usize {
                    let at = (i * 7919) % n;
                    policies[at] = one(at, i + 1);
                    let now = policies.clone();
                    let begin = Instant::now();
                    set = set.updated(now, Vec::new());
                    time += begin.elapsed();
                }
                note("build|one change", n, time, iterations);
                black_box(&set);
                time
            });
        });
    }
    group.finish();
}

fn table() {
    let best = BEST.lock().unwrap_or_else(PoisonError::into_inner);
    let names: std::collections::BTreeSet<&String> = best.keys().map(|(what, _)| what).collect();
    println!(
        "\nns for each decision (or bytes for each rule) by number of rules, and times the figure at 1 rule"
    );
    for name in names {
        let at = |n: usize| best.get(&(name.clone(), n)).copied();
        let cell = |n: usize| at(n).map_or_else(|| format!("{:>10}", ""), |v| format!("{v:>10.0}"));
        let ratio =
            |n: usize| at(n).zip(at(1)).map_or_else(String::new, |(v, one)| format!(" {:>5.2}x", v / one));
        println!(
            "{name:<45}{}{}{}{}{}{}",
            cell(1),
            cell(100),
            cell(10_000),
            ratio(10_000),
            cell(100_000),
            ratio(100_000)
        );
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(250))
        .without_plots()
        .configure_from_args();
    decisions(&mut criterion);
    changes(&mut criterion);
    criterion.final_summary();
    table();
}
