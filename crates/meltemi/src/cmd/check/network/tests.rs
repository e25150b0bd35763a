// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies against the tunnels, case by case.

use serde_json::{Value, json};

use super::super::State;
use super::*;

fn facts(policies: &[Value], authorization: &[Value]) -> Facts {
    let pod = json!({
        "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running"},
    });
    let namespace = json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}});
    let network = policies.iter().enumerate().map(|(at, spec)| {
        let policy = json!({"metadata": {"name": format!("p{at}"), "namespace": "shop"}, "spec": spec});
        serde_json::from_value(policy).unwrap()
    });
    let authorization = authorization.iter().map(|spec| {
        let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
        serde_json::from_value(policy).unwrap()
    });
    Facts {
        namespaces: vec![serde_json::from_value(namespace).unwrap()],
        pods: vec![serde_json::from_value(pod).unwrap()],
        network_policies: network.collect(),
        policies: authorization.collect(),
        ..Facts::default()
    }
}

fn state(result: &Result<String, Fault>) -> State {
    result.as_ref().map_or_else(|fault| fault.state, |_| State::Ok)
}

fn ingress(ports: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]})
}

#[test]
fn rules_that_shut_tunnels_out_are_found() {
    let web = json!({"port": 8080});
    let tunnel = json!({"port": 15008});
    let from = |app: &str, ports: Value| json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}], "ports": ports}]});
    let cases = [
        ("no policy", vec![], State::Ok),
        ("one port", vec![ingress(json!([web]))], State::Failed),
        ("a named port", vec![ingress(json!([{"port": "http"}]))], State::Failed),
        ("the tunnels' too", vec![ingress(json!([web, tunnel]))], State::Ok),
        ("all ports", vec![ingress(json!([]))], State::Ok),
        ("all of TCP", vec![ingress(json!([{"protocol": "TCP"}]))], State::Ok),
        ("all of UDP and one of TCP", vec![ingress(json!([{"protocol": "UDP"}, web]))], State::Failed),
        ("15008 of UDP", vec![ingress(json!([{"protocol": "UDP", "port": 15008}, web]))], State::Failed),
        ("UDP only", vec![ingress(json!([{"protocol": "UDP", "port": 9}]))], State::Ok),
        ("a range with it", vec![ingress(json!([{"port": 15000, "endPort": 15010}]))], State::Ok),
        ("a range before it", vec![ingress(json!([{"port": 15000, "endPort": 15007}]))], State::Failed),
        ("deny all, which is meant", vec![json!({"podSelector": {}, "policyTypes": ["Ingress"]})], State::Ok),
        (
            "of other Pods",
            vec![json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [web]}]})],
            State::Ok,
        ),
        ("another opens it for all", vec![ingress(json!([web])), ingress(json!([tunnel]))], State::Ok),
        (
            "another opens it for others",
            vec![from("a", json!([web])), from("b", json!([tunnel]))],
            State::Failed,
        ),
        (
            "another opens it for the same",
            vec![from("a", json!([web])), from("a", json!([tunnel]))],
            State::Ok,
        ),
        (
            "for some only, where all may",
            vec![ingress(json!([web])), from("a", json!([tunnel]))],
            State::Failed,
        ),
        (
            "outgoing",
            vec![json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [web]}]})],
            State::Failed,
        ),
        (
            "names only",
            vec![
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 53}, {"port": 53, "protocol": "UDP"}]}]}),
            ],
            State::Ok,
        ),
        (
            "incoming rules that are not in force",
            vec![
                json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{"ports": [web]}], "egress": [{}]}),
            ],
            State::Ok,
        ),
    ];
    for (what, policies, expected) in cases {
        let result = blocked(&facts(&policies, &[]));
        assert_eq!(state(&result), expected, "{what}: {result:?}");
    }
}

#[test]
fn the_remedy_opens_the_rule_that_was_found() {
    let two = json!({"podSelector": {}, "ingress": [{}, {"ports": [{"port": 80}]}]});
    assert!(blocked(&facts(std::slice::from_ref(&two), &[])).is_ok(), "the first rule lets all in");
    let two = json!({"podSelector": {}, "ingress": [
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, {"ports": [{"port": 80}]}]});
    let fault = blocked(&facts(&[two], &[])).unwrap_err();
    assert_eq!(fault.detail, "tunnels of the mesh do not pass: shop/p0 (ingress rule 1: 80 only)");
    let patch = "kubectl -n shop patch networkpolicy p0 --type=json -p \
                 '[{\"op\":\"add\",\"path\":\"/spec/ingress/1/ports/-\",\"value\":{\"protocol\":\"TCP\",\"port\":15008}}]'";
    assert_eq!(fault.remedy, patch);
}

#[test]
fn ports_that_are_open_through_tunnels_are_found_with_the_policy_that_shuts_them() {
    let open = ingress(json!([{"port": "http"}, {"port": 15008}]));
    let deny = |selector: Value, ports: Value| json!({"selector": selector, "action": "DENY", "rules": [{"to": [{"operation": {"notPorts": ports}}]}]});
    let web = json!({"matchLabels": {"app": "web"}});
    let cases = [
        ("nothing restricts", vec![open.clone()], vec![], State::Warning),
        ("the restoring policy", vec![open.clone()], vec![deny(web.clone(), json!(["8080"]))], State::Ok),
        (
            "one of the whole namespace",
            vec![open.clone()],
            vec![deny(Value::Null, json!(["8080"]))],
            State::Ok,
        ),
        (
            "one that allows more",
            vec![open.clone()],
            vec![deny(web.clone(), json!(["8080", "22"]))],
            State::Warning,
        ),
        (
            "one of other Pods",
            vec![open.clone()],
            vec![deny(json!({"matchLabels": {"app": "db"}}), json!(["8080"]))],
            State::Warning,
        ),
        (
            "one that denies some clients only",
            vec![open.clone()],
            vec![json!({"selector": web, "action": "DENY", "rules": [{
                "from": [{"source": {"namespaces": ["x"]}}], "to": [{"operation": {"notPorts": ["8080"]}}]}]})],
            State::Warning,
        ),
        (
            "one that allows",
            vec![open.clone()],
            vec![
                json!({"selector": web, "action": "ALLOW", "rules": [{"to": [{"operation": {"notPorts": ["8080"]}}]}]}),
            ],
            State::Warning,
        ),
        ("tunnels do not pass", vec![ingress(json!([{"port": 8080}]))], vec![], State::Ok),
        ("every port is open anyway", vec![open.clone(), ingress(json!([]))], vec![], State::Ok),
        ("only tunnels", vec![ingress(json!([{"port": 15008}]))], vec![], State::Ok),
        (
            "a range too long to write",
            vec![ingress(json!([{"port": 8000, "endPort": 20000}]))],
            vec![],
            State::Warning,
        ),
    ];
    for (what, policies, authorization, expected) in cases {
        let result = unrestricted(&facts(&policies, &authorization));
        assert_eq!(state(&result), expected, "{what}: {result:?}");
    }
}

#[test]
fn what_restores_the_ports_is_a_policy_that_the_mesh_takes_and_the_check_knows() {
    let policies = [
        ingress(json!([{"port": "http"}, {"port": 15008}])),
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": 9000, "endPort": 9001}]}]}),
    ];
    let fault = unrestricted(&facts(&policies, &[])).unwrap_err();
    let text = fault.remedy.split_once('\n').unwrap().1;
    let written = crate::manifests::parse(text).unwrap();
    assert_eq!(written.len(), 1, "{text}");
    let spec = &written[0].data["spec"];
    assert_eq!(spec["rules"][0]["to"][0]["operation"]["notPorts"], json!(["8080", "9000", "9001"]));
    let read: meltemi_resources::policies::AuthorizationPolicySpec =
        serde_json::from_value(spec.clone()).unwrap();
    assert!(read.rules.is_some());
    assert!(unrestricted(&facts(&policies, std::slice::from_ref(spec))).is_ok());
}
