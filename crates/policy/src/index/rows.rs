// SPDX-License-Identifier: Apache-2.0
//! A rule as rows: conjunctions of predicates, one of which must hold. A rule that would give too many becomes fewer,
//! wider rows, whose hits are checked against the rule itself.

use std::borrow::Cow;

use meltemi_model::authz::{Attribute, Clause, Match, Predicate, Rule};
use smallvec::SmallVec;

use crate::matching::Sense;

/// Rows that the clauses of one rule may multiply to. A single clause may have more matches than that.
const PRODUCT: usize = 1024;

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
    // The clause with most matches in any case, and then as many as there is room for.
    clauses.sort_by_key(|matches| std::cmp::Reverse(matches.len()));
    let mut rows = vec![Row { predicates: SmallVec::new(), exact: true }];
    for (index, matches) in clauses.iter().enumerate() {
        if index > 0 && rows.len() * matches.len() > PRODUCT {
            rows.iter_mut().for_each(|row| row.exact = false);
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
