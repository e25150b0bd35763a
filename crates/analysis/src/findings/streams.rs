// SPDX-License-Identifier: Apache-2.0
//! Fields that a waypoint sees of a request only, in rules that hold for ports without requests: there an ALLOW rule by
//! them allows nothing, and a DENY rule denies as if they matched.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Clause, Predicate, Rule, ValueMatch};
use meltemi_translate::security::{Authorization, Reference};

use super::{Finding, Level, STREAM};
use crate::words;
use crate::world::World;

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    for policy in world.policies.values().filter(|p| !p.policy.only_reports() && !p.targets.is_empty()) {
        for (index, rule) in policy.policy.rules.iter().enumerate() {
            let Some(field) = rule.clauses.iter().find_map(unseen) else { continue };
            out.extend(at_services(world, policy, (index, rule), field));
            out.extend(at_gateways(policy, index, rule));
        }
    }
}

/// A field of a clause that a connection does not show; `None` when an alternative does without.
fn unseen(clause: &Clause) -> Option<&Predicate> {
    let each = clause.matches.iter().map(|m| m.predicates.iter().find(|p| p.attribute.needs_l7()));
    each.collect::<Option<Vec<_>>>()?.first().copied()
}

/// Whether a rule can hold at a port, by its own conditions on ports.
fn holds_at(rule: &Rule, port: u16) -> bool {
    let is = |value: &ValueMatch| *value == ValueMatch::Port(port);
    let admits = |p: &Predicate| {
        p.attribute != Attribute::DestinationPort
            || ((p.values.is_empty() || p.values.iter().any(is)) && !p.not_values.iter().any(is))
    };
    rule.clauses
        .iter()
        .all(|c| c.matches.is_empty() || c.matches.iter().any(|m| m.predicates.iter().all(admits)))
}

fn at_services(
    world: &World,
    policy: &Authorization,
    (index, rule): (usize, &Rule),
    field: &Predicate,
) -> Option<Finding> {
    let (mut streams, mut others) = (Vec::new(), false);
    for target in &policy.targets {
        let Reference::Service(name) = target else {
            others = true;
            continue;
        };
        let name = NamespacedName::new(policy.policy.name.namespace.clone(), name.as_str());
        let Some(service) = world.services.get(&name) else {
            others = true;
            continue;
        };
        for (port, _) in service.ports.iter().filter(|(port, _)| holds_at(rule, *port)) {
            match service.streams.contains(port) {
                true => streams.push(format!("{port} of Service {name}")),
                false => others = true,
            }
        }
    }
    let why = match field.attribute {
        Attribute::ConnectionSni => "a waypoint reads no server name of TLS",
        _ => "a waypoint reads no requests there",
    };
    let (ports, field) = (streams.join(" and "), words::predicate(field));
    let message = match policy.policy.action {
        _ if streams.is_empty() => return None,
        Action::Allow if !others => {
            format!(
                "rule[{index}] allows nothing: port {ports} is declared to be TCP or TLS, and {why} ({field})"
            )
        }
        // At the other ports it allows what it says.
        Action::Allow | Action::Audit | Action::Custom { .. } => return None,
        Action::Deny => format!(
            "rule[{index}] denies connections to port {ports}, declared to be TCP or TLS, as if {field} matched: {why}"
        ),
    };
    let fix = "say by `ports` where the rule is for requests, and judge connections by who they are from";
    Some(Finding::policy(STREAM, &policy.policy.name, message, fix))
}

/// A server name as a condition at a Gateway, whose ports are not known: requests never have one that is seen.
fn at_gateways(policy: &Authorization, index: usize, rule: &Rule) -> Option<Finding> {
    let is_gateway =
        |target: &Reference| matches!(target, Reference::Gateway(_) | Reference::GatewayClass(_));
    let by_name = |p: &Predicate| p.attribute == Attribute::ConnectionSni && !p.values.is_empty();
    let asks = |clause: &Clause| {
        !clause.matches.is_empty() && clause.matches.iter().all(|m| m.predicates.iter().any(by_name))
    };
    if !policy.targets.iter().any(is_gateway) || !rule.clauses.iter().any(asks) {
        return None;
    }
    let (level, effect) = match policy.policy.action {
        Action::Deny => {
            (Level::Error, "denies no request, and every connection without requests that is else meant")
        }
        _ => (STREAM.level, "allows nothing"),
    };
    let message =
        format!("rule[{index}] {effect}: a proxy of layer 7 reads no server name of TLS (connection.sni)");
    let fix = "judge by the host of the request, or delete the rule";
    Some(Finding::policy(STREAM, &policy.policy.name, message, fix).at(level))
}
