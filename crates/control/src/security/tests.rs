// SPDX-License-Identifier: Apache-2.0
//! Objects in, whole statuses out, with their exact texts.

mod changes;

use std::collections::BTreeMap;

use kube::api::DynamicObject;
use meltemi_translate::Index;
use meltemi_translate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts, name_of};
use meltemi_translate::waypoints::WaypointFacts;
use meltemi_wire::xds::types;
use serde_json::json;

use super::*;
use crate::access::{GatewayAccounts, Scope};
use crate::publish;
use crate::source::Kind;
use crate::status::{StatusQueue, Wish};
use crate::xds::Proxy;
use meltemi_wire::xds::server::Publisher;

/// A mesh: `web` runs on node-1 in namespace `shop`, its Service is served by waypoint `wp`; gateway `gw` is an ingress.
struct Mesh {
    security: Security,
    index: Index,
    gateways: GatewayAccounts,
    publisher: Publisher,
    status: StatusQueue,
    proxies: Proxies,
}

fn gateway(name: &str, class: &str) -> gateway_api::gateways::Gateway {
    let protocol = if class == "istio" { "HTTP" } else { "HBONE" };
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": "u"},
        "spec": {"gatewayClassName": class, "listeners": [{"name": "l", "port": 80, "protocol": protocol}]},
    }))
    .unwrap()
}

fn proxy(name: &str, scope: Scope, node: Option<&str>) -> Proxy {
    let acked = [types::AUTHORIZATION, types::ADDRESS, types::HTTP_POLICY, types::JWT];
    Proxy {
        name: name.into(),
        scope,
        node: node.map(Into::into),
        metadata: BTreeMap::new(),
        types: acked.map(|t| (t, (u64::MAX, None))).into(),
    }
}

fn shop(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn ambient() -> Labels {
    Labels::from([("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())])
}

impl Mesh {
    fn new() -> Self {
        let config = MeshConfig::default();
        let mut index = Index::new(config.clone());
        let namespace = NamespaceFacts { labels: ambient(), ..NamespaceFacts::default() };
        index.apply(Change::Namespace("shop".into(), Some(namespace)));
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "wp"}},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}], "selector": {"app": "web"}},
        }))
        .unwrap();
        index
            .apply(Change::Service(name_of(&service.metadata), Some(Box::new(ServiceFacts::read(&service)))));
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "p", "labels": {"app": "web"},
                "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"nodeName": "node-1", "containers": []},
            "status": {"phase": "Running", "podIP": "10.244.1.5"},
        }))
        .unwrap();
        index.apply(Change::Pod(name_of(&pod.metadata), Some(Box::new(PodFacts::read(&pod)))));
        let waypoint = WaypointFacts::read(&gateway("wp", "istio-waypoint"), &config);
        index.apply(Change::Waypoint(shop("wp"), waypoint));
        let (gateways, proxies) = (GatewayAccounts::default(), Proxies::default());
        gateways.set(&shop("wp"), Some("wp"));
        gateways.set(&shop("gw"), Some("gw-istio"));
        proxies.put(proxy("ztunnel", Scope::NodeProxy, Some("node-1")));
        proxies.put(proxy("wp", Scope::Gateway(shop("wp")), None));
        proxies.put(proxy("gw", Scope::Gateway(shop("gw")), None));
        let mut security = Security::new(config, proxies.clone(), Keys::default());
        security.set_gateway(&shop("wp"), Some(&gateway("wp", "istio-waypoint")));
        security.set_gateway(&shop("gw"), Some(&gateway("gw", "istio")));
        let (publisher, status) = (Publisher::new(), StatusQueue::default());
        let mut mesh = Self { security, index, gateways, publisher, status, proxies };
        mesh.flush();
        mesh
    }

    fn set(&mut self, kind: &str, namespace: &str, generation: i64, object: serde_json::Value) {
        let mut object = object;
        object["apiVersion"] = json!("security.istio.io/v1");
        object["kind"] = json!(kind);
        let metadata = &mut object["metadata"];
        metadata["namespace"] = json!(namespace);
        metadata["generation"] = json!(generation);
        if metadata["name"].is_null() {
            metadata["name"] = json!("p");
        }
        let name = NamespacedName::new(namespace, metadata["name"].as_str().unwrap());
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let kind = match kind {
            "PeerAuthentication" => Kind::PeerAuthentication,
            "RequestAuthentication" => Kind::RequestAuthentication,
            _ => Kind::AuthorizationPolicy,
        };
        self.security.set(kind, &name, Some(&Arc::new(object)));
    }

    /// A Pod of the Service `web`, captured as its labels say; the engine's part of taking it.
    fn set_pod(&mut self, namespace: &str, name: &str, labels: &serde_json::Value) {
        let mut labels = labels.clone();
        labels["app"] = "web".into();
        let captured = labels["istio.io/dataplane-mode"] == "ambient";
        let condition = json!([{"type": "meltemi.dev/Captured", "status": "True"}]);
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace, "uid": name, "labels": labels},
            "spec": {"nodeName": "node-1", "containers": []},
            "status": {"phase": "Running", "podIP": "10.244.1.6",
                       "conditions": if captured { condition } else { json!([]) }},
        }))
        .unwrap();
        self.security.see_capture(&namespace.into());
        self.index.apply(Change::Pod(name_of(&pod.metadata), Some(Box::new(PodFacts::read(&pod)))));
    }

    fn flush(&mut self) -> Step {
        for change in self.security.changes() {
            self.index.apply(change);
        }
        let mut step = Step { delta: self.index.flush(), ..Step::default() };
        let world = World { index: &self.index, gateways: &self.gateways, mesh: self.index.mesh() };
        self.security.flush(&world, &mut step);
        let generation = publish::publish(&self.publisher, &step);
        self.security.published(generation, &step);
        self.security.report(&self.index, &self.status);
        step
    }

    /// What was last said of an object: generation, and `type=status reason: message` of each condition.
    fn said(&self, kind: &str, name: &NamespacedName) -> (Option<i64>, Vec<String>) {
        let wishes = self.status.take();
        let wish = wishes.into_iter().find(|(key, _)| key.kind == kind && key.name == *name);
        let Some((_, Wish::Conditions { generation, conditions })) = wish else {
            panic!("nothing of {kind} {name}")
        };
        let text = |c: &meltemi_translate::condition::Condition| {
            format!("{}={} {}: {}", c.kind, c.status_text(), c.reason, c.message)
        };
        (generation, conditions.iter().map(text).collect())
    }
}

/// A policy alone in the mesh, and everything that its status says.
fn status_of(kind: &str, namespace: &str, object: serde_json::Value) -> Vec<String> {
    let mut mesh = Mesh::new();
    mesh.set(kind, namespace, 7, object);
    mesh.flush();
    let (generation, conditions) = mesh.said(kind, &NamespacedName::new(namespace, "p"));
    assert_eq!(generation, Some(7));
    conditions
}

const ATTACHED: &str = "ZtunnelAccepted=True Accepted: attached to ztunnel";
const ON_NODE: &str = "meltemi.dev/Enforced=True Enforced: 1/1 proxies";
const ON_BOTH: &str = "meltemi.dev/Enforced=True Enforced: 2/2 proxies";
const NOWHERE: &str = "meltemi.dev/Enforced=False NoTarget: no proxy has to enforce it: it applies to no Pod, waypoint or gateway of \
                       the mesh; Pods come into it by the label istio.io/dataplane-mode=ambient of their namespace";
const AROUND: &str = "meltemi.dev/Escapes=True AroundWaypoint: Connections to Pods of Service shop/web that do not pass \
                      waypoint shop/wp, or that are addressed there to another Service, are not judged by this policy.";

fn l7(found: &str, note: &str) -> String {
    format!(
        "ZtunnelAccepted=True UnsupportedValue: ztunnel does not support HTTP attributes (found: {found}). In ambient mode \
         you must use a waypoint proxy to enforce HTTP rules. {note}"
    )
}

const OMITTED: &str = "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than \
                       requested.";
const WIDER: &str = "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than \
                     requested.";

#[test]
fn the_status_of_a_policy_for_workloads() {
    let web = json!({"matchLabels": {"app": "web"}});
    let spec = |fields: serde_json::Value| {
        let mut spec = json!({"selector": web});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"spec": spec})
    };
    let get = json!([{"operation": {"methods": ["GET"]}}]);
    let from = json!([{"source": {"namespaces": ["a"]}}]);
    let no_plaintext = "meltemi.dev/Escapes=True PlaintextAndThroughWaypoint: Rule 0 denies by identity, which plaintext has none of: it passes \
                        until a PeerAuthentication is STRICT. Rule 0 denies by source, and of clients that come through waypoint shop/wp a \
                        node proxy sees the waypoint only: they pass, unless a policy with targetRefs denies them there.";
    let cases = [
        (spec(json!({})), vec![ATTACHED.to_owned(), ON_NODE.to_owned()]),
        // Without a selector it is the ingress gateway's too.
        (json!({"spec": {}}), vec![ATTACHED.to_owned(), ON_BOTH.to_owned()]),
        (json!({"spec": {"selector": {"matchLabels": {"app": "no"}}}}), vec![ATTACHED.to_owned(), NOWHERE.to_owned()]),
        (
            spec(json!({"rules": [{"to": get, "when": [{"key": "request.headers[X-A]", "values": ["b"]}]}]})),
            vec![l7("methods, request.headers[X-A]", OMITTED), ON_NODE.to_owned()],
        ),
        (
            spec(json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]})),
            vec![l7("methods", WIDER), ON_NODE.to_owned()],
        ),
        (
            spec(json!({"action": "DENY", "rules": [{"to": get}]})),
            vec![
                l7("methods", WIDER),
                "meltemi.dev/DiffersFromIstio=True FailsClosed: Rule 0: without what needs HTTP, a node proxy denies all that \
                 remains; Istio's would not apply the rule."
                    .to_owned(),
                ON_NODE.to_owned(),
            ],
        ),
        (
            spec(json!({"action": "DENY", "rules": [{"from": from}]})),
            vec![ATTACHED.to_owned(), no_plaintext.to_owned(), ON_NODE.to_owned()],
        ),
        (
            spec(json!({"action": "AUDIT", "rules": [{}]})),
            vec!["ZtunnelAccepted=False UnsupportedValue: ztunnel does not support the AUDIT action".to_owned()],
        ),
        (
            spec(json!({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]})),
            vec!["ZtunnelAccepted=False UnsupportedValue: ztunnel does not support the CUSTOM action".to_owned()],
        ),
        (
            json!({"metadata": {"annotations": {"istio.io/dry-run": "true"}}, "spec": {"selector": web}}),
            vec![
                "ZtunnelAccepted=False UnsupportedValue: found policy \"shop/p\" using dry-run annotation, but support for \
                 ambient dry-run authorizationPolicies isn't enabled"
                    .to_owned(),
            ],
        ),
        (
            spec(json!({"action": "DENY", "rules": [{"from": []}]})),
            vec![
                "ZtunnelAccepted=False Invalid: `from` must not be empty, found at rule 0".to_owned(),
                "meltemi.dev/DiffersFromIstio=True FailsClosed: The policy is not valid, and what cannot be read of it lets \
                 nothing through (`from` must not be empty, found at rule 0)."
                    .to_owned(),
                ON_NODE.to_owned(),
            ],
        ),
    ];
    for (object, expected) in cases {
        assert_eq!(status_of("AuthorizationPolicy", "shop", object.clone()), expected, "{object}");
    }
}

#[test]
fn the_status_of_a_policy_with_targets() {
    let target = |kind: &str, name: &str| {
        let group = match kind {
            "Service" => "",
            "ServiceEntry" => "networking.istio.io",
            _ => "gateway.networking.k8s.io",
        };
        json!({"kind": kind, "group": group, "name": name})
    };
    let pending_none = "meltemi.dev/Enforced=True Enforced: 1/1 proxies";
    let cases = [
        (
            "shop",
            vec![target("Service", "web")],
            vec!["WaypointAccepted=True Accepted: bound to shop/wp", AROUND, pending_none],
        ),
        (
            "shop",
            vec![target("Service", "no")],
            vec!["WaypointAccepted=False TargetNotFound: Service shop/no was not found", NOWHERE],
        ),
        (
            "shop",
            vec![target("ServiceEntry", "no")],
            vec!["WaypointAccepted=False TargetNotFound: ServiceEntry shop/no was not found", NOWHERE],
        ),
        (
            "shop",
            vec![target("Gateway", "gw")],
            vec!["WaypointAccepted=True Accepted: bound to shop/gw", pending_none],
        ),
        (
            "shop",
            vec![target("Gateway", "no")],
            vec!["WaypointAccepted=False TargetNotFound: not bound", NOWHERE],
        ),
        (
            "shop",
            vec![target("GatewayClass", "istio-waypoint")],
            vec![
                "WaypointAccepted=False Invalid: AuthorizationPolicy must be in the root namespace `istio-system` when \
                 referencing a GatewayClass",
                NOWHERE,
            ],
        ),
        (
            "istio-system",
            vec![target("GatewayClass", "istio-waypoint")],
            vec!["WaypointAccepted=True Accepted: bound to istio-waypoint", pending_none],
        ),
        (
            "shop",
            vec![target("Service", "web"), target("Service", "no")],
            vec![
                "WaypointAccepted=True PartiallyInvalid: Invalid targetRefs: Service.core:shop/no",
                AROUND,
                pending_none,
            ],
        ),
    ];
    for (namespace, targets, expected) in cases {
        let got = status_of("AuthorizationPolicy", namespace, json!({"spec": {"targetRefs": targets}}));
        assert_eq!(got, expected, "{targets:?}");
    }
    let dry = json!({"metadata": {"annotations": {"istio.io/dry-run": "true"}}, "spec": {"targetRefs": [target("Gateway", "gw")]}});
    let got = status_of("AuthorizationPolicy", "shop", dry);
    assert_eq!(got[1], "meltemi.dev/Enforced=False DryRun: it is reported on, never enforced");
    let custom = json!({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}],
        "targetRefs": [target("Gateway", "gw")]});
    let got = status_of("AuthorizationPolicy", "shop", json!({"spec": custom}));
    assert_eq!(
        got[1],
        "meltemi.dev/DiffersFromIstio=True FailsClosed: Where the policy judges a connection without a request, provider opa is not asked: what it matches is denied."
    );
    assert_eq!(
        got[2],
        "meltemi.dev/ProviderUsable=False NotConfigured: extensionProviders of the mesh's configuration have no opa; what the policy matches is denied"
    );
}

#[test]
fn the_status_of_a_peer_authentication() {
    let cases = [
        ("shop", json!({"mtls": {"mode": "STRICT"}}), vec![ATTACHED, ON_NODE]),
        (
            "shop",
            json!({"mtls": {"mode": "DISABLE"}}),
            vec![
                "ZtunnelAccepted=True UnsupportedValue: attached to ztunnel; DISABLE is taken as PERMISSIVE: ztunnel never \
                 disables mutual TLS",
                ON_NODE,
            ],
        ),
        ("shop", json!({"selector": {"matchLabels": {"app": "no"}}}), vec![ATTACHED, NOWHERE]),
        (
            "istio-system",
            json!({"selector": {"matchLabels": {"app": "web"}}}),
            vec![
                "ZtunnelAccepted=False UnsupportedValue: a selector in the root namespace selects no workload in ambient mode",
            ],
        ),
        (
            "shop",
            json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}),
            vec![
                "ZtunnelAccepted=False Invalid: mesh/namespace peer authentication cannot have port level mTLS",
            ],
        ),
    ];
    for (namespace, spec, expected) in cases {
        assert_eq!(status_of("PeerAuthentication", namespace, json!({"spec": spec})), expected, "{spec}");
    }
}

#[test]
fn the_status_of_a_request_authentication() {
    let rules = json!([{"issuer": "i", "jwks": "{\"keys\":[]}"}]);
    let denied = "meltemi.dev/DiffersFromIstio=True FailsClosed: A request with several different tokens where its rules look for one is refused (401): Istio judges it by one of them.";
    let keyless = "meltemi.dev/KeysAvailable=False NoKeys: jwks of i: Jwks doesn't have any valid public key; every token of this \
                   issuer is refused (401)";
    let waiting = "meltemi.dev/KeysAvailable=False Pending: https://i/keys; issuer j: not fetched yet; every token of this issuer \
                   is refused (401)";
    let nobody = "meltemi.dev/KeysAvailable=False NoKeys: any issuer: no keys are named; every token of this issuer is refused \
                  (401)";
    let key = json!({"kty": "oct", "k": "c2VjcmV0"}).to_string();
    let elsewhere =
        json!([{"issuer": "i", "jwksUri": "https://i/keys"}, {"issuer": "j"}, {"issuer": "k", "jwks": key}]);
    let good = "meltemi.dev/KeysAvailable=True Available: proxies have the keys of every issuer";
    let cases = [
        (
            json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "jwtRules": rules}),
            vec!["WaypointAccepted=True Accepted: bound to shop/wp", denied, keyless, AROUND, ON_NODE],
        ),
        (
            json!({"targetRefs": [{"kind": "Service", "group": "", "name": "no"}], "jwtRules": rules}),
            vec!["WaypointAccepted=False TargetNotFound: Service shop/no was not found", NOWHERE],
        ),
        (
            json!({"selector": {"matchLabels": {"app": "web"}}, "jwtRules": rules}),
            vec![
                "ZtunnelAccepted=False UnsupportedValue: ztunnel does not support RequestAuthentication: it has no effect on \
                 workloads. Use targetRefs to have a waypoint proxy enforce it",
                NOWHERE,
            ],
        ),
        // Without a selector it is the ingress gateway's.
        (json!({"jwtRules": rules}), vec![denied, keyless, ON_NODE]),
        (json!({"jwtRules": elsewhere}), vec![denied, waiting, ON_NODE]),
        (json!({"jwtRules": [{"issuer": "k", "jwks": key}]}), vec![denied, good, ON_NODE]),
        (
            json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "jwtRules": [{}]}),
            vec![
                "ZtunnelAccepted=False Invalid: issuer or jwksUri must be non-empty string; no token is taken where it \
                 applies",
                "WaypointAccepted=True Accepted: bound to shop/wp",
                denied,
                nobody,
                AROUND,
                ON_NODE,
            ],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(status_of("RequestAuthentication", "shop", json!({"spec": spec})), expected, "{spec}");
    }
}
