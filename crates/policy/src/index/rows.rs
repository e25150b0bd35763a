// SPDX-License-Identifier: Apache-2.0
//! A rule as rows: conjunctions of predicates, one of which must hold. A rule that would give too many becomes fewer,
//! wider rows, whose hits are checked against the rule itself: of a clause that is not multiplied out, they keep what all
//! of its matches need.

use std::borrow::Cow;

use hashbrown::HashSet;
use meltemi_model::authz::{Attribute, Clause, Match, Predicate, Rule, ValueMatch};
use smallvec::SmallVec;

use crate::matching::Sense;

/// Rows that the clauses of one rule may multiply to. A single clause may have more matches than that.
const PRODUCT: usize = 1024;

/// Values that all matches of a clause may need of an attribute, when they are looked up together.
const NEEDED: usize = 16 * PRODUCT;

/// One conjunction.
#[derive(Clone, Debug)]
pub(super) struct Row<'p> {
    pub(super) predicates: SmallVec<[Cow<'p, Predicate>; 4]>,
    /// Nothing but these predicates decides.
    pub(super) exact: bool,
}

/// The rows of a rule; none when it can never match.
pub(super) fn rows(rule: &Rule, sense: Sense) -> Vec<Row<'_>> {
    let mut clauses = Vec::new();
    for clause in &rule.clauses {
        match read(clause, sense) {
            Read::Always => {}
            Read::Never => return Vec::new(),
            Read::Matches(matches) => clauses.push(matches),
        }
    }
    let product = clauses.iter().fold(1usize, |all, matches| all.saturating_mul(matches.len()));
    if product > PRODUCT && clauses.len() > 1 {
        // One row, where each of the clauses asks for something in all of its matches.
        let all: Vec<Vec<Predicate>> = clauses.iter().map(|matches| needed(matches, NEEDED)).collect();
        if all.iter().all(|needed| !needed.is_empty()) {
            let predicates = all.into_iter().flatten().map(Cow::Owned).collect();
            return vec![Row { predicates, exact: false }];
        }
    }
    // The clause with most matches in any case, and then as many as there is room for.
    clauses.sort_by_key(|matches| std::cmp::Reverse(matches.len()));
    let mut rows = vec![Row { predicates: SmallVec::new(), exact: true }];
    for (index, matches) in clauses.iter().enumerate() {
        if index > 0 && rows.len() * matches.len() > PRODUCT {
            let needed = needed(matches, PRODUCT / rows.len());
            for row in &mut rows {
                row.exact = false;
                row.predicates.extend(needed.iter().cloned().map(Cow::Owned));
            }
            continue;
        }
        rows = rows
            .iter()
            .flat_map(|row| {
                matches.iter().map(|one| {
                    let mut row = row.clone();
                    row.predicates.extend(one.iter().cloned());
                    row
                })
            })
            .collect();
    }
    rows
}

type Conjunction<'p> = SmallVec<[Cow<'p, Predicate>; 4]>;

/// For every attribute of which each of the matches wants some value, all of those values; as long as they are at most
/// `limit`.
fn needed(matches: &[Conjunction<'_>], limit: usize) -> Vec<Predicate> {
    let wants = |one: &Predicate| !one.values.is_empty();
    let first = matches.first().into_iter().flatten().filter(|p| wants(p));
    let of = |attribute: &Attribute| {
        let mut values = Vec::new();
        for one in matches {
            values.extend(one.iter().find(|p| p.attribute == *attribute && wants(p))?.values.iter());
            if values.len() > limit {
                return None;
            }
        }
        let values: HashSet<&ValueMatch> = values.into_iter().collect();
        let values = values.into_iter().cloned().collect();
        Some(Predicate { attribute: attribute.clone(), values, not_values: Vec::new() })
    };
    first.filter_map(|p| of(&p.attribute)).collect()
}

enum Read<'p> {
    Always,
    Never,
    Matches(Vec<Conjunction<'p>>),
}

fn read(clause: &Clause, sense: Sense) -> Read<'_> {
    if clause.matches.is_empty() {
        return Read::Always;
    }
    let mut matches: Vec<Conjunction<'_>> = Vec::new();
    for one in &clause.matches {
        let Some(conjunction) = conjunction(one, sense) else { continue };
        if conjunction.is_empty() {
            return Read::Always;
        }
        if !matches.last_mut().is_some_and(|before| join(before, &conjunction, sense)) {
            matches.push(conjunction);
        }
    }
    if matches.is_empty() { Read::Never } else { Read::Matches(matches) }
}

/// The predicates of a match; none when it can never hold.
fn conjunction(one: &Match, sense: Sense) -> Option<Conjunction<'_>> {
    let mut all = Conjunction::new();
    for predicate in &one.predicates {
        match (&predicate.attribute, sense) {
            // Nobody can tell: an ALLOW does not match, a DENY does.
            (Attribute::Unsupported(_), Sense::Allow) => return None,
            (Attribute::Unsupported(_), Sense::Deny) => {}
            _ => all.push(Cow::Borrowed(predicate)),
        }
    }
    Some(all)
}

/// Two matches that differ in the values of one attribute only are one match with the values of both.
fn join(before: &mut Conjunction<'_>, after: &Conjunction<'_>, sense: Sense) -> bool {
    if before.len() != after.len() {
        return false;
    }
    let mut differing = None;
    for (index, (a, b)) in before.iter().zip(after).enumerate() {
        if a == b {
            continue;
        }
        // What has several readings must fulfil one match in all of them: values of two do not add up in an ALLOW.
        let readings = matches!(a.attribute, Attribute::Path | Attribute::Header(_)) && sense == Sense::Allow;
        let same = a.attribute == b.attribute && a.not_values == b.not_values;
        if readings || !same || a.values.is_empty() || b.values.is_empty() || differing.is_some() {
            return false;
        }
        differing = Some(index);
    }
    if let Some(index) = differing {
        let values = after[index].values.iter().cloned();
        before[index].to_mut().values.extend(values);
    }
    true
}
