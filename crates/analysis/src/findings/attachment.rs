// SPDX-License-Identifier: Apache-2.0
//! Policies that are attached to nothing, and policies that ask a node proxy for what it cannot see.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Rule};
use meltemi_translate::facts::selects;
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::security::{Authorization, Reference};
use meltemi_translate::security::{layer4, notes};

use super::{CUSTOM, DIFFERS, Finding, LAYER7, Level, NOTHING};
use crate::world::{Binding, Known, World};

pub(super) fn find(world: &World, out: &mut Vec<Finding>) {
    for policy in world.policies.values() {
        let custom = matches!(policy.policy.action, Action::Custom { .. });
        let (at_node, at_gateway) = (policy.targets.is_empty(), !policy.targets.is_empty());
        if let Some(note) = notes::differs(policy, at_node, at_gateway).filter(|_| !custom) {
            let stricter = note.reason == "FailsClosed";
            let fix = if stricter {
                "nothing, if the stricter verdict is meant"
            } else {
                "say it by something else"
            };
            let level = if stricter { DIFFERS.level } else { Level::Warning };
            out.push(Finding::policy(DIFFERS, &policy.policy.name, note.message, fix).at(level));
        }
        if policy.targets.is_empty() {
            workloads(world, policy, out);
            layer7(policy, out);
        } else {
            targets(world, policy, out);
        }
        if let Action::Custom { provider } = &policy.policy.action
            && let Some(reason) = world.mesh.unusable_provider(provider)
        {
            out.push(Finding::policy(
                CUSTOM,
                &policy.policy.name,
                format!("{reason}: what the policy matches is denied"),
                "name the provider in the ConfigMap istio of the root namespace",
            ));
        }
    }
}

fn workloads(world: &World, policy: &Authorization, out: &mut Vec<Finding>) {
    let name = &policy.policy.name;
    let everywhere = name.namespace == world.mesh.root_namespace;
    let mut near = world.workloads.iter().filter(|w| everywhere || w.name.namespace == name.namespace);
    // Files without workloads say nothing about what runs.
    if !world.complete && near.clone().next().is_none() {
        return;
    }
    let Some(selector) = &policy.selector else { return };
    if !near.any(|w| selects(selector, &w.labels)) {
        let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        out.push(Finding::policy(
            NOTHING,
            name,
            format!("no workload has the labels {}: the policy is enforced nowhere", labels.join(",")),
            "correct spec.selector.matchLabels, or delete the policy",
        ));
    }
}

fn targets(world: &World, policy: &Authorization, out: &mut Vec<Finding>) {
    let name = &policy.policy.name;
    for target in &policy.targets {
        let found: Option<(String, &str)> = match target {
            Reference::Service(service) => {
                let service = NamespacedName::new(name.namespace.clone(), service.as_str());
                match (world.knows_service(&service), world.waypoint_of(&service)) {
                    (Known::No, _) => {
                        Some((format!("Service {service} was not found"), "correct spec.targetRefs"))
                    }
                    (_, binding) => unbound(&service, binding),
                }
            }
            Reference::Gateway(gateway) => {
                let gateway = NamespacedName::new(name.namespace.clone(), gateway.as_str());
                (world.knows_gateway(&gateway) == Known::No)
                    .then(|| (format!("Gateway {gateway} was not found"), "correct spec.targetRefs"))
            }
            Reference::GatewayClass(class) => {
                if name.namespace != world.mesh.root_namespace {
                    let root = &world.mesh.root_namespace;
                    Some((
                        format!("a policy for GatewayClass {class} has to be in the root namespace `{root}`"),
                        "move the policy, or name a Gateway",
                    ))
                } else if classes::of(class) == Some(Class::Waypoint) {
                    None
                } else {
                    Some((format!("GatewayClass {class} is not one of waypoints"), "name istio-waypoint"))
                }
            }
            Reference::ServiceEntry(entry) => Some((
                format!("ServiceEntry {}/{entry} is not known to any waypoint here", name.namespace),
                "name a Service or a Gateway",
            )),
        };
        if let Some((what, fix)) = found {
            let message = format!("{what}: the policy is not enforced for it");
            // What was to be denied is not.
            let level = if policy.policy.action == Action::Deny { Level::Error } else { NOTHING.level };
            out.push(Finding::policy(NOTHING, name, message, fix).at(level));
        }
    }
}

/// Why the waypoint of a Service does not enforce its policies; `None` when it does.
fn unbound(service: &NamespacedName, binding: Binding) -> Option<(String, &'static str)> {
    let what = format!("Service {service} is not bound to a waypoint");
    match binding {
        Binding::Waypoint(_) | Binding::Assumed(_) => None,
        Binding::Nothing => Some((
            what,
            "label the Service or its Namespace with istio.io/use-waypoint, and apply the waypoint",
        )),
        Binding::Absent(waypoint) => Some((
            format!(
                "waypoint {waypoint} of Service {service} was not found, and connections to it are refused"
            ),
            "apply the waypoint, or correct istio.io/use-waypoint",
        )),
        Binding::Refused(_, Some(reason)) => Some((
            format!("{what} ({reason}), and connections to it are refused"),
            if reason.contains("allowedRoutes") {
                "admit the namespace in allowedRoutes of the waypoint's listener"
            } else {
                "correct istio.io/waypoint-for of the waypoint"
            },
        )),
        Binding::Refused(waypoint, None) => Some((
            format!("{what}: {waypoint}, which its Namespace names, is for other traffic"),
            "correct istio.io/waypoint-for of the waypoint",
        )),
    }
}

fn layer7(policy: &Authorization, out: &mut Vec<Finding>) {
    let projected = layer4::project(policy);
    let Some(condition) = projected.condition.filter(|c| c.reason == "UnsupportedValue") else { return };
    let name = &policy.policy.name;
    let fix =
        "attach the policy with spec.targetRefs to a Service that uses a waypoint, or leave the fields out";
    let message = condition.message.trim().to_owned();
    let Some(left) = projected.policy else {
        if !policy.policy.dry_run {
            out.push(Finding::policy(LAYER7, name, format!("{message}: the policy is not enforced"), fix));
        }
        return;
    };
    let finding = match left.action {
        Action::Allow if left.rules.is_empty() => {
            let message = format!("{message} No rule is left: everything is denied.");
            Finding::policy(LAYER7, name, message, fix).at(Level::Error)
        }
        Action::Deny if left.rules.contains(&Rule::default()) => {
            let message = format!("{message} A rule has no condition left: everything is denied.");
            Finding::policy(LAYER7, name, message, fix).at(Level::Error)
        }
        _ => Finding::policy(LAYER7, name, message, fix),
    };
    out.push(finding);
}
