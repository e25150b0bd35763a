// SPDX-License-Identifier: Apache-2.0
//! Why: the same engine off the hot path, bounded; for an ALLOW that did not match, the closest rule and the first of its
//! clauses that failed.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Clause, ClauseOrigin, Policy, Predicate, ValueMatch};

use crate::decide::{Decision, decide};
use crate::facts::Facts;
use crate::matching::{Sense, clause_matches};
use crate::set::PolicySet;

/// Rules that are looked at for the closest one.
const CANDIDATES: usize = 256;
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
    /// The clause that failed (closest ALLOW) or the one that matched last (DENY), as text.
    pub clause: Option<String>,
    /// One line.
    pub text: String,
}

/// Decides, and says why.
pub fn explain(set: &PolicySet, facts: &Facts<'_>) -> Explanation {
    let decision = decide(set, facts);
    let name = |index: u32| set.policy(index).map(|p| p.name.clone());
    match decision {
        Decision::Allow { by: None } => Explanation {
            decision,
            policy: None,
            rule: None,
            failed: None,
            clause: None,
            text: "no ALLOW policy applies and no DENY policy matches".into(),
        },
        Decision::Allow { by: Some(by) } => {
            let policy = name(by.policy);
            let text =
                policy.as_ref().map_or_else(String::new, |p| format!("allowed by {p} rule[{}]", by.rule));
            Explanation { decision, policy, rule: Some(by.rule), failed: None, clause: None, text }
        }
        Decision::Deny { by: Some(by) } => {
            let policy = name(by.policy);
            let clauses = set.policy(by.policy).and_then(|p| p.rules.get(by.rule as usize));
            let clause = clauses.map(|rule| rule.clauses.iter().map(describe).collect::<Vec<_>>().join("; "));
            let clause = clause.filter(|c| !c.is_empty());
            let text = policy
                .as_ref()
                .map_or_else(String::new, |p| format!("explicitly denied by: {p} rule[{}]", by.rule));
            Explanation { decision, policy, rule: Some(by.rule), failed: None, clause, text }
        }
        Decision::Ask { by } => {
            let policy = name(by.policy);
            let provider = match set.policy(by.policy).map(|p| &p.action) {
                Some(Action::Custom { provider }) => provider.clone(),
                _ => "".into(),
            };
            let text = policy.as_ref().map_or_else(String::new, |p| {
                format!("{p} rule[{}] asks provider \"{provider}\", which is not configured", by.rule)
            });
            Explanation { decision, policy, rule: Some(by.rule), failed: None, clause: None, text }
        }
        Decision::Deny { by: None } => closest(set, facts, decision),
        Decision::Undecided { missing } => {
            let policy = set.missing().get(missing as usize).cloned();
            let text = policy
                .as_ref()
                .map_or_else(String::new, |p| format!("policy {p} applies but is not known yet"));
            Explanation { decision, policy, rule: None, failed: None, clause: None, text }
        }
    }
}

fn closest(set: &PolicySet, facts: &Facts<'_>, decision: Decision) -> Explanation {
    let rules = set.allow().flat_map(|(_, policy)| {
        let rules = policy.rules.iter().enumerate();
        rules.map(move |(index, rule)| (policy, index, rule))
    });
    let failing = |(policy, index, rule): (_, _, &'_ meltemi_model::authz::Rule)| {
        let failed = rule.clauses.iter().position(|c| !clause_matches(c, facts, Sense::Allow))?;
        let held = rule.clauses.iter().filter(|c| clause_matches(c, facts, Sense::Allow)).count();
        Some((held, policy, index, failed))
    };
    let mut best: Option<(usize, &Policy, usize, usize)> = None;
    for (held, policy, index, failed) in rules.take(CANDIDATES).filter_map(failing) {
        if best.is_none_or(|(most, ..)| held > most) {
            best = Some((held, policy, index, failed));
        }
    }
    let prefix = "allow policies exist, but none allowed";
    let Some((_, policy, rule, failed)) = best else {
        let policy = set.allow().next().map(|(_, p)| p.name.clone());
        let text = policy
            .as_ref()
            .map_or_else(|| prefix.to_owned(), |p| format!("{prefix}; {p} has no rule that can match"));
        return Explanation { decision, policy, rule: None, failed: None, clause: None, text };
    };
    let clause = describe(&policy.rules[rule].clauses[failed]);
    let text = format!("{prefix}; closest is {} rule[{rule}], which failed at {clause}", policy.name);
    Explanation {
        decision,
        policy: Some(policy.name.clone()),
        rule: u32::try_from(rule).ok(),
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
    let matches: Vec<String> = clause
        .matches
        .iter()
        .take(VALUES)
        .map(|m| m.predicates.iter().map(predicate).collect::<Vec<_>>().join(" and "))
        .collect();
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
