// SPDX-License-Identifier: Apache-2.0
//! Ports in rules that nobody has where the rule is enforced: a waypoint sees the Service's port, a node proxy the Pod's.

use std::collections::BTreeSet;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Match, Predicate, ValueMatch};
use meltemi_resources::policies::MtlsMode;
use meltemi_translate::facts::{Labels, selects};
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::security::{Authorization, Reference};

use super::{Finding, Level, NEVER};
use crate::world::{Workload, World};

/// Ports that can be seen where a policy is enforced.
struct Visible {
    /// The ports.
    ports: BTreeSet<u16>,
    /// Those of the other side of the same Services.
    beyond: BTreeSet<u16>,
    /// Whose they are, for a sentence.
    whose: String,
    /// What a port of the other side is.
    hint: &'static str,
}

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    for policy in world.policies.values().filter(|p| !p.policy.dry_run && names_ports(p)) {
        if let Some(visible) = visible(world, policy) {
            judge(policy, &visible, out);
        }
    }
    peers(world, out);
}

fn is_port(predicate: &Predicate) -> bool {
    predicate.attribute == Attribute::DestinationPort
}

fn names_ports(policy: &Authorization) -> bool {
    let clauses = policy.policy.rules.iter().flat_map(|r| &r.clauses);
    clauses.flat_map(|c| &c.matches).flat_map(|m| &m.predicates).any(is_port)
}

/// `None` where not all ports are known.
fn visible(world: &World, policy: &Authorization) -> Option<Visible> {
    if policy.targets.is_empty() { at_pods(world, policy) } else { at_waypoints(world, policy) }
}

fn at_waypoints(world: &World, policy: &Authorization) -> Option<Visible> {
    let namespace = &policy.policy.name.namespace;
    let (mut ports, mut beyond, mut names) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for target in &policy.targets {
        let Reference::Service(service) = target else { return None };
        let service = NamespacedName::new(namespace.clone(), service.as_str());
        let known = world.ports(&service);
        if known.is_empty() {
            return None;
        }
        ports.extend(known.iter().map(|(port, _)| *port));
        beyond.extend(known.iter().filter_map(|(_, target)| *target));
        names.push(service.to_string());
    }
    let whose = format!("a port of Service {} at its waypoint", names.join(" or "));
    let hint = "the Pods' port: a waypoint sees the Service's";
    Some(Visible { ports, beyond, whose, hint })
}

fn at_pods(world: &World, policy: &Authorization) -> Option<Visible> {
    let namespace = &policy.policy.name.namespace;
    let everywhere = *namespace == world.mesh.root_namespace;
    let selector = policy.selector.as_ref();
    let fits = |labels: &Labels| selector.is_none_or(|s| selects(s, labels));
    let near = world.workloads.iter().filter(|w| everywhere || w.name.namespace == *namespace);
    let mut visible = of_workloads(world, near.filter(|w| fits(&w.labels)))?;
    // An ingress gateway enforces the policy at the ports of its listeners.
    let ingress = world.gateways.iter().filter(|(name, gateway)| {
        (everywhere || name.namespace == *namespace) && gateway.class == Some(Class::Ingress)
    });
    visible.ports.extend(ingress.flat_map(|(_, gateway)| &gateway.ports));
    Some(visible)
}

/// `None` when there is no workload, or one that declares no port and has none by a Service.
fn of_workloads<'a>(world: &World, workloads: impl Iterator<Item = &'a Workload>) -> Option<Visible> {
    let (mut ports, mut beyond) = (BTreeSet::new(), BTreeSet::new());
    for workload in workloads {
        let mut own = workload.listens.clone();
        for (name, _) in world.services_of(workload) {
            for (port, target) in world.ports(name) {
                own.extend(target);
                beyond.insert(port);
            }
        }
        if own.is_empty() {
            return None;
        }
        ports.extend(own);
    }
    let whose = "declared by a container of the selected Pods, or the target of a Service".to_owned();
    let hint = "the Service's port: a node proxy sees the Pod's";
    (!ports.is_empty()).then_some(Visible { ports, beyond, whose, hint })
}

fn judge(policy: &Authorization, visible: &Visible, out: &mut Vec<Finding>) {
    for (index, rule) in policy.policy.rules.iter().enumerate() {
        for clause in &rule.clauses {
            let impossible = |m: &Match| m.predicates.iter().any(|p| is_port(p) && !can_match(p, visible));
            let never = !clause.matches.is_empty() && clause.matches.iter().all(impossible);
            for predicate in clause.matches.iter().flat_map(|m| &m.predicates).filter(|p| is_port(p)) {
                out.extend(finding(policy, index, predicate, visible, never));
            }
        }
    }
}

fn number(value: &ValueMatch) -> Option<u16> {
    if let ValueMatch::Port(port) = value { Some(*port) } else { None }
}

fn can_match(predicate: &Predicate, visible: &Visible) -> bool {
    let among = |values: &[ValueMatch], port: u16| values.iter().filter_map(number).any(|p| p == port);
    visible.ports.iter().any(|port| {
        (predicate.values.is_empty() || among(&predicate.values, *port))
            && !among(&predicate.not_values, *port)
    })
}

fn finding(
    policy: &Authorization,
    index: usize,
    predicate: &Predicate,
    visible: &Visible,
    never: bool,
) -> Option<Finding> {
    let unknown = |values: &[ValueMatch]| -> Vec<u16> {
        values.iter().filter_map(number).filter(|port| !visible.ports.contains(port)).collect()
    };
    let (named, excluded) = (unknown(&predicate.values), unknown(&predicate.not_values));
    let effect = if never { format!("rule[{index}] can never match: ") } else { format!("rule[{index}]: ") };
    let message = if !named.is_empty() {
        format!("{effect}{}", nobody_has(&named, visible))
    } else if !excluded.is_empty() {
        format!("{effect}{}, so that excluding it excludes nothing", nobody_has(&excluded, visible))
    } else if never {
        format!("{effect}it excludes every port there is ({})", join(&visible.ports))
    } else {
        return None;
    };
    let fix = format!("name one of {}, or delete the port", join(&visible.ports));
    let level = match policy.policy.action {
        Action::Deny if never => Level::Error,
        _ => NEVER.level,
    };
    Some(Finding::policy(NEVER, &policy.policy.name, message, fix).at(level))
}

/// `port 8080 is not a port of Service a/b at its waypoint (80); 8080 is the Pods' port: …`
fn nobody_has(ports: &[u16], visible: &Visible) -> String {
    let beyond: BTreeSet<u16> = ports.iter().copied().filter(|port| visible.beyond.contains(port)).collect();
    let hint =
        if beyond.is_empty() { String::new() } else { format!("; {} is {}", join(&beyond), visible.hint) };
    let named: BTreeSet<u16> = ports.iter().copied().collect();
    format!("port {} is not {} ({}){hint}", join(&named), visible.whose, join(&visible.ports))
}

fn join(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Ports of `portLevelMtls` on which nothing listens.
fn peers(world: &World, out: &mut Vec<Finding>) {
    for peer in &world.peers {
        let selector = peer.spec.selector.as_ref().and_then(|s| s.match_labels.as_ref());
        let (Some(selector), Some(levels)) = (selector, &peer.spec.port_level_mtls) else { continue };
        let near = world.workloads.iter().filter(|w| w.name.namespace == peer.name.namespace);
        let Some(visible) = of_workloads(world, near.filter(|w| selects(selector, &w.labels))) else {
            continue;
        };
        for (port, level) in levels {
            let Some(number) = port.parse().ok().filter(|n| !visible.ports.contains(n)) else { continue };
            let strict = level.mode == MtlsMode::Strict;
            let effect = if strict { ": nothing is protected by it" } else { "" };
            let message = format!(
                "portLevelMtls of {number} has no effect{effect}; {}",
                nobody_has(&[number], &visible)
            );
            let fix = format!("name one of {}, or use mtls", join(&visible.ports));
            let found = Finding::new(NEVER, "PeerAuthentication", &peer.name, message, fix);
            out.push(found.at(if strict { Level::Error } else { NEVER.level }));
        }
    }
}
