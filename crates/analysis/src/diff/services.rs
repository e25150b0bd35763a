// SPDX-License-Identifier: Apache-2.0
//! Services: what decides at their waypoints about what is addressed to them, and about what is forwarded to Pods that they
//! share with closed Services.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Rule, Scope};
use meltemi_policy::ValidPolicy;
use meltemi_translate::facts::selects;

use super::{Pair, place};
use crate::compare::{Place, Reach};
use crate::proof::{Guard, Layer};
use crate::side::Attached;
use crate::world::{Beside, Known, Path, Service, Workload, World};

/// The places of every Service.
pub(super) fn compared(old: &World, new: &World) -> Vec<Pair> {
    all(old, new).iter().flat_map(|service| of_service(old, new, service)).collect()
}

/// Services that are known or that a policy or RequestAuthentication names.
pub(super) fn all(old: &World, new: &World) -> BTreeSet<NamespacedName> {
    let of = |world: &World| -> Vec<NamespacedName> {
        let named = world.targeted().into_iter().chain(world.token_targets());
        named.chain(world.services.keys().cloned()).collect()
    };
    of(old).into_iter().chain(of(new)).collect()
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
    let ports = Ports::of_both(old, new, service);
    let (at, reach) = (format!("waypoint {gateway}"), Some(Reach::Service(service.clone())));
    let beside = beside(old, new, service, (&at, &ports));
    let (old, new) = (enforced(old, service), enforced(new, service));
    let mut out = Vec::new();
    let mut add = |target: String, layer, ports: Vec<u16>, is_companion: bool| {
        let (port, host) = (ports.first().copied().unwrap_or(80), service.name.to_string());
        // A command is about a request wherever requests are judged.
        let reach = reach.clone().filter(|_| !is_companion);
        let place = Place { port, host, reach, ports, ..place(&target, &at, layer) };
        out.push(Pair { place, old: old.clone(), new: new.clone(), is_companion });
    };
    if ports.take_requests() {
        add(format!("Service {service}"), Layer::Request, ports.http(), false);
    }
    if ports.all.is_empty() || !ports.undeclared.is_empty() {
        let target = format!("connections to Service {service} that are no requests");
        add(target, Layer::Connection, ports.undeclared, true);
    }
    if !ports.streams.is_empty() {
        add(format!("connections to Service {service}"), Layer::Connection, ports.streams, false);
    }
    out.extend(beside);
    out
}

/// Ports of a Service on both sides. One with another protocol on each side is in no list.
#[derive(Default)]
pub(super) struct Ports {
    all: Vec<u16>,
    /// Those that are declared to be TCP or TLS.
    streams: Vec<u16>,
    /// Those that declare nothing.
    undeclared: Vec<u16>,
}

impl Ports {
    pub(super) fn of_both(old: &World, new: &World, service: &NamespacedName) -> Self {
        let (was, is) = (old.services.get(service), new.services.get(service));
        let (Some(was), Some(is)) = (was.or(is), is.or(was)) else { return Self::default() };
        let all: BTreeSet<u16> = was.ports.iter().chain(&is.ports).map(|(port, _)| *port).collect();
        let has = |service: &Service, port: u16| service.ports.iter().any(|(own, _)| *own == port);
        let kind = |service: &Service, port: &u16| {
            (service.streams.contains(port), service.undeclared.contains(port))
        };
        let moved = |port: &u16| has(was, *port) && has(is, *port) && kind(was, port) != kind(is, port);
        let all: Vec<u16> = all.into_iter().filter(|port| !moved(port)).collect();
        let of = |one: &BTreeSet<u16>, other: &BTreeSet<u16>| -> Vec<u16> {
            all.iter().copied().filter(|port| one.contains(port) || other.contains(port)).collect()
        };
        let (streams, mut undeclared) = (of(&was.streams, &is.streams), of(&was.undeclared, &is.undeclared));
        // With a route on both sides, only requests are taken there.
        let worlds = [old, new];
        undeclared.retain(|port| !worlds.iter().all(|world| world.is_routed(service, Some(*port))));
        Self { all, streams, undeclared }
    }

    /// Whether requests are judged at all: at some port, or where no port is known.
    pub(super) fn take_requests(&self) -> bool {
        self.all.is_empty() || !self.http().is_empty()
    }

    /// Those where requests are judged.
    pub(super) fn http(&self) -> Vec<u16> {
        self.all.iter().copied().filter(|port| !self.streams.contains(port)).collect()
    }
}

/// What is addressed to a Service and reaches Pods of a closed one: one place for each of those on either side, and each
/// kind of traffic. Both places of a request, this and the Service's own, have to allow it.
fn beside(old: &World, new: &World, service: &NamespacedName, (at, own): (&str, &Ports)) -> Vec<Pair> {
    let mut all: BTreeMap<NamespacedName, BTreeSet<(u16, u16)>> = BTreeMap::new();
    for world in [old, new] {
        for Beside { closed, ports, .. } in world.closed_beside(service) {
            all.entry(closed).or_default().extend(ports);
        }
    }
    let denied = denied_on_both(old, new, service);
    let mut out = Vec::new();
    for (closed, ports) in all {
        for (word, layer) in [("requests", Layer::Request), ("connections", Layer::Connection)] {
            let stream = layer == Layer::Connection;
            let is_undeclared = |port: &u16| own.undeclared.contains(port);
            let of_layer = ports
                .iter()
                .filter(|(port, _)| own.streams.contains(port) == stream || (stream && is_undeclared(port)));
            let is_companion = stream && ports.iter().all(|(port, _)| is_undeclared(port));
            let theirs: BTreeSet<u16> = of_layer.map(|(_, port)| *port).collect();
            let Some(port) = theirs.first().copied() else { continue };
            let target = format!("Pods of Service {closed}, for {word} to Service {service}");
            let (host, ports) = (service.name.to_string(), theirs.into_iter().collect());
            let place = Place { port, host, ports, ..place(&target, at, layer) };
            let mut sides = [forwarded(old, service, &closed), forwarded(new, service, &closed)];
            sides.iter_mut().for_each(|side| side.extend(denied.iter().cloned()));
            let [old, new] = sides;
            out.push(Pair { place, old, new, is_companion });
        }
    }
    out
}

/// What is denied on both sides before it is forwarded: DENY rules of the Service's own place by what a request still is
/// where it is forwarded. Address, port and headers may be others there, and everything where a route changes requests.
fn denied_on_both(old: &World, new: &World, service: &NamespacedName) -> Vec<Attached> {
    if [old, new].iter().any(|world| world.is_routed(service, None)) {
        return Vec::new();
    }
    let stays = |rule: &Rule| {
        let mut predicates = rule.clauses.iter().flat_map(|c| &c.matches).flat_map(|m| &m.predicates);
        predicates.all(|p| {
            matches!(
                p.attribute,
                Attribute::SourcePrincipal
                    | Attribute::SourceNamespace
                    | Attribute::SourceServiceAccount
                    | Attribute::SourceTrustDomain
                    | Attribute::Method
                    | Attribute::Path
                    | Attribute::Host
            )
        })
    };
    let denies = |attached: &Attached| attached.policy.action == Action::Deny && !attached.policy.dry_run;
    let now: Vec<Attached> = enforced(new, service).into_iter().filter(denies).collect();
    let both = enforced(old, service).into_iter().filter(denies).filter(|attached| {
        let same =
            |other: &Attached| other.policy.rules == attached.policy.rules && other.guard == attached.guard;
        now.iter().any(same)
    });
    both.map(|attached| {
        let policy = attached.policy.retain_rules(stays);
        Attached { policy, guard: attached.guard }
    })
    .collect()
}

/// What decides about connections from the mesh to a Service before they reach its Pods.
pub(super) fn enforced(world: &World, service: &NamespacedName) -> Vec<Attached> {
    match world.path_to(service) {
        Path::Direct => Vec::new(),
        Path::Through(gateway) => world.at_waypoint(&gateway, Some(service)),
        Path::Refused(_) => vec![refusal(service, "its waypoint does not serve it")],
    }
}

/// What decides, beside the policies of the Service that is addressed, about what reaches Pods of another one.
fn forwarded(world: &World, addressed: &NamespacedName, closed: &NamespacedName) -> Vec<Attached> {
    let binding = world.waypoint_of(closed);
    let (Some(waypoint), true) = (binding.gateway(), world.is_closed(closed)) else { return Vec::new() };
    match world.path_to(addressed) {
        Path::Refused(_) => vec![refusal(addressed, "its waypoint does not serve it")],
        Path::Through(gateway) if gateway == *waypoint => world.at_backend(&gateway, closed),
        // Node proxies tell waypoints apart by their identity only.
        Path::Through(gateway) if world.waypoint_identity(&gateway) == world.waypoint_identity(waypoint) => {
            Vec::new()
        }
        Path::Through(_) => vec![refusal(closed, "its Pods are for its waypoint only")],
        Path::Direct => {
            let policy = world.kept_for_waypoint(closed, &[]);
            policy.map(|policy| Attached { policy, guard: Guard::new() }).into_iter().collect()
        }
    }
}

/// A policy that denies everything, for connections that are refused.
fn refusal(service: &NamespacedName, why: &str) -> Attached {
    let name = NamespacedName::new(service.namespace.clone(), format!("{} ({why})", service.name));
    let policy = ValidPolicy::deny_everything(name, Scope::WorkloadSelector);
    Attached { policy, guard: Guard::new() }
}

/// Services that only the new side has, each beside the Services through which the same workloads were reached: what
/// these had denied must not be allowed by another name.
pub(super) fn added(old: &World, new: &World) -> Vec<Pair> {
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
            let enforced_now = if is_covered(new, name, before) {
                forwarded(new, name, before)
            } else {
                enforced(new, name)
            };
            out.push(Pair { place, old: enforced(old, before), new: enforced_now, is_companion: false });
        }
    }
    out
}

/// Whether all that is addressed to a Service reaches ports that a closed one keeps for its waypoint, where it has Pods of
/// that one: then the policies of the closed one judge it too, and what they deny stays denied.
fn is_covered(world: &World, service: &NamespacedName, closed: &NamespacedName) -> bool {
    let targets = |name: &NamespacedName| -> Option<BTreeSet<u16>> {
        world.ports(name).into_iter().map(|(_, target)| target).collect()
    };
    let beside = world.closed_beside(service).into_iter().any(|beside| beside.closed == *closed);
    let (own, kept) = (targets(service), targets(closed));
    beside && own.zip(kept).is_some_and(|(own, kept)| own.is_subset(&kept))
}
