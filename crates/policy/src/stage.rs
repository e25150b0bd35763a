// SPDX-License-Identifier: Apache-2.0
//! Policies that act alike, indexed: most of them in a base that stays as it is, what has changed since in a small index
//! beside it. A change builds the small one again, and the base only once in a while.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::check::ValidPolicy;
use crate::facts::Facts;
use crate::index::{Dead, Hit, Index};
use crate::matching::Sense;
use crate::rule::Rule;

/// Changed rules that are always worth waiting for, before the base is built again.
const PATIENCE: usize = 64;

/// The place in the set of a policy that is in it no more.
const GONE: u32 = u32::MAX;

/// A policy and its place in the set.
pub(crate) type Placed<'a> = (u32, &'a ValidPolicy);

#[derive(Clone, Debug)]
struct Part {
    index: Arc<Index>,
    /// Places in the set of the index's policies.
    places: Arc<[u32]>,
    dead: Option<Arc<Dead>>,
}

impl Part {
    fn rule(&self, hit: Hit) -> Rule {
        let clause = u32::from(hit.clauses).checked_sub(1);
        Rule { policy: self.places[hit.policy as usize], rule: hit.rule, clause }
    }
}

/// Policies that act alike.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    sense: Sense,
    base: Vec<Part>,
    fresh: Vec<Part>,
    policies: usize,
}

impl Stage {
    /// Indexes policies, in order.
    pub(crate) fn build(policies: &[Placed<'_>], sense: Sense) -> Self {
        Self { sense, base: parts(policies, sense), fresh: Vec::new(), policies: policies.len() }
    }

    /// The same with other policies: what both have is not indexed again. Policies that are there under the same address
    /// are found when both lists are sorted by name, or in the same order.
    pub(crate) fn updated(&self, policies: &[Placed<'_>]) -> Self {
        let (mut rest, mut fresh, mut base) = (policies.iter().copied().peekable(), Vec::new(), Vec::new());
        let (mut changed, mut all) = (0, 0);
        for part in &self.base {
            let mut places = Vec::with_capacity(part.index.policies().len());
            for old in part.index.policies() {
                // What comes before it by name is new.
                while let Some((_, new)) = rest.peek()
                    && !new.is(old)
                    && new.name < old.name
                {
                    fresh.extend(rest.next());
                }
                let place = match rest.next_if(|(_, new)| new.is(old)) {
                    Some((place, _)) => place,
                    None => {
                        changed += old.rules.len() + 1;
                        GONE
                    }
                };
                places.push(place);
            }
            all += part.index.rows();
            let places: Arc<[u32]> = places.into();
            let dead = if places == part.places {
                part.dead.clone()
            } else {
                part.index.dead(|policy| places[policy as usize] == GONE).map(Arc::new)
            };
            base.push(Part { index: part.index.clone(), places, dead });
        }
        fresh.extend(rest);
        changed += fresh.iter().map(|(_, policy)| policy.rules.len() + 1).sum::<usize>();
        // Often enough that the small index stays small, seldom enough that building the base counts for little.
        if changed > PATIENCE.max(4 * all.isqrt()) {
            return Self::build(policies, self.sense);
        }
        Self { sense: self.sense, base, fresh: parts(&fresh, self.sense), policies: policies.len() }
    }

    /// Whether no policy is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies == 0
    }

    /// The first rule that matches: of the first policy, its first.
    #[inline]
    pub(crate) fn first(&self, facts: &Facts<'_>) -> Option<Rule> {
        let mut first: Option<Rule> = None;
        for part in self.base.iter().chain(&self.fresh) {
            if let Some(hit) = part.index.first(facts, part.dead.as_deref()) {
                let rule = part.rule(hit);
                if first.is_none_or(|first| (rule.policy, rule.rule) < (first.policy, first.rule)) {
                    first = Some(rule);
                }
            }
        }
        first
    }

    /// Calls for every rule that matches, in no order, for some of them more than once.
    pub(crate) fn each(&self, facts: &Facts<'_>, mut with: impl FnMut(Rule) -> ControlFlow<()>) {
        for part in self.base.iter().chain(&self.fresh) {
            let flow = part.index.each(facts, part.dead.as_deref(), |hit| with(part.rule(hit)));
            if flow.is_break() {
                return;
            }
        }
    }

    /// Some rules that almost match: at most `limit` for each attribute.
    pub(crate) fn near(&self, facts: &Facts<'_>, limit: usize) -> Vec<Rule> {
        let mut near = Vec::new();
        for part in self.base.iter().chain(&self.fresh) {
            part.index.near(facts, part.dead.as_deref(), limit, |hit| near.push(part.rule(hit)));
        }
        near.sort();
        near.dedup();
        near
    }

    /// Bytes on the heap, policies not counted.
    pub(crate) fn heap(&self) -> usize {
        self.base.iter().chain(&self.fresh).map(|part| part.index.heap() + part.places.len() * 4).sum()
    }

    /// Rows of the indexes.
    pub(crate) fn rows(&self) -> usize {
        self.base.iter().chain(&self.fresh).map(|part| part.index.rows()).sum()
    }
}

fn parts(policies: &[Placed<'_>], sense: Sense) -> Vec<Part> {
    let all: Vec<ValidPolicy> = policies.iter().map(|(_, policy)| (*policy).clone()).collect();
    let (mut rest, mut places, mut parts) = (all.as_slice(), policies, Vec::new());
    while !rest.is_empty() {
        let index = Index::build(rest, sense);
        let taken = index.policies().len();
        let part = Part {
            index: Arc::new(index),
            places: places[..taken].iter().map(|(place, _)| *place).collect(),
            dead: None,
        };
        parts.push(part);
        (rest, places) = (&rest[taken..], &places[taken..]);
    }
    parts
}
