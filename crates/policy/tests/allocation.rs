// SPDX-License-Identifier: Apache-2.0
//! A decision takes nothing from the heap: counted by the allocator itself.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::ops::ControlFlow;

use meltemi_model::authz::Policy;
use meltemi_policy::{PolicySet, ValidPolicy, decide, reports, resume};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

#[path = "support/world.rs"]
mod world;

/// How many allocations this thread makes meanwhile.
fn allocations(run: impl FnOnce()) -> u64 {
    allocation_counter::measure(run).count_total
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

/// Whether no value of a policy has another form than its own: no escapes and the like in a path, no dot behind a host.
fn is_plain(policy: &Policy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut predicates = clauses.flat_map(|clause| &clause.matches).flat_map(|one| &one.predicates);
    predicates.all(|predicate| {
        let texts = predicate.values.iter().chain(&predicate.not_values).filter_map(|value| value.text());
        texts.into_iter().all(|text| {
            !["%", ";", "\\", "//", ".:"].iter().any(|odd| text.contains(odd)) && !text.ends_with('.')
        })
    })
}

#[test]
fn deciding_allocates_nothing() {
    // Large sets of random policies, and random requests: every attribute, several readings, absent values.
    let mut runner = TestRunner::deterministic();
    let policies = prop::collection::vec(world::policy(), 200);
    for _ in 0..20 {
        let policies = policies.new_tree(&mut runner).unwrap().current();
        let wide = world::wide_policy().new_tree(&mut runner).unwrap().current();
        let plain = policies.into_iter().chain([wide]).filter(is_plain);
        let valid = plain.map(|p| ValidPolicy::new(p).unwrap());
        // Whole, by half, and half of it changed since.
        let all: Vec<ValidPolicy> = valid.collect();
        let half = PolicySet::new(all[all.len() / 2..].to_vec(), Vec::new());
        let sets = [PolicySet::new(all.clone(), Vec::new()), half.updated(all.clone(), Vec::new()), half];
        for _ in 0..100 {
            let request = world::request().new_tree(&mut runner).unwrap().current();
            let facts = request.facts();
            for set in &sets {
                let count = allocations(|| {
                    let mut decision = decide(set, &facts);
                    while let meltemi_policy::Decision::Ask { by } = decision {
                        decision = resume(set, &facts, by);
                    }
                    reports(set, &facts, |_| ControlFlow::Continue(()));
                });
                assert_eq!(count, 0, "{request:?}");
            }
        }
    }
}
