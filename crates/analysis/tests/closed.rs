// SPDX-License-Identifier: Apache-2.0
//! A Service that is for its waypoint only, and a second one with the same Pods: whatever is asked, the policies of the
//! first judge what is addressed to the second.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::who_can::Question;
use meltemi_analysis::{Client, Differences, Request, To, Verdict, World, diff, explain, replay, who_can};
use meltemi_model::NamespacedName;
use meltemi_translate::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;

/// Services `web` (closed, with a DENY of a path) and `web2` of the same Pods behind one waypoint, and another waypoint.
const BASE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp, meltemi.dev/waypoint-bypass: deny}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web2, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {selector: {app: web}, ports: [{name: http, port: 81, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cli, namespace: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp2, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: l4, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/wp]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: Service, group: '', name: web}]
  action: DENY
  rules: [{to: [{operation: {paths: [/admin], ports: ['80']}}]}]
";

/// A record of a waypoint.
const RECORD: &str = "[T] \"GET PATH HTTP/1.1\" 200 - via_upstream - \"-\" - - 1 - \"-\" \"curl/8\" \"id\" \"web2.shop:81\" \"-\" - - - \
                      spiffe://cluster.local/ns/shop/sa/cli - -";

fn read(text: &str) -> World {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let objects: Vec<Value> =
        documents.map(|d| Value::deserialize(d).unwrap()).filter(|v| !v.is_null()).collect();
    World::read(&objects, MeshConfig::default()).whole().unwrap()
}

fn changed(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from}");
    BASE.replacen(from, to, 1)
}

fn lines(found: &Differences) -> Vec<String> {
    let line = |sign: &str, d: &meltemi_analysis::Difference| {
        format!("{sign} {} at {}: {}", d.target, d.enforced_at, d.condition)
    };
    let allowed = found.newly_allowed.iter().map(|d| line("+", d));
    let denied = found.newly_denied.iter().map(|d| line("-", d));
    let unknown = found.unknown.iter().map(|u| format!("? {}: {}", u.target, u.reason));
    allowed.chain(denied).chain(unknown).collect()
}

#[test]
fn what_opens_by_the_second_service_is_found() {
    const SHARED: &str = "Pods of Service shop/web, for requests to Service shop/web2 at waypoint shop/wp";
    let denied = "ports=[80] paths=[/admin]";
    let old = read(BASE);
    let same = diff(&old, &old);
    assert!(same.is_same(), "{:?}", lines(&same));
    assert!(same.places.iter().any(|p| format!("{} at {}", p.target, p.enforced_at) == SHARED));
    let deny = ", meltemi.dev/waypoint-bypass: deny";
    let web2 = "name: web2, namespace: shop, labels: {istio.io/use-waypoint: wp}";
    let cases = [
        // The node proxies admit the waypoint only, before and after: the way is by the second Service.
        ("no longer closed", changed(deny, ""), vec![format!("+ {SHARED}: {denied}")]),
        (
            "the rule is gone",
            changed("paths: [/admin]", "paths: [/other]"),
            vec![
                format!("+ {SHARED}: {denied}"),
                format!("+ Service shop/web at waypoint shop/wp: {denied}"),
                format!("- {SHARED}: ports=[80] paths=[/other]"),
                "- Service shop/web at waypoint shop/wp: ports=[80] paths=[/other]".to_owned(),
            ],
        ),
        (
            "the second Service has other Pods",
            changed("{app: web}, ports: [{name: http, port: 81", "{app: api}, ports: [{name: http, port: 81"),
            vec![
                "? Service shop/web2: its selector differs: other Pods are reached through its waypoint".to_owned(),
            ],
        ),
        (
            "the second Service has another waypoint",
            changed(web2, &web2.replace("wp}", "wp2}")),
            vec![
                "- Pods of Service shop/web, for requests to Service shop/web2 at waypoint shop/wp2: any request"
                    .to_owned(),
            ],
        ),
        (
            "the second Service has none",
            changed(web2, "name: web2, namespace: shop"),
            vec![
                format!("- {SHARED}: notPrincipals=[cluster.local/ns/shop/sa/wp]"),
                format!("+ {SHARED}: {denied}"),
            ],
        ),
    ];
    for (what, new, mut expected) in cases {
        let mut found = lines(&diff(&old, &read(&new)));
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{what}");
    }
}

/// What the second Service denies by itself stays denied, as far as what is forwarded is what was addressed.
#[test]
fn what_the_second_service_denies_itself_does_not_open() {
    let own = |rules: &str| {
        format!(
            "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: own, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, group: '', name: web2}}], action: DENY, rules: [{rules}]}}"
        )
    };
    let route = |parent: &str| {
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{kind: Service, group: '', name: {parent}}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
        )
    };
    let denied = "{to: [{operation: {paths: [/admin]}}]}";
    let wider = "{to: [{operation: {paths: ['/adm*']}}]}";
    let at_port = "{to: [{operation: {paths: [/admin], ports: ['81']}}]}";
    let by_header = "{when: [{key: 'request.headers[x]', values: ['*']}]}";
    let of_others = "{from: [{source: {notPrincipals: ['*/sa/cli']}}], to: [{operation: {paths: [/admin]}}]}";
    for (what, old, new, opens) in [
        ("nothing", String::new(), String::new(), true),
        ("the same path", own(denied), own(denied), false),
        ("a wider one", own(wider), own(wider), false),
        (
            "and another rule",
            own(&format!("{by_header}, {denied}")),
            own(&format!("{by_header}, {denied}")),
            false,
        ),
        ("at a port that is another where it is forwarded", own(at_port), own(at_port), true),
        ("a header", own(by_header), own(by_header), true),
        ("of some clients", own(of_others), own(of_others), true),
        ("before only", own(denied), String::new(), true),
        ("from now on only", String::new(), own(denied), true),
        (
            "with a route that may change the path",
            own(denied) + &route("web2"),
            own(denied) + &route("web2"),
            true,
        ),
        ("with a route of another Service", own(denied) + &route("web"), own(denied) + &route("web"), false),
    ] {
        let found = diff(
            &read(&(BASE.to_owned() + &old)),
            &read(&(changed(", meltemi.dev/waypoint-bypass: deny", "") + &new)),
        );
        let shared = |d: &meltemi_analysis::Difference| d.target.starts_with("Pods of Service shop/web,");
        assert_eq!(found.newly_allowed.iter().any(shared), opens, "{what}: {:#?}", lines(&found));
    }
}

#[test]
fn a_new_name_for_pods_of_a_closed_service_opens_nothing() {
    let second = BASE.split("---").find(|d| d.contains("name: web2")).unwrap();
    let without = changed(&format!("---{second}"), "");
    let found = diff(&read(&without), &read(BASE));
    assert!(found.newly_allowed.is_empty() && found.unknown.is_empty(), "{:?}", lines(&found));
    // It does where a port leads around: nothing closes that one.
    let around = BASE.replace("port: 81, targetPort: 8080", "port: 81, targetPort: 9090");
    assert_eq!(diff(&read(&without), &read(&around)).newly_allowed.len(), 1);
    // And where the first is not closed.
    let open = |text: &str| read(&text.replace(", meltemi.dev/waypoint-bypass: deny", ""));
    assert_eq!(diff(&open(&without), &open(BASE)).newly_allowed.len(), 1);
}

fn asked(world: &World, path: &str, port: Option<u16>) -> meltemi_analysis::Answer {
    let request = Request {
        method: Some("GET".into()),
        path: Some(path.into()),
        port,
        ..Request::new(
            Client::Account("shop".into(), "cli".into()),
            To::Service(NamespacedName::new("shop", "web2")),
        )
    };
    explain(world, &request).unwrap()
}

#[test]
fn one_request_is_judged_by_both() {
    let world = read(BASE);
    for port in [Some(81), None] {
        assert_eq!(asked(&world, "/", port).verdict, Verdict::Allow);
        let denied = asked(&world, "/admin", port);
        assert_eq!((denied.verdict, denied.policy.as_deref()), (Verdict::Deny, Some("shop/p")), "{denied:?}");
        assert!(denied.reason.contains("of Service shop/web too"), "{}", denied.reason);
        let places: Vec<&str> = denied.halves.iter().map(|h| &*h.enforced_at).collect();
        assert_eq!(places, ["waypoint shop/wp", "waypoint shop/wp"]);
    }
    let open = read(&changed(", meltemi.dev/waypoint-bypass: deny", ""));
    assert_eq!(asked(&open, "/admin", Some(81)).verdict, Verdict::Allow);
    // Only some Pods of the second Service are of the closed one.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: w2, namespace: shop, labels: {app: web, v: b}}\n\
               spec: {serviceAccountName: web, containers: [{name: c, image: x}]}";
    let mixed = BASE.replacen("{app: web}, ports", "{app: web, v: a}, ports", 1).replacen(
        "name: web, namespace: shop, labels: {app: web}",
        "name: web, namespace: shop, labels: {app: web, v: a}",
        1,
    );
    let mixed = read(&format!("{mixed}\n---\n{pod}"));
    let answer = asked(&mixed, "/admin", Some(81));
    assert_eq!(answer.verdict, Verdict::Unknown, "{answer:?}");
    assert!(answer.reason.starts_with("only some Pods of Service shop/web2"), "{}", answer.reason);
    assert_eq!(asked(&mixed, "/", Some(81)).verdict, Verdict::Allow);
}

#[test]
fn who_can_and_recorded_traffic_know_it() {
    let world = read(BASE);
    let question = Question { to: NamespacedName::new("shop", "web2"), port: None, method: None, path: None };
    let found = who_can(&world, &question).unwrap();
    let unknown = &found.doors[0].unknown;
    assert_eq!(*unknown, ["what the policies of Service shop/web say of Pods that are of it too"]);
    let open = read(&changed(", meltemi.dev/waypoint-bypass: deny", ""));
    assert!(who_can(&open, &question).unwrap().doors[0].unknown.is_empty());
    let line = |path: &str| RECORD.replace("PATH", path);
    let replayed = |world: &World, path: &str| {
        let line = line(path);
        let found = replay::replay(world, [(&*line, None)]);
        assert_eq!((found.decisions, found.unknown.len()), (1, 0), "{found:?}");
        found.flips.into_iter().map(|f| (f.is, f.reason)).collect::<Vec<_>>()
    };
    assert_eq!(replayed(&world, "/"), []);
    let reason = "denied by shop/p rule[0] (for Pods of Service shop/web)".to_owned();
    assert_eq!(replayed(&world, "/admin"), [(Verdict::Deny, reason)]);
    assert_eq!(replayed(&open, "/admin"), []);
}
