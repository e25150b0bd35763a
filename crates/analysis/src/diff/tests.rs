// SPDX-License-Identifier: Apache-2.0
//! Changes of objects in a table: where they are felt, by whom, and what is the same after all.

use meltemi_translate::MeshConfig;
use serde_json::{Value, json};

use super::*;

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn policy(name: &str, spec: Value) -> Value {
    object("AuthorizationPolicy", "default", name, spec)
}

fn peer(namespace: &str, name: &str, spec: Value) -> Value {
    object("PeerAuthentication", namespace, name, spec)
}

fn compared(old: &[Value], new: &[Value]) -> Differences {
    let world = |objects: &[Value]| World::read(objects, MeshConfig::default()).whole().unwrap();
    diff(&world(old), &world(new))
}

/// `+` newly allowed, `-` newly denied, `?` unknown; where; from whom.
fn lines(found: &Differences) -> Vec<String> {
    let line = |sign: &str, d: &crate::compare::Difference| {
        format!("{sign} {} at {}: {}", d.target, d.enforced_at, d.condition)
    };
    let allowed = found.newly_allowed.iter().map(|d| line("+", d));
    let denied = found.newly_denied.iter().map(|d| line("-", d));
    let unknown = found.unknown.iter().map(|u| format!("? {}", u.reason));
    allowed.chain(denied).chain(unknown).collect()
}

fn from(namespaces: &[&str]) -> Value {
    json!([{"from": [{"source": {"namespaces": namespaces}}]}])
}

fn web(rules: Value) -> Value {
    policy("web", json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": rules}))
}

#[test]
fn what_reads_otherwise_and_means_the_same() {
    let together = json!([{"from": [{"source": {"namespaces": ["a", "b"]}}]}]);
    let apart =
        json!([{"from": [{"source": {"namespaces": ["a"]}}]}, {"from": [{"source": {"namespaces": ["b"]}}]}]);
    let entries = json!([{"from": [{"source": {"namespaces": ["b"]}}, {"source": {"namespaces": ["a"]}}]}]);
    let when = json!([{"when": [{"key": "source.namespace", "values": ["b", "a"]}]}]);
    let more = json!([{"from": [{"source": {"namespaces": ["a", "b"]}}]},
                      {"from": [{"source": {"principals": ["cluster.local/ns/a/sa/x"]}}]}]);
    for other in [apart, entries, when, more] {
        let found = compared(&[web(together.clone())], &[web(other.clone())]);
        assert!(found.is_same(), "{other}: {:?}", lines(&found));
    }
    let no = json!({"rules": [{"from": [{"source": {"namespaces": ["a*"]}}]}]});
    let prefix = json!({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a*"]}}]}]});
    // Not the same: another trust domain.
    assert_eq!(lines(&compared(&[policy("p", prefix)], &[policy("p", no)])).len(), 1);
}

#[test]
fn one_change_one_difference() {
    let selected = |app: &str| json!({"selector": {"matchLabels": {"app": app}}, "rules": from(&["a"])});
    let deny = json!({"action": "DENY", "rules": from(&["a"])});
    let strict = json!({"mtls": {"mode": "STRICT"}});
    let exempt = json!({"selector": {"matchLabels": {"app": "old"}}, "mtls": {"mode": "PERMISSIVE"}});
    let all = "workloads of namespace default";
    let cases = vec![
        (
            vec![web(from(&["a"]))],
            vec![web(from(&["a", "b"]))],
            vec!["+ Service default/web at waypoint default/waypoint: namespaces=[b]".into()],
        ),
        (
            vec![web(from(&["a", "b"]))],
            vec![web(from(&["b"]))],
            vec!["- Service default/web at waypoint default/waypoint: namespaces=[a]".into()],
        ),
        (vec![policy("p", deny.clone())], vec![], vec![format!("+ {all} at node proxy: namespaces=[a]")]),
        (vec![], vec![policy("p", deny)], vec![format!("- {all} at node proxy: namespaces=[a]")]),
        (
            vec![policy("p", selected("x"))],
            vec![policy("p", selected("y"))],
            vec![
                format!("+ {all} that default/p does not select at node proxy: any request"),
                format!("- {all} that default/p does not select at node proxy: any request"),
            ],
        ),
        (
            vec![peer("default", "d", strict.clone())],
            vec![],
            vec![format!("+ {all} at node proxy: notPrincipals=[*]")],
        ),
        (
            vec![peer("default", "d", strict.clone())],
            vec![peer("default", "d", strict.clone()), peer("default", "e", exempt)],
            vec![format!("+ {all} at node proxy: notPrincipals=[*]")],
        ),
        (
            vec![peer("istio-system", "d", strict.clone())],
            vec![],
            vec!["+ workloads of every other namespace at node proxy: notPrincipals=[*]".into()],
        ),
    ];
    for (old, new, expected) in cases {
        assert_eq!(lines(&compared(&old, &new)), expected, "{old:?} -> {new:?}");
    }
}

#[test]
fn an_exception_from_strict_is_for_the_workloads_that_it_selects() {
    let strict = peer("default", "d", json!({"mtls": {"mode": "STRICT"}}));
    let exempt = peer(
        "default",
        "e",
        json!({"selector": {"matchLabels": {"app": "old"}}, "mtls": {"mode": "PERMISSIVE"}}),
    );
    let found = compared(std::slice::from_ref(&strict), &[strict.clone(), exempt.clone()]);
    assert_eq!((found.newly_allowed.len(), found.newly_denied.len()), (1, 0), "{:?}", lines(&found));
    let one = &found.newly_allowed[0];
    assert_eq!((one.witness.from.as_str(), one.witness.labels["app"].as_str()), ("plaintext", "old"));
    // The older of two wins: the exception comes too late.
    let mut first = exempt.clone();
    first["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut late = peer(
        "default",
        "f",
        json!({"selector": {"matchLabels": {"app": "old"}}, "mtls": {"mode": "STRICT"}}),
    );
    late["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    let found = compared(&[strict.clone(), first.clone()], &[strict, first, late]);
    assert!(found.is_same(), "{:?}", lines(&found));
}

#[test]
fn a_waypoint_that_goes_takes_its_policies_along() {
    let namespace =
        |labels: Value| json!({"kind": "Namespace", "metadata": {"name": "default", "labels": labels}});
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}});
    let bound = [namespace(json!({"istio.io/use-waypoint": "w"})), service.clone(), web(from(&["a"]))];
    let free = [namespace(json!({"a": "b"})), service, web(from(&["a"]))];
    let found = compared(&bound, &free);
    assert_eq!(lines(&found), ["+ Service default/web at waypoint default/w: any request"]);
    assert!(found.newly_allowed[0].plaintext);
    // Policies alone say nothing of waypoints: the other side's objects hold for both.
    assert!(compared(&bound, &[web(from(&["a"]))]).is_same());
}

#[test]
fn ports_without_requests_are_a_place_of_their_own() {
    let service = |ports: Value| {
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "default",
            "labels": {"istio.io/use-waypoint": "w"}}, "spec": {"ports": ports}})
    };
    let any = web(json!([{}]));
    // Every request has a method, a connection has none.
    let method = web(json!([{"to": [{"operation": {"methods": ["*"]}}]}]));
    let differ = |ports: Value| {
        lines(&compared(&[service(ports.clone()), any.clone()], &[service(ports), method.clone()]))
    };
    assert_eq!(differ(json!([{"port": 80, "name": "http"}])), Vec::<String>::new());
    // A port that declares nothing takes both.
    let other =
        "- connections to Service default/web that are no requests at waypoint default/w: any request";
    assert_eq!(differ(json!([{"port": 80}])), [other]);
    assert_eq!(
        lines(&compared(std::slice::from_ref(&any), std::slice::from_ref(&method))),
        [other.replace("/w:", "/waypoint:")]
    );
    let stream = "- connections to Service default/web at waypoint default/w: any request";
    assert_eq!(differ(json!([{"port": 80, "name": "http"}, {"port": 5432, "appProtocol": "tcp"}])), [stream]);
    assert_eq!(differ(json!([{"port": 443, "name": "tls-x"}])), [stream]);
    // What is said of a port is felt where that port is.
    let at = |port: &str| web(json!([{"to": [{"operation": {"ports": [port]}}]}]));
    let ports = service(json!([{"port": 80}, {"port": 5432, "name": "tcp"}]));
    let found = lines(&compared(&[ports.clone(), at("80")], &[ports, at("5432")]));
    assert_eq!(
        found,
        [
            "+ connections to Service default/web at waypoint default/w: ports=[5432]",
            "- Service default/web at waypoint default/w: ports=[80]"
        ]
    );
}

#[test]
fn claims_that_combine_in_too_many_ways_are_unknown() {
    use meltemi_model::authz::{Action, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope};
    use meltemi_model::authz::{StringMatch, ValueMatch};
    use meltemi_policy::ValidPolicy;
    let side = |last: &str| {
        let text = |t: String| ValueMatch::String(StringMatch::parse(&t));
        let values: Vec<_> = (0..20).map(|i| text(format!("v{i}x*"))).chain([text(last.into())]).collect();
        let claim = |k: usize| Attribute::RequestAuthClaim([format!("c{k}").as_str().into()].into());
        let one = |k| Predicate { attribute: claim(k), values: values.clone(), not_values: vec![] };
        let matches = vec![Match { predicates: (0..3).map(one).collect() }];
        let rules = vec![Rule { clauses: vec![Clause { origin: ClauseOrigin::Unknown, matches }] }];
        let (name, scope) = (NamespacedName::new("ns", "p"), Scope::Namespace);
        let policy = Policy { name, scope, action: Action::Allow, dry_run: false, rules };
        vec![Attached { policy: ValidPolicy::new(policy).unwrap(), guard: vec![] }]
    };
    let found = compare(&place("t", "w", Layer::Request), &side("a"), &side("b"));
    assert_eq!(lines(&found), ["? the values of claims combine in too many ways"]);
}

#[test]
fn what_nobody_can_know_is_named() {
    let ask = |path: &str| {
        policy(
            "ask",
            json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "action": "CUSTOM",
            "provider": {"name": "opa"}, "rules": [{"to": [{"operation": {"paths": [path]}}]}]}),
        )
    };
    let base = web(from(&["a"]));
    let found = compared(std::slice::from_ref(&base), &[base.clone(), ask("/x")]);
    assert_eq!(lines(&found), ["? only the new policies ask provider opa about paths=[/x]"]);
    // The same question on both sides has the same answer.
    let wider = web(from(&["a", "b"]));
    let found = compared(&[base.clone(), ask("/x")], &[wider, ask("/x")]);
    assert_eq!(lines(&found), ["+ Service default/web at waypoint default/waypoint: namespaces=[b]"]);
    let path = |path: &str| web(json!([{"to": [{"operation": {"paths": [path]}}]}]));
    let found = lines(&compared(&[path("/a")], &[path("/a//b")]));
    assert!(
        found.iter().any(|l| l.starts_with("? path /a//b is one that programs read in several ways")),
        "{found:?}"
    );
}

#[test]
fn rules_of_layer_7_at_a_node_proxy() {
    let methods = |action: &str| {
        policy("p", json!({"action": action, "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}))
    };
    // An ALLOW that needs HTTP allows nothing there, a DENY denies everything.
    let found = compared(&[], &[methods("ALLOW")]);
    assert!(
        found.newly_allowed.is_empty() && found.newly_denied.len() == 1 && found.newly_denied[0].plaintext
    );
    assert!(compared(&[methods("ALLOW")], &[methods("DENY")]).is_same());
}

#[test]
fn laying_one_world_over_another() {
    let world = |objects: &[Value]| World::read(objects, MeshConfig::default()).whole().unwrap();
    let old = world(&[web(from(&["a"])), policy("other", json!({"rules": from(&["c"])}))]);
    let new = world(&[web(from(&["b"]))]);
    let all = diff(&old, &old.overlaid(&new));
    assert!(lines(&all).iter().all(|l| l.contains("Service default/web")) && all.newly_allowed.len() == 1);
    assert!(lines(&diff(&old, &new)).iter().any(|l| l.contains("workloads of namespace default")));
}
