// SPDX-License-Identifier: Apache-2.0
//! Which Gateways enforce a policy with targets, and what its status says of each target.

use std::collections::BTreeSet;

use meltemi_model::{NamespacedName, l7};
use meltemi_translate::condition::Condition;
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::security::{Authorization, Reference};
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

/// Where a policy is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attached {
    /// Gateways that enforce it.
    pub gateways: BTreeSet<NamespacedName>,
    /// What they enforce it for.
    pub targets: Vec<l7::Target>,
    /// `WaypointAccepted`.
    pub condition: Option<Condition>,
}

/// Whether a reference is to a Gateway or to a class of them.
pub(super) fn is_of_gateway(reference: &Reference) -> bool {
    matches!(reference, Reference::Gateway(_) | Reference::GatewayClass(_))
}

/// Attaches a policy to its targets.
pub(super) fn attach(authorization: &Authorization, world: &World<'_>) -> Attached {
    let name = &authorization.policy.name;
    let mut out = Attached::default();
    let mut bound = Vec::new();
    let mut faults = Vec::new();
    for reference in &authorization.targets {
        match one(name, reference, world) {
            Ok((gateways, targets, to)) => {
                out.gateways.extend(gateways);
                out.targets.extend(targets);
                bound.push(to);
            }
            Err((reason, message)) => faults.push((reference.describe(&name.namespace), reason, message)),
        }
    }
    out.targets.sort();
    out.targets.dedup();
    out.condition = Some(match (bound.first(), faults.as_slice()) {
        (Some(to), []) => Condition::yes(WAYPOINT_ACCEPTED, "Accepted", format!("bound to {to}")),
        (Some(_), faults) => {
            let names: Vec<&str> = faults.iter().map(|(name, ..)| name.as_str()).collect();
            let message = format!("Invalid targetRefs: {}", names.join(", "));
            Condition::yes(WAYPOINT_ACCEPTED, "PartiallyInvalid", message)
        }
        (None, [(_, reason, message), ..]) => Condition::no(WAYPOINT_ACCEPTED, reason, message.clone()),
        (None, []) => Condition::no(WAYPOINT_ACCEPTED, "TargetNotFound", "not bound"),
    });
    out
}

type Bound = (Vec<NamespacedName>, Vec<l7::Target>, String);
type Fault = (&'static str, String);

fn one(policy: &NamespacedName, reference: &Reference, world: &World<'_>) -> Result<Bound, Fault> {
    match reference {
        Reference::Service(service) => {
            let name = NamespacedName::new(policy.namespace.clone(), service.as_str());
            if world.index.service(&name).is_none() {
                return Err(("TargetNotFound", format!("Service {name} was not found")));
            }
            let Some(waypoint) = world.index.waypoint_of(&name).cloned() else {
                return Err(("AncestorNotBound", format!("Service {name} is not bound to a waypoint")));
            };
            let target = l7::Target::Service(world.mesh.service_key(&name.namespace, &name.name));
            let to = waypoint.to_string();
            Ok((vec![waypoint], vec![target], to))
        }
        Reference::ServiceEntry(entry) => {
            Err(("TargetNotFound", format!("ServiceEntry {}/{entry} was not found", policy.namespace)))
        }
        Reference::Gateway(gateway) => {
            let name = NamespacedName::new(policy.namespace.clone(), gateway.as_str());
            if !world.gateways.has(&name) {
                return Err(("TargetNotFound", "not bound".to_owned()));
            }
            let to = name.to_string();
            Ok((vec![name.clone()], vec![l7::Target::Gateway(name)], to))
        }
        Reference::GatewayClass(class) => {
            if policy.namespace != world.mesh.root_namespace {
                let root = &world.mesh.root_namespace;
                let message = format!(
                    "AuthorizationPolicy must be in the root namespace `{root}` when referencing a GatewayClass"
                );
                return Err(("Invalid", message));
            }
            match classes::of(class) {
                Some(Class::Waypoint) => {
                    let all: Vec<NamespacedName> = world.index.waypoints().map(|w| w.name.clone()).collect();
                    let targets = all.iter().cloned().map(l7::Target::Gateway).collect();
                    Ok((all, targets, class.clone()))
                }
                Some(_) => {
                    let wanted = Class::Waypoint.controller();
                    Err((
                        "Invalid",
                        format!("GatewayClass must use controller name `{wanted}` for waypoints"),
                    ))
                }
                None => Err(("TargetNotFound", "not bound".to_owned())),
            }
        }
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
        let spec = serde_json::from_str(&format!("{{\"targetRefs\": {targets}}}")).unwrap();
        let name = NamespacedName::new(policy_namespace, "p");
        let authorization = authorization::read(&name, &spec, &Labels::new(), &mesh).unwrap();
        attach(&authorization, &World { index: &index, gateways: &gateways, mesh: &mesh })
    }

    #[test]
    fn each_target_says_what_became_of_it() {
        let service = r#"{"kind": "Service", "group": "", "name": "productpage"}"#;
        let missing = r#"{"kind": "Service", "group": "", "name": "nothing"}"#;
        let gateway = r#"{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}"#;
        let class =
            r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio-waypoint"}"#;
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
            assert_eq!(got.gateways.len(), gateways, "{targets}");
        }
    }
}
