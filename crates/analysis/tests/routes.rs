// SPDX-License-Identifier: Apache-2.0
//! HTTPRoutes in `authz diff`: what leads requests to something new, or makes others of them, is named; what no access
//! depends on is not.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::{Differences, World, diff};
use meltemi_translate::MeshConfig;
use serde_json::{Value, json};

/// Service `web` behind a waypoint, with a port that declares nothing, and routes.
fn world(ports: &Value, routes: &[Value]) -> World {
    let mesh = "shop";
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": mesh, "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": mesh, "labels": {"istio.io/use-waypoint": "wp"}},
            "spec": {"selector": {"app": "web"}, "ports": ports}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "wp", "namespace": mesh},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "m", "port": 15008, "protocol": "HBONE"}]}}),
    ];
    for (at, spec) in routes.iter().enumerate() {
        let metadata = json!({"name": format!("r{at}"), "namespace": mesh});
        let version = "gateway.networking.k8s.io/v1";
        objects.push(json!({"apiVersion": version, "kind": "HTTPRoute", "metadata": metadata, "spec": spec}));
    }
    World::read(&objects, MeshConfig::default()).whole().unwrap()
}

fn route(rules: &Value) -> Value {
    json!({"parentRefs": [{"kind": "Service", "group": "", "name": "web", "port": 80}], "rules": rules})
}

fn compared(old: &Value, new: &Value) -> Differences {
    let ports = json!([{"name": "http", "port": 80}]);
    diff(&world(&ports, std::slice::from_ref(old)), &world(&ports, std::slice::from_ref(new)))
}

fn to(name: &str) -> Value {
    json!({"name": name, "port": 80})
}

#[test]
fn what_a_route_leads_to_and_makes_of_requests_is_compared() {
    let rewrite = |path: &str| json!([{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": path}}}]);
    let header = |kind: &str, field: &str, name: &str| json!([{"type": kind, field: {"set": [{"name": name, "value": "1"}]}}]);
    let answers = |name: &str| header("ResponseHeaderModifier", "responseHeaderModifier", name);
    let requests = header("RequestHeaderModifier", "requestHeaderModifier", "x-a");
    let get =
        json!([{"method": "GET", "headers": [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]}]);
    let turned =
        json!([{"method": "GET", "headers": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]}]);
    let plain = json!([{"backendRefs": [to("web")]}]);
    // What the rules were, what they are, and how they differ; nothing when no access depends on it.
    let cases = [
        (plain.clone(), plain.clone(), None),
        (
            plain.clone(),
            json!([{"backendRefs": [to("secret")]}]),
            Some("rule[0] leads to Service shop/secret."),
        ),
        (plain.clone(), json!([{"backendRefs": [{"name": "web", "port": 81}]}]), Some("port 81")),
        (
            plain.clone(),
            json!([{"backendRefs": [to("web"), to("secret")]}]),
            Some("leads to Service shop/secret."),
        ),
        (
            plain.clone(),
            json!([{"backendRefs": [{"name": "web", "namespace": "b", "port": 80}]}]),
            Some("b/web.b."),
        ),
        // Fewer backends are nothing new; none at all are an answer of 500.
        (json!([{"backendRefs": [to("web"), to("secret")]}]), plain.clone(), None),
        (plain.clone(), json!([{"backendRefs": []}]), Some("leads to nowhere")),
        // Shares: only whether there is one.
        (plain.clone(), json!([{"backendRefs": [{"name": "web", "port": 80, "weight": 9}]}]), None),
        (
            plain.clone(),
            json!([{"backendRefs": [to("web"), {"name": "secret", "port": 80, "weight": 0}]}]),
            None,
        ),
        (
            json!([{"backendRefs": [to("web"), {"name": "secret", "port": 80, "weight": 0}]}]),
            json!([{"backendRefs": [to("web"), {"name": "secret", "port": 80, "weight": 1}]}]),
            Some("leads to Service shop/secret."),
        ),
        (
            plain.clone(),
            json!([{"backendRefs": [{"name": "web", "port": 80, "weight": 0}]}]),
            Some("nowhere"),
        ),
        // Time and answers.
        (
            plain.clone(),
            json!([{"name": "x", "timeouts": {"request": "10s"}, "filters": answers("x-a"), "backendRefs": [to("web")]}]),
            None,
        ),
        // What no proxy carries out is answered with 500, until it is not asked for any more.
        (
            plain.clone(),
            json!([{"timeouts": {"request": "10days"}, "backendRefs": [to("web")]}]),
            Some("nowhere"),
        ),
        (
            json!([{"timeouts": {"request": "10days"}, "backendRefs": [to("web")]}]),
            plain.clone(),
            Some("leads to Service shop/web."),
        ),
        (
            json!([{"filters": answers("content-length"), "backendRefs": [to("web")]}]),
            plain.clone(),
            Some("leads to Service shop/web."),
        ),
        // What requests become.
        (
            plain.clone(),
            json!([{"filters": rewrite("/admin"), "backendRefs": [to("web")]}]),
            Some("changes requests in another way"),
        ),
        (
            json!([{"filters": rewrite("/a"), "backendRefs": [to("web")]}]),
            json!([{"filters": rewrite("/b"), "backendRefs": [to("web")]}]),
            Some("changes requests"),
        ),
        (plain.clone(), json!([{"filters": requests, "backendRefs": [to("web")]}]), Some("changes requests")),
        // Which requests.
        (plain.clone(), json!([{"matches": get, "backendRefs": [to("web")]}]), Some("takes other requests")),
        (
            json!([{"matches": get, "backendRefs": [to("web")]}]),
            json!([{"matches": turned, "backendRefs": [to("web")]}]),
            None,
        ),
        (
            plain.clone(),
            json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}, {}], "backendRefs": [to("web")]}]),
            None,
        ),
        (
            json!([{"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("web")]}]),
            json!([{"matches": [{"path": {"value": "/a/"}}], "backendRefs": [to("web")]}]),
            None,
        ),
        // Another rule, before or behind: which of them takes a request is not compared.
        (
            plain.clone(),
            json!([{"backendRefs": [to("web")]}, {"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("web")]}]),
            Some("it differs, and"),
        ),
        (
            json!([{"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("web"), to("x")]}, {"backendRefs": [to("y")]}]),
            json!([{"backendRefs": [to("y")]}, {"matches": [{"path": {"value": "/a"}}], "backendRefs": [to("x")]}]),
            None,
        ),
    ];
    for (old, new, expected) in cases {
        let found = compared(&route(&old), &route(&new));
        assert!(found.newly_allowed.is_empty() && found.newly_denied.is_empty(), "{old} {new}: {found:?}");
        let reasons: Vec<String> =
            found.unknown.iter().map(|u| format!("{}: {}", u.target, u.reason)).collect();
        match expected {
            None => assert_eq!(reasons, Vec::<String>::new(), "{old} {new}"),
            Some(text) => assert!(
                reasons.len() == 1
                    && reasons[0].starts_with("HTTPRoute shop/r0: it differs")
                    && reasons[0].contains(text),
                "{old} {new}: {reasons:?}"
            ),
        }
    }
    // Whose requests: not a matter of rules.
    let web = route(&plain);
    for (field, value) in [("hostnames", json!(["a.b"])), ("parentRefs", json!([{"name": "wp"}]))] {
        let mut other = web.clone();
        other[field] = value;
        let found = compared(&web, &other);
        assert!(found.unknown[0].reason.starts_with("it differs, and"), "{field}: {found:?}");
    }
}

#[test]
fn a_port_with_a_route_takes_requests_only() {
    let undeclared = json!([{"port": 80}]);
    let with = |parent: Value| {
        let mut spec = route(&json!([{"backendRefs": [to("web")]}]));
        spec["parentRefs"] = json!([parent]);
        world(&undeclared, &[spec])
    };
    let routed = || with(json!({"kind": "Service", "group": "", "name": "web", "port": 80}));
    let whole = || with(json!({"kind": "Service", "group": "", "name": "web"}));
    let other = || with(json!({"kind": "Service", "group": "", "name": "web", "port": 81}));
    let foreign = || with(json!({"kind": "Service", "group": "", "name": "web", "namespace": "b"}));
    let gateway = || with(json!({"name": "web"}));
    for (what, old, new, expected) in [
        ("a route", routed(), routed(), false),
        ("a route for all ports", routed(), whole(), false),
        ("no route", world(&undeclared, &[]), world(&undeclared, &[]), true),
        // Whichever side has none, connections are judged there.
        ("only on the old side", routed(), other(), true),
        ("only on the new side", other(), routed(), true),
        ("of another namespace", foreign(), foreign(), true),
        ("of a Gateway", gateway(), gateway(), true),
    ] {
        let places: Vec<String> = diff(&old, &new).places.into_iter().map(|place| place.target).collect();
        let found = places.iter().any(|p| p == "connections to Service shop/web that are no requests");
        assert_eq!(found, expected, "{what}: {places:?}");
        assert!(places.iter().any(|place| place == "Service shop/web"), "{what}: {places:?}");
    }
}
