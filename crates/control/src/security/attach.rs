// SPDX-License-Identifier: Apache-2.0
//! Which Gateways enforce a policy, and what its status says of each of its targets.
//!
//! A policy with targets is enforced by the Gateways that they name or are served by. One without is enforced by the
//! ingress gateways of its namespace (of every namespace, in the root namespace) that its selector selects; a waypoint
//! never looks at it.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::{NamespacedName, l7};
use meltemi_translate::condition::Condition;
use meltemi_translate::facts::{Labels, selects};
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::labels;
use meltemi_translate::security::{Reference, bypass};
use meltemi_translate::{Index, MeshConfig};

use crate::access::GatewayAccounts;

/// Type of the condition.
const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";

/// What attachment looks at.
#[derive(Debug)]
pub struct World<'a> {
    /// Services and waypoints.
    pub index: &'a Index,
    /// Gateways that have proxies.
    pub gateways: &'a GatewayAccounts,
    /// The mesh's settings.
    pub mesh: &'a MeshConfig,
}

/// Ingress gateways, with the labels of their proxies.
pub(super) type Ingress = BTreeMap<NamespacedName, Labels>;

/// A policy, as far as attachment looks at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy<'a> {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: &'a NamespacedName,
    /// Labels that select workloads.
    pub selector: Option<&'a Labels>,
    /// Targets.
    pub targets: &'a [Reference],
}

/// Where a policy is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attached {
    /// Gateways that enforce it.
    pub gateways: BTreeSet<NamespacedName>,
    /// What they enforce it for.
    pub targets: Vec<l7::Target>,
    /// `WaypointAccepted`.
    pub condition: Option<Condition>,
    /// Services whose Pods can be reached without the waypoint that enforces it for them.
    pub around: Vec<(String, String)>,
}

/// Whether a reference is to a Gateway or to a class of them.
pub(super) fn is_of_gateway(reference: &Reference) -> bool {
    matches!(reference, Reference::Gateway(_) | Reference::GatewayClass(_))
}

/// Attaches a policy.
pub(super) fn attach(policy: Policy<'_>, world: &World<'_>, ingress: &Ingress) -> Attached {
    if policy.targets.is_empty() {
        return selected(policy, world, ingress);
    }
    let namespace = &policy.name.namespace;
    let mut out = Attached::default();
    let mut bound: Vec<String> = Vec::new();
    let mut faults = Vec::new();
    for reference in policy.targets {
        match one(policy, reference, world) {
            Ok(Bound { gateways, targets, to, absent }) => {
                if let Reference::Service(service) = reference
                    && !is_closed(&NamespacedName::new(namespace.clone(), service.as_str()), world)
                {
                    out.around.push((format!("{namespace}/{service}"), to.clone()));
                }
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

/// Whether the Pods of a Service are for its waypoint only.
fn is_closed(service: &NamespacedName, world: &World<'_>) -> bool {
    let nothing = Labels::new();
    let of_namespace = world.index.namespace(&service.namespace).map_or(&nothing, |n| &n.labels);
    world.index.service(service).is_some_and(|facts| bypass::is_closed(&facts.labels, of_namespace))
}

/// Ingress gateways that a policy without targets selects.
fn selected(policy: Policy<'_>, world: &World<'_>, ingress: &Ingress) -> Attached {
    let everywhere = policy.name.namespace == world.mesh.root_namespace;
    let near = |gateway: &NamespacedName| everywhere || gateway.namespace == policy.name.namespace;
    let of = |(gateway, made): (&NamespacedName, &Labels)| {
        let Some(selector) = policy.selector else { return true };
        // The proxies as they are made, or as their user made them.
        let own = Labels::from([(labels::GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
        let pods = world.index.pods_selected(&gateway.namespace, Some(&own));
        selects(selector, made)
            || pods.iter().any(|p| p.name.namespace == gateway.namespace && selects(selector, &p.labels))
    };
    let gateways: BTreeSet<NamespacedName> = ingress
        .iter()
        .filter(|(gateway, _)| near(gateway))
        .filter(|e| of(*e))
        .map(|(g, _)| g.clone())
        .collect();
    let targets = gateways.iter().cloned().map(l7::Target::Gateway).collect();
    Attached { gateways, targets, ..Attached::default() }
}

struct Bound {
    gateways: Vec<NamespacedName>,
    targets: Vec<l7::Target>,
    to: String,
    /// The Gateway is asked for and not there; it gets the policy with its first word.
    absent: bool,
}

type Fault = (&'static str, String);

fn one(policy: Policy<'_>, reference: &Reference, world: &World<'_>) -> Result<Bound, Fault> {
    let namespace = &policy.name.namespace;
    match reference {
        Reference::Service(service) => {
            let name = NamespacedName::new(namespace.clone(), service.as_str());
            if world.index.service(&name).is_none() {
                return Err(("TargetNotFound", format!("Service {name} was not found")));
            }
            let Some(waypoint) = world.index.waypoint_of(&name).cloned() else {
                return Err(("AncestorNotBound", format!("Service {name} is not bound to a waypoint")));
            };
            let targets = vec![l7::Target::Service(world.mesh.service_key(&name.namespace, &name.name))];
            let absent = !world.gateways.has(&waypoint);
            Ok(Bound { to: waypoint.to_string(), gateways: vec![waypoint], targets, absent })
        }
        // ServiceEntries are not part of this mesh yet: there is none to be found.
        Reference::ServiceEntry(entry) => {
            Err(("TargetNotFound", format!("ServiceEntry {namespace}/{entry} was not found")))
        }
        Reference::Gateway(gateway) => {
            let name = NamespacedName::new(namespace.clone(), gateway.as_str());
            if !world.gateways.has(&name) {
                return Err(("TargetNotFound", "not bound".to_owned()));
            }
            let targets = vec![l7::Target::Gateway(name.clone())];
            Ok(Bound { to: name.to_string(), gateways: vec![name], targets, absent: false })
        }
        Reference::GatewayClass(class) => of_class(policy, class, world),
    }
}

fn of_class(policy: Policy<'_>, class: &str, world: &World<'_>) -> Result<Bound, Fault> {
    if policy.name.namespace != world.mesh.root_namespace {
        let (kind, root) = (policy.kind, &world.mesh.root_namespace);
        let message =
            format!("{kind} must be in the root namespace `{root}` when referencing a GatewayClass");
        return Err(("Invalid", message));
    }
    match classes::of(class) {
        Some(Class::Waypoint) => {
            let gateways: Vec<NamespacedName> = world.index.waypoints().map(|w| w.name.clone()).collect();
            let targets = gateways.iter().cloned().map(l7::Target::Gateway).collect();
            Ok(Bound { gateways, targets, to: class.to_owned(), absent: false })
        }
        Some(_) => {
            let wanted = Class::Waypoint.controller();
            Err(("Invalid", format!("GatewayClass must use controller name `{wanted}` for waypoints")))
        }
        None => Err(("TargetNotFound", "not bound".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_translate::Change;
    use meltemi_translate::facts::{Labels, NamespaceFacts, ServiceFacts, name_of};
    use meltemi_translate::security::authorization;
    use meltemi_translate::waypoints::WaypointFacts;

    use super::*;

    fn attached(policy_namespace: &str, targets: &str, bound: bool) -> Attached {
        placed(policy_namespace, &format!("{{\"targetRefs\": {targets}}}"), bound, &Ingress::new())
    }

    fn placed(policy_namespace: &str, spec: &str, bound: bool, ingress: &Ingress) -> Attached {
        let mesh = MeshConfig::default();
        let mut index = Index::new(mesh.clone());
        let labels = if bound { "{istio.io/use-waypoint: waypoint}" } else { "{}" };
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "productpage", "namespace": "default" },
            "spec": { "clusterIP": "10.96.0.9", "ports": [{ "port": 9080 }] },
        }))
        .unwrap();
        let labels: Labels = if labels == "{}" {
            Labels::new()
        } else {
            [("istio.io/use-waypoint".into(), "waypoint".into())].into()
        };
        index.apply(Change::Namespace(
            "default".into(),
            Some(NamespaceFacts { labels, ..NamespaceFacts::default() }),
        ));
        index
            .apply(Change::Service(name_of(&service.metadata), Some(Box::new(ServiceFacts::read(&service)))));
        let gateway: gateway_api::gateways::Gateway = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "waypoint", "namespace": "default" },
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
        }))
        .unwrap();
        let waypoint = WaypointFacts::read(&gateway, &mesh);
        index.apply(Change::Waypoint(NamespacedName::new("default", "waypoint"), waypoint));
        index.flush();
        let gateways = GatewayAccounts::default();
        gateways.set(&NamespacedName::new("default", "waypoint"), Some("waypoint"));
        let spec = serde_json::from_str(spec).unwrap();
        let name = NamespacedName::new(policy_namespace, "p");
        let read = authorization::read(&name, &spec, &Labels::new(), &mesh).unwrap();
        let policy = Policy {
            kind: "AuthorizationPolicy",
            name: &name,
            selector: read.selector.as_ref(),
            targets: &read.targets,
        };
        attach(policy, &World { index: &index, gateways: &gateways, mesh: &mesh }, ingress)
    }

    #[test]
    fn a_policy_without_targets_is_for_ingress_gateways_only() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let gateway = |namespace: &str| NamespacedName::new(namespace, "gw");
        let ingress: Ingress =
            [(gateway("default"), labels(&[("app", "gw")])), (gateway("other"), labels(&[("app", "gw")]))]
                .into();
        let selects = |value: &str| format!(r#"{{"selector": {{"matchLabels": {{"app": "{value}"}}}}}}"#);
        let cases = [
            ("default", "{}".to_owned(), vec!["default/gw"]),
            ("istio-system", "{}".to_owned(), vec!["default/gw", "other/gw"]),
            ("istio-system", selects("gw"), vec!["default/gw", "other/gw"]),
            ("default", selects("gw"), vec!["default/gw"]),
            ("default", selects("productpage"), vec![]),
            ("elsewhere", "{}".to_owned(), vec![]),
        ];
        for (namespace, spec, expected) in cases {
            let got = placed(namespace, &spec, true, &ingress);
            let names: Vec<String> = got.gateways.iter().map(ToString::to_string).collect();
            assert_eq!(names, expected, "{namespace} {spec}");
            assert_eq!((got.condition, got.targets.len()), (None, expected.len()), "{namespace} {spec}");
        }
    }

    #[test]
    fn each_target_says_what_became_of_it() {
        let service = r#"{"kind": "Service", "group": "", "name": "productpage"}"#;
        let missing = r#"{"kind": "Service", "group": "", "name": "nothing"}"#;
        let gateway = r#"{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}"#;
        let class =
            r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio-waypoint"}"#;
        let ingress_class =
            r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio"}"#;
        let no_class = r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "nothing"}"#;
        let no_gateway = r#"{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "nothing"}"#;
        let entry = r#"{"kind": "ServiceEntry", "group": "networking.istio.io", "name": "nothing"}"#;
        let one = |t: &str| format!("[{t}]");
        let cases = [
            ("default", one(service), true, "Accepted", "bound to default/waypoint", 1),
            (
                "default",
                one(service),
                false,
                "AncestorNotBound",
                "Service default/productpage is not bound to a waypoint",
                0,
            ),
            ("default", one(missing), true, "TargetNotFound", "Service default/nothing was not found", 0),
            ("default", one(gateway), false, "Accepted", "bound to default/waypoint", 1),
            (
                "default",
                one(class),
                false,
                "Invalid",
                "AuthorizationPolicy must be in the root namespace `istio-system` when referencing a GatewayClass",
                0,
            ),
            ("istio-system", one(class), false, "Accepted", "bound to istio-waypoint", 1),
            ("default", one(no_gateway), true, "TargetNotFound", "not bound", 0),
            ("default", one(entry), true, "TargetNotFound", "ServiceEntry default/nothing was not found", 0),
            ("istio-system", one(no_class), true, "TargetNotFound", "not bound", 0),
            (
                "istio-system",
                one(ingress_class),
                true,
                "Invalid",
                "GatewayClass must use controller name `istio.io/mesh-controller` for waypoints",
                0,
            ),
            ("default", format!("[{service}, {gateway}]"), true, "Accepted", "bound to default/waypoint", 1),
            (
                "default",
                format!("[{entry}, {no_gateway}, {class}]"),
                true,
                "Invalid",
                "Invalid targetRefs: ServiceEntry.networking.istio.io:default/nothing, \
                 Gateway.gateway.networking.k8s.io:default/nothing, \
                 GatewayClass.gateway.networking.k8s.io:default/istio-waypoint",
                0,
            ),
            (
                "default",
                format!("[{service}, {missing}]"),
                true,
                "PartiallyInvalid",
                "Invalid targetRefs: Service.core:default/nothing",
                1,
            ),
        ];
        for (namespace, targets, bound, reason, message, gateways) in cases {
            let got = attached(namespace, &targets, bound);
            let condition = got.condition.unwrap();
            assert_eq!(
                (condition.reason.as_str(), condition.message.as_str()),
                (reason, message),
                "{targets}"
            );
            assert_eq!(condition.status, gateways > 0, "{targets}");
            assert_eq!(got.gateways.len(), gateways, "{targets}");
            let around = targets.contains("productpage") && gateways > 0;
            assert_eq!(!got.around.is_empty(), around, "{targets}");
        }
    }
}
