// SPDX-License-Identifier: Apache-2.0
//! The parts of a mesh, case by case.

use serde_json::{Value, json};

use super::super::State;
use super::*;

fn state(result: &Result<String, Fault>) -> State {
    result.as_ref().map_or_else(|fault| fault.state, |_| State::Ok)
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn definitions_of_policies_must_be_there_and_served() {
    let definition = |name: &str, served: bool| {
        parse(
            json!({"metadata": {"name": name}, "spec": {"group": "", "names": {"kind": "", "plural": ""}, "scope": "",
            "versions": [{"name": "v1beta1", "served": true, "storage": true}, {"name": "v1", "served": served, "storage": false}]}}),
        )
    };
    for (count, served, expected) in
        [(3, true, State::Ok), (2, true, State::Failed), (3, false, State::Failed), (0, true, State::Failed)]
    {
        let definitions = DEFINITIONS[6..].iter().take(count).map(|name| definition(name, served)).collect();
        let facts = Facts { definitions, ..Facts::default() };
        assert_eq!(state(&policies(&facts)), expected, "{count} {served}");
    }
}

#[test]
fn the_control_plane_is_ready_when_every_replica_is() {
    for (wanted, ready, expected) in [
        (json!(2), json!(2), State::Ok),
        (Value::Null, json!(1), State::Ok),
        (json!(2), json!(1), State::Warning),
        (json!(2), Value::Null, State::Failed),
        (json!(0), json!(0), State::Failed),
    ] {
        let deployment = parse(
            json!({"spec": {"replicas": wanted, "selector": {}, "template": {}}, "status": {"readyReplicas": ready}}),
        );
        let facts = Facts { control_plane: Some(deployment), ..Facts::default() };
        assert_eq!(state(&control_plane(&facts)), expected, "{wanted} {ready}");
    }
    assert_eq!(state(&control_plane(&Facts::default())), State::Failed);
}

#[test]
fn a_leader_renews_its_lease() {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    for (holder, renewed, expected) in [
        (json!("istiod-a"), json!("2026-01-01T00:09:58.000000Z"), State::Ok),
        // A clock that is ahead of ours.
        (json!("istiod-a"), json!("2026-01-01T00:12:00.000000Z"), State::Ok),
        (json!("istiod-a"), json!("2026-01-01T00:08:00.000000Z"), State::Failed),
        (json!("istiod-a"), Value::Null, State::Failed),
        (json!(""), json!("2026-01-01T00:09:58.000000Z"), State::Failed),
        (Value::Null, json!("2026-01-01T00:09:58.000000Z"), State::Failed),
    ] {
        let lease = parse(json!({"spec": {"holderIdentity": holder, "renewTime": renewed}}));
        let facts = Facts { now, lease: Some(lease), ..Facts::default() };
        assert_eq!(state(&leader(&facts)), expected, "{holder} {renewed}");
    }
    assert_eq!(state(&leader(&Facts { now, ..Facts::default() })), State::Failed);
}

#[test]
fn the_webhook_trusts_the_certificate_of_the_control_plane() {
    let hook = |bundle: &[u8]| {
        let bundle = k8s_openapi::ByteString(bundle.to_vec());
        parse(
            json!({"webhooks": [{"name": "x", "admissionReviewVersions": [], "sideEffects": "None", "clientConfig": {"caBundle": bundle}}]}),
        )
    };
    let root = || Some(parse(json!({"data": {"root-cert.pem": "A\n"}})));
    for (webhook, root, expected) in [
        (Some(hook(b"A")), root(), State::Ok),
        (Some(hook(b"B")), root(), State::Failed),
        (Some(hook(b"A")), None, State::Failed),
        (None, root(), State::Failed),
    ] {
        let facts = Facts { webhook, root, ..Facts::default() };
        assert_eq!(state(&super::webhook(&facts)), expected);
    }
}

fn agent(name: &str, node: &str, cni: bool, proxy: bool) -> Pod {
    let status = |name: &str, ready: bool| {
        json!({"name": name, "ready": ready, "image": "", "imageID": "", "restartCount": 0,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}})
    };
    parse(json!({
        "metadata": {"name": name, "namespace": SYSTEM, "labels": {"app": "ztunnel"}},
        "spec": {"nodeName": node, "hostNetwork": false, "containers": [{"name": "cni"}, {"name": "istio-proxy"}]},
        "status": {"phase": "Running", "containerStatuses": [status("cni", cni), status("istio-proxy", proxy)]},
    }))
}

#[test]
fn each_node_with_enrolled_pods_needs_its_proxy_and_each_node_its_plugin() {
    let web = |node: &str| -> Pod {
        parse(
            json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running"}}),
        )
    };
    let cases = [
        ("both", vec![agent("z1", "a", true, true), agent("z2", "b", true, true)], State::Ok, State::Ok, ""),
        (
            "none on b",
            vec![agent("z1", "a", true, true)],
            State::Failed,
            State::Failed,
            "b (no Pod of ds/ztunnel)",
        ),
        (
            "proxy not ready",
            vec![agent("z1", "a", true, true), agent("z2", "b", true, false)],
            State::Failed,
            State::Ok,
            "b (container istio-proxy of z2 CrashLoopBackOff)",
        ),
        (
            "plugin not in place",
            vec![agent("z1", "a", false, true), agent("z2", "b", true, true)],
            State::Ok,
            State::Failed,
            "",
        ),
        (
            "an update: the earlier one is ready",
            vec![agent("z1", "a", true, true), agent("z3", "b", true, true), agent("z2", "b", false, false)],
            State::Ok,
            State::Ok,
            "",
        ),
        (
            "an update: the later one is ready",
            vec![agent("z1", "a", true, true), agent("z2", "b", false, false), agent("z3", "b", true, true)],
            State::Ok,
            State::Ok,
            "",
        ),
    ];
    for (what, mut pods, proxy, plugin, detail) in cases {
        pods.extend(["a", "b"].map(web));
        let facts = Facts {
            nodes: ["a", "b"].map(|name| parse(json!({"metadata": {"name": name}}))).to_vec(),
            namespaces: vec![parse(
                json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
            )],
            pods,
            ..Facts::default()
        };
        let found = proxies(&facts);
        assert_eq!((state(&found), state(&plugins(&facts))), (proxy, plugin), "{what}: {found:?}");
        if let Err(fault) = found {
            assert!(fault.detail.contains(detail), "{what}: {}", fault.detail);
        }
    }
}

#[test]
fn parts_of_different_versions_are_told() {
    let part = |image: &str| {
        json!({"metadata": {"name": "ztunnel", "namespace": SYSTEM}, "spec": {"selector": {}, "template":
        {"spec": {"containers": [{"name": "a", "image": image}]}}}})
    };
    for (control, node, expected) in [
        (Some("m:1"), Some("m:1"), State::Ok),
        (Some("m:1"), Some("m:2"), State::Warning),
        (None, None, State::Failed),
    ] {
        let facts = Facts {
            control_plane: control.map(|image| parse(part(image))),
            daemon_sets: node.map(|image| parse(part(image))).into_iter().collect(),
            ..Facts::default()
        };
        assert_eq!(state(&images(&facts)), expected, "{control:?} {node:?}");
    }
}
