// SPDX-License-Identifier: Apache-2.0
//! Explains decisions, off the hot path and with bounded work: names the deciding rule or, when no ALLOW rule matches, the
//! closest one and its first clause that failed.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Clause, ClauseOrigin, Predicate, ValueMatch};

use crate::decide::{Decision, Rule, decide};
use crate::facts::Facts;
use crate::matching::{Sense, clause_matches};
use crate::set::PolicySet;

/// Rules that are looked at for the closest one: so many of the first ones, and so many for each attribute that alone
/// kept them from matching.
const FIRST: usize = 128;
const NEAR: usize = 16;
/// Values of a field that are printed.
const VALUES: usize = 4;

/// A verdict in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The policy that decided, or came closest.
    pub policy: Option<NamespacedName>,
    /// Index of its rule.
    pub rule: Option<u32>,
    /// Index of the clause that failed, of the closest ALLOW rule.
    pub failed: Option<u32>,
    /// The clause that failed (closest ALLOW) or those that matched (DENY, CUSTOM), as text.
    pub clause: Option<String>,
    /// One line.
    pub text: String,
}

/// Decides, and says why.
pub fn explain(set: &PolicySet, facts: &Facts<'_>) -> Explanation {
    explain_decision(set, facts, decide(set, facts))
}

/// Says why a decision of [`decide`] or of [`crate::resume`] is what it is.
pub fn explain_decision(set: &PolicySet, facts: &Facts<'_>, decision: Decision) -> Explanation {
    let of = |policy, text| Explanation { decision, policy, rule: None, failed: None, clause: None, text };
    match decision {
        Decision::Allow { by: None } => of(None, "no ALLOW policy applies and no DENY policy matches".into()),
        Decision::Allow { by: Some(by) } => {
            let name = name(set, by);
            let text =
                name.as_ref().map_or_else(String::new, |p| format!("allowed by {p} rule[{}]", by.rule));
            Explanation { rule: Some(by.rule), ..of(name, text) }
        }
        Decision::Deny { by: Some(by) } => {
            let name = name(set, by);
            let text = name
                .as_ref()
                .map_or_else(String::new, |p| format!("explicitly denied by: {p} rule[{}]", by.rule));
            Explanation { rule: Some(by.rule), clause: matched(set, by), ..of(name, text) }
        }
        Decision::Ask { by } => {
            let name = name(set, by);
            let provider = match set.policy(by.policy).map(|p| &p.action) {
                Some(Action::Custom { provider }) => provider,
                _ => "",
            };
            let text = name.as_ref().map_or_else(String::new, |p| {
                format!("{p} rule[{}] asks provider {provider:?}, which has not allowed it", by.rule)
            });
            Explanation { rule: Some(by.rule), clause: matched(set, by), ..of(name, text) }
        }
        Decision::Deny { by: None } => closest(set, facts, decision),
        Decision::Undecided { missing } => {
            let name = set.missing().get(missing as usize).cloned();
            let text = name
                .as_ref()
                .map_or_else(String::new, |p| format!("policy {p} applies but is not known yet"));
            of(name, text)
        }
    }
}

fn name(set: &PolicySet, by: Rule) -> Option<NamespacedName> {
    set.policy(by.policy).map(|policy| policy.name.clone())
}

/// The clauses of a rule that matched.
fn matched(set: &PolicySet, by: Rule) -> Option<String> {
    let rule = set.policy(by.policy)?.rules.get(by.rule as usize)?;
    let clauses: Vec<String> = rule.clauses.iter().map(describe).collect();
    (!clauses.is_empty()).then(|| clauses.join("; "))
}

/// Of the rules that could be looked at, the one of which most clauses hold; the first of several.
fn closest(set: &PolicySet, facts: &Facts<'_>, decision: Decision) -> Explanation {
    let first =
        set.allow().flat_map(|(policy, of)| (0..).zip(&of.rules).map(move |(rule, _)| (policy, rule)));
    let near = set.allowing().near(facts, NEAR);
    let mut candidates: Vec<(u32, u32)> = near.iter().map(|by| (by.policy, by.rule)).collect();
    candidates.extend(first.take(FIRST));
    candidates.sort_unstable();
    candidates.dedup();
    let mut best: Option<(usize, u32, u32, usize)> = None;
    for (policy, rule) in candidates {
        let Some(clauses) = set.policy(policy).and_then(|p| p.rules.get(rule as usize)).map(|r| &r.clauses)
        else {
            continue;
        };
        let holds: Vec<bool> = clauses.iter().map(|c| clause_matches(c, facts, Sense::Allow)).collect();
        let Some(failed) = holds.iter().position(|holds| !holds) else { continue };
        let held = holds.iter().filter(|holds| **holds).count();
        if best.is_none_or(|(most, ..)| held > most) {
            best = Some((held, policy, rule, failed));
        }
    }
    let prefix = "allow policies exist, but none allowed";
    let best = best.and_then(|(_, policy, rule, failed)| Some((set.policy(policy)?, rule, failed)));
    let Some((policy, rule, failed)) = best else {
        let policy = set.allow().next().map(|(_, p)| p.name.clone());
        let text = policy
            .as_ref()
            .map_or_else(|| prefix.to_owned(), |p| format!("{prefix}; {p} has no rule that can match"));
        return Explanation { decision, policy, rule: None, failed: None, clause: None, text };
    };
    let clause = describe(&policy.rules[rule as usize].clauses[failed]);
    let text = format!("{prefix}; closest is {} rule[{rule}], which failed at {clause}", policy.name);
    Explanation {
        decision,
        policy: Some(policy.name.clone()),
        rule: Some(rule),
        failed: u32::try_from(failed).ok(),
        clause: Some(clause),
        text,
    }
}

/// A clause as a person wrote it, shortened.
pub fn describe(clause: &Clause) -> String {
    let origin = match clause.origin {
        ClauseOrigin::From => "from".to_owned(),
        ClauseOrigin::To => "to".to_owned(),
        ClauseOrigin::When(index) => format!("when[{index}]"),
        ClauseOrigin::Unknown => "clause".to_owned(),
    };
    let mut matches: Vec<String> = clause
        .matches
        .iter()
        .take(VALUES)
        .map(|m| m.predicates.iter().map(predicate).collect::<Vec<_>>().join(" and "))
        .collect();
    if clause.matches.len() > VALUES {
        matches.push(format!("… {} more", clause.matches.len() - VALUES));
    }
    format!("{origin}({})", matches.join(" or "))
}

fn predicate(predicate: &Predicate) -> String {
    let name = &predicate.attribute;
    let list = |values: &[ValueMatch]| {
        let mut texts: Vec<String> = values.iter().take(VALUES).map(ToString::to_string).collect();
        if values.len() > VALUES {
            texts.push(format!("… {} more", values.len() - VALUES));
        }
        texts.join(", ")
    };
    match (predicate.values.is_empty(), predicate.not_values.is_empty()) {
        (false, true) => format!("{name}=[{}]", list(&predicate.values)),
        (true, _) => format!("{name} not in [{}]", list(&predicate.not_values)),
        (false, false) => {
            format!("{name}=[{}] but not [{}]", list(&predicate.values), list(&predicate.not_values))
        }
    }
}
