// SPDX-License-Identifier: Apache-2.0
//! Requests in tables: both halves, what was not told, every key of a condition, Pods, Gateways and ports.

use meltemi_translate::MeshConfig;
use serde_json::{Value, json};

use super::*;

fn policies() -> Vec<Value> {
    vec![
        json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l4", "namespace": "default"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/gw"]}}]}]}}),
        json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l7", "namespace": "default"}, "spec": {
            "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/curl"]}}],
                       "to": [{"operation": {"methods": ["GET"]}}]}]}}),
    ]
}

fn ask(objects: &[Value], from: &str, method: Option<&str>) -> Answer {
    let request = Request {
        method: method.map(str::to_owned),
        path: method.map(|_| "/".into()),
        ..Request::new(
            Client::Account("default".into(), from.into()),
            To::Service(NamespacedName::new("default", "web")),
        )
    };
    explain(&World::read(objects, MeshConfig::default()).whole().unwrap(), &request).unwrap()
}

#[test]
fn both_layers_and_what_was_not_told() {
    let mut objects = policies();
    let only_l4 = &objects[..1];
    assert_eq!(ask(only_l4, "gw", None).verdict, Verdict::Allow);
    let denied = ask(only_l4, "curl", None);
    assert_eq!((denied.verdict, denied.policy.as_deref()), (Verdict::Deny, Some("default/l4")));
    assert_eq!(denied.enforced_at.as_deref(), Some("node proxy"));
    assert!(denied.assumed.iter().any(|a| a.contains("Service default/web")));
    // With the waypoint: the layer 7 policy first, then the trap of the layer 4 policy that forgets the waypoint.
    assert_eq!(ask(&objects, "curl", None).verdict, Verdict::Unknown);
    assert_eq!(
        ask(&objects, "curl", Some("DELETE")).enforced_at.as_deref(),
        Some("waypoint default/waypoint")
    );
    let trap = ask(&objects, "curl", Some("GET"));
    assert!(trap.verdict == Verdict::Deny && trap.reason.contains("comes from the waypoint"), "{trap:?}");
    objects[0]["spec"]["rules"][0]["from"][0]["source"]["principals"] =
        json!(["cluster.local/ns/default/sa/gw", "cluster.local/ns/default/sa/waypoint"]);
    assert_eq!(ask(&objects, "curl", Some("GET")).verdict, Verdict::Allow);
}

fn asked(objects: &[Value], request: Request) -> Answer {
    explain(&World::read(objects, MeshConfig::default()).whole().unwrap(), &request).unwrap()
}

fn from(client: &str) -> Client {
    crate::table::client(client).unwrap()
}

fn web() -> To {
    To::Service(NamespacedName::new("default", "web"))
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn target() -> Value {
    json!([{"kind": "Service", "group": "", "name": "web"}])
}

fn claim(name: &str, value: &str) -> Option<Token> {
    Token::told(None, [(name.to_owned(), value.to_owned())]).unwrap()
}

#[test]
fn every_key_of_a_condition_can_be_told() {
    type Tell = fn(&mut Request, bool);
    // The key, its value, what is said when it is not told, and how it is told, matching or not.
    let cases: [(&str, &str, &str, Tell); 15] = [
        ("source.ip", "10.0.0.0/8", "--from-ip", |r, yes| r.from_ip = address(yes)),
        ("remote.ip", "10.0.0.0/8", "--remote-ip", |r, yes| r.remote_ip = address(yes)),
        // The address of the client is the original one's when no other is told.
        ("remote.ip", "10.0.0.0/8", "--remote-ip", |r, yes| r.from_ip = address(yes)),
        ("source.namespace", "a", "", |r, yes| r.from = from(if yes { "a/x" } else { "b/x" })),
        ("source.serviceAccount", "a/x", "", |r, yes| r.from = from(if yes { "a/x" } else { "a/y" })),
        ("source.trustDomain", "td", "", |r, yes| {
            r.from = from(if yes { "td/ns/a/sa/x" } else { "other/ns/a/sa/x" });
        }),
        ("source.principal", "td/ns/a/sa/x", "", |r, yes| {
            r.from = if yes { from("td/ns/a/sa/x") } else { Client::Plaintext };
        }),
        ("destination.ip", "10.0.0.0/8", "--to-ip", |r, yes| r.to_ip = address(yes)),
        ("destination.port", "80", "--port", |r, yes| r.port = Some(if yes { 80 } else { 81 })),
        ("connection.sni", "a", "--sni", |r, yes| r.sni = Some(text(yes))),
        ("request.headers[x-h]", "a", "--header x-h", |r, yes| r.headers = vec![("X-H".into(), text(yes))]),
        ("request.auth.principal", "i/a", "--request-principal", |r, yes| {
            r.token = Token::told(Some(&format!("i/{}", text(yes))), []).unwrap();
        }),
        ("request.auth.audiences", "a", "token", |r, yes| r.token = claim("aud", &text(yes))),
        ("request.auth.presenter", "a", "token", |r, yes| r.token = claim("azp", &text(yes))),
        ("request.auth.claims[g][h.i]", "a", "--claim", |r, yes| r.token = claim("[g][h.i]", &text(yes))),
    ];
    for (key, value, option, tell) in cases {
        for deny in [false, true] {
            let action = if deny { "DENY" } else { "ALLOW" };
            let when = json!([{"when": [{"key": key, "values": [value]}]}]);
            let objects = [policy("p", json!({"targetRefs": target(), "action": action, "rules": when}))];
            let silent = Request {
                at: Some(At::Waypoint),
                method: Some("GET".into()),
                path: Some("/".into()),
                ..Request::new(Client::Plaintext, web())
            };
            let answer = asked(&objects, silent.clone());
            if option.starts_with("--") && !option.contains("sni") && !option.contains("header") {
                let unknown = answer.verdict == Verdict::Unknown && answer.reason.contains(option);
                assert!(unknown || answer.assumed.iter().any(|a| a.contains(option)), "{key} {answer:?}");
            } else {
                assert_ne!(answer.verdict, Verdict::Unknown, "{key}");
                assert!(option.is_empty() || answer.assumed.iter().any(|a| a.contains(option)), "{answer:?}");
            }
            for yes in [true, false] {
                let mut request = silent.clone();
                tell(&mut request, yes);
                let answer = asked(&objects, request);
                let expected = if yes == deny { Verdict::Deny } else { Verdict::Allow };
                assert_eq!(answer.verdict, expected, "{key} {action} {yes}: {answer:?}");
            }
        }
    }
}

fn address(inside: bool) -> Option<IpAddr> {
    if inside { "10.0.0.1" } else { "9.9.9.9" }.parse().ok()
}

fn text(yes: bool) -> String {
    if yes { "a" } else { "b" }.to_owned()
}

#[test]
fn hosts_are_not_guessed() {
    let rules = json!([{"to": [{"operation": {"hosts": ["web.example"]}}]}]);
    let objects = [policy("p", json!({"targetRefs": target(), "rules": rules}))];
    let mut request = Request { at: Some(At::Waypoint), ..Request::new(from("a/x"), web()) };
    let silent = asked(&objects, request.clone());
    assert!(silent.verdict == Verdict::Unknown && silent.reason.ends_with("say --host"), "{silent:?}");
    // As it was sent: with a port or a dot at the end it is another text.
    for (host, verdict) in [
        ("WEB.example", Verdict::Allow),
        ("web.example:80", Verdict::Deny),
        ("web.example.", Verdict::Deny),
        ("web", Verdict::Deny),
    ] {
        request.host = Some(host.into());
        assert_eq!(asked(&objects, request.clone()).verdict, verdict);
    }
}

#[test]
fn what_is_told_of_a_token_is_said_to_be_assumed() {
    let rules = json!([{"when": [{"key": "request.auth.claims[g]", "values": ["a"]}]}]);
    let objects = [policy("p", json!({"targetRefs": target(), "rules": rules}))];
    let mut request = Request { at: Some(At::Waypoint), ..Request::new(from("a/x"), web()) };
    request.token =
        Token::told(Some("i/s"), [("g".to_owned(), "b".to_owned()), ("g".to_owned(), "a".to_owned())])
            .unwrap();
    let answer = asked(&objects, request.clone());
    assert_eq!(answer.verdict, Verdict::Allow);
    assert!(answer.assumed.iter().any(|a| a == "the token is verified"), "{answer:?}");
    assert!(answer.warnings.iter().any(|w| w.contains("verifies no token")), "{answer:?}");
    request.token = Token::told(Some("i/s"), []).unwrap();
    let answer = asked(&objects, request);
    assert_eq!(answer.verdict, Verdict::Deny);
    assert!(answer.assumed.iter().any(|a| a.contains("no other claims")), "{answer:?}");
}

#[test]
fn pods_gateways_and_what_is_not_there() {
    let deny = json!({"selector": {"matchLabels": {"app": "a"}}, "action": "DENY",
        "rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}], "to": [{"operation": {"ports": ["80"]}}]}]});
    let gateway = json!({"kind": "Gateway", "metadata": {"name": "gw", "namespace": "default"},
        "spec": {"gatewayClassName": "istio"}});
    let at_gateway = json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "gw"}],
        "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
    let objects = [policy("d", deny), gateway, policy("g", at_gateway)];
    let pod = |labels: &str| crate::table::pod(labels).unwrap();
    let gw = To::Gateway(NamespacedName::new("default", "gw"));
    let inside = |r: Request| Request { from_ip: address(true), port: Some(80), ..r };
    let get =
        |method: &str| Request { method: Some(method.into()), ..Request::new(Client::Plaintext, gw.clone()) };
    let cases = [
        (inside(Request::new(Client::Plaintext, pod("default/app=a,v=1"))), Verdict::Deny, "default/d"),
        (inside(Request::new(Client::Plaintext, pod("default/app=b"))), Verdict::Allow, "no ALLOW policy"),
        (inside(Request::new(Client::Plaintext, pod("other"))), Verdict::Allow, "no ALLOW policy"),
        (Request::new(Client::Plaintext, pod("default/app=a")), Verdict::Unknown, "say --from-ip"),
        (get("GET"), Verdict::Allow, "default/g"),
        (get("PUT"), Verdict::Deny, "none allowed"),
        (Request::new(Client::Plaintext, gw.clone()), Verdict::Unknown, "--method"),
    ];
    for (request, verdict, text) in cases {
        let answer = asked(&objects, request);
        let all = format!("{} {}", answer.policy.unwrap_or_default(), answer.reason);
        assert!(answer.verdict == verdict && all.contains(text), "{verdict} {text}: {all}");
    }
    // A Namespace that nothing is in: assumed of files, missing in a cluster.
    let mut world = World::read(&objects, MeshConfig::default());
    for (complete, labels, missing, assumed) in [
        (false, "other", None, Some("Namespace other exists")),
        (false, "other/app=a", None, Some("Pod other/app=a exists")),
        (false, "default", None, None),
        (true, "other", Some("Namespace other does not exist"), None),
        (true, "other/app=a", Some("Namespace other does not exist"), None),
        (true, "default", None, None),
        (true, "default/app=x", None, Some("Pod default/app=x exists")),
    ] {
        world.complete = complete;
        let answer = explain(&world, &inside(Request::new(Client::Plaintext, pod(labels)))).unwrap();
        let first = |all: &[String]| all.first().cloned();
        let found = (first(&answer.missing), first(&answer.presumed));
        let expected = (missing.map(str::to_owned), assumed.map(str::to_owned));
        assert_eq!(found, expected, "{complete} {labels}");
        assert_eq!(answer.verdict == Verdict::Unknown, missing.is_some(), "{complete} {labels}: {answer:?}");
    }
    let wrong = Request { at: Some(At::NodeProxy), ..Request::new(Client::Plaintext, gw) };
    assert!(explain(&world, &wrong).is_err());
}

#[test]
fn ports_of_a_service_one_by_one() {
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default",
        "labels": {"istio.io/use-waypoint": "w"}}, "spec": {"selector": {"app": "web"}, "ports": [
        {"port": 80, "targetPort": "http"}, {"port": 5432, "name": "tcp-db"}, {"port": 53, "protocol": "UDP"}]}});
    let pods = json!({"kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": {"template": {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}}}});
    let l7 =
        policy("l7", json!({"targetRefs": target(), "rules": [{"to": [{"operation": {"methods": ["*"]}}]}]}));
    let l4 = policy(
        "l4",
        json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
        {"to": [{"operation": {"ports": ["8080", "5432"]}}]}]}),
    );
    let objects = [service.clone(), pods, l7.clone(), l4.clone()];
    let request = |port| Request { port, ..Request::new(from("a/x"), web()) };
    let get = |port| Request { method: Some("GET".into()), ..request(port) };
    assert_eq!(asked(&objects, get(Some(80))).verdict, Verdict::Allow, "the named port of the Pods is 8080");
    // Where no request is read, none is allowed by its method.
    let stream = asked(&objects, get(Some(5432)));
    assert!(stream.verdict == Verdict::Deny && stream.enforced_at.as_deref() == Some("waypoint default/w"));
    let mixed = asked(&objects, get(None));
    assert!(mixed.verdict == Verdict::Unknown && mixed.reason.contains("say --port"), "{mixed:?}");
    // Without the Pods nobody knows which port has the name.
    let unknown = asked(&[service, l7, l4], get(Some(80)));
    assert!(unknown.verdict == Verdict::Unknown && unknown.reason.contains("--port"), "{unknown:?}");
}
