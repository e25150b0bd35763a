// SPDX-License-Identifier: Apache-2.0
//! A small mesh, policies for it, and what `analyze` finds.

use meltemi_analysis::{Level, World, analyze};
use meltemi_translate::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;

/// A Service `api` (80 to 8080) behind the waypoint of its namespace, and a Service `plain` without one.
pub(crate) const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint, meltemi.dev/waypoint-bypass: deny}}
spec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {selector: {app: plain}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {serviceAccountName: api, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: plain, namespace: shop}
spec:
  selector: {matchLabels: {app: plain}}
  template:
    metadata: {labels: {app: plain}}
    spec: {serviceAccountName: plain, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
";

pub(crate) fn read(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|d| Value::deserialize(d).unwrap()).filter(|v| !v.is_null()).collect()
}

pub(crate) fn world(more: &str) -> World {
    let mut objects = read(OBJECTS);
    objects.extend(read(more));
    World::read(&objects, MeshConfig::default())
}

/// A policy of `api`, or without a target of what it selects.
pub(crate) fn policy(name: &str, spec: &str) -> String {
    let target = "targetRefs: [{kind: Service, group: '', name: api}]";
    let target = if spec.contains("selector:") || spec.contains("targetRefs:") { "" } else { target };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  {target}\n{spec}\n"
    )
}

pub(crate) fn rules(action: &str, rules: &str) -> String {
    policy("p", &format!("  action: {action}\n  rules: {rules}"))
}

pub(crate) fn found(world: &World) -> Vec<String> {
    let all = analyze(world, None);
    // That readings differ from Istio's is said of every policy with paths.
    all.iter()
        .filter(|f| f.level > Level::Info)
        .map(|f| format!("{} {} {} {}", f.level, f.code, f.origin, f.message))
        .collect()
}

/// Policies, and for each finding a part of its line.
pub(crate) type Case = (&'static str, String, &'static [&'static str]);

#[track_caller]
pub(crate) fn check(cases: &[Case]) {
    for (what, policies, expected) in cases {
        let world = world(policies);
        let all = found(&world);
        assert_eq!(all.len(), expected.len(), "{what}: {all:#?}");
        for part in *expected {
            assert!(all.iter().any(|line| line.contains(part)), "{what}: {part:?} in {all:#?}");
        }
    }
}
