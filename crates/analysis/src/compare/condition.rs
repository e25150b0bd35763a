// SPDX-License-Identifier: Apache-2.0
//! The condition of a difference: what of a rule makes it, and which rules take something out of it again.

use meltemi_model::authz::{Clause, Match, Rule, ValueMatch};

use super::{EXCEPTIONS, Work};
use crate::proof::{Answer, Cell, Need, Question};
use crate::side::Side;
use crate::words;

impl Work<'_> {
    /// The rule without the alternatives and values that make no difference.
    pub(super) fn narrowed(&mut self, rule: &Rule, denies: bool, question: &Question<'_>) -> Rule {
        let mut out = rule.clone();
        for clause in &mut out.clauses {
            self.narrow_clause(clause, denies, question);
        }
        out
    }

    fn narrow_clause(&mut self, clause: &mut Clause, denies: bool, question: &Question<'_>) {
        let several = clause.matches.len() > 1;
        let mut kept: Vec<Match> = Vec::new();
        for one in &clause.matches {
            if several && !self.matters(one, None, denies, question) {
                continue;
            }
            let mut one = one.clone();
            for index in 0..one.predicates.len() {
                if one.predicates[index].values.len() < 2 {
                    continue;
                }
                let whole = one.clone();
                let values = whole.predicates[index].values.iter();
                let left: Vec<_> = values
                    .filter(|v| self.matters(&whole, Some((index, v)), denies, question))
                    .cloned()
                    .collect();
                if !left.is_empty() {
                    one.predicates[index].values = left;
                }
            }
            kept.push(one);
        }
        if !kept.is_empty() {
            clause.matches = kept;
        }
    }

    /// Whether the question can still be answered with yes by this alternative (and this value of it).
    fn matters(
        &mut self,
        one: &Match,
        value: Option<(usize, &ValueMatch)>,
        denies: bool,
        question: &Question<'_>,
    ) -> bool {
        if self.budget == 0 {
            return true;
        }
        self.budget -= 1;
        let mut all: Vec<Cell> = vec![Cell::new()];
        for (index, p) in one.predicates.iter().enumerate() {
            let mut p = p.clone();
            if let Some((_, single)) = value.filter(|(wanted, _)| *wanted == index) {
                p.values = vec![single.clone()];
            }
            // What was not registered is not seen at this place.
            let Some(some) = self.space.alternatives_of(&p, denies) else {
                continue;
            };
            all = all.iter().flat_map(|a| some.iter().map(|b| [&**a, b].concat())).collect();
        }
        let mut asked = |cell| question.with(cell).answer_within(&self.space, &mut self.effort) != Answer::No;
        all.iter().any(|cell| asked(cell))
    }

    /// Rules that take something out of the condition.
    pub(super) fn exceptions(
        &mut self,
        question: &Question<'_>,
        within: Option<(&Rule, bool)>,
        before: &Side<'_>,
        after: &Side<'_>,
    ) -> Vec<String> {
        let denies = within.is_some_and(|(_, denies)| denies);
        let single = within.into_iter().flat_map(|(r, _)| &r.clauses).filter(|c| c.matches.len() == 1);
        let predicates: Vec<_> = single.flat_map(|c| &c.matches[0].predicates).collect();
        let mut cell = Vec::new();
        for p in predicates {
            let some = self.space.alternatives_of(p, denies);
            if let Some([only]) = some.as_deref() {
                cell.extend(only);
            }
        }
        let (mut out, mut more) = (Vec::new(), 0);
        let all = before.allow.iter().map(|i| (before, i)).chain(after.deny.iter().map(|i| (after, i)));
        for (side, item) in all {
            let Some((policy, rule)) = item.by else { continue };
            if !question.never.iter().any(|f| std::ptr::eq(*f, &raw const item.form)) {
                continue;
            }
            if self.candidates == 0 {
                out.push("perhaps what other rules say, too: they are too many to be looked at".to_owned());
                break;
            }
            self.candidates -= 1;
            let mut both = question.with(&cell);
            both.needs.push(Need::Form(&item.form));
            both.never.clear();
            if both.answer_within(&self.space, &mut self.effort) == Answer::No {
                continue;
            }
            if out.len() == EXCEPTIONS {
                more += 1;
                continue;
            }
            let policy = &side.policies[policy].policy;
            out.push(format!("{} ({} rule[{rule}])", words::rule(&policy.rules[rule]), policy.name));
        }
        if more > 0 {
            out.push(format!("{more} more rules"));
        }
        out
    }
}
