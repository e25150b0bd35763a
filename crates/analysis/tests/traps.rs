// SPDX-License-Identifier: Apache-2.0
//! Slips that people have made with real policies: each is found, and what they had meant is not.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::findings::CODES;
use meltemi_analysis::{Level, World, analyze, suspicious};
use meltemi_translate::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;

/// A Service `api` (80 to 8080) behind the waypoint of its namespace, and a Service `plain` without one.
const OBJECTS: &str = "
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

fn read(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|d| Value::deserialize(d).unwrap()).filter(|v| !v.is_null()).collect()
}

fn world(more: &str) -> World {
    let mut objects = read(OBJECTS);
    objects.extend(read(more));
    World::read(&objects, MeshConfig::default())
}

/// A policy of `api`, or without a target of what it selects.
fn policy(name: &str, spec: &str) -> String {
    let target = "targetRefs: [{kind: Service, group: '', name: api}]";
    let target = if spec.contains("selector:") || spec.contains("targetRefs:") { "" } else { target };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  {target}\n{spec}\n"
    )
}

fn rules(action: &str, rules: &str) -> String {
    policy("p", &format!("  action: {action}\n  rules: {rules}"))
}

fn found(world: &World) -> Vec<String> {
    let all = analyze(world, None);
    // That readings differ from Istio's is said of every policy with paths.
    all.iter()
        .filter(|f| f.level > Level::Info)
        .map(|f| format!("{} {} {} {}", f.level, f.code, f.origin, f.message))
        .collect()
}

/// Policies, and for each finding a part of its line.
type Case = (&'static str, String, &'static [&'static str]);

#[track_caller]
fn check(cases: &[Case]) {
    for (what, policies, expected) in cases {
        let world = world(policies);
        let all = found(&world);
        assert_eq!(all.len(), expected.len(), "{what}: {all:#?}");
        for part in *expected {
            assert!(all.iter().any(|line| line.contains(part)), "{what}: {part:?} in {all:#?}");
        }
    }
}

#[test]
fn a_dash_too_many_makes_two_rules_of_one() {
    const FOO: &str = "from: [{source: {principals: [cluster.local/ns/shop/sa/plain]}}]";
    const OPENS: &str = "rule[1] has no `from`, other rules of the policy have one: everybody, clients without an identity included";
    let cases: [Case; 5] = [
        (
            "as it was written",
            rules("ALLOW", &format!("[{{{FOO}}}, {{to: [{{operation: {{hosts: [demo.shop]}}}}]}}]")),
            &["rule[0] has no `to`", OPENS],
        ),
        (
            "as it was meant",
            rules("ALLOW", &format!("[{{{FOO}, to: [{{operation: {{hosts: [demo.shop]}}}}]}}]")),
            &[],
        ),
        (
            "the first rule is whole",
            rules(
                "ALLOW",
                &format!(
                    "[{{{FOO}, to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{paths: ['/admin*']}}}}]}}]"
                ),
            ),
            &[OPENS],
        ),
        (
            "who is asked for in `when`",
            rules(
                "ALLOW",
                &format!(
                    "[{{{FOO}, to: [{{operation: {{methods: [GET]}}}}]}}, {{to: [{{operation: {{methods: [PUT]}}}}], when: [{{key: source.namespace, values: [shop]}}]}}]"
                ),
            ),
            &[],
        ),
        (
            "public paths beside those with a token",
            rules(
                "ALLOW",
                "[{to: [{operation: {methods: [PUT]}}], when: [{key: request.auth.audiences, values: [a]}]}, {to: [{operation: {methods: [GET]}}]}]",
            ),
            &[],
        ),
    ];
    check(&cases);
    let only = rules("ALLOW", "[{when: [{key: 'request.headers[x-user]', values: [admin]}]}]");
    let all = analyze(&world(&only), None);
    assert!(
        all.iter().any(|f| f.level == Level::Info && f.message.contains("what any client can write")),
        "{all:#?}"
    );
}

#[test]
fn near_paths_are_named_for_every_form_of_both_actions() {
    let paths = |action: &str, field: &str, list: &str| {
        rules(action, &format!("[{{to: [{{operation: {{{field}: [{list}]}}}}]}}]"))
    };
    let cases: [Case; 12] = [
        (
            "an exact path",
            paths("DENY", "paths", "/admin"),
            &["rule[0] denies /admin and not /admin/ or what is below it"],
        ),
        ("a prefix", paths("DENY", "paths", "/admin/*"), &["rule[0] denies /admin/* and not /admin itself"]),
        (
            "a template",
            paths("DENY", "paths", "'/admin/{**}'"),
            &["rule[0] denies /admin/{**} and not /admin itself"],
        ),
        ("both", paths("DENY", "paths", "/admin, /admin/*"), &[]),
        ("a prefix without a slash", paths("DENY", "paths", "/admin*"), &[]),
        ("everything", paths("DENY", "paths", "/*"), &[]),
        ("an ALLOW of a path", paths("ALLOW", "paths", "/admin/*"), &[]),
        (
            "an ALLOW of all but a path",
            paths("ALLOW", "notPaths", "/admin"),
            &["allows every path but /admin, so that /admin/ or what is below it is open"],
        ),
        (
            "an ALLOW of all but a prefix",
            paths("ALLOW", "notPaths", "/api/*"),
            &["allows every path but /api/*, so that /api itself is open"],
        ),
        ("an ALLOW of all but both", paths("ALLOW", "notPaths", "/api, /api/*"), &[]),
        (
            "a DENY of all but a prefix",
            paths("DENY", "notPaths", "/public*"),
            &["exempts /public*, which is every path that begins so", "will deny all traffic to TCP ports"],
        ),
        (
            "covered by another rule",
            rules("DENY", "[{to: [{operation: {paths: [/a]}}]}, {to: [{operation: {paths: [/a/*]}}]}]"),
            &[],
        ),
    ];
    let cases = cases.map(|(what, policies, expected)| {
        // Without a port every DENY of HTTP gets Istio's warning about TCP; it has a test of its own.
        let warned = policies.replace("operation: {paths", "operation: {ports: ['80'], paths");
        (what, warned, expected)
    });
    check(&cases);
    // Tokens for /api but not for its documents: the edge that is left open.
    let documents = rules(
        "ALLOW",
        "[{to: [{operation: {paths: ['/api/*']}}], when: [{key: request.auth.audiences, values: [shop]}]}, \
         {to: [{operation: {paths: ['/api/v3/api-docs/*', /api/swagger]}}]}, {to: [{operation: {notPaths: ['/api/*']}}]}]",
    );
    check(&[(
        "documents",
        documents,
        &["rule[2] allows every path but /api/*, so that /api itself is open"],
    )]);
}

#[test]
fn exemptions_that_two_denials_take_from_each_other() {
    let one = |name: &str, field: &str, value: &str| {
        let rule = format!(
            "[{{to: [{{operation: {{ports: ['80'], {field}: ['{value}']}}}}], when: [{{key: 'request.auth.claims[iss]', notValues: ['*']}}]}}]"
        );
        policy(name, &format!("  action: DENY\n  rules: {rule}"))
    };
    let both = |a: &str, b: &str| one("a", "notPaths", a) + &one("b", "notPaths", b);
    let cases: [Case; 5] = [
        ("one alone", one("a", "notPaths", "/test/*"), &[]),
        (
            "two that differ",
            both("/test/*", "/ui/*"),
            &[
                "AuthorizationPolicy shop/a rule[0] does not deny paths=[/test/*], but shop/b rule[0] does",
                "AuthorizationPolicy shop/b rule[0] does not deny paths=[/ui/*], but shop/a rule[0] does",
            ],
        ),
        ("two that overlap", both("/test/*", "/test/a/*"), &["shop/a rule[0] changes nothing"]),
        (
            "accounts",
            policy(
                "a",
                "  action: DENY\n  rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/a]}}]}, {from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/b]}}]}]",
            ),
            &[
                "rule[0] does not deny principals=[cluster.local/ns/shop/sa/a]",
                "rule[1] does not deny principals=[cluster.local/ns/shop/sa/b]",
            ],
        ),
        (
            "an exemption of another attribute stays",
            one("a", "notPaths", "/test/*") + &one("b", "notMethods", "GET"),
            &[],
        ),
    ];
    check(&cases);
}

#[test]
fn ports_that_nobody_has_where_the_policy_is_enforced() {
    let selected = |spec: &str| policy("p", &format!("  selector: {{matchLabels: {{app: plain}}}}\n{spec}"));
    let peer = |port: u16, mode: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: plain}}}}, portLevelMtls: {{'{port}': {{mode: {mode}}}}}}}\n"
        )
    };
    let cases: [Case; 13] = [
        (
            "the Pod's port at a node proxy",
            selected("  rules: [{to: [{operation: {ports: ['8080']}}]}]"),
            &[],
        ),
        (
            "the Service's port at a node proxy",
            selected("  rules: [{to: [{operation: {ports: ['80']}}]}]"),
            &[
                "Warning MLT0101 AuthorizationPolicy shop/p rule[0] can never match: port 80 is not declared by a container of the selected Pods, or the target of a Service (8080); 80 is the Service's port",
            ],
        ),
        (
            "the Pods' port at a waypoint",
            rules("DENY", "[{to: [{operation: {ports: ['8080'], methods: [DELETE]}}]}]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: port 8080 is not a port of Service shop/api at its waypoint (80); 8080 is the Pods' port",
            ],
        ),
        (
            "the Service's port at a waypoint",
            rules("DENY", "[{to: [{operation: {ports: ['80'], methods: [DELETE]}}]}]"),
            &[],
        ),
        (
            "one of two",
            rules("ALLOW", "[{to: [{operation: {ports: ['80', '81']}}]}]"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0]: port 81 is not a port"],
        ),
        (
            "as a condition",
            rules("ALLOW", "[{when: [{key: destination.port, values: ['8080']}]}]"),
            &["rule[0] can never match: port 8080"],
        ),
        (
            "every port is excluded",
            rules("DENY", "[{to: [{operation: {notPorts: ['80']}}]}]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: it excludes every port there is (80)",
            ],
        ),
        (
            "what is excluded is not there",
            rules("DENY", "[{to: [{operation: {notPorts: ['8080']}}]}]"),
            &[
                "rule[0]: port 8080 is not a port of Service shop/api at its waypoint (80); 8080 is the Pods' port: a waypoint sees the Service's, so that excluding it excludes nothing",
            ],
        ),
        (
            "another alternative is possible",
            rules("DENY", "[{to: [{operation: {ports: ['8080']}}, {operation: {ports: ['80']}}]}]"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0]: port 8080"],
        ),
        (
            "a Service that is not known",
            policy(
                "p",
                "  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]\n  rules: [{to: [{operation: {ports: ['1']}}]}]",
            ),
            &[],
        ),
        ("a port of mTLS that is there", peer(8080, "STRICT"), &[]),
        (
            "a port of mTLS that is not there",
            peer(80, "STRICT"),
            &[
                "Error MLT0101 PeerAuthentication shop/p portLevelMtls of 80 has no effect: nothing is protected by it; port 80 is not declared",
            ],
        ),
        (
            "the same without STRICT",
            peer(80, "PERMISSIVE"),
            &["Warning MLT0101 PeerAuthentication shop/p portLevelMtls of 80 has no effect"],
        ),
    ];
    check(&cases);
}

#[test]
fn conditions_on_what_no_proxy_sees_are_named() {
    let when = |action: &str, key: &str| {
        rules(
            action,
            &format!("[{{to: [{{operation: {{ports: ['80']}}}}], when: [{{key: '{key}', values: [a]}}]}}]"),
        )
    };
    let not = rules(
        "DENY",
        "[{to: [{operation: {ports: ['80']}}], when: [{key: connection.sni, notValues: [a]}]}]",
    );
    let cases: [Case; 5] = [
        (
            "a server name on a port with HTTP",
            when("DENY", "connection.sni"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: a waypoint reads no server name",
            ],
        ),
        (
            "of an ALLOW",
            when("ALLOW", "connection.sni"),
            &["Warning MLT0101 AuthorizationPolicy shop/p rule[0] can never match"],
        ),
        ("any but a server name", not, &[]),
        (
            "a header of one hop",
            when("DENY", "request.headers[Keep-Alive]"),
            &[
                "Error MLT0101 AuthorizationPolicy shop/p rule[0] can never match: the header is for the proxy",
            ],
        ),
        ("another header", when("DENY", "request.headers[x-a]"), &[]),
    ];
    check(&cases);
    let tls = OBJECTS.replace("name: http, port: 80", "name: tls, port: 80");
    let mut objects = read(&tls);
    objects.extend(read(&when("DENY", "connection.sni")));
    let all = found(&World::read(&objects, MeshConfig::default()));
    let named: Vec<&String> = all.iter().filter(|line| line.contains("server name")).collect();
    let denies = "Warning MLT0116 AuthorizationPolicy shop/p rule[0] denies connections to port 80 of Service shop/api";
    assert!(named.len() == 1 && named[0].starts_with(denies), "{all:#?}");
}

#[test]
fn fields_of_requests_on_ports_without_requests_are_named() {
    // A second port of `api` that takes no requests.
    let objects = OBJECTS.replacen(
        "ports: [{name: http, port: 80, targetPort: 8080}]",
        "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 5432, targetPort: 8080}]",
        1,
    );
    let get = |ports: &str| format!("[{{to: [{{operation: {{methods: [GET]{ports}}}}}]}}]");
    let (http, db) = (", ports: ['80']", ", ports: ['5432']");
    let either = "[{to: [{operation: {methods: [GET]}}, {operation: {ports: ['5432']}}]}]";
    let at_gateway = |action: &str| {
        let spec = format!(
            "  targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}}]\n  action: {action}\n  \
             rules: [{{from: [{{source: {{namespaces: [shop]}}}}], when: [{{key: connection.sni, values: [a]}}]}}]"
        );
        policy("p", &spec)
    };
    let denies = "Warning MLT0116 AuthorizationPolicy shop/p rule[0] denies connections to port 5432 of Service shop/api, declared \
                  to be TCP or TLS, as if methods=[GET] matched";
    let cases = [
        ("a DENY for all ports", rules("DENY", &get("")), Some(denies)),
        ("a DENY for the port", rules("DENY", &get(db)), Some(denies)),
        ("a DENY for the other port", rules("DENY", &get(http)), None),
        ("an alternative that a connection shows", rules("DENY", either), None),
        ("an ALLOW for all ports is for requests", rules("ALLOW", &get("")), None),
        (
            "an ALLOW for the port",
            rules("ALLOW", &get(db)),
            Some(
                "Warning MLT0116 AuthorizationPolicy shop/p rule[0] allows nothing: port 5432 of Service shop/api",
            ),
        ),
        (
            "a server name in a DENY of a Gateway",
            at_gateway("DENY"),
            Some("Error MLT0116 AuthorizationPolicy shop/p rule[0] denies no request"),
        ),
        (
            "in an ALLOW of a Gateway",
            at_gateway("ALLOW"),
            Some("Warning MLT0116 AuthorizationPolicy shop/p rule[0] allows nothing"),
        ),
    ];
    for (what, policies, expected) in cases {
        let mut all = read(&objects);
        all.extend(read(&policies));
        let all = found(&World::read(&all, MeshConfig::default()));
        let named: Vec<&String> = all.iter().filter(|line| line.contains("MLT0116")).collect();
        assert_eq!(named.len(), usize::from(expected.is_some()), "{what}: {all:#?}");
        assert!(expected.is_none_or(|text| named[0].starts_with(text)), "{what}: {all:#?}");
    }
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

/// What a policy's status says (`meltemi.dev/Suspicious`).
#[test]
fn the_status_knows_the_traps() {
    let cases = [
        (
            rules(
                "ALLOW",
                "[{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}, {to: [{operation: {paths: [/x]}}]}]",
            ),
            "MLT0108",
        ),
        (rules("DENY", "[{to: [{operation: {paths: ['/admin/*']}}]}]"), "MLT0109"),
        (rules("ALLOW", "[{to: [{operation: {notPaths: ['/api/*']}}]}]"), "MLT0109"),
        (rules("DENY", "[{to: [{operation: {ports: ['8080'], methods: [DELETE]}}]}]"), "MLT0101"),
        (
            rules(
                "DENY",
                "[{from: [{source: {notNamespaces: [a]}}]}, {from: [{source: {notNamespaces: [b]}}]}]",
            ),
            "MLT0113",
        ),
    ];
    for (policies, code) in cases {
        let all = suspicious(&world(&policies), &|| true);
        assert!(all.iter().any(|f| f.code == code), "{code}: {all:#?}");
    }
}
