// SPDX-License-Identifier: Apache-2.0
//! Which waypoint an object uses, and what its status says about it.

use std::sync::Arc;

use gateway_api::gateways::{
    Gateway, GatewayListenersAllowedRoutesNamespacesFrom as From,
    GatewayListenersAllowedRoutesNamespacesSelector as Selector,
};
use meltemi_model::names::NamespacedHostname;
use meltemi_model::net::ports;
use meltemi_model::workload::{ApplicationTunnel, GatewayAddress, GatewayDestination};
use meltemi_model::{NamespacedName, NetworkAddress};

use crate::condition::Condition;
use crate::facts::{Labels, name_of};
use crate::gateways::classes::{self, Class};
use crate::gateways::deployment;
use crate::labels;
use crate::mesh::MeshConfig;

/// Type of the condition on a Service.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// The kind of traffic that is addressed to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// Addressed to a Service.
    Service,
    /// Addressed to a Pod.
    Workload,
}

impl Traffic {
    fn word(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
        }
    }
}

/// What a waypoint takes (`istio.io/waypoint-for`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaypointFor {
    /// Traffic to Services.
    Service,
    /// Traffic to Pods.
    Workload,
    /// Both.
    All,
    /// Nothing.
    None,
}

impl WaypointFor {
    /// Reads the label; absent means `service`, and so does a word that is not known.
    pub fn read(label: Option<&String>) -> Self {
        match label.map(String::as_str) {
            Some("workload") => Self::Workload,
            Some("all") => Self::All,
            Some("none") => Self::None,
            _ => Self::Service,
        }
    }

    /// Whether it takes such traffic.
    pub fn takes(self, traffic: Traffic) -> bool {
        matches!(
            (self, traffic),
            (Self::All, _) | (Self::Service, Traffic::Service) | (Self::Workload, Traffic::Workload)
        )
    }
}

/// Namespaces that may use a waypoint (`allowedRoutes.namespaces` of its listener).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// Its own.
    Same,
    /// Every one.
    All,
    /// None (a selector that is not given).
    None,
    /// Those with these labels.
    Selector {
        /// Pairs that must be there.
        labels: Labels,
        /// Expressions: key, operator, values.
        expressions: Vec<(String, String, Vec<String>)>,
    },
}

impl AllowedNamespaces {
    /// Reads `allowedRoutes.namespaces`.
    pub fn read(from: Option<&From>, selector: Option<&Selector>) -> Self {
        match from {
            None | Some(From::Same) => Self::Same,
            Some(From::All) => Self::All,
            Some(From::Selector) => match selector {
                None => Self::None,
                Some(selector) => Self::Selector {
                    labels: selector.match_labels.clone().unwrap_or_default(),
                    expressions: selector
                        .match_expressions
                        .iter()
                        .flatten()
                        .map(|e| (e.key.clone(), e.operator.clone(), e.values.clone().unwrap_or_default()))
                        .collect(),
                },
            },
        }
    }

    /// Whether objects of `namespace` (with its labels) are let in by a Gateway of namespace `own`.
    pub fn admits(&self, own: &str, namespace: &str, namespace_labels: &Labels) -> bool {
        match self {
            Self::Same => own == namespace,
            Self::All => true,
            Self::None => false,
            Self::Selector { labels, expressions } => {
                // The API server gives every namespace this label.
                let name = namespace.to_owned();
                let get = |key: &str| {
                    namespace_labels.get(key).or((key == "kubernetes.io/metadata.name").then_some(&name))
                };
                labels.iter().all(|(k, v)| get(k) == Some(v))
                    && expressions.iter().all(|(key, operator, values)| match operator.as_str() {
                        "In" => get(key).is_some_and(|v| values.contains(v)),
                        "NotIn" => !get(key).is_some_and(|v| values.contains(v)),
                        "Exists" => get(key).is_some(),
                        "DoesNotExist" => get(key).is_none(),
                        // An operator that is not known admits nobody.
                        _ => false,
                    })
            }
        }
    }
}

/// A waypoint, as the objects that use it see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointFacts {
    /// Its Gateway.
    pub name: NamespacedName,
    /// The ServiceAccount that its proxies run as.
    pub account: NamespacedName,
    /// What it takes.
    pub takes: WaypointFor,
    /// Who may use it.
    pub allowed: AllowedNamespaces,
    /// Where it is; none until its status says so.
    pub address: Option<GatewayAddress>,
    /// Tunnel that its Pods understand (`ambient.istio.io/waypoint-inbound-binding`).
    pub inbound_binding: Option<ApplicationTunnel>,
}

impl WaypointFacts {
    /// Reads a Gateway; none when it is not a waypoint.
    pub fn read(gateway: &Gateway, mesh: &MeshConfig) -> Option<Self> {
        if classes::of(&gateway.spec.gateway_class_name) != Some(Class::Waypoint) {
            return None;
        }
        let listener = gateway.spec.listeners.iter().find(|l| l.protocol == "HBONE");
        let namespaces = listener.and_then(|l| l.allowed_routes.as_ref()?.namespaces.as_ref());
        let allowed = AllowedNamespaces::read(
            namespaces.and_then(|n| n.from.as_ref()),
            namespaces.and_then(|n| n.selector.as_ref()),
        );
        let labels = gateway.metadata.labels.as_ref();
        let binding =
            gateway.metadata.annotations.as_ref().and_then(|a| a.get(labels::WAYPOINT_INBOUND_BINDING));
        let name = name_of(&gateway.metadata);
        let account = deployment::service_account(gateway).unwrap_or_else(|| name.name.to_string());
        Some(Self {
            account: NamespacedName::new(name.namespace.clone(), account),
            name,
            takes: WaypointFor::read(labels.and_then(|l| l.get(labels::WAYPOINT_FOR))),
            allowed,
            address: address(gateway, mesh),
            inbound_binding: binding.and_then(|text| inbound_binding(text)),
        })
    }

    /// Where traffic is to be sent even when no instance is there to take it: used to fail closed.
    pub fn expected_address(name: &NamespacedName, mesh: &MeshConfig) -> GatewayAddress {
        let key = mesh.service_key(&name.namespace, &name.name);
        GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_port: ports::HBONE }
    }

    /// The address of a waypoint that does not take who asks for it: nobody is there, and it names which was asked for.
    pub fn nowhere(name: &NamespacedName) -> GatewayAddress {
        let host = format!("not-attached.{}.{}.invalid", name.name, name.namespace);
        let key = NamespacedHostname::new(name.namespace.clone(), host);
        GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_port: ports::HBONE }
    }
}

/// `PROXY[/port]` or `NONE[/port]`.
fn inbound_binding(text: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = text.split_once('/').unwrap_or((text, "0"));
    let port = port.parse().ok()?;
    match protocol {
        "PROXY" => Some(ApplicationTunnel { proxy_protocol: true, port }),
        "NONE" if port != 0 => Some(ApplicationTunnel { proxy_protocol: false, port }),
        _ => None,
    }
}

/// The address in a Gateway's status; a host name is preferred to an address.
fn address(gateway: &Gateway, mesh: &MeshConfig) -> Option<GatewayAddress> {
    let addresses = gateway.status.as_ref()?.addresses.as_ref()?;
    let hbone_port = gateway
        .spec
        .listeners
        .iter()
        .find(|l| l.protocol == "HBONE")
        .and_then(|l| u16::try_from(l.port).ok())
        .unwrap_or(ports::HBONE);
    let hostname = addresses.iter().find(|a| a.r#type.as_deref() == Some("Hostname"));
    let ip = || addresses.iter().find_map(|a| a.value.parse().ok());
    let destination = match hostname {
        Some(hostname) => {
            let namespace = host_namespace(&hostname.value, mesh)?;
            GatewayDestination::Hostname(NamespacedHostname::new(namespace, hostname.value.as_str()))
        }
        None => GatewayDestination::Address(NetworkAddress::new(mesh.network.clone(), ip()?)),
    };
    Some(GatewayAddress { destination, hbone_port })
}

/// `<name>.<namespace>.svc.<domain>` → `<namespace>`.
fn host_namespace(host: &str, mesh: &MeshConfig) -> Option<Arc<str>> {
    let rest = host.strip_suffix(&format!(".svc.{}", mesh.cluster_domain))?;
    rest.split_once('.').map(|(_, namespace)| namespace.into())
}

/// What the labels of an object and of its namespace ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: no label anywhere, or an opt-out.
    Nothing,
    /// A waypoint.
    Waypoint {
        /// Which.
        name: NamespacedName,
        /// Whether the namespace asks for it and not the object.
        inherited: bool,
    },
}

/// Reads the wish of an object: its own label beats that of its namespace, `none` is an opt-out.
pub fn wish(namespace: &str, own: &Labels, of_namespace: &Labels) -> Wish {
    let read = |labels: &Labels, inherited| {
        let name = labels.get(labels::USE_WAYPOINT)?;
        if name == "none" || name.is_empty() {
            return Some(Wish::Nothing);
        }
        let namespace = labels.get(labels::USE_WAYPOINT_NAMESPACE).map_or(namespace, String::as_str);
        Some(Wish::Waypoint { name: NamespacedName::new(namespace, name.as_str()), inherited })
    };
    read(own, false).or_else(|| read(of_namespace, true)).unwrap_or(Wish::Nothing)
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// There was none.
    NotWanted,
    /// Bound.
    Bound {
        /// The waypoint's Gateway.
        waypoint: NamespacedName,
        /// Where it is.
        address: GatewayAddress,
    },
    /// Not bound.
    Refused {
        /// The waypoint's Gateway.
        waypoint: NamespacedName,
        /// Why; none when there is nothing to report (an inherited waypoint for other traffic).
        condition: Option<Condition>,
        /// Whether the waypoint is meant for this object but cannot take traffic now.
        not_ready: bool,
    },
}

/// Resolves a wish.
pub fn bind<'a>(
    wish: &Wish,
    traffic: Traffic,
    namespace: (&str, &Labels),
    find: impl FnOnce(&NamespacedName) -> Option<&'a WaypointFacts>,
) -> Binding {
    let Wish::Waypoint { name, inherited } = wish else { return Binding::NotWanted };
    let refused = |reason: &str, message: String, not_ready| Binding::Refused {
        waypoint: name.clone(),
        condition: Some(Condition::no(WAYPOINT_BOUND, reason, message)),
        not_ready,
    };
    let not_ready = || refused("WaypointIsNotReady", format!("waypoint \"{name}\" is not ready"), true);
    let Some(waypoint) = find(name) else { return not_ready() };
    if !waypoint.allowed.admits(&name.namespace, namespace.0, namespace.1) {
        let message =
            format!("we are not permitted to attach to waypoint \"{name}\" (missing allowedRoutes?)");
        return refused("AttachmentDenied", message, false);
    }
    if !waypoint.takes.takes(traffic) {
        if *inherited {
            return Binding::Refused { waypoint: name.clone(), condition: None, not_ready: false };
        }
        let message = format!(
            "attempting to bind to traffic type \"{}\" which the waypoint \"{name}\" does not support",
            traffic.word()
        );
        return refused("UnsupportedTrafficType", message, false);
    }
    match &waypoint.address {
        Some(address) => Binding::Bound { waypoint: name.clone(), address: address.clone() },
        None => not_ready(),
    }
}

/// The condition of a bound Service.
pub fn bound_condition(waypoint: &NamespacedName, ingress: bool) -> Condition {
    let note = if ingress {
        ". Ingress traffic will traverse the waypoint"
    } else {
        ". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired."
    };
    let message = format!("Successfully attached to waypoint {waypoint}{note}");
    Condition::yes(WAYPOINT_BOUND, "WaypointAccepted", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn waypoint(takes: WaypointFor, allowed: AllowedNamespaces, ready: bool) -> WaypointFacts {
        let name = NamespacedName::new("default", "waypoint");
        let mesh = MeshConfig::default();
        let address = ready.then(|| WaypointFacts::expected_address(&name, &mesh));
        WaypointFacts { account: name.clone(), name, takes, allowed, address, inbound_binding: None }
    }

    #[test]
    fn the_object_beats_its_namespace() {
        let of_namespace = labels(&[(labels::USE_WAYPOINT, "shared")]);
        let cases = [
            (labels(&[]), Some(("default/shared", true))),
            (labels(&[(labels::USE_WAYPOINT, "own")]), Some(("default/own", false))),
            (labels(&[(labels::USE_WAYPOINT, "none")]), None),
            (
                labels(&[(labels::USE_WAYPOINT, "own"), (labels::USE_WAYPOINT_NAMESPACE, "infra")]),
                Some(("infra/own", false)),
            ),
        ];
        for (own, expected) in cases {
            let got = match wish("default", &own, &of_namespace) {
                Wish::Nothing => None,
                Wish::Waypoint { name, inherited } => Some((name.to_string(), inherited)),
            };
            let expected = expected.map(|(name, inherited)| (name.to_owned(), inherited));
            assert_eq!(got, expected, "{own:?}");
        }
    }

    #[test]
    fn a_refused_binding_says_why() {
        let own = labels(&[(labels::USE_WAYPOINT, "waypoint")]);
        let service = WaypointFor::Service;
        let cases = [
            (None, Traffic::Service, "waypoint \"default/waypoint\" is not ready"),
            (
                Some(waypoint(service, AllowedNamespaces::Same, false)),
                Traffic::Service,
                "waypoint \"default/waypoint\" is not ready",
            ),
            (
                Some(waypoint(service, AllowedNamespaces::None, true)),
                Traffic::Service,
                "we are not permitted to attach to waypoint \"default/waypoint\" (missing allowedRoutes?)",
            ),
            (
                Some(waypoint(service, AllowedNamespaces::Same, true)),
                Traffic::Workload,
                "attempting to bind to traffic type \"workload\" which the waypoint \"default/waypoint\" does not support",
            ),
        ];
        for (facts, traffic, message) in cases {
            let wish = wish("default", &own, &Labels::new());
            match bind(&wish, traffic, ("default", &Labels::new()), |_| facts.as_ref()) {
                Binding::Refused { condition: Some(condition), .. } => assert_eq!(condition.message, message),
                other => panic!("{message}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_inherited_waypoint_for_other_traffic_is_not_reported() {
        let of_namespace = labels(&[(labels::USE_WAYPOINT, "waypoint")]);
        let facts = waypoint(WaypointFor::Service, AllowedNamespaces::Same, true);
        let wish = wish("default", &Labels::new(), &of_namespace);
        let binding = bind(&wish, Traffic::Workload, ("default", &of_namespace), |_| Some(&facts));
        assert!(matches!(binding, Binding::Refused { condition: None, .. }), "{binding:?}");
    }

    #[test]
    fn selectors_admit_by_label_and_expression() {
        let rule =
            |expressions| AllowedNamespaces::Selector { labels: labels(&[("team", "a")]), expressions };
        let expression = |op: &str, values: &[&str]| {
            vec![("env".to_owned(), op.to_owned(), values.iter().map(|v| (*v).to_owned()).collect())]
        };
        let cases = [
            (rule(vec![]), labels(&[("team", "a")]), true),
            (rule(vec![]), labels(&[]), false),
            (rule(expression("In", &["prod"])), labels(&[("team", "a"), ("env", "prod")]), true),
            (rule(expression("NotIn", &["prod"])), labels(&[("team", "a"), ("env", "prod")]), false),
            (rule(expression("DoesNotExist", &[])), labels(&[("team", "a")]), true),
            (rule(expression("Newer", &[])), labels(&[("team", "a"), ("env", "x")]), false),
        ];
        for (rule, namespace, expected) in cases {
            assert_eq!(rule.admits("own", "other", &namespace), expected, "{rule:?} {namespace:?}");
        }
    }
}
