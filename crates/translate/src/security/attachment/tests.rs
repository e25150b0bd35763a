// SPDX-License-Identifier: Apache-2.0
//! Attachment in tables: targets and their conditions, selectors and the labels of gateways' Pods.

use std::collections::BTreeMap;

use super::*;
use crate::security::authorization;

/// A world of maps.
#[derive(Default)]
struct Maps {
    mesh: MeshConfig,
    services: BTreeMap<NamespacedName, TargetService>,
    waypoints: BTreeSet<NamespacedName>,
    ingress: BTreeMap<NamespacedName, Vec<Labels>>,
}

impl World for Maps {
    fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    fn service(&self, name: &NamespacedName) -> Option<TargetService> {
        self.services.get(name).cloned()
    }

    fn has_gateway(&self, name: &NamespacedName) -> bool {
        self.waypoints.contains(name) || self.ingress.contains_key(name)
    }

    fn waypoints(&self) -> BTreeSet<NamespacedName> {
        self.waypoints.clone()
    }

    fn ingress_gateways(&self) -> BTreeSet<NamespacedName> {
        self.ingress.keys().cloned().collect()
    }

    fn proxy_labels(&self, gateway: &NamespacedName) -> Vec<Labels> {
        self.ingress.get(gateway).cloned().unwrap_or_default()
    }
}

fn in_default(name: &str) -> NamespacedName {
    NamespacedName::new("default", name)
}

/// A waypoint, and a Service that is bound to it or to none.
fn bookinfo(bound: bool, closed: bool) -> Maps {
    let waypoint = in_default("waypoint");
    let service = TargetService { waypoint: bound.then(|| waypoint.clone()), closed };
    Maps {
        services: [(in_default("productpage"), service)].into(),
        waypoints: [waypoint].into(),
        ..Maps::default()
    }
}

fn attached(namespace: &str, spec: &str, world: &Maps) -> Attached {
    let spec = serde_json::from_str(spec).unwrap();
    let name = NamespacedName::new(namespace, "p");
    let read = authorization::read(&name, &spec, &Labels::new(), &world.mesh).unwrap();
    let (selector, targets) = (read.selector.as_ref(), &read.targets[..]);
    attach(Policy { kind: "AuthorizationPolicy", name: &name, selector, targets }, world)
}

#[test]
fn a_policy_without_targets_is_for_the_ingress_gateways_whose_pods_it_selects() {
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Labels>();
    let mut world = bookinfo(true, false);
    let rendered = labels(&[("app", "gw"), ("role", "edge")]);
    // A Pod that its user made has labels of its own.
    world.ingress.insert(in_default("gw"), vec![rendered.clone(), labels(&[("made", "by-hand")])]);
    world.ingress.insert(NamespacedName::new("other", "gw"), vec![rendered]);
    let selects =
        |key: &str, value: &str| format!(r#"{{"selector": {{"matchLabels": {{"{key}": "{value}"}}}}}}"#);
    let cases = [
        ("default", "{}".to_owned(), vec!["default/gw"]),
        ("istio-system", "{}".to_owned(), vec!["default/gw", "other/gw"]),
        ("istio-system", selects("app", "gw"), vec!["default/gw", "other/gw"]),
        ("default", selects("app", "gw"), vec!["default/gw"]),
        ("default", selects("role", "edge"), vec!["default/gw"]),
        ("default", selects("made", "by-hand"), vec!["default/gw"]),
        ("other", selects("made", "by-hand"), vec![]),
        ("default", selects("app", "productpage"), vec![]),
        ("elsewhere", "{}".to_owned(), vec![]),
    ];
    for (namespace, spec, expected) in cases {
        let got = attached(namespace, &spec, &world);
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
    let class = r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio-waypoint"}"#;
    let ingress_class = r#"{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio"}"#;
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
        let got = attached(namespace, &format!("{{\"targetRefs\": {targets}}}"), &bookinfo(bound, false));
        let condition = got.condition.unwrap();
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), (reason, message), "{targets}");
        assert_eq!(condition.status, gateways > 0, "{targets}");
        assert_eq!(got.gateways.len(), gateways, "{targets}");
        let around = targets.contains("productpage") && gateways > 0;
        assert_eq!(!got.around.is_empty(), around, "{targets}");
    }
}

#[test]
fn what_a_policy_is_for_does_not_depend_on_the_waypoint_that_serves_it_now() {
    let spec = r#"{"targetRefs": [{"kind": "Service", "group": "", "name": "productpage"}]}"#;
    let mesh = MeshConfig::default();
    let key = mesh.service_key("default", "productpage");
    let service = l7::Target::Service(key.clone());
    for bound in [true, false] {
        let got = attached("default", spec, &bookinfo(bound, false));
        assert_eq!(got.targets, std::slice::from_ref(&service), "bound: {bound}");
        assert_eq!(got.enforces(&in_default("waypoint"), Some(&service)), bound);
        assert!(!got.enforces(&in_default("waypoint"), None), "bound: {bound}");
    }
    // The Pods of a closed Service are judged for whichever Service was addressed.
    let closed = attached("default", spec, &bookinfo(true, true));
    assert_eq!(closed.targets, [service, l7::Target::Backend(key)]);
    assert!(closed.around.is_empty());
}

#[test]
fn only_a_service_with_a_selector_is_closed() {
    let deny = Labels::from([("meltemi.dev/waypoint-bypass".to_owned(), "deny".to_owned())]);
    let app = Labels::from([("app".to_owned(), "a".to_owned())]);
    let none = Labels::new();
    for (service, namespace, selector, expected) in [
        (&deny, &none, Some(&app), true),
        (&none, &deny, Some(&app), true),
        (&none, &none, Some(&app), false),
        // Node proxies have nothing to know the Pods by.
        (&deny, &none, None, false),
        (&deny, &none, Some(&none), false),
    ] {
        assert_eq!(is_closed(service, namespace, selector), expected, "{service:?} {namespace:?}");
    }
}
