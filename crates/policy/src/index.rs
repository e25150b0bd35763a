// SPDX-License-Identifier: Apache-2.0
//! The index over the rules of many policies: one look-up for each attribute gives the set of rows that it fulfils; the
//! first row in all of them is the answer.

mod ends;
mod field;
mod key;
mod query;
mod ranges;
mod rows;
mod sets;
mod text;

use std::ops::ControlFlow;

use hashbrown::{DefaultHashBuilder, HashMap};
use meltemi_model::authz::{Attribute, Predicate, Rule};

use self::field::{Field, FieldBuilder};
use self::query::Query;
use self::rows::Row;
use self::sets::{MAX_ROWS, SetRef, Sets, SetsBuilder};
use crate::check::ValidPolicy;
use crate::facts::Facts;
use crate::matching::{Sense, rule_matches};

/// Attributes that are looked up; of more, the rows' hits are checked one by one.
const FIELDS: usize = 56;

/// Rows that a value brings in, and those that it rules out.
#[derive(Clone, Copy, Debug)]
struct Post {
    plus: SetRef,
    minus: SetRef,
}

impl Post {
    #[inline]
    fn put(self, query: &mut Query<'_>) {
        query.plus(self.plus);
        query.minus(self.minus);
    }
}

/// Where a row comes from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// The policy, as one of this index.
    policy: u32,
    rule: u32,
    /// How many clauses the rule has.
    clauses: u16,
    /// The look-ups alone decide.
    exact: bool,
}

impl Origin {
    fn new(policy: usize, at: u32, rule: &Rule, exact: bool) -> Self {
        // A valid policy has no more clauses than a u16 can say.
        let clauses = u16::try_from(rule.clauses.len()).unwrap_or(u16::MAX);
        Self { policy: policy as u32, rule: at, clauses, exact }
    }
}

/// A rule that matches: policy (as one of this index) and rule, and how many clauses it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) policy: u32,
    pub(crate) rule: u32,
    pub(crate) clauses: u16,
}

/// An index over policies that act alike; immutable.
#[derive(Debug)]
pub(crate) struct Index {
    sense: Sense,
    policies: Vec<ValidPolicy>,
    rows: Vec<Origin>,
    fields: Vec<Field>,
    sets: Sets,
    hash: DefaultHashBuilder,
}

/// Rows of an index that no longer count.
#[derive(Clone, Debug)]
pub(crate) struct Dead {
    sets: Sets,
    rows: SetRef,
}

impl Index {
    /// Indexes as many of the policies as there is room for, in order; how many that are is [`Index::policies`]. A single
    /// policy always fits.
    pub(crate) fn build(policies: &[ValidPolicy], sense: Sense) -> Self {
        let mut origins: Vec<Origin> = Vec::new();
        let mut all: Vec<Row<'_>> = Vec::new();
        let mut taken = 0;
        for (place, policy) in policies.iter().enumerate() {
            let mut added = rows_of(policy, place, sense);
            if all.len() + added.len() > MAX_ROWS as usize {
                if taken > 0 {
                    break;
                }
                added.truncate(0);
                added.extend(wide_rows(policy, place));
            }
            for (origin, row) in added {
                origins.push(origin);
                all.push(row);
            }
            taken += 1;
        }
        let hash = DefaultHashBuilder::default();
        let mut sets = SetsBuilder::new(all.len() as u32);
        let fields = fields(&all, sense, &mut origins, &mut sets, &hash);
        drop(all);
        origins.shrink_to_fit();
        Self { sense, policies: policies[..taken].to_vec(), rows: origins, fields, sets: sets.build(), hash }
    }

    /// What is indexed.
    pub(crate) fn policies(&self) -> &[ValidPolicy] {
        &self.policies
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Bytes on the heap, policies not counted.
    pub(crate) fn heap(&self) -> usize {
        self.rows.capacity() * size_of::<Origin>()
            + self.policies.capacity() * size_of::<ValidPolicy>()
            + self.fields.iter().map(Field::heap).sum::<usize>()
            + self.sets.heap()
    }

    /// The rows of policies that no longer count.
    pub(crate) fn dead(&self, gone: impl Fn(u32) -> bool) -> Option<Dead> {
        let rows: Vec<u32> =
            (0..).zip(&self.rows).filter(|(_, origin)| gone(origin.policy)).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return None;
        }
        let mut sets = SetsBuilder::new(self.rows.len() as u32);
        let rows = sets.set(rows);
        Some(Dead { sets: sets.build(), rows })
    }

    /// The first rule that matches.
    #[inline]
    pub(crate) fn first(&self, facts: &Facts<'_>, dead: Option<&Dead>) -> Option<Hit> {
        let mut first = None;
        let _ = self.each(facts, dead, |hit| {
            first = Some(hit);
            ControlFlow::Break(())
        });
        first
    }

    /// Calls for the rules that match, in order; for some of them more than once.
    #[inline]
    pub(crate) fn each(
        &self,
        facts: &Facts<'_>,
        dead: Option<&Dead>,
        mut with: impl FnMut(Hit) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let rows = self.rows.len() as u32;
        if rows == 0 {
            return ControlFlow::Continue(());
        }
        let mut query = Query::new(&self.sets, rows);
        for field in &self.fields {
            if !field.narrow(facts, self.sense, &self.hash, &mut query) {
                return ControlFlow::Continue(());
            }
        }
        query.each(dead.map(|dead| (&dead.sets, dead.rows)), |row| {
            let origin = self.rows[row as usize];
            let hit = Hit { policy: origin.policy, rule: origin.rule, clauses: origin.clauses };
            if !origin.exact && !self.confirm(hit, facts) {
                return ControlFlow::Continue(());
            }
            with(hit)
        })
    }

    /// Calls for some rules that do not match for one attribute only, as far as the index can tell.
    pub(crate) fn near(
        &self,
        facts: &Facts<'_>,
        dead: Option<&Dead>,
        limit: usize,
        mut with: impl FnMut(Hit),
    ) {
        for without in 0..self.fields.len() {
            let mut query = Query::new(&self.sets, self.rows.len() as u32);
            let others = self.fields.iter().enumerate().filter(|(index, _)| *index != without);
            if !others.map(|(_, f)| f).all(|f| f.narrow(facts, self.sense, &self.hash, &mut query)) {
                continue;
            }
            let mut left = limit;
            let _ = query.each(dead.map(|dead| (&dead.sets, dead.rows)), |row| {
                let Origin { policy, rule, clauses, .. } = self.rows[row as usize];
                with(Hit { policy, rule, clauses });
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
    }

    #[cold]
    fn confirm(&self, hit: Hit, facts: &Facts<'_>) -> bool {
        let policy = &self.policies[hit.policy as usize];
        policy.rules.get(hit.rule as usize).is_some_and(|rule| rule_matches(rule, facts, self.sense))
    }
}

fn rows_of(policy: &ValidPolicy, place: usize, sense: Sense) -> Vec<(Origin, Row<'_>)> {
    let mut all = Vec::new();
    for (rule, at) in policy.rules.iter().zip(0..) {
        let rows = rows::rows(rule, sense).into_iter();
        all.extend(rows.map(|row| (Origin::new(place, at, rule, row.exact), row)));
    }
    all
}

/// One row for each rule of a policy that would have too many: it says nothing, and every hit is checked.
fn wide_rows(policy: &ValidPolicy, place: usize) -> impl Iterator<Item = (Origin, Row<'_>)> {
    (0..).zip(&policy.rules).map(move |(at, rule)| {
        (Origin::new(place, at, rule, false), Row { predicates: Default::default(), exact: false })
    })
}

/// An attribute, and how many predicates of the row looked at it before.
type Slot = (Attribute, usize);

fn slots<'r>(row: &'r Row<'_>) -> impl Iterator<Item = (Slot, &'r Predicate)> {
    row.predicates.iter().enumerate().map(|(index, predicate)| {
        let before = &row.predicates[..index];
        let slot = before.iter().filter(|p| p.attribute == predicate.attribute).count();
        ((predicate.attribute.clone(), slot), &**predicate)
    })
}

/// The fields of all rows. A second predicate of a row on the same attribute is a second field.
fn fields(
    rows: &[Row<'_>],
    sense: Sense,
    origins: &mut [Origin],
    sets: &mut SetsBuilder,
    hash: &DefaultHashBuilder,
) -> Vec<Field> {
    let mut count: HashMap<Slot, u32> = HashMap::new();
    for (slot, _) in rows.iter().flat_map(slots) {
        *count.entry(slot).or_default() += 1;
    }
    let mut chosen: Vec<_> = count.into_iter().collect();
    // Most used first; what is used alike by its name, so that the index does not depend on a hash.
    chosen.sort_by_cached_key(|((attribute, slot), count)| {
        (std::cmp::Reverse(*count), format!("{attribute:?}"), *slot)
    });
    chosen.truncate(FIELDS);
    let mut chosen: Vec<Slot> = chosen.into_iter().map(|(key, _)| key).collect();
    chosen.sort_by_key(|(attribute, _)| Field::order(attribute));
    let places: HashMap<_, _> = chosen.iter().cloned().zip(0usize..).collect();
    let mut builders: Vec<FieldBuilder> = chosen.iter().map(|_| FieldBuilder::default()).collect();
    for ((at, row), origin) in (0..).zip(rows).zip(origins) {
        for (slot, predicate) in slots(row) {
            match places.get(&slot) {
                Some(place) => origin.exact &= builders[*place].add(at, predicate, sense),
                None => origin.exact = false,
            }
        }
    }
    builders
        .into_iter()
        .zip(chosen)
        .map(|(builder, (attribute, _))| builder.build(attribute, sets, hash))
        .collect()
}
