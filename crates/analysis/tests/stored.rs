// SPDX-License-Identifier: Apache-2.0
//! What is stored although it is for nobody, nothing acts on it, or admission warns of it, is found in files.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "traps/shop.rs"]
mod shop;

use meltemi_analysis::analyze;
use meltemi_analysis::findings::CODES;
use shop::{Case, check, found, policy, rules, world};

#[test]
fn what_admission_warns_of_is_found_in_files() {
    let object = |kind: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let cases: [Case; 6] = [
        (
            "a DENY of HTTP only",
            rules("DENY", "[{to: [{operation: {notPaths: ['/test/*']}}]}]"),
            &[
                "MLT0114 AuthorizationPolicy shop/p configured AuthorizationPolicy will deny all traffic to TCP ports",
            ],
        ),
        (
            "a path without a slash",
            rules("ALLOW", "[{to: [{operation: {paths: [admin]}}]}]"),
            &[
                "MLT0114 AuthorizationPolicy shop/p \"admin\" in Paths matches no request: a path begins with /",
            ],
        ),
        (
            "a host with a scheme",
            rules("ALLOW", "[{to: [{operation: {hosts: ['http://a']}}]}]"),
            &["a host has neither scheme nor path"],
        ),
        (
            "a URI for a principal",
            rules("ALLOW", "[{from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]}]"),
            &["principals are written without spiffe://", "can never match"],
        ),
        (
            "an empty selector",
            object("PeerAuthentication", "{selector: {}, mtls: {mode: STRICT}}"),
            &["workload selector specified without labels"],
        ),
        (
            "a symmetric key",
            object(
                "RequestAuthentication",
                r#"{jwtRules: [{issuer: a, jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"1"}]}'}]}"#,
            ),
            &["jwks key at index 0 contains private key material"],
        ),
    ];
    for (what, policies, expected) in &cases {
        let all = found(&world(policies));
        for part in *expected {
            assert!(all.iter().any(|line| line.contains(part)), "{what}: {part:?} in {all:#?}");
        }
    }
}

#[test]
fn what_is_stored_and_not_acted_on_is_named() {
    let object = |version: &str, kind: &str, metadata: &str, spec: &str| {
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop{metadata}}}\nspec: {spec}\n"
        )
    };
    let gateway = |metadata: &str, more: &str| {
        let listener = "listeners: [{name: mesh, port: 15008, protocol: HBONE}]";
        object(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            metadata,
            &format!("{{gatewayClassName: istio-waypoint, {listener}{more}}}"),
        )
    };
    let pod = |metadata: &str| object("v1", "Pod", metadata, "{containers: [{name: c, image: x}]}");
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}'}\n";
    let cases: Vec<Case> = vec![
        ("a VirtualService", object("networking.istio.io/v1", "VirtualService", "", "{}"), &["VirtualService shop/x the VirtualService is stored, but nothing in this mesh acts on it; an HTTPRoute"]),
        ("a DestinationRule", object("networking.istio.io/v1beta1", "DestinationRule", "", "{}"), &["the DestinationRule is stored"]),
        ("Istio's Gateway", object("networking.istio.io/v1", "Gateway", "", "{selector: {istio: ingressgateway}}"), &["the Gateway is stored"]),
        ("Telemetry", object("telemetry.istio.io/v1", "Telemetry", "", "{}"), &["the Telemetry is stored"]),
        ("a WasmPlugin", object("extensions.istio.io/v1alpha1", "WasmPlugin", "", "{}"), &["the WasmPlugin is stored"]),
        ("a NetworkPolicy", object("networking.k8s.io/v1", "NetworkPolicy", "", "{podSelector: {}}"), &["the NetworkPolicy is stored"]),
        ("another group's Service", object("serving.knative.dev/v1", "Service", "", "{}"), &[]),
        ("parameters", gateway("", ", infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: c}}"), &["spec.infrastructure.parametersRef has no effect"]),
        ("addresses", gateway("", ", addresses: [{value: 10.0.0.1}]"), &["spec.addresses is set"]),
        ("traffic to Pods", gateway(", labels: {istio.io/waypoint-for: all}", ""), &[]),
        ("an unknown word", gateway(", labels: {istio.io/waypoint-for: al}", ""), &["istio.io/waypoint-for=al is not a known value"]),
        ("another revision", gateway(", labels: {istio.io/rev: canary}", ""), &["istio.io/rev=canary: nothing is deployed"]),
        ("settings of proxies", gateway(", annotations: {proxy.istio.io/config: 'gatewayTopology: {numTrustedProxies: 1}'}", ""), &["the annotation proxy.istio.io/config has no effect"]),
        ("an inbound binding", gateway(", annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}", ""), &["waypoint-inbound-binding has no effect"]),
        ("a second waypoint", object("v1", "Service", ", labels: {istio.io/use-waypoint-canary: b}", "{ports: [{port: 80}]}"), &["istio.io/use-waypoint-canary has no effect"]),
        ("ranges of clients", object("v1", "Service", "", "{ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/8]}"), &["spec.loadBalancerSourceRanges is not enforced"]),
        ("a sidecar", pod(", labels: {sidecar.istio.io/inject: 'true'}"), &["no sidecar is injected"]),
        ("a Pod's waypoint", pod(", labels: {istio.io/use-waypoint: waypoint}"), &[]),
        ("ports out of capture", pod(", annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '80'}"), &["traffic.sidecar.istio.io/excludeInboundPorts has no effect"]),
        (
            "mTLS that is switched off",
            object("security.istio.io/v1", "PeerAuthentication", "", "{mtls: {mode: DISABLE}}"),
            &["MLT0115 PeerAuthentication shop/x attached to ztunnel; DISABLE is taken as PERMISSIVE"],
        ),
        (
            "injection",
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: old, labels: {istio-injection: enabled}}\n".to_owned(),
            &["no sidecar is injected, so that its workloads are outside of the mesh"],
        ),
        ("settings of the mesh are information", settings.to_owned(), &[]),
    ];
    check(&cases);
    let all = analyze(&world(settings), None);
    assert!(
        all.iter().any(|f| f.message.contains("without effect: defaultConfig.gatewayTopology")),
        "{all:#?}"
    );
    assert_eq!(CODES.iter().filter(|c| c.code == "MLT0115").count(), 1);
}

#[test]
fn each_wrong_target_is_named_and_nothing_is_said_of_a_service_that_is_not_there() {
    let targets = "targetRefs: [{kind: Service, group: '', name: api}, {kind: Service, group: '', name: aip}, {kind: Service, group: '', name: plain}]";
    let partly = |action: &str| {
        policy(
            "p",
            &format!(
                "  {targets}\n  action: {action}\n  rules: [{{to: [{{operation: {{ports: ['80'], methods: [DELETE]}}}}]}}]"
            ),
        )
    };
    let cases: [Case; 2] = [
        (
            "a DENY that is not enforced is an error",
            partly("DENY"),
            &[
                "Error MLT0105 AuthorizationPolicy shop/p Service shop/aip was not found",
                "Error MLT0105 AuthorizationPolicy shop/p Service shop/plain is not bound to a waypoint",
            ],
        ),
        (
            "an ALLOW",
            partly("ALLOW"),
            &[
                "Warning MLT0105 AuthorizationPolicy shop/p Service shop/aip",
                "Warning MLT0105 AuthorizationPolicy shop/p Service shop/plain",
            ],
        ),
    ];
    check(&cases);
}
