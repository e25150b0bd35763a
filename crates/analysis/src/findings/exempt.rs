// SPDX-License-Identifier: Apache-2.0
//! Exemptions of DENY rules that another DENY rule takes back: rules add up, so two of them that exempt different things
//! exempt nothing.

use meltemi_model::authz::{Action, Rule};

use super::{EXEMPT, Finding};
use crate::proof::{Answer, Builder, Form, Layer, Need, Question, Raw, Space, rule};
use crate::side::{Attached, Side};
use crate::words;

/// Exemptions that are looked at in one place.
const LIMIT: usize = 200;

/// An exemption: the rule it stands in, and what it exempts.
pub(super) struct Exemption {
    policy: usize,
    rule: usize,
    /// The requests that are exempted, in words.
    text: String,
    raw: Raw,
}

/// The exemptions of a place, drafted beside its rules.
pub(super) fn draft(builder: &mut Builder, attached: &[Attached], layer: Layer) -> Vec<Exemption> {
    let mut out = Vec::new();
    for (policy, one) in attached.iter().enumerate() {
        if one.policy.action != Action::Deny || one.policy.dry_run {
            continue;
        }
        for (index, written) in one.policy.rules.iter().enumerate() {
            for (exempted, text) in flipped(written) {
                if out.len() == LIMIT {
                    return out;
                }
                let raw = rule(builder, &one.guard, &exempted, false, layer);
                out.extend(raw.map(|raw| Exemption { policy, rule: index, text, raw }));
            }
        }
    }
    out
}

/// The rule with one of its exemptions as what it matches, for each predicate that only exempts.
fn flipped(written: &Rule) -> Vec<(Rule, String)> {
    let mut out = Vec::new();
    for (clause, matches) in written.clauses.iter().enumerate().map(|(at, c)| (at, &c.matches)) {
        // Of alternatives each would have to be exempted.
        let [only] = &**matches else { continue };
        for (at, predicate) in only.predicates.iter().enumerate() {
            if !predicate.values.is_empty() || predicate.not_values.is_empty() {
                continue;
            }
            let mut rule = written.clone();
            let turned = &mut rule.clauses[clause].matches[0].predicates[at];
            turned.values = std::mem::take(&mut turned.not_values);
            let text = words::predicate(turned);
            out.push((rule, text));
        }
    }
    out
}

/// Finds exemptions all of which other rules with an exemption deny.
pub(super) fn find(space: &mut Space, side: &Side<'_>, all: Vec<Exemption>, out: &mut Vec<Finding>) {
    for exemption in all {
        let Some(form) = space.form(&exemption.raw) else { continue };
        let own = (exemption.policy, exemption.rule);
        let taken_back = |form: &Form, other: &Form| {
            let question = Question { needs: vec![Need::Form(form)], never: vec![other] };
            question.answer(space) == Answer::No
        };
        let other = side.deny.iter().find(|item| {
            item.by.is_some_and(|by| by != own && exempts(side, by)) && taken_back(&form, &item.form)
        });
        let Some((policy, rule)) = other.and_then(|item| item.by) else { continue };
        let name = &side.policies[exemption.policy].policy.name;
        let message = format!(
            "rule[{}] does not deny {}, but {} rule[{rule}] does: DENY rules add up, and this exemption has no effect",
            exemption.rule, exemption.text, side.policies[policy].policy.name
        );
        let fix = "write all exemptions into one rule";
        out.push(Finding::policy(EXEMPT, name, message, fix));
    }
}

/// Whether a rule exempts something, and is not meant to deny everything.
fn exempts(side: &Side<'_>, (policy, rule): (usize, usize)) -> bool {
    !flipped(&side.policies[policy].policy.rules[rule]).is_empty()
}
