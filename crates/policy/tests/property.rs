// SPDX-License-Identifier: Apache-2.0
//! The engine and a naive evaluator agree on random policies and requests: verdict, and the rule that decides.

use std::sync::Arc;

use meltemi_policy::{Decision, PolicySet, decide};
use proptest::prelude::*;

#[path = "support/naive.rs"]
mod naive;
#[path = "support/world.rs"]
mod world;

use naive::Verdict;

fn verdict(decision: Decision) -> Verdict {
    let place = |by: meltemi_policy::Rule| (by.policy as usize, by.rule as usize);
    match decision {
        Decision::Allow { by } => Verdict::Allow(by.map(place)),
        Decision::Deny { by } => Verdict::Deny(by.map(place)),
        Decision::Undecided { .. } => Verdict::Undecided,
    }
}

proptest! {
    #[test]
    fn the_engine_decides_as_the_specification(policies in world::policies(), requests in prop::collection::vec(world::request(), 8)) {
        let set = PolicySet::compile(policies.iter().cloned().map(Arc::new));
        for request in &requests {
            let facts = request.facts();
            let mut wanted = naive::judge(&policies, false, &facts, &[]);
            if let Verdict::Ask(a, b) = wanted { wanted = Verdict::Deny(Some((a, b))); }
            prop_assert_eq!(verdict(decide(&set, &facts)), wanted, "{:?}", request);
        }
    }
}
