// SPDX-License-Identifier: Apache-2.0
//! Findings in a table: what is found, and what is not.

use meltemi_translate::MeshConfig;
use serde_json::{Value, json};

use super::*;

fn policy(name: &str, spec: Value) -> Value {
    json!({"kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn codes(objects: &[Value]) -> Vec<String> {
    let world = World::read(objects, MeshConfig::default());
    analyze(&world, None).iter().map(|f| format!("{} {}", f.code, f.origin)).collect()
}

fn one(objects: &[Value], code: Code) -> Finding {
    let world = World::read(objects, MeshConfig::default());
    let mut all: Vec<Finding> = analyze(&world, None).into_iter().filter(|f| f.code == code.code).collect();
    assert_eq!(all.len(), 1, "{code:?}: {all:#?}");
    all.remove(0)
}

fn target() -> Value {
    json!([{"kind": "Service", "group": "", "name": "web"}])
}

fn from(principal: &str) -> Value {
    json!([{"source": {"principals": [principal]}}])
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let l7 = json!({"targetRefs": target(), "rules": [
        {"from": from("cluster.local/ns/default/sa/curl"), "to": [{"operation": {"methods": ["GET"]}}]}]});
    let l4 = json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
        {"from": from("cluster.local/ns/default/sa/waypoint")}]});
    assert_eq!(codes(&[policy("l7", l7), policy("l4", l4)]), Vec::<String>::new());
}

#[test]
fn the_trap_of_the_forgotten_waypoint_and_the_way_around_it() {
    let l7 = json!({"targetRefs": target(), "rules": [{"from": from("cluster.local/ns/default/sa/curl")}]});
    let l4 = json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
        {"from": from("cluster.local/ns/default/sa/gw")}]});
    let objects = [policy("l7", l7), policy("l4", l4)];
    assert_eq!(codes(&objects), ["MLT0107 AuthorizationPolicy default/l4", "MLT0106 Service default/web"]);
    let trap = one(&objects, FORGETS);
    assert!(
        trap.level == Level::Error && trap.fix.contains("cluster.local/ns/default/sa/waypoint"),
        "{trap}"
    );
    let way = one(&objects, AROUND);
    assert!(way.message.contains("from cluster.local/ns/default/sa/gw"), "{way}");
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default", "labels":
        {"istio.io/use-waypoint": "waypoint", "meltemi.dev/waypoint-bypass": "deny"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let mut by_hand = service.clone();
    by_hand["spec"]["selector"] = json!({});
    let closed = [objects[0].clone(), objects[1].clone(), service];
    assert_eq!(codes(&closed), ["MLT0107 AuthorizationPolicy default/l4"]);
    // Nothing tells its Pods: the label closes nothing, whether or not a policy targets the Service.
    for objects in [vec![by_hand.clone()], vec![objects[0].clone(), by_hand]] {
        assert_eq!(codes(&objects), ["MLT0106 Service default/web"]);
        assert!(one(&objects, AROUND).message.contains("needs a selector"));
    }
}

#[test]
fn rules_that_never_match() {
    let cases = [
        (
            json!({"to": [{"operation": {"methods": ["get"]}}]}),
            "methods are upper case, and nothing is methods=[get]",
        ),
        (
            json!({"from": [{"source": {"namespaces": ["a"], "notNamespaces": ["a*"]}}]}),
            "nothing is namespaces=[a] notNamespaces=[a*]",
        ),
        (
            json!({"from": [{"source": {"namespaces": ["a"]}}], "when": [{"key": "source.namespace", "values": ["b"]}]}),
            "its parts exclude each other",
        ),
        (
            json!({"from": [{"source": {"principals": ["cluster.local/sa/x"]}}]}),
            "nothing is principals=[cluster.local/sa/x]",
        ),
    ];
    for (rule, why) in cases {
        let found = one(&[policy("p", json!({"targetRefs": target(), "rules": [rule]}))], NEVER);
        assert!(found.message.contains(why), "{found}");
    }
}

#[test]
fn rules_that_change_nothing() {
    let get = |path: &str| json!({"to": [{"operation": {"methods": ["GET"], "paths": [path]}}]});
    let broad = json!({"targetRefs": target(), "rules": [get("/a/*"), get("/a/b"), get("/c")]});
    let found = one(&[policy("p", broad)], SHADOWED);
    assert!(
        found.message.contains("rule[1]") && found.message.contains("default/p rule[0] allows all"),
        "{found}"
    );
    let deny = json!({"targetRefs": target(), "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/c*"]}}]}]});
    let allow = json!({"targetRefs": target(), "rules": [get("/a/*"), get("/c")]});
    let found = one(&[policy("p", allow), policy("d", deny)], SHADOWED);
    assert!(
        found.message.contains("rule[1]") && found.message.contains("default/d rule[0] denies all"),
        "{found}"
    );
    // The same rule twice: the second one.
    let twice = json!({"targetRefs": target(), "rules": [get("/a"), get("/a")]});
    assert!(one(&[policy("p", twice)], SHADOWED).message.contains("rule[1]"));
}

#[test]
fn plaintext_escapes_a_deny_by_identity() {
    let deny = json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["foo"]}}]}]});
    let found = one(&[policy("d", deny.clone())], PLAINTEXT);
    assert!(found.message.contains("namespaces=[foo]"), "{found}");
    let strict = json!({"kind": "PeerAuthentication", "metadata": {"name": "default", "namespace": "default"},
        "spec": {"mtls": {"mode": "STRICT"}}});
    assert_eq!(codes(&[policy("d", deny.clone()), strict]), Vec::<String>::new());
    let allow = json!({"rules": [{"from": [{"source": {"principals": ["*"]}}]}]});
    assert_eq!(codes(&[policy("d", deny), policy("a", allow)]), Vec::<String>::new());
}

#[test]
fn layer_7_at_a_node_proxy() {
    let methods = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    let cases = [
        (json!({"rules": [methods]}), Level::Error),
        (json!({"rules": [methods, {"from": from("cluster.local/ns/a/sa/b")}]}), Level::Warning),
        (json!({"action": "DENY", "rules": [methods]}), Level::Error),
        (
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]}),
            Level::Warning,
        ),
        (json!({"action": "AUDIT", "rules": [{}]}), Level::Warning),
    ];
    for (spec, level) in cases {
        let found = one(&[policy("p", spec)], LAYER7);
        assert_eq!(found.level, level, "{found}");
    }
}

#[test]
fn policies_that_are_attached_to_nothing() {
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}});
    let namespace = json!({"kind": "Namespace", "metadata": {"name": "default"}});
    let pod = json!({"kind": "Pod", "metadata": {"name": "x", "namespace": "default", "labels": {"app": "x"}}, "spec": {}});
    let around = [service, namespace, pod];
    let with = |spec: Value| -> Vec<Value> { around.iter().cloned().chain([policy("p", spec)]).collect() };
    let gateway =
        |kind: &str| json!([{"kind": kind, "group": "gateway.networking.k8s.io", "name": "istio-waypoint"}]);
    let cases = [
        (
            json!({"selector": {"matchLabels": {"app": "y"}}, "rules": [{"from": from("*")}]}),
            "no workload has the labels app=y",
        ),
        (json!({"targetRefs": target(), "rules": [{"from": from("*")}]}), "is not bound to a waypoint"),
        (
            json!({"targetRefs": [{"kind": "Service", "group": "", "name": "no"}], "rules": [{"from": from("*")}]}),
            "was not found",
        ),
        (
            json!({"targetRefs": gateway("GatewayClass"), "rules": [{"from": from("*")}]}),
            "in the root namespace",
        ),
    ];
    for (spec, what) in cases {
        let found = one(&with(spec), NOTHING);
        assert!(found.message.contains(what), "{found}");
    }
    assert_eq!(
        codes(&with(json!({"selector": {"matchLabels": {"app": "x"}}, "rules": [{"from": from("*")}]}))),
        Vec::<String>::new()
    );
}

#[test]
fn allows_that_open_more_than_they_seem_to() {
    let cases = [
        (
            json!([{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}, {"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]),
            "alternatives",
        ),
        (json!([{"from": [{"source": {"notNamespaces": ["a"]}}]}]), "only says who may not"),
        (
            json!([{"from": from("cluster.local/ns/a/sa/b"), "to": [{"operation": {"methods": ["GET"]}}]},
                   {"from": from("cluster.local/ns/a/sa/c")}]),
            "has no `to`",
        ),
        (json!([{}]), "has no condition"),
    ];
    for (rules, what) in cases {
        let found = one(&[policy("p", json!({"targetRefs": target(), "rules": rules}))], OPENS);
        assert!(found.message.contains(what), "{found}");
    }
}

#[test]
fn every_kind_has_a_reason_and_a_fix() {
    let l7 = |rule: Value| policy("p", json!({"targetRefs": target(), "rules": [rule]}));
    let l4 = |spec: Value| policy("l4", spec);
    let get = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    let curl = json!({"from": from("cluster.local/ns/default/sa/curl")});
    // Every beginning may have every end.
    let paths: Vec<String> = (0..800).flat_map(|i| [format!("/a{i}*"), format!("*{i}z")]).collect();
    let examples: [(Code, Vec<Value>); 17] = [
        (INVALID, vec![l4(json!({"action": "DENY"}))]),
        (NEVER, vec![l7(json!({"to": [{"operation": {"methods": ["get"]}}]}))]),
        (SHADOWED, vec![policy("p", json!({"targetRefs": target(), "rules": [get, get]}))]),
        (PLAINTEXT, vec![l4(json!({"action": "DENY", "rules": [curl]}))]),
        (LAYER7, vec![l4(json!({"rules": [get]}))]),
        (
            NOTHING,
            vec![policy(
                "p",
                json!({"rules": [curl], "targetRefs":
            [{"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio-waypoint"}]}),
            )],
        ),
        (AROUND, vec![l7(curl.clone())]),
        (FORGETS, vec![l7(curl.clone()), l4(json!({"rules": [curl]}))]),
        (OPENS, vec![l7(json!({}))]),
        (
            LEAVES,
            vec![policy(
                "p",
                json!({"targetRefs": target(), "action": "DENY",
            "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]}),
            )],
        ),
        (DIFFERS, vec![l7(json!({"to": [{"operation": {"paths": ["/a"]}}]}))]),
        (
            CUSTOM,
            vec![policy(
                "p",
                json!({"targetRefs": target(), "action": "CUSTOM", "provider": {"name": "opa"},
            "rules": [{}]}),
            )],
        ),
        (UNDECIDED, vec![l7(json!({"to": [{"operation": {"paths": paths}}]}))]),
        (
            EXEMPT,
            vec![policy(
                "p",
                json!({"targetRefs": target(), "action": "DENY", "rules": [
                    {"to": [{"operation": {"notPaths": ["/a"]}}]}, {"to": [{"operation": {"paths": ["/a"], "notMethods": ["GET"]}}],
                    "from": [{"source": {"notNamespaces": ["b"]}}]}, {"from": [{"source": {"notNamespaces": ["b", "c"]}}],
                    "to": [{"operation": {"paths": ["/c"]}}]}, {"to": [{"operation": {"notHosts": ["h"], "paths": ["/a"]}}]}]}),
            )],
        ),
        (WARNED, vec![l7(json!({"from": from("spiffe://cluster.local/ns/a/sa/b")}))]),
        (
            INERT,
            vec![
                json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "v"}}),
            ],
        ),
        (
            STREAM,
            vec![
                l7(get.clone()),
                json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default"},
                    "spec": {"ports": [{"name": "tcp", "port": 80}]}}),
            ],
        ),
    ];
    assert_eq!(
        examples.iter().map(|(code, _)| code.code).collect::<Vec<_>>(),
        CODES.iter().map(|c| c.code).collect::<Vec<_>>()
    );
    for (code, objects) in examples {
        let found = one(&objects, code);
        assert!(found.message.len() > 20 && found.fix.len() > 10, "{found}");
    }
}

#[test]
fn the_rest() {
    let exact = json!({"targetRefs": target(), "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]});
    assert!(one(&[policy("p", exact)], LEAVES).message.contains("/admin/"));
    let tree = json!({"targetRefs": target(), "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin", "/admin/*"]}}]}]});
    assert!(!codes(&[policy("p", tree)]).iter().any(|c| c.starts_with("MLT0109")));
    let bad = policy("p", json!({"action": "DENY"}));
    let found = one(&[bad], INVALID);
    assert!(
        found.to_string().starts_with(
            "Error [IST0106] (AuthorizationPolicy default/p) Schema validation error: DENY action"
        )
    );
    let custom =
        json!({"targetRefs": target(), "action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]});
    assert!(one(&[policy("p", custom)], CUSTOM).message.contains("opa"));
}

/// A policy of a namespace that is hard to say anything of: many patterns that overlap, each with exceptions.
fn hard(namespace: &str, index: usize) -> Value {
    let name = |n: usize| format!("{:07b}", (index * 37 + n * 101) % 128).replace('0', "a").replace('1', "b");
    let list = |from: usize, form: fn(String) -> String| {
        (from..from + 10).map(|n| form(name(n))).collect::<Vec<_>>()
    };
    let operation = |n: usize| {
        json!({"operation": {
            "paths": list(n, |x| format!("/{x}*")), "notPaths": list(n + 3, |x| format!("*{x}")),
            "hosts": list(n + 5, |x| format!("*.{x}.com")), "notHosts": list(n + 7, |x| format!("{x}.*"))}})
    };
    let rules: Vec<Value> = (0..4)
        .map(|n| json!({"to": [operation(n), operation(n + 50)], "when": [
            {"key": "request.headers[x-a]", "values": list(n, |x| format!("{x}*")), "notValues": list(n + 9, |x| format!("*{x}"))}]}))
        .collect();
    let action = if index.is_multiple_of(2) { "ALLOW" } else { "DENY" };
    let mut one =
        policy(&format!("hard-{index}"), json!({"targetRefs": target(), "action": action, "rules": rules}));
    one["metadata"]["namespace"] = json!(namespace);
    one
}

fn web(namespace: &str) -> Value {
    json!({"kind": "Service", "metadata": {"name": "web", "namespace": namespace,
        "labels": {"istio.io/use-waypoint": "waypoint"}}, "spec": {"ports": [{"port": 80}]}})
}

#[test]
fn a_tenant_whose_policies_are_hard_takes_nobodys_turn() {
    let mut objects = vec![web("hard"), web("plain")];
    objects.extend((0..20).map(|n| hard("hard", n)));
    let mut never = policy(
        "never",
        json!({"targetRefs": target(), "rules": [{"to": [{"operation": {"methods": ["get"]}}]}]}),
    );
    never["metadata"]["namespace"] = json!("plain");
    objects.push(never);
    let world = World::read(&objects, MeshConfig::default());
    // A place, its rules, and another place: the easy one of the other namespace is among them, and the hard one is left.
    let asked = std::cell::Cell::new(0);
    let found = suspicious(&world, &|| asked.replace(asked.get() + 1) < 4);
    let namespaces: Vec<&str> = found.iter().map(|f| &*f.name.namespace).collect();
    assert_eq!(namespaces, ["plain"]);
}
