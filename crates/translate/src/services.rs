// SPDX-License-Identifier: Apache-2.0
//! From a Kubernetes Service to a service of the mesh.

use meltemi_model::service::AppProtocol;
use meltemi_model::service::{IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, PortMapping};
use meltemi_model::{NamespacedName, NetworkAddress, Service};

use crate::condition::Condition;
use crate::facts::{NamespaceFacts, ServiceFacts, ServicePort, TargetPort};
use crate::labels;
use crate::mesh::MeshConfig;
use crate::security::bypass;
use crate::waypoints::{Binding, WaypointFacts, bound_condition};

/// A service of the mesh and what its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The service.
    pub service: Service,
    /// `istio.io/WaypointBound` when a waypoint was asked for, [`PORTS_DECLARED`] when a port declares no protocol, and
    /// [`WAYPOINT_ONLY`] when the way around the waypoint cannot be closed.
    pub conditions: Vec<Condition>,
}

/// Type of the condition that names ports whose protocol a waypoint has to detect.
pub const PORTS_DECLARED: &str = "meltemi.dev/PortsDeclared";

/// Type of the condition that says that the way around a waypoint is open although the Service asks to close it.
pub const WAYPOINT_ONLY: &str = "meltemi.dev/WaypointOnly";

/// Node proxies know the Pods that they keep for a waypoint by the Service's selector.
fn left_open(facts: &ServiceFacts, namespace: &NamespaceFacts) -> Option<Condition> {
    let asked = facts.selector.is_none() && bypass::is_closed(&facts.labels, &namespace.labels);
    asked.then(|| {
        let message = format!(
            "{}=deny needs a selector: the endpoints of this Service are listed by hand, and node proxies let others than its \
             waypoint connect to them. Give the Service a selector, or its Pods an ALLOW policy that admits the waypoint only",
            labels::WAYPOINT_BYPASS
        );
        Condition::no(WAYPOINT_ONLY, "NoSelector", message)
    })
}

/// Ports of a Service that declare no protocol that is known, as `5432 (postgres)`: a waypoint looks at the first bytes of
/// their clients.
pub fn undeclared_ports(facts: &ServiceFacts) -> Vec<String> {
    let undeclared = facts.ports.iter().filter(|port| port.app_protocol == AppProtocol::Unknown);
    let text = |port: &ServicePort| match &port.name {
        Some(name) => format!("{} ({name})", port.port),
        None => port.port.to_string(),
    };
    undeclared.map(text).collect()
}

fn declared(facts: &ServiceFacts, waypoint: &NamespacedName) -> Option<Condition> {
    let ports = undeclared_ports(facts);
    (!ports.is_empty()).then(|| {
        let message = format!(
            "Port {} declares no protocol that is known: waypoint {waypoint} looks at the client's first bytes, and takes what is \
             not HTTP for TCP, which policies that need HTTP deny. Where the server speaks first, each connection waits a \
             second for that. appProtocol says what it is (tcp for a database)",
            ports.join(", ")
        );
        Condition::no(PORTS_DECLARED, "ProtocolUnknown", message)
    })
}

/// Translates a Service; none when it is an alias in DNS.
///
/// `guarded` says that an AuthorizationPolicy targets it: while the waypoint that it asks for is not ready, or does not take
/// it, its traffic is then refused (it is sent to a waypoint that is not there) instead of going around the policy.
/// `further` are addresses beside its cluster addresses, which come first.
pub fn translate(
    facts: &ServiceFacts,
    further: &[std::net::IpAddr],
    namespace: &NamespaceFacts,
    binding: &Binding,
    guarded: bool,
    mesh: &MeshConfig,
) -> Option<Translated> {
    if facts.external_name {
        return None;
    }
    let key = mesh.service_key(&facts.name.namespace, &facts.name.name);
    let mut service = Service::empty(key, facts.name.name.clone());
    // One without a cluster address is looked up by its endpoints; nodes serve it at no address.
    let further = further.iter().filter(|_| !facts.addresses.is_empty());
    let addresses = facts.addresses.iter().chain(further);
    service.addresses = addresses.map(|ip| NetworkAddress::new(mesh.network.clone(), *ip)).collect();
    service.ports = facts
        .ports
        .iter()
        .map(|p| PortMapping {
            service_port: p.port,
            target_port: match p.target {
                TargetPort::Number(port) => port,
                TargetPort::Named(_) => 0,
            },
            app_protocol: p.app_protocol,
        })
        .collect();
    service.load_balancing = load_balancing(facts, namespace);
    service.ip_families = families(facts);
    service.ingress_use_waypoint = uses_waypoint_for_ingress(facts, namespace);
    let conditions = match binding {
        Binding::NotWanted => Vec::new(),
        Binding::Bound { waypoint, address } => {
            service.waypoint = Some(address.clone());
            let bound = bound_condition(waypoint, service.ingress_use_waypoint);
            std::iter::once(bound)
                .chain(declared(facts, waypoint))
                .chain(left_open(facts, namespace))
                .collect()
        }
        Binding::Refused { waypoint, condition, not_ready } => {
            if guarded && *not_ready {
                service.waypoint = Some(WaypointFacts::expected_address(waypoint, mesh));
            } else if guarded && condition.is_some() {
                // One that is there and was told nothing of the Service's policies would let everything through.
                service.waypoint = Some(WaypointFacts::nowhere(waypoint));
            }
            condition.iter().cloned().chain(left_open(facts, namespace)).collect()
        }
    };
    Some(Translated { service, conditions })
}

/// The label of the Service beats that of its namespace.
fn uses_waypoint_for_ingress(facts: &ServiceFacts, namespace: &NamespaceFacts) -> bool {
    facts
        .labels
        .get(labels::INGRESS_USE_WAYPOINT)
        .or_else(|| namespace.labels.get(labels::INGRESS_USE_WAYPOINT))
        .is_some_and(|v| v == "true")
}

fn families(facts: &ServiceFacts) -> IpFamilies {
    let v4 = facts.addresses.iter().any(std::net::IpAddr::is_ipv4);
    let v6 = facts.addresses.iter().any(std::net::IpAddr::is_ipv6);
    match (v4, v6) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::V4Only,
        (false, true) => IpFamilies::V6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(facts: &ServiceFacts, namespace: &NamespaceFacts) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let preference = facts
        .traffic_distribution
        .as_ref()
        .or_else(|| namespace.annotations.get(labels::TRAFFIC_DISTRIBUTION));
    let (routing_preference, mode) = if facts.local_only {
        (vec![Node], LoadBalancingMode::Strict)
    } else {
        match preference.map(String::as_str) {
            Some("PreferClose" | "PreferSameZone") => {
                (vec![Network, Region, Zone], LoadBalancingMode::Failover)
            }
            Some("PreferSameNode") => {
                (vec![Network, Region, Zone, Subzone, Node], LoadBalancingMode::Failover)
            }
            _ => (Vec::new(), LoadBalancingMode::Unspecified),
        }
    };
    LoadBalancing { routing_preference, mode, allow_unhealthy: facts.publish_unready }
}

#[cfg(test)]
mod tests {
    use meltemi_model::workload::GatewayDestination;

    use super::*;

    #[test]
    fn ports_whose_protocol_a_waypoint_detects_are_named() {
        let mesh = MeshConfig::default();
        let waypoint = NamespacedName::new("shop", "wp");
        let object = serde_json::json!({
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [
                {"name": "http", "port": 80}, {"name": "postgres", "port": 5432}, {"name": "custom", "port": 3307},
                {"name": "x", "port": 5433, "appProtocol": "tcp"}, {"port": 3306},
            ]},
        });
        let facts = ServiceFacts::read(&serde_json::from_value(object).unwrap());
        let said = |binding: &Binding| {
            translate(&facts, &[], &NamespaceFacts::default(), binding, false, &mesh).unwrap().conditions
        };
        let address = WaypointFacts::expected_address(&waypoint, &mesh);
        let conditions = said(&Binding::Bound { waypoint, address });
        let [bound, declared] = conditions.as_slice() else { panic!("{conditions:?}") };
        assert!(bound.status && !declared.status);
        assert!(
            declared.message.starts_with("Port 5432 (postgres), 3307 (custom) declares no protocol"),
            "{}",
            declared.message
        );
        assert!(said(&Binding::NotWanted).is_empty(), "without a waypoint nobody has to know");
    }

    #[test]
    fn a_closed_service_without_a_selector_says_that_it_is_open() {
        let mesh = MeshConfig::default();
        let waypoint = NamespacedName::new("shop", "wp");
        let address = WaypointFacts::expected_address(&waypoint, &mesh);
        let bound = Binding::Bound { waypoint, address };
        let of = |labels: &str| NamespaceFacts {
            labels: serde_yaml_ng::from_str(labels).unwrap(),
            ..NamespaceFacts::default()
        };
        let deny = "{meltemi.dev/waypoint-bypass: deny}";
        for (own, namespace, selector, binding, open) in [
            (deny, "{}", "{}", &bound, true),
            ("{}", deny, "{}", &bound, true),
            (deny, "{}", "{app: a}", &bound, false),
            ("{}", "{}", "{}", &bound, false),
            ("{meltemi.dev/waypoint-bypass: allow}", deny, "{}", &bound, false),
            (deny, "{}", "{}", &Binding::NotWanted, false),
        ] {
            let yaml = format!(
                "{{metadata: {{name: web, namespace: shop, labels: {own}}}, spec: {{clusterIP: 10.96.0.9, selector: {selector}}}}}"
            );
            let facts = ServiceFacts::read(&serde_yaml_ng::from_str(&yaml).unwrap());
            let translated = translate(&facts, &[], &of(namespace), binding, false, &mesh).unwrap();
            let said = translated.conditions.iter().any(|c| c.kind == WAYPOINT_ONLY && !c.status);
            assert_eq!(said, open, "{own} {namespace} {selector}");
        }
    }

    #[test]
    fn what_a_policy_guards_does_not_go_around_the_waypoint_that_it_asks_for() {
        let mesh = MeshConfig::default();
        let waypoint = NamespacedName::new("infra", "wp");
        let object = serde_json::json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.9"}});
        let facts = ServiceFacts::read(&serde_json::from_value(object).unwrap());
        let refused = |said: bool, not_ready| {
            let condition = said.then(|| Condition::no("istio.io/WaypointBound", "AttachmentDenied", "no"));
            Binding::Refused { waypoint: waypoint.clone(), condition, not_ready }
        };
        let (there, nowhere) = ("wp.infra.svc.cluster.local", "not-attached.wp.infra.invalid");
        for (what, binding, guarded, expected) in [
            ("not ready", refused(true, true), true, Some(there)),
            ("not ready, no policy", refused(true, true), false, None),
            ("not permitted", refused(true, false), true, Some(nowhere)),
            ("not permitted, no policy", refused(true, false), false, None),
            ("a waypoint for other traffic", refused(false, false), true, None),
            ("none asked for", Binding::NotWanted, true, None),
        ] {
            let nothing = NamespaceFacts::default();
            let service = translate(&facts, &[], &nothing, &binding, guarded, &mesh).unwrap().service;
            let hostname = service.waypoint.map(|w| match w.destination {
                GatewayDestination::Hostname(key) => key.hostname.to_string(),
                GatewayDestination::Address(address) => address.to_string(),
            });
            assert_eq!(hostname.as_deref(), expected, "{what}");
        }
    }
}
