// SPDX-License-Identifier: Apache-2.0
//! What is addressed to Pods themselves: past every waypoint, or through one that takes such traffic, of which nothing is
//! claimed.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::who_can::Question;
use meltemi_analysis::{Client, Request, To, Verdict, World, diff, explain, who_can};
use meltemi_model::NamespacedName;
use meltemi_translate::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;

/// A Service and a headless one of the same Pods, with a DENY of a path for both and one of the waypoint's Gateway.
fn world(takes: &str, more: &str) -> World {
    let text = format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{clusterIP: 10.96.0.9, selector: {{app: web}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: each, namespace: shop}}
spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: shop, labels: {{app: web}}}}
spec: {{containers: [{{name: c, image: x}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: wp, namespace: shop, labels: {{{takes}}}}}
spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, group: '', name: web}}, {{kind: Service, group: '', name: each}}]
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: gateway, namespace: shop}}
spec:
  targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: wp}}]
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/gate{more}]}}}}]}}]
"
    );
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let objects: Vec<Value> = documents.map(|d| Value::deserialize(d).unwrap()).collect();
    World::read(&objects, MeshConfig::default()).whole().unwrap()
}

fn asked(world: &World, to: To) -> Verdict {
    let from = Client::Account("shop".into(), "default".into());
    let request = Request {
        path: Some("/admin".into()),
        method: Some("GET".into()),
        host: Some("web".into()),
        ..Request::new(from, to)
    };
    explain(world, &request).unwrap().verdict
}

#[test]
fn what_no_proof_knows_of_traffic_to_pods_is_unknown() {
    let service = |name: &str| To::Service(NamespacedName::new("shop", name));
    let pod = || To::Pod("shop".into(), [("app".to_owned(), "web".to_owned())].into());
    for (takes, of_service, of_pods) in [
        ("", Verdict::Deny, Verdict::Allow),
        ("istio.io/waypoint-for: service", Verdict::Deny, Verdict::Allow),
        ("istio.io/waypoint-for: all", Verdict::Deny, Verdict::Unknown),
        ("istio.io/waypoint-for: workload", Verdict::Allow, Verdict::Unknown),
        ("istio.io/waypoint-for: none", Verdict::Allow, Verdict::Allow),
    ] {
        let world = world(takes, "");
        assert_eq!(asked(&world, service("web")), of_service, "{takes}");
        assert_eq!(asked(&world, pod()), of_pods, "{takes}: a Pod");
        // Its clients connect to its Pods: its waypoint sees no request to it.
        assert_eq!(asked(&world, service("each")), of_pods, "{takes}: a headless Service");
        let to = NamespacedName::new("shop", "web");
        let who = who_can(&world, &Question { to, port: None, method: None, path: None }).unwrap();
        let unknown = who.doors.iter().flat_map(|door| &door.unknown);
        let named = unknown.filter(|what| what.contains("addresses of Pods")).count() > 0;
        assert_eq!(named, of_pods == Verdict::Unknown, "{takes}: who can");
    }
}

#[test]
fn a_difference_for_traffic_to_pods_is_named() {
    let of = |takes: &str, more: &str| world(&format!("istio.io/waypoint-for: {takes}"), more);
    let reasons = |old: &World, new: &World| {
        let found = diff(old, new);
        let all = found.unknown.into_iter().map(|u| u.reason);
        all.filter(|reason| reason.contains("addresses of its Pods")).collect::<Vec<_>>()
    };
    for takes in ["service", "all", "workload", "none"] {
        assert!(reasons(&of(takes, ""), &of(takes, "")).is_empty(), "{takes}");
        let differs = !reasons(&of(takes, ""), &of(takes, ", /more")).is_empty();
        assert_eq!(differs, ["all", "workload"].contains(&takes), "{takes}: a policy of the Gateway");
    }
    let found = reasons(&of("service", ""), &of("all", ""));
    assert!(found.iter().any(|r| r.contains("pass waypoint shop/wp and no longer no waypoint")), "{found:?}");
}
