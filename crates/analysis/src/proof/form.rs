// SPDX-License-Identifier: Apache-2.0
//! From a rule to sets: what can be told at the enforcement point, and what cannot.

use meltemi_model::authz::{Attribute, Predicate, Rule, StringMatch, ValueMatch};

use meltemi_policy::http::is_never_seen;

use super::bits::Bits;
use super::space::{Builder, Cell, PredicateId, Space, Subject};

/// Alternatives that one match may become: claims are sets of texts, so each text that one may be is one.
const ALTERNATIVES: usize = 512;

/// Who judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// A node proxy: connections.
    Connection,
    /// A waypoint: requests.
    Request,
}

/// Which workloads a policy applies to: ANDed groups of ORed conditions on labels (key, value, whether equal).
pub type Guard = Vec<Vec<(String, String, bool)>>;

/// A rule with its predicates registered: ANDed clauses of ORed matches of ANDed predicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Raw(Vec<Vec<Vec<PredicateId>>>);

/// How a predicate is evaluated here.
enum Here {
    Yes,
    No,
    Ask,
    /// Requests do not have the attribute: no value matches, and nothing is excluded.
    Absent,
}

/// What `policy::decide` does with what it cannot see: an ALLOW does not match by it, a DENY does.
fn here(attribute: &Attribute, layer: Layer, denies: bool) -> Here {
    let unseen = if denies { Here::Yes } else { Here::No };
    match (attribute, layer) {
        (Attribute::Unsupported(_), _) => unseen,
        (Attribute::Header(name), Layer::Request) if is_never_seen(name) => Here::Absent,
        (_, Layer::Request) => Here::Ask,
        (other, Layer::Connection) => {
            if other.needs_l7() {
                unseen
            } else {
                Here::Ask
            }
        }
    }
}

/// Registers a rule; none when it never matches here.
pub(crate) fn rule(
    builder: &mut Builder,
    guard: &Guard,
    rule: &Rule,
    denies: bool,
    layer: Layer,
) -> Option<Raw> {
    let mut raw = labels(builder, guard);
    for clause in rule.clauses.iter().filter(|c| !c.matches.is_empty()) {
        let matches = clause.matches.iter();
        let seen: Vec<Vec<PredicateId>> =
            matches.filter_map(|m| predicates(builder, &m.predicates, denies, layer)).collect();
        if seen.is_empty() {
            return None;
        }
        if !seen.iter().any(Vec::is_empty) {
            raw.0.push(seen);
        }
    }
    Some(raw)
}

fn predicates(
    builder: &mut Builder,
    all: &[Predicate],
    denies: bool,
    layer: Layer,
) -> Option<Vec<PredicateId>> {
    let mut out = Vec::new();
    for predicate in all {
        match here(&predicate.attribute, layer, denies) {
            Here::Yes => {}
            Here::Absent if predicate.values.is_empty() => {}
            Here::No | Here::Absent => return None,
            Here::Ask => out.push(builder.predicate_of(predicate, denies)),
        }
    }
    Some(out)
}

fn label(builder: &mut Builder, (key, value, equal): &(String, String, bool)) -> PredicateId {
    let value = [ValueMatch::String(StringMatch::Exact(value.as_str().into()))];
    let (yes, no): (&[_], &[_]) = if *equal { (&value, &[]) } else { (&[], &value) };
    builder.predicate(Subject::Label(key), yes, no)
}

fn labels(builder: &mut Builder, guard: &Guard) -> Raw {
    Raw(guard.iter().map(|any| any.iter().map(|l| vec![label(builder, l)]).collect()).collect())
}

/// Workloads that none of the guards holds for; none when one holds for all.
pub(crate) fn none_of(builder: &mut Builder, guards: &[Guard]) -> Option<Raw> {
    let clauses = guards.iter().map(|guard| {
        let fails = guard.iter().map(|any| {
            any.iter()
                .map(|(key, value, equal)| label(builder, &(key.clone(), value.clone(), !equal)))
                .collect()
        });
        let fails: Vec<Vec<PredicateId>> = fails.collect();
        (!fails.is_empty()).then_some(fails)
    });
    clauses.collect::<Option<_>>().map(Raw)
}

/// A rule as sets of classes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// What always has to hold.
    pub(crate) base: Cell,
    /// Of each, one has to hold.
    pub(crate) clauses: Vec<Vec<Cell>>,
}

impl Space {
    /// ANDs sets; none when nothing is left.
    fn meet(&mut self, predicates: impl IntoIterator<Item = (u16, u32)>) -> Option<Cell> {
        let mut sets: std::collections::BTreeMap<u16, Bits> = std::collections::BTreeMap::new();
        for (dimension, set) in predicates {
            let dim = &self.dims[usize::from(dimension)];
            sets.entry(dimension).or_insert_with(|| dim.all.clone()).keep(dim.set(set));
        }
        let mut cell = Cell::new();
        for (dimension, bits) in sets {
            let dim = &mut self.dims[usize::from(dimension)];
            if bits.is_empty() {
                return None;
            }
            if bits != dim.all {
                cell.push((dimension, dim.intern(bits)));
            }
        }
        Some(cell)
    }

    /// ANDed predicates as alternatives.
    fn product(&mut self, predicates: &[PredicateId]) -> Vec<Cell> {
        let mut all = vec![Cell::new()];
        for id in predicates {
            let alternatives = self.predicate(*id);
            if all.len().saturating_mul(alternatives.len()) > ALTERNATIVES {
                self.over = true;
                return Vec::new();
            }
            let pairs = all.iter().flat_map(|a| alternatives.iter().map(move |b| [&**a, b].concat()));
            all = pairs.collect::<Vec<Cell>>().into_iter().filter_map(|both| self.meet(both)).collect();
        }
        all
    }

    /// A rule as sets; none when no request can match it.
    pub(crate) fn form(&mut self, raw: &Raw) -> Option<Form> {
        let mut form = Form::default();
        let mut base: Vec<(u16, u32)> = Vec::new();
        for clause in &raw.0 {
            let mut cells: Vec<Cell> = Vec::new();
            for one in clause {
                cells.extend(self.product(one));
            }
            let cells = self.joined(cells);
            match &*cells {
                [] => return None,
                all if all.iter().any(Vec::is_empty) => {}
                [single] => base.extend(single),
                _ => form.clauses.push(cells),
            }
        }
        form.base = self.meet(base)?;
        form.clauses.sort();
        form.clauses.dedup();
        Some(form)
    }

    /// Alternatives that differ in one and the same dimension only become one.
    fn joined(&mut self, cells: Vec<Cell>) -> Vec<Cell> {
        let mut single: std::collections::BTreeMap<u16, Bits> = std::collections::BTreeMap::new();
        let mut out: Vec<Cell> = Vec::new();
        for cell in cells {
            if let [(dimension, set)] = &*cell {
                let dim = &self.dims[usize::from(*dimension)];
                let size = dim.values.len();
                single.entry(*dimension).or_insert_with(|| Bits::none(size)).add(dim.set(*set));
            } else {
                out.push(cell);
            }
        }
        for (dimension, bits) in single {
            let dim = &mut self.dims[usize::from(dimension)];
            let whole = bits == dim.all;
            out.push(if whole { Cell::new() } else { vec![(dimension, dim.intern(bits))] });
        }
        out.sort();
        out.dedup();
        out
    }
}
