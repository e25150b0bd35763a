// SPDX-License-Identifier: Apache-2.0
//! Services with a waypoint: policies of layer 4 that shut it out, and ways around it.

use std::net::{IpAddr, Ipv4Addr};

use meltemi_model::authz::{Attribute, StringMatch, ValueMatch};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::Facts;
use meltemi_translate::facts::Labels;
use meltemi_translate::labels::WAYPOINT_BYPASS;
use meltemi_translate::security::bypass;

use super::{AROUND, FORGETS, Finding};
use crate::ask::{Given, Judge, exactly, ports};
use crate::proof::{Answer, Hints, Layer};
use crate::side::{Attached, applies, compile};
use crate::witness::Witness;
use crate::world::{Known, World};

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    let targeted = world.targeted();
    for service in targeted.iter().chain(world.services.keys().filter(|s| !targeted.contains(s))) {
        if world.knows_service(service) == Known::No {
            continue;
        }
        let binding = world.waypoint_of(service);
        let Some(gateway) = binding.gateway() else { continue };
        if asks_in_vain(world, service) {
            let message = format!(
                "the label {WAYPOINT_BYPASS}=deny needs a selector: others than waypoint {gateway} connect to the endpoints of this \
                 Service, which are listed by hand"
            );
            let fix = "a selector, or an ALLOW policy for its Pods that admits the waypoint only".to_owned();
            out.push(Finding::new(AROUND, "Service", service, message, fix));
            continue;
        }
        let mut pods = world.pod_labels(service);
        if pods.is_empty() {
            if world.complete {
                continue;
            }
            pods.push(Labels::from([("app".to_owned(), service.name.to_string())]));
        }
        let known: Vec<Option<u16>> = world.ports(service).into_iter().map(|(_, target)| target).collect();
        let ports = if known.is_empty() { vec![None] } else { known };
        let all = world.at_node_proxy(&service.namespace);
        for labels in pods {
            let near: Vec<Attached> =
                all.iter().filter(|a| applies(&a.guard, &labels)).map(Attached::to_all).collect();
            for port in &ports {
                forgets(world, (service, gateway), &near, *port, out);
            }
            if targeted.contains(service) {
                around(world, (service, gateway), &near, &ports, out);
            }
        }
    }
}

/// Whether a Service asks to be closed and node proxies cannot know its Pods.
fn asks_in_vain(world: &World, service: &NamespacedName) -> bool {
    let nothing = Labels::new();
    let of_namespace = world.namespaces.get(&*service.namespace).unwrap_or(&nothing);
    let known = world.services.get(service).filter(|known| known.selector.is_empty());
    known.is_some_and(|known| bypass::is_closed(&known.labels, of_namespace))
}

fn forgets(
    world: &World,
    (service, gateway): (&NamespacedName, &NamespacedName),
    near: &[Attached],
    port: Option<u16>,
    out: &mut Vec<Finding>,
) {
    let principal = world.waypoint_identity(gateway);
    let mut given: Vec<Given> = vec![exactly(Attribute::SourcePrincipal, &principal)];
    given.extend(port.map(|p| ports([p])));
    let Ok(judge) = Judge::new(near, Layer::Connection, &given, &Hints::default()) else { return };
    if judge.allowed(&[]) != Answer::No {
        return;
    }
    let Ok(source) = SpiffeId::parse(&format!("spiffe://{principal}")) else { return };
    let set = compile(near);
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let facts = Facts {
        source: Some(&source),
        source_ip: nowhere,
        destination_ip: nowhere,
        destination_port: port.unwrap_or(80),
        sni: None,
        http: None,
    };
    let Some(culprit) = meltemi_policy::explain(&set, &facts).policy else { return };
    let several = world.services.get(service).is_some_and(|s| s.ports.len() > 1);
    let which = match port {
        Some(port) if several => format!("those to port {port} of its Pods fail"),
        _ => "all of them fail".to_owned(),
    };
    let message = format!(
        "the policy does not admit waypoint {gateway}, through which requests to Service {service} come: {which}"
    );
    out.push(Finding::policy(
        FORGETS,
        &culprit,
        message,
        format!("add {principal} to the principals of an ALLOW rule"),
    ));
}

fn around(
    world: &World,
    (service, gateway): (&NamespacedName, &NamespacedName),
    near: &[Attached],
    targets: &[Option<u16>],
    out: &mut Vec<Finding>,
) {
    let principal = world.waypoint_identity(gateway);
    let known: Option<Vec<u16>> = targets.iter().copied().collect();
    let port = known.as_ref().and_then(|all| all.first().copied());
    let given: Vec<Given> = known.map(ports).into_iter().collect();
    let hints = Hints { identities: world.identities(), ..Hints::default() };
    let known = [principal.clone()];
    let Ok(mut judge) = Judge::with_known(near, Layer::Connection, &given, &hints, &known) else { return };
    let Some(others) =
        judge.space.without(&ValueMatch::String(StringMatch::Exact(principal.as_str().into())))
    else {
        return;
    };
    let Answer::Yes(classes) = judge.allowed(&[others]) else { return };
    let witness = Witness::of(&judge.space, &classes, Layer::Connection, port.unwrap_or(80), "");
    let message = format!(
        "the Service has policies at waypoint {gateway}, and its Pods take connections that do not come through it: {witness}"
    );
    let fix = format!(
        "an ALLOW policy with a selector for its Pods that admits {principal} only, or the label {WAYPOINT_BYPASS}=deny"
    );
    out.push(Finding::new(AROUND, "Service", service, message, fix));
}
