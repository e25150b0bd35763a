// SPDX-License-Identifier: Apache-2.0
//! Decides which Gateways enforce a policy and for which traffic: one rule for the control plane and for offline analysis.
//!
//! Gateways that a policy with targets names, or that serve a Service it names, enforce it. A policy without targets is
//! enforced by the ingress gateways of its namespace (of every namespace, in the root namespace) whose proxies its
//! selector selects; a waypoint ignores it.

use std::collections::BTreeSet;

use meltemi_model::{NamespacedName, l7};

use super::authorization::Reference;
use super::bypass;
use crate::condition::Condition;
use crate::facts::{Labels, selects};
use crate::gateways::classes::{self, Class};
use crate::mesh::MeshConfig;

/// Type of the condition that tells what became of a policy's targets.
pub const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";

/// A Service, as far as attachment looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetService {
    /// The waypoint that serves it, or will once it is ready; `None` when it has none.
    pub waypoint: Option<NamespacedName>,
    /// Node proxies admit only that waypoint to its Pods (see [`is_closed`]).
    pub closed: bool,
}

/// Objects that attachment looks up; the control plane answers from its index, the command line from files.
pub trait World {
    /// The mesh's settings.
    fn mesh(&self) -> &MeshConfig;
    /// A Service; `None` when it does not exist.
    fn service(&self, name: &NamespacedName) -> Option<TargetService>;
    /// Whether a Gateway exists and this mesh runs its proxies.
    fn has_gateway(&self, name: &NamespacedName) -> bool;
    /// Every waypoint.
    fn waypoints(&self) -> BTreeSet<NamespacedName>;
    /// Every ingress gateway that this mesh runs proxies for.
    fn ingress_gateways(&self) -> BTreeSet<NamespacedName>;
    /// Label sets that proxies of a Gateway have: as [`crate::gateways::deployment::pod_labels`] renders them, and as
    /// its existing Pods have them.
    fn proxy_labels(&self, gateway: &NamespacedName) -> Vec<Labels>;
}

/// The parts of a policy that decide where it is attached.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: &'a NamespacedName,
    /// Labels that select workloads; `None` selects all.
    pub selector: Option<&'a Labels>,
    /// Its targets.
    pub targets: &'a [Reference],
}

/// Where a policy is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Gateways that enforce it.
    pub gateways: BTreeSet<NamespacedName>,
    /// Traffic that they enforce it for. Depends on what the policy says and not on which waypoint serves a Service: a
    /// Service that changes its waypoint must not lose a target at the old one before that one has stopped serving it.
    pub targets: Vec<l7::Target>,
    /// `WaypointAccepted`; `None` for a policy without targets.
    pub condition: Option<Condition>,
    /// Services whose Pods can be reached without the waypoint that enforces the policy for them, with that waypoint.
    pub around: Vec<(String, String)>,
}

impl Attached {
    /// Whether a Gateway enforces the policy for requests `to` a Service, as [`l7::Target::applies`] has it: addressed to
    /// it, or forwarded to its Pods; without one, for requests that pass a listener.
    pub fn enforces(&self, gateway: &NamespacedName, to: Option<&l7::Target>) -> bool {
        self.gateways.contains(gateway) && self.targets.iter().any(|target| target.applies(to, gateway))
    }
}

/// Whether a reference is to a Gateway or to a class of them.
pub fn is_of_gateway(reference: &Reference) -> bool {
    matches!(reference, Reference::Gateway(_) | Reference::GatewayClass(_))
}

/// Whether node proxies keep everybody but its waypoint away from the Pods of a Service: it asks for that, and it has a
/// selector by which they know its Pods.
pub fn is_closed(service: &Labels, namespace: &Labels, selector: Option<&Labels>) -> bool {
    bypass::is_closed(service, namespace) && selector.is_some_and(|s| !s.is_empty())
}

/// Attaches a policy.
pub fn attach(policy: Policy<'_>, world: &dyn World) -> Attached {
    if policy.targets.is_empty() {
        return attach_selected(policy, world);
    }
    let namespace = &policy.name.namespace;
    let mut out = Attached::default();
    let mut bound: Vec<String> = Vec::new();
    let mut faults = Vec::new();
    for reference in policy.targets {
        out.targets.extend(named_targets(namespace, reference, world));
        match bind(policy, reference, world) {
            Ok(Bound { gateways, targets, to, absent, open }) => {
                out.around.extend(open.map(|service| (service, to.clone())));
                out.gateways.extend(gateways);
                out.targets.extend(targets);
                if absent {
                    let message =
                        format!("waypoint {to} does not exist: connections to it are refused until it does");
                    faults.push((reference.describe(namespace), "AncestorNotBound", message));
                } else if !bound.contains(&to) {
                    bound.push(to);
                }
            }
            Err((reason, message)) => faults.push((reference.describe(namespace), reason, message)),
        }
    }
    out.targets.sort();
    out.targets.dedup();
    let invalid = || {
        let names: Vec<&str> = faults.iter().map(|(name, ..)| name.as_str()).collect();
        format!("Invalid targetRefs: {}", names.join(", "))
    };
    out.condition = Some(match (bound.as_slice(), faults.as_slice()) {
        (to, []) => Condition::yes(WAYPOINT_ACCEPTED, "Accepted", format!("bound to {}", to.join(", "))),
        ([], [(_, reason, message)]) => Condition::no(WAYPOINT_ACCEPTED, reason, message.clone()),
        ([], _) => Condition::no(WAYPOINT_ACCEPTED, "Invalid", invalid()),
        (_, _) => Condition::yes(WAYPOINT_ACCEPTED, "PartiallyInvalid", invalid()),
    });
    out
}

/// Attaches a policy without targets to the ingress gateways that its selector selects.
fn attach_selected(policy: Policy<'_>, world: &dyn World) -> Attached {
    let everywhere = policy.name.namespace == world.mesh().root_namespace;
    let near = |gateway: &NamespacedName| everywhere || gateway.namespace == policy.name.namespace;
    let of = |gateway: &NamespacedName| {
        let Some(selector) = policy.selector else { return true };
        world.proxy_labels(gateway).iter().any(|labels| selects(selector, labels))
    };
    let gateways: BTreeSet<NamespacedName> =
        world.ingress_gateways().into_iter().filter(|g| near(g) && of(g)).collect();
    let targets = gateways.iter().cloned().map(l7::Target::Gateway).collect();
    Attached { gateways, targets, ..Attached::default() }
}

/// What became of one target.
struct Bound {
    gateways: BTreeSet<NamespacedName>,
    targets: Vec<l7::Target>,
    /// Name of what it is bound to, for the status.
    to: String,
    /// The Gateway does not exist; its proxies receive the policy once it does.
    absent: bool,
    /// The Service, when its Pods can be reached without the waypoint.
    open: Option<String>,
}

/// A reason and a message.
type Fault = (&'static str, String);

/// The traffic of a Service that a policy names, whichever waypoint serves it.
fn named_targets(namespace: &str, reference: &Reference, world: &dyn World) -> Vec<l7::Target> {
    let Reference::Service(service) = reference else { return Vec::new() };
    let name = NamespacedName::new(namespace, service.as_str());
    let key = world.mesh().service_key(&name.namespace, &name.name);
    let closed = world.service(&name).is_some_and(|s| s.closed);
    let backend = closed.then(|| l7::Target::Backend(key.clone()));
    std::iter::once(l7::Target::Service(key.clone())).chain(backend).collect()
}

fn bind(policy: Policy<'_>, reference: &Reference, world: &dyn World) -> Result<Bound, Fault> {
    let namespace = &policy.name.namespace;
    match reference {
        Reference::Service(service) => {
            let name = NamespacedName::new(namespace.clone(), service.as_str());
            let Some(found) = world.service(&name) else {
                return Err(("TargetNotFound", format!("Service {name} was not found")));
            };
            let Some(waypoint) = found.waypoint else {
                return Err(("AncestorNotBound", format!("Service {name} is not bound to a waypoint")));
            };
            Ok(Bound {
                absent: !world.has_gateway(&waypoint),
                to: waypoint.to_string(),
                gateways: [waypoint].into(),
                targets: Vec::new(),
                open: (!found.closed).then(|| name.to_string()),
            })
        }
        // ServiceEntries are not part of this mesh yet: none can be found.
        Reference::ServiceEntry(entry) => {
            Err(("TargetNotFound", format!("ServiceEntry {namespace}/{entry} was not found")))
        }
        Reference::Gateway(gateway) => {
            let name = NamespacedName::new(namespace.clone(), gateway.as_str());
            if !world.has_gateway(&name) {
                return Err(("TargetNotFound", "not bound".to_owned()));
            }
            let targets = vec![l7::Target::Gateway(name.clone())];
            Ok(Bound { to: name.to_string(), gateways: [name].into(), targets, absent: false, open: None })
        }
        Reference::GatewayClass(class) => bind_class(policy, class, world),
    }
}

fn bind_class(policy: Policy<'_>, class: &str, world: &dyn World) -> Result<Bound, Fault> {
    let root = &world.mesh().root_namespace;
    if policy.name.namespace != *root {
        let kind = policy.kind;
        let message =
            format!("{kind} must be in the root namespace `{root}` when referencing a GatewayClass");
        return Err(("Invalid", message));
    }
    match classes::of(class) {
        Some(Class::Waypoint) => {
            let gateways = world.waypoints();
            let targets = gateways.iter().cloned().map(l7::Target::Gateway).collect();
            Ok(Bound { gateways, targets, to: class.to_owned(), absent: false, open: None })
        }
        Some(_) => {
            let wanted = Class::Waypoint.controller();
            Err(("Invalid", format!("GatewayClass must use controller name `{wanted}` for waypoints")))
        }
        None => Err(("TargetNotFound", "not bound".to_owned())),
    }
}

#[cfg(test)]
mod tests;
