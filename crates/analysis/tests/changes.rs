// SPDX-License-Identifier: Apache-2.0
//! `authz diff` of a small folder in which one thing changes: what opens access is found, and what is not modelled is
//! unknown by name. Also: every place that is called proven is listed.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::{Differences, World, diff};
use meltemi_translate::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;

/// A namespace with a Service behind a waypoint, two workloads, policies of every kind, a route, and settings.
const BASE: &[(&str, &str)] = &[
    (
        "ns",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}",
    ),
    (
        "svc",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}\n\
         spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}",
    ),
    (
        "pod",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n\
         spec: {serviceAccountName: web, containers: [{name: c, image: x}]}",
    ),
    (
        "gtw",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: service}}\n\
         spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
    ),
    (
        "pol",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: p, namespace: shop, annotations: {a: b}}\n\
         spec: {targetRefs: [{kind: Service, group: \"\", name: web}], action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}",
    ),
    (
        "l4",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l4, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: web}}, action: ALLOW, \
         rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/wp, cluster.local/ns/shop/sa/cli]}}]}]}",
    ),
    (
        "pa",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\n\
         spec: {mtls: {mode: STRICT}}",
    ),
    (
        "dep",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: api}}, template: {metadata: {labels: {app: api}}, spec: {containers: [{name: c, image: x}]}}}",
    ),
    (
        "l4b",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l4b, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: api}}, action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}",
    ),
    (
        "ra",
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: ra, namespace: shop}\n\
         spec: {targetRefs: [{kind: Service, group: \"\", name: web}], jwtRules: [{issuer: i, jwks: '{\"keys\":[]}'}]}",
    ),
    (
        "route",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n\
         spec: {parentRefs: [{kind: Service, group: \"\", name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        "cm",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: \"pathNormalization: {normalization: BASE}\"}",
    ),
];

fn read(text: &str) -> World {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let objects: Vec<Value> =
        documents.map(|d| Value::deserialize(d).unwrap()).filter(|v| !v.is_null()).collect();
    let settings = objects.iter().find(|o| o["kind"] == "ConfigMap");
    let mesh = MeshConfig::default();
    let mesh =
        settings.map_or(mesh.clone(), |c| mesh.configured(c["data"]["mesh"].as_str().unwrap()).unwrap());
    World::read(&objects, mesh).whole().unwrap()
}

/// The base with one text of one document replaced; without the document when the text is empty.
fn changed(document: &str, from: &str, to: &str) -> String {
    let one = |(name, text): &(&str, &str)| {
        if *name != document {
            return Some((*text).to_owned());
        }
        assert!(text.contains(from), "{document}: {from}");
        (!from.is_empty()).then(|| text.replace(from, to))
    };
    BASE.iter().filter_map(one).collect::<Vec<_>>().join("\n---\n")
}

/// The exit code of `authz diff --no-new-access`.
fn code(found: &Differences) -> u8 {
    match (found.newly_allowed.is_empty(), found.unknown.is_empty()) {
        (false, _) => 1,
        (true, false) => 2,
        (true, true) => 0,
    }
}

fn lines(found: &Differences) -> Vec<String> {
    let allowed =
        found.newly_allowed.iter().map(|d| format!("+ {} at {}: {}", d.target, d.enforced_at, d.condition));
    let denied =
        found.newly_denied.iter().map(|d| format!("- {} at {}: {}", d.target, d.enforced_at, d.condition));
    let unknown = found.unknown.iter().map(|u| format!("? {}: {}", u.target, u.reason));
    allowed.chain(denied).chain(unknown).collect()
}

/// What changes: document, text, its replacement; the exit code; a line that is shown.
type Case = (&'static str, &'static str, &'static str, &'static str, u8, &'static str);

const REMOVED: &str = "";

#[test]
fn each_change_is_decided_or_named() {
    let web = "+ Service shop/web at waypoint shop/wp: paths=[/admin]";
    let cases: Vec<Case> = vec![
        ("the Service loses its waypoint", "svc", "{istio.io/use-waypoint: wp}", "{}", 1, web),
        ("the Service opts out", "svc", "use-waypoint: wp", "use-waypoint: none", 1, web),
        (
            "a waypoint that is not there",
            "svc",
            "use-waypoint: wp",
            "use-waypoint: zz",
            0,
            "- Service shop/web at waypoint shop/zz",
        ),
        (
            "the namespace leaves the mesh",
            "ns",
            "istio.io/dataplane-mode: ambient",
            "x: y",
            1,
            "+ Pod shop/web at node proxy",
        ),
        (
            "a Pod leaves the mesh",
            "pod",
            "{app: web}",
            "{app: web, istio.io/dataplane-mode: none}",
            1,
            "+ Pod shop/web at node proxy",
        ),
        (
            "a Pod is no longer captured",
            "pod",
            "labels: {app: web}",
            "labels: {app: web}, annotations: {ambient.istio.io/bypass-inbound-capture: \"true\"}",
            1,
            "+ Pod shop/web at node proxy",
        ),
        (
            "a Pod uses the node's network",
            "pod",
            "spec: {",
            "spec: {hostNetwork: true, ",
            1,
            "? Pod shop/web: it is no longer in the mesh",
        ),
        ("a Pod has other labels", "pod", "app: web}", "app: web2}", 1, "+ Pod shop/web at node proxy"),
        (
            "Pods to come have other labels",
            "dep",
            "labels: {app: api}",
            "labels: {app: api2}",
            1,
            "+ Deployment shop/api at node proxy: namespaces=[evil]",
        ),
        (
            "another account",
            "dep",
            "spec: {containers",
            "spec: {serviceAccountName: cli, containers",
            2,
            "? Deployment shop/api: it runs as ServiceAccount cli and no longer as default",
        ),
        (
            "another protocol",
            "svc",
            "name: http",
            "name: tcp-x",
            2,
            "? Service shop/web: port 80 has another protocol: connections are judged there",
        ),
        (
            "other Pods",
            "svc",
            "selector: {app: web}",
            "selector: {app: api}",
            2,
            "? Service shop/web: its selector differs",
        ),
        (
            "another port of the Pods",
            "svc",
            "targetPort: 8080",
            "targetPort: 9090",
            2,
            "? Service shop/web: port 80 has another targetPort",
        ),
        (
            "a waypoint for nothing",
            "gtw",
            "waypoint-for: service",
            "waypoint-for: none",
            0,
            "- Service shop/web at waypoint shop/wp: any request",
        ),
        (
            "a waypoint for Pods",
            "gtw",
            "waypoint-for: service",
            "waypoint-for: workload",
            0,
            "- Service shop/web at waypoint shop/wp: any request",
        ),
        (
            "a gateway of another class",
            "gtw",
            "istio-waypoint",
            "istio",
            2,
            "? Gateway shop/wp: its class differs",
        ),
        ("the gateway is gone", "gtw", REMOVED, "", 2, "? all Gateways: only the old side has Gateways"),
        ("only reported", "pol", "{a: b}", "{istio.io/dry-run: \"true\"}", 1, web),
        ("the policy is gone", "pol", REMOVED, "", 1, web),
        ("the policy only audits", "pol", "action: DENY", "action: AUDIT", 1, web),
        ("the policy is for another Service", "pol", "name: web}", "name: webx}", 1, web),
        (
            "the policy is for a Gateway",
            "pol",
            "kind: Service, group: \"\"",
            "kind: Gateway, group: gateway.networking.k8s.io",
            1,
            web,
        ),
        ("the policy of layer 4 is gone", "l4", REMOVED, "", 1, "workloads of namespace shop at node proxy"),
        (
            "another selector",
            "l4",
            "app: web",
            "app: nothing",
            1,
            "workloads of namespace shop that shop/l4 does not select",
        ),
        (
            "another principal",
            "l4",
            "sa/cli]",
            "sa/cli, cluster.local/ns/shop/sa/new]",
            1,
            "principals=[cluster.local/ns/shop/sa/new]",
        ),
        ("a denial is gone", "l4b", REMOVED, "", 1, "namespaces=[evil]"),
        ("STRICT is gone", "pa", REMOVED, "", 1, "+ workloads of namespace shop"),
        ("PERMISSIVE", "pa", "STRICT", "PERMISSIVE", 1, "+ workloads of namespace shop"),
        (
            "tokens are no longer looked at",
            "ra",
            REMOVED,
            "",
            1,
            "+ Service shop/web at waypoint shop/wp: a token that is not taken, in header authorization (Bearer) or parameter access_token",
        ),
        (
            "tokens of another issuer",
            "ra",
            "issuer: i",
            "issuer: evil",
            2,
            "? Service shop/web: RequestAuthentication differs (shop/ra on the old side, shop/ra on the new side)",
        ),
        ("the route is gone", "route", REMOVED, "", 2, "? HTTPRoute shop/r: it is only on the old side"),
        (
            "paths are not normalised",
            "cm",
            "BASE",
            "NONE",
            2,
            "? settings of the mesh: pathNormalization differs",
        ),
        (
            "an alias of the trust domain",
            "cm",
            "pathNormalization: {normalization: BASE}",
            "trustDomainAliases: [evil.local]",
            1,
            "evil.local",
        ),
        (
            "the policy is in the root namespace",
            "pol",
            "namespace: shop, annotations",
            "namespace: istio-system, annotations",
            1,
            web,
        ),
        (
            "the namespace opts into a waypoint that it has",
            "ns",
            "ambient}",
            "ambient, istio.io/use-waypoint: wp}",
            0,
            "",
        ),
        ("a label that nothing reads", "pod", "app: web}", "app: web, tier: a}", 0, ""),
        ("keys may take longer", "ra", "issuer: i,", "issuer: i, timeout: 7s,", 0, ""),
        (
            "tokens of no workload",
            "ra",
            "targetRefs: [{kind: Service, group: \"\", name: web}]",
            "selector: {matchLabels: {a: b}}",
            1,
            "+ Service shop/web",
        ),
        (
            "what an API server fills in",
            "route",
            "{name: web, port: 80}]}",
            "{group: \"\", kind: Service, weight: 1, name: web, port: 80}]}",
            0,
            "",
        ),
    ];
    let base = read(&changed("none", "", ""));
    assert_eq!(lines(&diff(&base, &base)), Vec::<String>::new());
    for (what, document, from, to, expected, line) in cases {
        let found = diff(&base, &read(&changed(document, from, to)));
        let all = lines(&found);
        assert_eq!(code(&found), expected, "{what}: {all:#?}");
        assert!(line.is_empty() || all.iter().any(|l| l.contains(line)), "{what}: {line:?} in {all:#?}");
    }
}

#[test]
fn another_name_for_the_same_pods_is_held_to_the_policies_of_the_first() {
    let base = changed("none", "", "");
    let second = |labels: &str| {
        format!(
            "{base}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: web2, namespace: shop{labels}}}\n\
             spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"
        )
    };
    for (labels, at) in [("", "no waypoint"), (", labels: {istio.io/use-waypoint: wp}", "waypoint shop/wp")] {
        let found = diff(&read(&base), &read(&second(labels)));
        let all = lines(&found);
        let line =
            format!("+ Service shop/web2 (new, with Pods of Service shop/web) at {at}: paths=[/admin]");
        assert_eq!((code(&found), all), (1, vec![line]));
    }
    // With the same policy for both nothing opens.
    let guarded = second(", labels: {istio.io/use-waypoint: wp}")
        .replace("targetRefs: [{kind: Service, group: \"\", name: web}], action", "targetRefs: [{kind: Service, group: \"\", name: web}, {kind: Service, group: \"\", name: web2}], action");
    assert_eq!(code(&diff(&read(&base), &read(&guarded))), 0);
}

/// A DENY at an ingress gateway that its selector finds by any label of the gateway's Pods.
#[test]
fn a_gateway_is_selected_by_every_label_of_its_pods() {
    let folder = |selector: &str, paths: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: shop}}\n\
             spec: {{gatewayClassName: istio, infrastructure: {{labels: {{role: edge}}}}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{{selector}}}}}, action: DENY, rules: [{{to: [{{operation: {{paths: [{paths}]}}}}]}}]}}"
        )
    };
    for selector in [
        "role: edge",
        "gateway.networking.k8s.io/gateway-name: edge",
        "gateway.networking.k8s.io/gateway-class-name: istio",
        "service.istio.io/canonical-name: edge-istio",
        "istio.io/dataplane-mode: none",
        "gateway.istio.io/managed: istio.io-gateway-controller",
    ] {
        let found =
            diff(&read(&folder(selector, "/admin, /internal/*")), &read(&folder(selector, "/internal/*")));
        let all = lines(&found);
        assert_eq!(code(&found), 1, "{selector}: {all:#?}");
        assert_eq!(all, ["+ Gateway shop/edge at gateway shop/edge: paths=[/admin]"], "{selector}");
        // Without the policy, as well.
        let whole = folder(selector, "/admin");
        let removed = whole.rsplit_once("---\n").unwrap().0;
        let found = diff(&read(&whole), &read(removed));
        let all = lines(&found);
        assert_eq!(code(&found), 1, "{selector}: {all:#?}");
        assert!(
            all.iter().any(|line| line == "+ Gateway shop/edge at gateway shop/edge: paths=[/admin]"),
            "{all:#?}"
        );
    }
    // A class that somebody has made for the same controller, wherever its object stands.
    let made = |folder: String| {
        folder.replace("gatewayClassName: istio", "gatewayClassName: edges")
            + "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: edges}\n\
               spec: {controllerName: istio.io/gateway-controller}"
    };
    let found = diff(&read(&made(folder("role: edge", "/admin"))), &read(&made(folder("role: edge", "/b"))));
    assert!(
        lines(&found).iter().any(|line| line.starts_with("+ Gateway shop/edge at gateway shop/edge")),
        "{:#?}",
        lines(&found)
    );
    let other = diff(&read(&folder("role: other", "/admin")), &read(&folder("role: other", "/b")));
    assert!(lines(&other).iter().all(|line| !line.contains("Gateway shop/edge")), "{:#?}", lines(&other));
}

#[test]
fn what_is_proven_is_listed() {
    let base = read(&changed("none", "", ""));
    let found = diff(&base, &base);
    let places: Vec<String> =
        found.places.iter().map(|p| format!("{} at {}", p.target, p.enforced_at)).collect();
    for place in ["Service shop/web at waypoint shop/wp", "workloads of namespace shop at node proxy"] {
        assert!(places.iter().any(|p| p == place), "{place}: {places:#?}");
    }
}

/// Pods as they run are the workloads of the Deployment that made them.
#[test]
fn a_running_pod_is_its_deployment() {
    let pod = |name: &str, hash: &str, labels: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{pod-template-hash: {hash}, {labels}}}, \
             ownerReferences: [{{kind: ReplicaSet, name: api-{hash}, controller: true}}]}}\nspec: {{serviceAccountName: default, containers: [{{name: c, image: x}}]}}"
        )
    };
    let running = |hash: &str, labels: &str| {
        changed("dep", "", "") + &pod("api-1", hash, labels) + &pod("api-2", hash, labels)
    };
    let file = read(&changed("none", "", ""));
    assert_eq!(lines(&diff(&read(&running("a1", "app: api")), &file)), Vec::<String>::new());
    assert_eq!(
        lines(&diff(&read(&running("a1", "app: api")), &read(&running("b2", "app: api")))),
        Vec::<String>::new()
    );
    assert_eq!(code(&diff(&file, &read(&running("a1", "app: other")))), 1);
}
