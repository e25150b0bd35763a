// SPDX-License-Identifier: Apache-2.0
//! Which listeners and Services a route attaches to.

use gateway_api::experimental::httproutes::{HttpRoute, HttpRouteParentRefs};
use gateway_api::gateways::{Gateway, GatewayListeners};
use meltemi_model::NamespacedName;

use super::kind::RouteKind;
use super::world::World;
use crate::condition::Condition;
use crate::facts::{Labels, name_of};
use crate::gateways::classes;
use crate::gateways::status::{listener_error, served_kinds};
use crate::waypoints::AllowedNamespaces;

/// What a parent reference resolved to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parent {
    /// A listener of a Gateway, by name, with the host names that both agree on (none: any).
    Listener {
        /// The Gateway.
        gateway: NamespacedName,
        /// The listener's name.
        listener: String,
        /// Its port.
        port: u16,
    },
    /// A Service, and one of its ports or all.
    Service {
        /// The Service.
        service: NamespacedName,
        /// Only this port.
        port: Option<u16>,
        /// The waypoint that serves it, once there is one.
        waypoint: Option<NamespacedName>,
    },
}

/// One parent reference of a route.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The reference as written.
    pub reference: HttpRouteParentRefs,
    /// What it resolved to; empty when the route is not accepted there.
    pub parents: Vec<Parent>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Controller of the parent, for the status.
    pub controller: &'static str,
}

/// Group of Gateways.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Attaches a route to each of its parents that is ours; others are left to their controllers.
pub fn attach(route: &HttpRoute, kind: RouteKind, world: &dyn World) -> Vec<Attached> {
    let name = name_of(&route.metadata);
    let resolved = super::backends::resolved(route, kind, world);
    let references = route.spec.parent_refs.iter().flatten();
    references.filter_map(|reference| one((route, kind), &name, reference, &resolved, world)).collect()
}

fn one(
    route: (&HttpRoute, RouteKind),
    name: &NamespacedName,
    reference: &HttpRouteParentRefs,
    resolved: &Condition,
    world: &dyn World,
) -> Option<Attached> {
    let namespace = reference.namespace.as_deref().unwrap_or(&name.namespace);
    let parent = NamespacedName::new(namespace, reference.name.as_str());
    let group = reference.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = reference.kind.as_deref().unwrap_or("Gateway");
    let (parents, mut conditions, controller) = match (group, kind) {
        ("" | "core", "Service") if route.1 == RouteKind::Tls => {
            let message =
                "a TLSRoute of a Service is not supported: waypoints carry TLS by the Service's port";
            let refused = Condition::no("Accepted", "UnsupportedValue", message);
            (Vec::new(), vec![refused], classes::Class::Waypoint.controller())
        }
        (GATEWAY_GROUP, "Gateway") => {
            // A Gateway that does not exist has no class, so nobody else will say that it is missing.
            let gateway = world.gateway(&parent);
            let class = gateway.map(|g| classes::of(&g.spec.gateway_class_name));
            let controller = match class {
                Some(None) => return None,
                Some(Some(class)) => class.controller(),
                None => classes::Class::Ingress.controller(),
            };
            let (parents, accepted) = to_gateway(route, name, reference, (&parent, gateway), world);
            (parents, vec![accepted], controller)
        }
        ("" | "core", "Service") => {
            let (parents, conditions) = to_service(name, reference, &parent, world);
            (parents, conditions, classes::Class::Waypoint.controller())
        }
        _ => return None,
    };
    conditions.push(resolved.clone());
    Some(Attached { reference: reference.clone(), parents, conditions, controller })
}

fn to_service(
    name: &NamespacedName,
    reference: &HttpRouteParentRefs,
    service: &NamespacedName,
    world: &dyn World,
) -> (Vec<Parent>, Vec<Condition>) {
    let refuse = |message: &str| {
        let accepted = Condition::no("Accepted", "NoMatchingParent", message);
        let waypoints = Condition::no("ResolvedWaypoints", "NoMatchingParent", "parent not found");
        (Vec::new(), vec![accepted, waypoints])
    };
    if service.namespace != name.namespace {
        // A consumer's route would apply to its own namespace only; no proxy of ours does that.
        return refuse("a route of another namespace than its Service's is not supported");
    }
    let Some(ports) = world.service_ports(service) else { return refuse("parent not found") };
    let port = reference.port.and_then(|p| u16::try_from(p).ok());
    if port.is_some_and(|p| !ports.contains(&p)) {
        return refuse("the Service has no such port");
    }
    let (waypoint, waypoints) = match world.waypoint_of(service) {
        Ok(waypoint) => {
            let condition =
                Condition::yes("ResolvedWaypoints", "ResolvedWaypoints", "All waypoints resolved");
            (Some(waypoint), condition)
        }
        Err(reason) => {
            let message = match reason {
                "MissingUseWaypointLabel" => {
                    "istio.io/use-waypoint label missing from parent and parent namespace; in ambient mode, route \
                     will not be respected"
                }
                _ => "the waypoint of the parent is not ready",
            };
            (None, Condition::no("ResolvedWaypoints", reason, message))
        }
    };
    let accepted = Condition::yes("Accepted", "Accepted", "Route was valid");
    let parent = Parent::Service { service: service.clone(), port, waypoint };
    (vec![parent], vec![accepted, waypoints])
}

fn to_gateway(
    (route, kind): (&HttpRoute, RouteKind),
    name: &NamespacedName,
    reference: &HttpRouteParentRefs,
    (gateway_name, gateway): (&NamespacedName, Option<&Gateway>),
    world: &dyn World,
) -> (Vec<Parent>, Condition) {
    let refuse = |reason: &str, message: &str| (Vec::new(), Condition::no("Accepted", reason, message));
    let Some(gateway) = gateway else { return refuse("NoMatchingParent", "parent not found") };
    let Some(class) = classes::of(&gateway.spec.gateway_class_name) else {
        return refuse("NoMatchingParent", "parent not found");
    };
    let named = |l: &&GatewayListeners| {
        reference.section_name.as_ref().is_none_or(|s| *s == l.name)
            && reference.port.is_none_or(|p| p == l.port)
    };
    let candidates: Vec<&GatewayListeners> = gateway.spec.listeners.iter().filter(named).collect();
    if candidates.is_empty() {
        return refuse("NoMatchingParent", "no listener of the Gateway has this section name and port");
    }
    let labels = world.namespace_labels(&name.namespace);
    let admitted: Vec<&GatewayListeners> = candidates
        .into_iter()
        .filter(|l| {
            listener_error(class, l, gateway).is_none()
                && served_kinds(class, l).contains(&kind)
                && admits(l, kind, gateway_name, name, &labels)
        })
        .collect();
    if admitted.is_empty() {
        return refuse("NotAllowedByListeners", "no listener of the Gateway admits this route");
    }
    let hosts: Vec<String> = route.spec.hostnames.clone().unwrap_or_default();
    let agreeing: Vec<Parent> = admitted
        .into_iter()
        .filter(|l| hosts_agree(l.hostname.as_deref(), &hosts))
        .filter_map(|l| {
            let port = u16::try_from(l.port).ok()?;
            Some(Parent::Listener { gateway: gateway_name.clone(), listener: l.name.clone(), port })
        })
        .collect();
    if agreeing.is_empty() {
        return refuse(
            "NoMatchingListenerHostname",
            "no listener of the Gateway shares a hostname with this route",
        );
    }
    (agreeing, Condition::yes("Accepted", "Accepted", "Route was valid"))
}

fn admits(
    listener: &GatewayListeners,
    kind: RouteKind,
    gateway: &NamespacedName,
    route: &NamespacedName,
    labels: &Labels,
) -> bool {
    let allowed = listener.allowed_routes.as_ref();
    let kinds = allowed.and_then(|a| a.kinds.as_ref()).filter(|k| !k.is_empty());
    let kind_admitted = kinds.is_none_or(|kinds| {
        kinds.iter().any(|k| k.kind == kind.name() && k.group.as_deref().is_none_or(|g| g == GATEWAY_GROUP))
    });
    let namespaces = allowed.and_then(|a| a.namespaces.as_ref());
    let rule = AllowedNamespaces::read(
        namespaces.and_then(|n| n.from.as_ref()),
        namespaces.and_then(|n| n.selector.as_ref()),
    );
    kind_admitted && rule.admits(&gateway.namespace, &route.namespace, labels)
}

fn hosts_agree(listener: Option<&str>, hosts: &[String]) -> bool {
    let Some(listener) = listener.filter(|l| !l.is_empty()) else { return true };
    hosts.is_empty() || hosts.iter().any(|host| common_host(listener, host).is_some())
}

/// The more specific of two host names that agree; `*.` stands for one label or more.
pub fn common_host(a: &str, b: &str) -> Option<String> {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let covers = |wide: &str, narrow: &str| {
        wide.strip_prefix('*').is_some_and(|suffix| {
            let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
            narrow.len() >= suffix.len()
                && narrow.ends_with(suffix)
                && (narrow != suffix || wide.len() == narrow.len() + 1)
        })
    };
    if a == b || covers(&b, &a) {
        Some(a)
    } else if covers(&a, &b) {
        Some(b)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
