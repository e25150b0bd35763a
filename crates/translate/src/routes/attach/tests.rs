// SPDX-License-Identifier: Apache-2.0
//! Routes and the parents that take them.

use std::collections::BTreeMap;

use super::*;

#[derive(Default)]
struct Files {
    gateways: BTreeMap<NamespacedName, Gateway>,
    services: BTreeMap<NamespacedName, Vec<u16>>,
    waypoint: Option<NamespacedName>,
    grants: bool,
}

impl World for Files {
    fn gateway(&self, name: &NamespacedName) -> Option<&Gateway> {
        self.gateways.get(name)
    }
    fn service_ports(&self, name: &NamespacedName) -> Option<Vec<u16>> {
        self.services.get(name).cloned()
    }
    fn namespace_labels(&self, _: &str) -> Labels {
        Labels::new()
    }
    fn waypoint_of(&self, _: &NamespacedName) -> Result<NamespacedName, &'static str> {
        self.waypoint.clone().ok_or("MissingUseWaypointLabel")
    }
    fn granted(&self, _: crate::routes::Referrer<'_>, _: &NamespacedName) -> bool {
        self.grants
    }
}

fn world(listener: &str) -> Files {
    let yaml = format!(
        "
metadata: {{name: bookinfo-gateway, namespace: default}}
spec: {{gatewayClassName: istio, listeners: [{listener}]}}
"
    );
    let gateway: Gateway = serde_yaml_ng::from_str(&yaml).unwrap();
    Files {
        gateways: [(name_of(&gateway.metadata), gateway)].into(),
        services: [(NamespacedName::new("default", "productpage"), vec![9080])].into(),
        ..Files::default()
    }
}

fn route(parents: &str, extra: &str) -> HttpRoute {
    let yaml = format!(
        "
metadata: {{name: bookinfo, namespace: default}}
spec:
  parentRefs: [{parents}]
  {extra}
"
    );
    serde_yaml_ng::from_str(&yaml).unwrap()
}

const BACKEND: &str = "rules: [{backendRefs: [{name: productpage, port: 9080}]}]";
const HTTP: &str = "{name: http, port: 80, protocol: HTTP}";

#[test]
fn a_route_attaches_to_the_listeners_that_take_it() {
    let cases = [
        (HTTP, "{name: bookinfo-gateway}", "", "Accepted", 1),
        (HTTP, "{name: bookinfo-gateway, sectionName: http}", "", "Accepted", 1),
        (HTTP, "{name: bookinfo-gateway, sectionName: https}", "", "NoMatchingParent", 0),
        (HTTP, "{name: bookinfo-gateway, port: 81}", "", "NoMatchingParent", 0),
        (HTTP, "{name: other}", "", "NoMatchingParent", 0),
        (
            "{name: http, port: 80, protocol: HTTP, hostname: '*.a.com'}",
            "{name: bookinfo-gateway}",
            "hostnames: [b.com]",
            "NoMatchingListenerHostname",
            0,
        ),
        (
            "{name: http, port: 80, protocol: HTTP, hostname: '*.a.com'}",
            "{name: bookinfo-gateway}",
            "hostnames: [x.a.com]",
            "Accepted",
            1,
        ),
        (
            "{name: http, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}]}}",
            "{name: bookinfo-gateway}",
            "",
            "NotAllowedByListeners",
            0,
        ),
    ];
    for (listener, parents, hosts, reason, count) in cases {
        let route = route(parents, &format!("{BACKEND}\n  {hosts}"));
        let attached = attach(&route, RouteKind::Http, &world(listener));
        assert_eq!(attached[0].conditions[0].reason, reason, "{listener} {parents} {hosts}");
        assert_eq!(attached[0].parents.len(), count);
    }
}

#[test]
fn a_route_of_another_namespace_needs_the_listeners_leave() {
    let mut route = route("{name: bookinfo-gateway, namespace: default}", "");
    route.metadata.namespace = Some("other".into());
    assert_eq!(
        attach(&route, RouteKind::Http, &world(HTTP))[0].conditions[0].reason,
        "NotAllowedByListeners"
    );
    let open = "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";
    assert_eq!(attach(&route, RouteKind::Http, &world(open))[0].conditions[0].reason, "Accepted");
}

#[test]
fn another_controllers_gateway_is_left_to_it() {
    let mut world = world(HTTP);
    world.gateways.values_mut().for_each(|g| g.spec.gateway_class_name = "nginx".into());
    assert!(attach(&route("{name: bookinfo-gateway}", BACKEND), RouteKind::Http, &world).is_empty());
}

#[test]
fn a_backend_that_leads_nowhere_is_named() {
    let cases = [
        ("{name: productpage, port: 9080}", "ResolvedRefs"),
        ("{name: nothing, port: 80}", "BackendNotFound"),
        ("{name: productpage, port: 80}", "BackendNotFound"),
        ("{name: productpage, namespace: other, port: 80}", "RefNotPermitted"),
        ("{name: b, kind: Bucket, group: s3.io}", "InvalidKind"),
    ];
    for (backend, reason) in cases {
        let route = route("{name: bookinfo-gateway}", &format!("rules: [{{backendRefs: [{backend}]}}]"));
        let attached = attach(&route, RouteKind::Http, &world(HTTP));
        let resolved = attached[0].conditions.iter().find(|c| c.kind == "ResolvedRefs").unwrap();
        assert_eq!(resolved.reason, reason, "{backend}");
    }
}

#[test]
fn a_service_is_a_parent_through_its_waypoint() {
    let reference = "{group: '', kind: Service, name: productpage}";
    let mut world = world(HTTP);
    let attached = attach(&route(reference, BACKEND), RouteKind::Http, &world);
    assert_eq!(attached[0].conditions[1].reason, "MissingUseWaypointLabel");
    world.waypoint = Some(NamespacedName::new("default", "waypoint"));
    let attached = attach(&route(reference, BACKEND), RouteKind::Http, &world);
    assert_eq!(attached[0].conditions[1].message, "All waypoints resolved");
    assert!(matches!(&attached[0].parents[0], Parent::Service { waypoint: Some(_), port: None, .. }));
}

#[test]
fn host_names_agree_on_the_narrower() {
    let cases = [
        ("a.com", "A.com", Some("a.com")),
        ("*.a.com", "x.a.com", Some("x.a.com")),
        ("*.a.com", "a.com", None),
        ("*.a.com", "*.b.a.com", Some("*.b.a.com")),
        ("*.a.com", "xa.com", None),
        ("*.a.com", "x.y.a.com", Some("x.y.a.com")),
        ("a.com", "b.com", None),
    ];
    for (a, b, expected) in cases {
        assert_eq!(common_host(a, b).as_deref(), expected, "{a} {b}");
        assert_eq!(common_host(b, a).as_deref(), expected, "{b} {a}");
    }
}
