// SPDX-License-Identifier: Apache-2.0
//! Two worlds: at every place where policies are enforced, what is decided differently.

mod objects;
mod services;
mod tokens;
mod workloads;

use std::collections::BTreeSet;

use meltemi_model::NamespacedName;
use meltemi_model::authz::Attribute;

use crate::compare::{Compared, Difference, Differences, Place, Reach, Unknown, compare};
use crate::proof::{Layer, unreadable};
use crate::side::Attached;
use crate::words;
use crate::world::World;

/// Compares two worlds. What one of them says nothing about (Services, Namespaces, …) is taken from the other.
pub fn diff(old: &World, new: &World) -> Differences {
    let (mut old, mut new) = (old.clone(), new.clone());
    let vanished = objects::find_vanished(&old, &new);
    old.borrow(&new);
    new.borrow(&old);
    let mut out = Differences { unknown: vanished, ..Differences::default() };
    objects::find_unmodelled(&old, &new, &mut out.unknown);
    let mut before = Differences::default();
    for pair in places(&old, &new) {
        let Place { target, enforced_at, .. } = &pair.place;
        out.places.push(Compared { target: target.clone(), enforced_at: enforced_at.clone() });
        let mut found = compare(&pair.place, &pair.old, &pair.new);
        match pair.is_companion {
            true => leave_new(&mut found, &before),
            false => before = found.clone(),
        }
        out.newly_allowed.extend(found.newly_allowed);
        out.newly_denied.extend(found.newly_denied);
        out.unknown.extend(found.unknown);
        out.unknown.extend(ambiguous(&pair));
    }
    tokens::compare(&old, &new, &mut out);
    out
}

/// A place with what both sides enforce there.
struct Pair {
    place: Place,
    old: Vec<Attached>,
    new: Vec<Attached>,
    /// It is about connections where the place before is about requests: what that has found is not said again.
    is_companion: bool,
}

/// Leaves what another comparison has not found already, of the same rules.
fn leave_new(found: &mut Differences, before: &Differences) {
    let same = |one: &Difference, other: &Difference| (&one.policy, one.rule) == (&other.policy, other.rule);
    found.newly_allowed.retain(|d| !before.newly_allowed.iter().any(|b| same(b, d)));
    found.newly_denied.retain(|d| !before.newly_denied.iter().any(|b| same(b, d)));
    found
        .unknown
        .retain(|u| !before.unknown.iter().any(|b| (&b.policy, &b.reason) == (&u.policy, &u.reason)));
}

fn places(old: &World, new: &World) -> Vec<Pair> {
    let identities: BTreeSet<String> = old.identities().into_iter().chain(new.identities()).collect();
    let identities: Vec<String> = identities.into_iter().collect();
    let mut out = services::compared(old, new);
    out.extend(services::added(old, new));
    out.extend(workloads::changed(old, new));
    out.extend(gateways(old, new).iter().flat_map(|gateway| of_gateway(old, new, gateway)));
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
            is_companion: false,
        });
    }
    out.iter_mut().for_each(|pair| pair.place.identities.clone_from(&identities));
    out
}

/// Gateways that policies name, and ingress gateways; the empty name stands for a waypoint that nobody names, with the
/// policies of its class.
fn gateways(old: &World, new: &World) -> BTreeSet<NamespacedName> {
    let named = old.named_gateways().into_iter().chain(new.named_gateways());
    named.chain([NamespacedName::new("", "")]).collect()
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

/// What a Gateway enforces for everything else that passes it.
fn of_gateway(old: &World, new: &World, gateway: &NamespacedName) -> Vec<Pair> {
    let (what, at) = names_of_gateway(new, gateway);
    let reach = (!gateway.name.is_empty()).then(|| Reach::Gateway(gateway.clone()));
    let pair = |place: Place, is_companion| Pair {
        place,
        old: old.at_waypoint(gateway, None),
        new: new.at_waypoint(gateway, None),
        is_companion,
    };
    let mut out = vec![pair(Place { reach, ..place(&what, &at, Layer::Request) }, false)];
    if new.is_waypoint(gateway) {
        let what = format!("connections to {what} that are no requests");
        out.push(pair(place(&what, &at, Layer::Connection), true));
    }
    out
}

/// What passes a Gateway, and where it is enforced.
fn names_of_gateway(world: &World, gateway: &NamespacedName) -> (String, String) {
    if gateway.name.is_empty() {
        ("any other Service".to_owned(), "every other waypoint".to_owned())
    } else if world.is_waypoint(gateway) {
        (format!("any other Service behind Gateway {gateway}"), format!("waypoint {gateway}"))
    } else {
        (format!("Gateway {gateway}"), format!("gateway {gateway}"))
    }
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
