// SPDX-License-Identifier: Apache-2.0
//! Near paths that a rule leaves open: `/admin` beside `/admin/*`. Most servers answer both alike.

use meltemi_model::authz::{Action, Attribute, Policy, Predicate, StringMatch, ValueMatch};
use meltemi_policy::http::template_matches;

use super::{Finding, LEAVES};

pub(super) fn find(policy: &Policy, out: &mut Vec<Finding>) {
    let sense = match policy.action {
        Action::Deny => Sense::Denies,
        Action::Allow => Sense::Allows,
        Action::Audit | Action::Custom { .. } => return,
    };
    let all: Vec<(usize, &Predicate)> = path_predicates(policy).collect();
    for (index, predicate) in &all {
        // What the rule protects is what a DENY names, or what an ALLOW excludes.
        let protected = match sense {
            Sense::Denies => &predicate.values,
            Sense::Allows => &predicate.not_values,
        };
        for value in protected {
            let Some(near) = near_path(value) else { continue };
            let covered = match sense {
                Sense::Denies => all.iter().any(|(_, other)| matches_path(other, &near.path)),
                Sense::Allows => predicate.not_values.iter().any(|v| value_matches(v, &near.path)),
            };
            if !covered {
                out.push(finding(policy, *index, sense, value, &near));
            }
        }
        if sense == Sense::Denies {
            wide_exemptions(policy, *index, predicate, out);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sense {
    Denies,
    Allows,
}

/// A path beside a value that the value does not match.
struct Near {
    path: String,
    /// Everything below the path is left open as well.
    subtree: bool,
}

fn path_predicates(policy: &Policy) -> impl Iterator<Item = (usize, &Predicate)> {
    policy.rules.iter().enumerate().flat_map(|(index, rule)| {
        let predicates = rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
        predicates.filter(|p| p.attribute == Attribute::Path).map(move |p| (index, p))
    })
}

fn value_matches(value: &ValueMatch, path: &str) -> bool {
    match value {
        ValueMatch::String(text) => text.matches(path),
        ValueMatch::PathTemplate(template) => template_matches(&template.0, path),
        _ => false,
    }
}

fn matches_path(predicate: &Predicate, path: &str) -> bool {
    let some = predicate.values.is_empty() || predicate.values.iter().any(|v| value_matches(v, path));
    some && !predicate.not_values.iter().any(|v| value_matches(v, path))
}

/// `/admin/` for `/admin`, and `/admin` for `/admin/*`; `None` when the value has no such neighbour.
fn near_path(value: &ValueMatch) -> Option<Near> {
    match value {
        ValueMatch::String(StringMatch::Exact(path)) if !path.ends_with('/') => {
            Some(Near { path: format!("{path}/"), subtree: true })
        }
        ValueMatch::String(StringMatch::Prefix(prefix)) => parent(prefix),
        ValueMatch::PathTemplate(template) => parent(template.0.strip_suffix("{**}")?),
        _ => None,
    }
}

fn parent(prefix: &str) -> Option<Near> {
    let path = prefix.strip_suffix('/').filter(|path| !path.is_empty() && !path.contains('{'))?;
    Some(Near { path: path.to_owned(), subtree: false })
}

fn finding(policy: &Policy, index: usize, sense: Sense, value: &ValueMatch, near: &Near) -> Finding {
    let path = &near.path;
    let (left, add) = if near.subtree {
        (format!("{path} or what is below it"), format!("{path}*"))
    } else {
        (format!("{path} itself"), path.clone())
    };
    match sense {
        Sense::Denies => {
            let message = format!("rule[{index}] denies {value} and not {left}");
            Finding::policy(LEAVES, &policy.name, message, format!("add {add} if it is meant as well"))
        }
        Sense::Allows => {
            let message = format!(
                "rule[{index}] allows every path but {value}, so that {left} is open: most servers answer it alike"
            );
            let fix = format!("add {add} to notPaths if it is meant as well");
            Finding::policy(LEAVES, &policy.name, message, fix)
        }
    }
}

/// A DENY that exempts a prefix which is no whole segment: `/public*` exempts `/publicx` too.
fn wide_exemptions(policy: &Policy, index: usize, predicate: &Predicate, out: &mut Vec<Finding>) {
    if !predicate.values.is_empty() {
        return;
    }
    for value in &predicate.not_values {
        let ValueMatch::String(StringMatch::Prefix(prefix)) = value else { continue };
        if prefix.ends_with('/') || prefix.is_empty() {
            continue;
        }
        let message = format!(
            "rule[{index}] exempts {prefix}*, which is every path that begins so: {prefix}x is not denied either"
        );
        let fix = format!("write {prefix} and {prefix}/* if only these are meant");
        out.push(Finding::policy(LEAVES, &policy.name, message, fix));
    }
}
