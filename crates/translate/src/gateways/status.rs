// SPDX-License-Identifier: Apache-2.0
//! The status of a Gateway, from what is deployed for it.

use std::collections::BTreeMap;

use gateway_api::gateways::{Gateway, GatewayListeners, GatewayListenersAllowedRoutesKinds};
use meltemi_model::net::ports;

use super::certificates::{ends_tls, is_passthrough};
use super::classes::{self, Class};
use super::deployment::managed_name;
use crate::condition::Condition;
use crate::mesh::MeshConfig;
use crate::routes::RouteKind;

/// Reasons of `Conflicted`.
const HOSTNAME_CONFLICT: &str = "HostnameConflict";
/// See [`HOSTNAME_CONFLICT`].
const PROTOCOL_CONFLICT: &str = "ProtocolConflict";
/// Ports that every proxy of a Gateway opens for itself.
const OWN_PORTS: [u16; 4] = [ports::ADMIN, ports::HBONE, ports::STATS, ports::READY];

/// Why a listener is not served: a reason and a message.
type ListenerError = (&'static str, String);

/// What was seen of the objects behind a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Cluster addresses of its Service; none when the Service does not exist.
    pub cluster_ips: Vec<String>,
    /// Type of its Service.
    pub load_balancer: bool,
    /// Addresses that its load balancer was given: (`IPAddress` or `Hostname`, value).
    pub external: Vec<(String, String)>,
    /// Proxies that are ready.
    pub ready: u32,
    /// Its status already has addresses: they stay while its Service does, so that traffic that is meant for a
    /// waypoint never goes around one that restarts.
    pub had_addresses: bool,
}

/// Status of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerReport {
    /// Its name.
    pub name: String,
    /// Kinds of routes it takes: (group, kind).
    pub supported: Vec<&'static str>,
    /// Routes attached to it.
    pub attached: u32,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// Status of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// (`IPAddress` or `Hostname`, value).
    pub addresses: Vec<(String, String)>,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Its listeners.
    pub listeners: Vec<ListenerReport>,
}

/// Why a listener of a Gateway of that class is not served.
pub fn listener_error(class: Class, listener: &GatewayListeners, gateway: &Gateway) -> Option<ListenerError> {
    let all = &gateway.spec.listeners;
    match class {
        Class::Waypoint => {
            let right =
                all.len() == 1 && listener.protocol == "HBONE" && listener.port == i32::from(ports::HBONE);
            (!right).then(|| {
                let text = "Expected a single listener on port 15008 with protocol \"HBONE\"";
                ("UnsupportedProtocol", text.to_owned())
            })
        }
        Class::Remote => None,
        Class::Ingress => match listener.protocol.as_str() {
            _ if OWN_PORTS.iter().any(|port| i32::from(*port) == listener.port) => {
                Some(("PortUnavailable", format!("port {} is the proxy's own", listener.port)))
            }
            "HTTP" | "HTTPS" | "TLS" => conflict(listener, all).or_else(|| unheeded(listener, gateway)),
            other => Some(("UnsupportedProtocol", format!("protocol \"{other}\" is not supported"))),
        },
    }
}

/// What a listener's author asks of TLS that no proxy of ours does. It may be what keeps clients out: the listener is not served
/// without it.
fn unheeded(listener: &GatewayListeners, gateway: &Gateway) -> Option<ListenerError> {
    const UNSUPPORTED: &str = "UnsupportedValue";
    let options = listener.tls.as_ref().and_then(|tls| tls.options.as_ref());
    if let Some(option) = options.and_then(|options| options.keys().next()) {
        return Some((UNSUPPORTED, format!("tls.options: {option:?} is not supported")));
    }
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    let of_port = frontend.per_port.iter().flatten().find(|one| one.port == listener.port);
    let is_asked = match of_port {
        Some(one) => one.tls.validation.is_some(),
        None => frontend.default.validation.is_some(),
    };
    let message =
        "spec.tls.frontend: client certificates are not supported, so no client could be told from another";
    (is_asked && ends_tls(listener)).then(|| (UNSUPPORTED, message.to_owned()))
}

/// Why no request could tell a listener from another one of its Gateway.
fn conflict(listener: &GatewayListeners, all: &[GatewayListeners]) -> Option<ListenerError> {
    let host = |l: &GatewayListeners| l.hostname.as_deref().unwrap_or_default().to_ascii_lowercase();
    let mut others = all.iter().filter(|l| l.port == listener.port && l.name != listener.name);
    // What a port speaks is known before a client has named a host.
    let speaks = |l: &GatewayListeners| (l.protocol.clone(), is_passthrough(l));
    if let Some(other) = others.clone().find(|l| speaks(l) != speaks(listener)) {
        let mode = if is_passthrough(other) { " of mode Passthrough" } else { "" };
        let message =
            format!("listener {:?} has protocol {}{mode} on the same port", other.name, other.protocol);
        return Some((PROTOCOL_CONFLICT, message));
    }
    let other = others.find(|l| host(l) == host(listener))?;
    Some((HOSTNAME_CONFLICT, format!("listener {:?} has the same port and hostname", other.name)))
}

/// The status of a Gateway; none when its class is another controller's.
pub fn report(
    gateway: &Gateway,
    observed: &Observed,
    attached: &BTreeMap<String, u32>,
    unresolved: &BTreeMap<String, (&'static str, String)>,
    mesh: &MeshConfig,
) -> Option<Report> {
    let class = classes::of(&gateway.spec.gateway_class_name)?;
    let all = &gateway.spec.listeners;
    let errors: Vec<_> = all.iter().map(|l| listener_error(class, l, gateway)).collect();
    let listeners: Vec<ListenerReport> = gateway
        .spec
        .listeners
        .iter()
        .zip(&errors)
        .map(|(listener, error)| {
            let attached = attached.get(&listener.name).copied().unwrap_or(0);
            listener_report(class, listener, error.as_ref(), unresolved.get(&listener.name), attached)
        })
        .collect();
    let parameters = gateway.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref());
    let accepted = if let Some(parameters) = parameters {
        let message = format!(
            "infrastructure.parametersRef: {} {:?} is not supported",
            parameters.kind, parameters.name
        );
        Condition::no("Accepted", "InvalidParameters", message)
    } else if errors.iter().all(Option::is_some) {
        Condition::no("Accepted", "ListenersNotValid", "No listener is valid")
    } else if errors.iter().any(Option::is_some) {
        Condition::yes("Accepted", "ListenersNotValid", "Some listeners are not valid")
    } else {
        Condition::yes("Accepted", "Accepted", "Resource accepted")
    };
    let (addresses, programmed) = programmed(gateway, class, observed, accepted.status, mesh);
    Some(Report { addresses, conditions: vec![accepted, programmed], listeners })
}

fn listener_report(
    class: Class,
    listener: &GatewayListeners,
    error: Option<&(&'static str, String)>,
    unresolved: Option<&(&'static str, String)>,
    attached: u32,
) -> ListenerReport {
    let accepted = match error {
        None => Condition::yes("Accepted", "Accepted", "No errors found"),
        Some((reason, message)) => Condition::no("Accepted", reason, message.clone()),
    };
    let (mut supported, unsupported) = kinds(class, listener);
    if matches!(error, Some((PROTOCOL_CONFLICT, _))) {
        // Whose port it is cannot be said, so it takes no route.
        supported.clear();
    }
    let invalid = (!unsupported.is_empty()).then(|| {
        let message = format!("routes of kind {} are not supported by this listener", unsupported.join(", "));
        ("InvalidRouteKinds", message)
    });
    let resolved = match unresolved.or(invalid.as_ref()) {
        None => Condition::yes("ResolvedRefs", "ResolvedRefs", "No errors found"),
        Some((reason, message)) => Condition::no("ResolvedRefs", reason, message.clone()),
    };
    let none_left = supported.is_empty() && !unsupported.is_empty();
    let programmed = if error.is_none() && unresolved.is_none() && !none_left {
        Condition::yes("Programmed", "Programmed", "No errors found")
    } else {
        Condition::no("Programmed", "Invalid", "Bad configuration")
    };
    let conflicted = match error {
        Some((reason @ (HOSTNAME_CONFLICT | PROTOCOL_CONFLICT), message)) => {
            Condition::yes("Conflicted", reason, message.clone())
        }
        _ => Condition::no("Conflicted", "NoConflicts", "No errors found"),
    };
    let conditions = vec![accepted, conflicted, programmed, resolved];
    ListenerReport { name: listener.name.clone(), supported, attached, conditions }
}

/// Kinds of routes that a listener can take.
pub fn served_kinds(class: Class, listener: &GatewayListeners) -> &'static [RouteKind] {
    match (class, listener.protocol.as_str()) {
        (Class::Waypoint, _) | (Class::Ingress, "HTTP" | "HTTPS") => &[RouteKind::Http, RouteKind::Grpc],
        (Class::Ingress, "TLS") => &[RouteKind::Tls],
        _ => &[],
    }
}

/// Kinds of routes that a listener takes, and those that it names and cannot take.
fn kinds(class: Class, listener: &GatewayListeners) -> (Vec<&'static str>, Vec<String>) {
    let served: Vec<&'static str> = served_kinds(class, listener).iter().map(|kind| kind.name()).collect();
    let named = listener.allowed_routes.as_ref().and_then(|a| a.kinds.as_ref()).filter(|k| !k.is_empty());
    let Some(named) = named else { return (served, Vec::new()) };
    let ours = |kind: &GatewayListenersAllowedRoutesKinds| {
        let group = kind.group.as_deref().is_none_or(|g| g == "gateway.networking.k8s.io");
        served.iter().find(|served| group && **served == kind.kind).copied()
    };
    let mut supported: Vec<&'static str> = named.iter().filter_map(ours).collect();
    supported.dedup();
    (supported, named.iter().filter(|kind| ours(kind).is_none()).map(|kind| kind.kind.clone()).collect())
}

fn programmed(
    gateway: &Gateway,
    class: Class,
    observed: &Observed,
    accepted: bool,
    mesh: &MeshConfig,
) -> (Vec<(String, String)>, Condition) {
    if class == Class::Remote {
        return remote(gateway);
    }
    let Some(name) = managed_name(gateway) else { return (Vec::new(), not_assigned("nothing is deployed")) };
    let host = mesh.hostname(&name.namespace, &name.name);
    if !accepted {
        return (Vec::new(), Condition::no("Programmed", "Invalid", "The Gateway is not accepted"));
    }
    if observed.cluster_ips.is_empty() {
        return (Vec::new(), not_usable(&format!("hostname \"{host}\" not found")));
    }
    let internal = || {
        let ips = observed.cluster_ips.iter().map(|ip| ("IPAddress".to_owned(), ip.clone()));
        ips.chain([("Hostname".to_owned(), host.clone())]).collect::<Vec<_>>()
    };
    let addresses = if observed.load_balancer && !observed.external.is_empty() {
        observed.external.clone()
    } else if observed.ready > 0 || observed.had_addresses {
        internal()
    } else {
        Vec::new()
    };
    if observed.ready == 0 {
        let why = format!("no ready instances for hostname \"{host}\"");
        return (addresses, not_usable(&why));
    }
    let endpoints: Vec<String> = {
        let mut seen = Vec::new();
        for listener in &gateway.spec.listeners {
            let text = format!("{host}:{}", listener.port);
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        seen
    };
    let assigned = format!("assigned to service(s) {}", endpoints.join(" and "));
    if observed.load_balancer && observed.external.is_empty() {
        let message = format!(
            "A{}, but failed to assign to all requested addresses: address pending for hostname \"{host}\"",
            &assigned[1..]
        );
        return (addresses, Condition::no("Programmed", "AddressNotAssigned", message));
    }
    let message = format!("Resource programmed, {assigned}");
    (addresses, Condition::yes("Programmed", "Programmed", message))
}

fn remote(gateway: &Gateway) -> (Vec<(String, String)>, Condition) {
    let addresses: Vec<_> = gateway
        .spec
        .addresses
        .iter()
        .flatten()
        .filter_map(|a| Some((a.r#type.clone().unwrap_or_else(|| "IPAddress".to_owned()), a.value.clone()?)))
        .collect();
    if addresses.is_empty() {
        return (addresses, not_assigned("a remote gateway needs spec.addresses"));
    }
    (addresses, Condition::yes("Programmed", "Programmed", "Resource programmed"))
}

fn not_usable(why: &str) -> Condition {
    let message = format!("Failed to assign to any requested addresses: {why}");
    Condition::no("Programmed", "AddressNotUsable", message)
}

fn not_assigned(why: &str) -> Condition {
    Condition::no("Programmed", "AddressNotAssigned", why)
}

#[cfg(test)]
mod tests;
