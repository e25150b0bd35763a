// SPDX-License-Identifier: Apache-2.0
//! What differs between two sides and is not modelled: each is named, and nothing is said of it.

use std::collections::BTreeSet;

use meltemi_model::NamespacedName;
use meltemi_translate::gateways::classes::Class;

use crate::compare::Unknown;
use crate::world::{Gateway, Path, Service, Workload, World, difference};

/// Kinds of objects that the new side has none of and the old one has, though the new side holds more than policies:
/// they are taken from the old side, and may have been deleted.
pub(super) fn find_vanished(old: &World, new: &World) -> Vec<Unknown> {
    if new.holds_only_policies() {
        return Vec::new();
    }
    let kinds = [
        ("Services", old.services.is_empty(), new.services.is_empty()),
        ("Namespaces", old.namespaces.is_empty(), new.namespaces.is_empty()),
        ("Gateways", old.gateways.is_empty(), new.gateways.is_empty()),
        ("workloads", old.workloads.is_empty(), new.workloads.is_empty()),
    ];
    let gone = kinds.into_iter().filter(|(_, was_empty, is_empty)| !was_empty && *is_empty);
    gone.map(|(kind, ..)| {
        let reason =
            format!("only the old side has {kind}: they are taken as there, and may have been deleted");
        unknown(format!("all {kind}"), reason)
    })
    .collect()
}

fn unknown(target: String, reason: String) -> Unknown {
    Unknown { target, enforced_at: "every proxy".to_owned(), policy: None, reason }
}

/// Names everything that differs and that proofs do not look at.
pub(super) fn find_unmodelled(old: &World, new: &World, out: &mut Vec<Unknown>) {
    find_settings(old, new, out);
    find_workloads(old, new, out);
    find_services(old, new, out);
    find_gateways(old, new, out);
    let keys: BTreeSet<_> = old.unmodelled.keys().chain(new.unmodelled.keys()).collect();
    for key in keys {
        let (was, is) = (old.unmodelled.get(key), new.unmodelled.get(key));
        let how = match (was, is) {
            (Some(was), Some(is)) => match difference(was, is) {
                None => continue,
                Some(how) => format!("differs{how}"),
            },
            (Some(_), None) => "is only on the old side".to_owned(),
            _ => "is only on the new side".to_owned(),
        };
        let (kind, name) = key;
        out.push(unknown(format!("{kind} {name}"), format!("it {how}, and {}", consequence(kind))));
    }
}

fn consequence(kind: &str) -> &'static str {
    match kind {
        "ReferenceGrant" => "which backends routes may name is not compared",
        _ => "where requests go, and as what, is not compared",
    }
}

fn find_settings(old: &World, new: &World, out: &mut Vec<Unknown>) {
    let target = || "settings of the mesh".to_owned();
    if old.mesh.path_normalization != new.mesh.path_normalization {
        let reason = "pathNormalization differs: which path a policy is compared with is not compared";
        out.push(unknown(target(), reason.to_owned()));
    }
    if old.mesh.trust_domain != new.mesh.trust_domain {
        out.push(unknown(target(), "trustDomain differs: every identity is another".to_owned()));
    }
}

fn find_workloads(old: &World, new: &World, out: &mut Vec<Unknown>) {
    for now in &new.workloads {
        let target = format!("{} {}", now.kind, now.name);
        let before: Vec<&Workload> = old.workloads.iter().filter(|w| w.is_same(now)).collect();
        if before.is_empty() {
            out.push(unknown(
                target,
                "it is only on the new side: there is nothing to compare it with".to_owned(),
            ));
            continue;
        }
        let account = |was: &&Workload| was.account == now.account;
        if !before.iter().any(account) {
            let reason = format!(
                "it runs as ServiceAccount {} and no longer as {}: as a client it may what that account may",
                now.account, before[0].account
            );
            out.push(unknown(target.clone(), reason));
        }
        out.extend(waypoints_of_pods(old, new, before[0], now).map(|reason| unknown(target.clone(), reason)));
        let enrolled = new.is_enrolled(now);
        if before.iter().any(|was| old.is_enrolled(was) == enrolled) {
            continue;
        }
        let reason = match enrolled {
            Some(false) => {
                "it is no longer in the mesh: as a client it has no identity and passes no waypoint"
            }
            Some(true) => "it joins the mesh: as a client it has an identity now",
            None => "whether it is in the mesh is not known: its Namespace is only on the old side",
        };
        out.push(unknown(target, reason.to_owned()));
    }
}

/// What differs of the waypoint that connections to the addresses of Pods pass.
fn waypoints_of_pods(old: &World, new: &World, was: &Workload, now: &Workload) -> Option<String> {
    let before = old.waypoint_of_pods(&was.name.namespace, &was.labels);
    let after = new.waypoint_of_pods(&now.name.namespace, &now.labels);
    let word = |waypoint: &Option<NamespacedName>| match waypoint {
        Some(name) => format!("waypoint {name}"),
        None => "no waypoint".to_owned(),
    };
    if before != after {
        return Some(format!(
            "connections to the addresses of its Pods pass {} and no longer {}: what is said of them there is not compared",
            word(&after),
            word(&before)
        ));
    }
    let gateway = after?;
    let enforced = |world: &World| world.at_waypoint(&gateway, None);
    let (before, after) = (enforced(old), enforced(new));
    let is_same = before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| a.policy == b.policy);
    (!is_same).then(|| {
        format!("policies of waypoint {gateway} differ: what they say of connections to the addresses of its Pods is not compared")
    })
}

fn find_services(old: &World, new: &World, out: &mut Vec<Unknown>) {
    for (name, now) in &new.services {
        let target = format!("Service {name}");
        let Some(was) = old.services.get(name) else {
            if now.selector.is_empty() {
                out.push(unknown(target, "it is only on the new side, and has no selector".to_owned()));
            }
            continue;
        };
        let direct = [old, new].iter().all(|world| world.path_to(name) == Path::Direct);
        // Whoever reaches a Service without a waypoint reaches its Pods by their addresses as well.
        if !direct {
            out.extend(changes(was, now).into_iter().map(|reason| unknown(target.clone(), reason)));
        }
    }
}

/// What differs of a Service beside its labels.
fn changes(was: &Service, now: &Service) -> Vec<String> {
    let mut out = Vec::new();
    if was.selector != now.selector {
        out.push("its selector differs: other Pods are reached through its waypoint".to_owned());
    }
    for (port, target) in &now.ports {
        let before = was.ports.iter().find(|(own, _)| own == port);
        let Some((_, before)) = before else {
            out.push(format!("port {port} is only on the new side"));
            continue;
        };
        if before != target || was.named.get(port) != now.named.get(port) {
            out.push(format!("port {port} has another targetPort: another port of its Pods is reached"));
        }
        let word = |service: &Service| match service.streams.contains(port) {
            true => "connections",
            false if service.undeclared.contains(port) => "requests and other connections",
            false => "requests",
        };
        if word(was) != word(now) {
            out.push(format!(
                "port {port} has another protocol: {} are judged there, and no longer {}",
                word(now),
                word(was)
            ));
        }
    }
    out
}

fn find_gateways(old: &World, new: &World, out: &mut Vec<Unknown>) {
    let is_ingress = |gateway: &Gateway| gateway.class == Some(Class::Ingress);
    for (name, now) in &new.gateways {
        let mut say = |reason: &str| out.push(unknown(format!("Gateway {name}"), reason.to_owned()));
        match old.gateways.get(name) {
            None if is_ingress(now) => {
                say("it is only on the new side: what it lets in was not reached through it")
            }
            None => {}
            Some(was) if was.class != now.class => say("its class differs"),
            Some(was) => {
                if was.account != now.account {
                    say("its proxies run as another ServiceAccount");
                }
                if is_ingress(now) && was.listeners != now.listeners {
                    say("its listeners differ: what reaches it is not compared");
                }
            }
        }
    }
}
