// SPDX-License-Identifier: Apache-2.0
//! Two worlds: at every place where policies are enforced, what is decided differently.

mod objects;
mod workloads;

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Policy, Rule, Scope};
use meltemi_translate::facts::selects;

use crate::compare::{Compared, Differences, Place, Reach, Unknown, compare};
use crate::proof::{Guard, Layer, unreadable};
use crate::side::Attached;
use crate::words;
use crate::world::{Known, Path, Service, Workload, World};

/// Compares two worlds. What one of them says nothing about (Services, Namespaces, …) is taken from the other.
pub fn diff(old: &World, new: &World) -> Differences {
    let (mut old, mut new) = (old.clone(), new.clone());
    let vanished = objects::find_vanished(&old, &new);
    old.borrow(&new);
    new.borrow(&old);
    let mut out = Differences { unknown: vanished, ..Differences::default() };
    objects::find_unmodelled(&old, &new, &mut out.unknown);
    for pair in places(&old, &new) {
        let Place { target, enforced_at, .. } = &pair.place;
        out.places.push(Compared { target: target.clone(), enforced_at: enforced_at.clone() });
        let found = compare(&pair.place, &pair.old, &pair.new);
        out.newly_allowed.extend(found.newly_allowed);
        out.newly_denied.extend(found.newly_denied);
        out.unknown.extend(found.unknown);
        out.unknown.extend(ambiguous(&pair));
    }
    out
}

/// A place with what both sides enforce there.
struct Pair {
    place: Place,
    old: Vec<Attached>,
    new: Vec<Attached>,
}

fn places(old: &World, new: &World) -> Vec<Pair> {
    let identities: BTreeSet<String> = old.identities().into_iter().chain(new.identities()).collect();
    let identities: Vec<String> = identities.into_iter().collect();
    let mut out: Vec<Pair> = services(old, new).iter().flat_map(|s| of_service(old, new, s)).collect();
    out.extend(new_services(old, new));
    out.extend(workloads::changed(old, new));
    let gateways = old.named_gateways().into_iter().chain(new.named_gateways());
    out.extend(gateways.collect::<BTreeSet<_>>().iter().map(|gateway| of_gateway(old, new, gateway)));
    // A waypoint that nobody names: policies of its class.
    let other = NamespacedName::new("", "");
    out.push(Pair {
        place: place("any other Service", "every other waypoint", Layer::Request),
        old: old.at_waypoint(&other, None),
        new: new.at_waypoint(&other, None),
    });
    let named = namespaces(old, new);
    let mut other = "other".to_owned();
    while named.contains(&other) {
        other.push('x');
    }
    for namespace in named {
        let (target, asked) = match &*namespace {
            "" => ("workloads of every other namespace".to_owned(), &other),
            name => (format!("workloads of namespace {name}"), &namespace),
        };
        let place = place(&target, "node proxy", Layer::Connection);
        out.push(Pair {
            place: Place { reach: Some(Reach::Pods(asked.clone())), ..place },
            old: old.at_node_proxy(&namespace),
            new: new.at_node_proxy(&namespace),
        });
    }
    out.iter_mut().for_each(|pair| pair.place.identities.clone_from(&identities));
    out
}

fn place(target: &str, enforced_at: &str, layer: Layer) -> Place {
    Place {
        target: target.to_owned(),
        enforced_at: enforced_at.to_owned(),
        layer,
        port: 80,
        host: "other".to_owned(),
        identities: Vec::new(),
        reach: None,
        ports: Vec::new(),
        other_ports: Vec::new(),
    }
}

/// A Service at its waypoint, its requests and its connections that are no requests; nothing when it has no waypoint on
/// either side.
fn of_service(old: &World, new: &World, service: &NamespacedName) -> Vec<Pair> {
    let (was, is) = (old.waypoint_of(service), new.waypoint_of(service));
    let Some(gateway) = is.waypoint().or(was.waypoint()) else { return Vec::new() };
    // A Service that one side does not have is reached by nobody there; what is new has a comparison of its own.
    if [old, new].iter().any(|world| world.knows_service(service) == Known::No) {
        return Vec::new();
    }
    let (ports, streams) = of_both(old, new, service);
    let http: Vec<u16> = ports.iter().copied().filter(|p| !streams.contains(p)).collect();
    let (at, reach) = (format!("waypoint {gateway}"), Some(Reach::Service(service.clone())));
    let (old, new) = (enforced(old, service), enforced(new, service));
    let mut out = Vec::new();
    if ports.is_empty() || !http.is_empty() {
        let place = place(&format!("Service {service}"), &at, Layer::Request);
        let (port, host) = (http.first().copied().unwrap_or(80), service.name.to_string());
        let place = Place { port, host, reach: reach.clone(), ports: http, ..place };
        out.push(Pair { place, old: old.clone(), new: new.clone() });
    }
    if let Some(port) = streams.first().copied() {
        let place = place(&format!("connections to Service {service}"), &at, Layer::Connection);
        out.push(Pair { place: Place { port, reach, ports: streams, ..place }, old, new });
    }
    out
}

/// Ports of a Service on both sides, and those that are streams on both; a port that is one on one side only is in
/// neither list.
fn of_both(old: &World, new: &World, service: &NamespacedName) -> (Vec<u16>, Vec<u16>) {
    let (was, is) = (old.services.get(service), new.services.get(service));
    let (Some(was), Some(is)) = (was.or(is), is.or(was)) else { return Default::default() };
    let all: BTreeSet<u16> = was.ports.iter().chain(&is.ports).map(|(port, _)| *port).collect();
    let has = |service: &Service, port: u16| service.ports.iter().any(|(own, _)| *own == port);
    let moved = |port: &u16| {
        has(was, *port) && has(is, *port) && was.streams.contains(port) != is.streams.contains(port)
    };
    let ports: Vec<u16> = all.into_iter().filter(|port| !moved(port)).collect();
    let stream = |port: &u16| was.streams.contains(port) || is.streams.contains(port);
    let streams = ports.iter().copied().filter(stream).collect();
    (ports, streams)
}

/// What decides about connections from the mesh to a Service before they reach its Pods.
fn enforced(world: &World, service: &NamespacedName) -> Vec<Attached> {
    match world.path_to(service) {
        Path::Direct => Vec::new(),
        Path::Through(gateway) => world.at_waypoint(&gateway, Some(service)),
        Path::Refused(_) => vec![refusal(service)],
    }
}

/// A policy that denies everything, for connections that are refused.
fn refusal(service: &NamespacedName) -> Attached {
    let policy = Policy {
        name: NamespacedName::new(
            service.namespace.clone(),
            format!("{} (its waypoint does not serve it)", service.name),
        ),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
    };
    Attached { policy: Arc::new(policy), guard: Guard::new() }
}

/// Services that only the new side has, each beside the Services through which the same workloads were reached: what
/// these had denied must not be allowed by another name.
fn new_services(old: &World, new: &World) -> Vec<Pair> {
    let mut out = Vec::new();
    let added = new.services.iter().filter(|(name, _)| !old.services.contains_key(*name));
    for (name, service) in added {
        for (before, known) in old.services.iter().filter(|(other, _)| other.namespace == name.namespace) {
            let shared =
                |w: &Workload| selects(&service.selector, &w.labels) && selects(&known.selector, &w.labels);
            let both = !service.selector.is_empty() && !known.selector.is_empty();
            let mut near = old.workloads.iter().filter(|w| w.name.namespace == name.namespace);
            if !both || !near.any(shared) {
                continue;
            }
            let target = format!("Service {name} (new, with Pods of Service {before})");
            let at = match new.path_to(name) {
                Path::Through(gateway) => format!("waypoint {gateway}"),
                _ => "no waypoint".to_owned(),
            };
            let place = Place { host: name.name.to_string(), ..place(&target, &at, Layer::Request) };
            out.push(Pair { place, old: enforced(old, before), new: enforced(new, name) });
        }
    }
    out
}

/// What a Gateway enforces for everything else that passes it.
fn of_gateway(old: &World, new: &World, gateway: &NamespacedName) -> Pair {
    let (what, word) = if new.is_waypoint(gateway) {
        (format!("any other Service behind Gateway {gateway}"), "waypoint")
    } else {
        (format!("Gateway {gateway}"), "gateway")
    };
    let place = place(&what, &format!("{word} {gateway}"), Layer::Request);
    Pair {
        place: Place { reach: Some(Reach::Gateway(gateway.clone())), ..place },
        old: old.at_waypoint(gateway, None),
        new: new.at_waypoint(gateway, None),
    }
}

fn services(old: &World, new: &World) -> BTreeSet<NamespacedName> {
    let of = |world: &World| -> Vec<NamespacedName> {
        world.targeted().into_iter().chain(world.services.keys().cloned()).collect()
    };
    of(old).into_iter().chain(of(new)).collect()
}

/// Namespaces that policies speak of on their own; the empty one stands for all others.
fn namespaces(old: &World, new: &World) -> BTreeSet<String> {
    let mut out = BTreeSet::from([String::new()]);
    for world in [old, new] {
        let policies = world.policies.values().filter(|p| p.targets.is_empty()).map(|p| &p.policy.name);
        let named = policies.chain(world.peers.iter().map(|p| &p.name));
        out.extend(named.map(|n| n.namespace.to_string()).filter(|n| **n != *world.mesh.root_namespace));
    }
    out
}

/// Changed rules whose paths no request with one reading has: proofs say nothing about them.
fn ambiguous(pair: &Pair) -> Vec<Unknown> {
    let mut out = Vec::new();
    if pair.place.layer == Layer::Connection {
        return out;
    }
    for (one, other) in [(&pair.old, &pair.new), (&pair.new, &pair.old)] {
        for attached in one {
            let there = other.iter().find(|o| o.policy.name == attached.policy.name);
            let rules = attached.policy.rules.iter();
            let changed = rules.filter(|r| {
                there.is_none_or(|o| o.policy.action != attached.policy.action || !o.policy.rules.contains(r))
            });
            let predicates =
                changed.flat_map(|r| &r.clauses).flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
            let values =
                predicates.flat_map(|p| p.values.iter().chain(&p.not_values).map(move |v| (&p.attribute, v)));
            for (attribute, value) in values.filter(|(attribute, value)| unreadable(attribute, value)) {
                let unknown = Unknown {
                    target: pair.place.target.clone(),
                    enforced_at: pair.place.enforced_at.clone(),
                    policy: Some(attached.policy.name.to_string()),
                    reason: format!(
                        "{} {} is one that programs read in several ways; proofs are over {0}s with one reading",
                        if *attribute == Attribute::Path { "path" } else { "header" },
                        words::value(value)
                    ),
                };
                if !out.contains(&unknown) {
                    out.push(unknown);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
