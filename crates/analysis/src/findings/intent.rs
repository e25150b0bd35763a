// SPDX-License-Identifier: Apache-2.0
//! Rules that are valid and probably do not say what their author meant.

use std::collections::BTreeSet;

use meltemi_model::authz::{Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule};

use super::{Finding, Level, OPENS, paths};
use crate::words;
use crate::world::World;

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    for authorization in world.policies.values().filter(|p| !p.policy.dry_run) {
        let policy = &authorization.policy;
        for (index, rule) in policy.rules.iter().enumerate() {
            match policy.action {
                Action::Allow => {
                    everything(policy, index, rule, out);
                    apart(policy, index, rule, out);
                    only_excluding(policy, index, rule, out);
                    without_operation(policy, index, rule, !authorization.targets.is_empty(), out);
                    without_source(policy, index, rule, out);
                }
                Action::Deny | Action::Audit | Action::Custom { .. } => {}
            }
        }
        paths::find(policy, out);
    }
}

fn clause(rule: &Rule, origin: ClauseOrigin) -> Option<&Clause> {
    rule.clauses.iter().find(|c| c.origin == origin)
}

fn is_identity(p: &Predicate) -> bool {
    matches!(
        p.attribute,
        Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceTrustDomain
    )
}

/// `rules: [{}]`.
fn everything(policy: &Policy, index: usize, rule: &Rule, out: &mut Vec<Finding>) {
    if rule.clauses.is_empty() {
        let message = format!(
            "rule[{index}] has no condition: it allows everything, clients without an identity included"
        );
        let fix = "name who may (from) and what (to), unless this is meant";
        out.push(Finding::policy(OPENS, &policy.name, message, fix).at(Level::Info));
    }
}

/// Entries of `from` or `to` that look at different fields: entries are ORed, the fields of one entry are ANDed.
fn apart(policy: &Policy, index: usize, rule: &Rule, out: &mut Vec<Finding>) {
    for (origin, word, entry) in
        [(ClauseOrigin::From, "from", "source"), (ClauseOrigin::To, "to", "operation")]
    {
        let Some(clause) = clause(rule, origin) else { continue };
        let fields =
            |m: &Match| m.predicates.iter().map(|p| words::field(&p.attribute)).collect::<BTreeSet<_>>();
        let all: Vec<BTreeSet<String>> = clause.matches.iter().map(fields).collect();
        let alone = |a: usize| all.iter().enumerate().all(|(b, other)| a == b || all[a].is_disjoint(other));
        if all.len() > 1 && (0..all.len()).all(alone) {
            let texts: Vec<String> = clause
                .matches
                .iter()
                .map(|m| m.predicates.iter().map(words::predicate).collect::<Vec<_>>().join(" "))
                .collect();
            let message = format!(
                "the entries of `{word}` in rule[{index}] are alternatives: {} is enough",
                texts.join(", or ")
            );
            let fix = format!("write the fields into one {entry} if all of them have to hold");
            out.push(Finding::policy(OPENS, &policy.name, message, fix));
        }
    }
}

/// A source that only says who may not: everybody else may, and who has no identity.
fn only_excluding(policy: &Policy, index: usize, rule: &Rule, out: &mut Vec<Finding>) {
    let Some(from) = clause(rule, ClauseOrigin::From) else { return };
    // Another clause may ask for an identity.
    let asks = |c: &Clause| {
        !c.matches.is_empty()
            && c.matches.iter().all(|m| m.predicates.iter().any(|p| is_identity(p) && !p.values.is_empty()))
    };
    if rule.clauses.iter().any(asks) {
        return;
    }
    for (at, one) in from.matches.iter().enumerate() {
        let excludes = one.predicates.iter().any(|p| is_identity(p) && !p.not_values.is_empty());
        let names = one.predicates.iter().any(|p| !p.values.is_empty());
        if excludes && !names {
            let message = format!(
                "{} of rule[{index}] only says who may not ({}): everybody else may, clients without an identity included",
                words::origin(ClauseOrigin::From, at),
                one.predicates.iter().map(words::predicate).collect::<Vec<_>>().join(" ")
            );
            let fix = "add principals: [\"*\"] to ask for an identity, or name who may";
            out.push(Finding::policy(OPENS, &policy.name, message, fix));
        }
    }
}

/// A rule without `to` beside rules that have one.
fn without_operation(policy: &Policy, index: usize, rule: &Rule, targeted: bool, out: &mut Vec<Finding>) {
    let has = |rule: &Rule| clause(rule, ClauseOrigin::To).is_some();
    if targeted && !rule.clauses.is_empty() && !has(rule) && policy.rules.iter().any(has) {
        let message = format!(
            "rule[{index}] has no `to`, other rules of the policy have one: it allows every method and path ({})",
            words::rule(rule)
        );
        out.push(Finding::policy(OPENS, &policy.name, message, "add `to` if only some operations are meant"));
    }
}

/// A rule without `from` beside rules that have one: the slip of a dash makes two rules of one, which are alternatives.
fn without_source(policy: &Policy, index: usize, rule: &Rule, out: &mut Vec<Finding>) {
    if rule.clauses.is_empty() || asks_who(rule) {
        return;
    }
    if policy.rules.iter().any(|other| clause(other, ClauseOrigin::From).is_some()) {
        let message = format!(
            "rule[{index}] has no `from`, other rules of the policy have one: everybody, clients without an identity included, may do this ({})",
            words::rule(rule)
        );
        let fix = "rules are alternatives: write `from` and `to` into one rule (no dash before `to`) if both have to hold";
        out.push(Finding::policy(OPENS, &policy.name, message, fix));
    } else if only_headers(rule) {
        let message = format!(
            "rule[{index}] asks for no identity and no token, only for what any client can write into a request: {}",
            words::rule(rule)
        );
        let fix = "add `from` with principals if the header is to say who the client is";
        out.push(Finding::policy(OPENS, &policy.name, message, fix).at(Level::Info));
    }
}

/// Whether a rule looks at anything that tells clients apart: a peer's identity or address, or a token.
fn asks_who(rule: &Rule) -> bool {
    let predicates = rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
    let tells = |p: &Predicate| {
        is_identity(p)
            || matches!(
                p.attribute,
                Attribute::SourceIp
                    | Attribute::RemoteIp
                    | Attribute::RequestPrincipal
                    | Attribute::RequestAuthAudiences
                    | Attribute::RequestAuthPresenter
                    | Attribute::RequestAuthClaim(_)
            )
    };
    clause(rule, ClauseOrigin::From).is_some() || predicates.into_iter().any(tells)
}

/// Whether every clause of a rule is about headers.
fn only_headers(rule: &Rule) -> bool {
    let header = |p: &Predicate| matches!(p.attribute, Attribute::Header(_));
    rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates).all(header)
}
