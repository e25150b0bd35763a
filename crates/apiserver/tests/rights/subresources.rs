// SPDX-License-Identifier: Apache-2.0
//! Evictions, scales, bindings, tokens and deletions: bodies that mean something else are refused, and a budget holds.

use http::Method;
use serde_json::{Value, json};

use super::oracle::Who;
use super::world::Server;

fn root() -> Who {
    Who { name: "root".to_owned(), groups: vec!["system:masters".to_owned()] }
}

fn pod(name: &str, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "uid": name,
        "labels": {"app": "web"}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
        "uid": "rs", "controller": true}]}, "spec": {"containers": [{"name": "c", "image": "x"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
}

/// Two Pods `one` and `two` of a ReplicaSet of two, and what else the bodies name.
fn server() -> Server {
    let server = Server::new();
    server.put("/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
    server.put("/serviceaccounts", json!({"metadata": {"name": "one", "namespace": "a", "uid": "sa"}}));
    server.put("apps/replicasets", json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web",
        "namespace": "a", "uid": "rs"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}}));
    server.put("/pods", pod("one", true));
    server.put("/pods", pod("two", true));
    server
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, String) {
    let answer = server.send(&root(), Method::POST, path, "application/json", Some(body));
    (answer.code, answer.body["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_body_that_means_something_else_is_refused_and_changes_nothing() {
    let server = server();
    let pods = "/api/v1/namespaces/a/pods/one";
    let scale = "/apis/apps/v1/namespaces/a/replicasets/web/scale";
    let merge = "application/merge-patch+json";
    let json_type = "application/json";
    let cases = [
        (Method::POST, format!("{pods}/eviction"), json_type, json!({"metadata": {"name": "two"}}), 400),
        (Method::POST, format!("{pods}/eviction"), json_type, json!({"metadata": {"namespace": "b"}}), 400),
        (
            Method::POST,
            format!("{pods}/eviction"),
            json_type,
            json!({"deleteOptions": {"dryRun": ["all"]}}),
            422,
        ),
        (
            Method::POST,
            format!("{pods}/eviction"),
            json_type,
            json!({"deleteOptions": {"dryrun": ["All"]}}),
            400,
        ),
        (
            Method::POST,
            format!("{pods}/eviction"),
            json_type,
            json!({"deleteOptions": {"preconditions": {"uid": "x"}}}),
            409,
        ),
        (Method::POST, format!("{pods}/eviction"), json_type, json!({"kind": "Binding"}), 400),
        (Method::POST, format!("{pods}/eviction?dryRun=all"), json_type, json!({}), 400),
        (Method::POST, format!("{pods}/binding"), json_type, json!({"target": {"nam": "n"}}), 400),
        (
            Method::POST,
            format!("{pods}/binding"),
            json_type,
            json!({"target": {"kind": "Pod", "name": "n"}}),
            422,
        ),
        (Method::POST, format!("{pods}/binding"), json_type, json!({"target": {}}), 422),
        (
            Method::POST,
            format!("{pods}/binding"),
            json_type,
            json!({"metadata": {"uid": "x"}, "target": {"name": "n"}}),
            409,
        ),
        (
            Method::POST,
            format!("{pods}/binding"),
            json_type,
            json!({"metadata": {"name": "two"}, "target": {"name": "n"}}),
            400,
        ),
        (Method::PATCH, scale.to_owned(), merge, json!({"spec": {"replicas": "3"}}), 400),
        (Method::PATCH, scale.to_owned(), merge, json!({"spec": {"replica": 3}}), 400),
        (Method::PATCH, scale.to_owned(), merge, json!({"spec": {"replicas": -1}}), 422),
        (Method::PATCH, scale.to_owned(), merge, json!({"spec": {"replicas": 4_294_967_296_u64}}), 400),
        (Method::PATCH, scale.to_owned(), merge, json!({"metadata": {"resourceVersion": "1000"}}), 409),
        (Method::PUT, scale.to_owned(), json_type, json!({"spec": {"replica": 3}}), 400),
        (
            Method::PUT,
            scale.to_owned(),
            json_type,
            json!({"metadata": {"name": "other"}, "spec": {"replicas": 3}}),
            400,
        ),
        (
            Method::PUT,
            scale.to_owned(),
            json_type,
            json!({"metadata": {"uid": "x"}, "spec": {"replicas": 3}}),
            409,
        ),
        (
            Method::POST,
            "/api/v1/namespaces/a/serviceaccounts/one/token".into(),
            json_type,
            json!({"spec": {"audience": "x"}}),
            400,
        ),
        (
            Method::POST,
            "/api/v1/namespaces/a/serviceaccounts/one/token".into(),
            json_type,
            json!({"metadata": {"name": "x"}}),
            400,
        ),
        (
            Method::PUT,
            "/api/v1/namespaces/a/finalize".into(),
            json_type,
            json!({"metadata": {"name": "b"}}),
            400,
        ),
        (Method::DELETE, pods.to_owned(), json_type, json!({"propagationPolicy": "orphan"}), 422),
        (Method::DELETE, format!("{pods}?propagationPolicy=orphan"), json_type, json!({}), 400),
        (Method::DELETE, pods.to_owned(), json_type, json!({"dryRun": ["all"]}), 422),
        (
            Method::DELETE,
            "/api/v1/namespaces/a/pods?fieldSelector=status.phas!%3DRunning".into(),
            json_type,
            json!({}),
            400,
        ),
        (
            Method::GET,
            "/api/v1/namespaces/a/pods?fieldSelector=status.phas!%3DRunning".into(),
            json_type,
            json!({}),
            400,
        ),
        (
            Method::GET,
            "/api/v1/pods?watch=true&fieldSelector=status.phas!%3DRunning".into(),
            json_type,
            json!({}),
            400,
        ),
        (Method::PATCH, format!("{pods}?force=true"), merge, json!({}), 422),
        (
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".into(),
            json_type,
            json!({"spec": {"resourceAttributes": {"verb": 1}}}),
            400,
        ),
    ];
    let before = server.api.store.revision();
    for (method, path, kind, body, code) in cases {
        let body = (method != Method::GET).then_some(body);
        let answer = server.send(&root(), method.clone(), &path, kind, body.as_ref());
        assert_eq!(answer.code, code, "{method} {path} {body:?}: {answer:?}");
        assert_eq!(server.api.store.revision(), before, "{method} {path} {body:?} wrote");
    }
}

#[test]
fn an_eviction_obeys_a_budget_and_a_deletion_does_not() {
    let evict = |server: &Server, name: &str, query: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "a"}});
        post(server, &format!("/api/v1/namespaces/a/pods/{name}/eviction{query}"), &body)
    };
    let is_there = |server: &Server, name: &str| server.api.store.get("/pods", "a", name).is_some();
    // the budget, whether the Pods are ready, what comes of evicting the first and then the second
    let cases = [
        (None, [true, true], [201, 201]),
        (Some(json!({"minAvailable": 2})), [true, true], [429, 429]),
        (Some(json!({"minAvailable": 1})), [true, true], [201, 429]),
        (Some(json!({"minAvailable": "50%"})), [true, true], [201, 429]),
        (Some(json!({"maxUnavailable": 1})), [true, true], [201, 429]),
        (Some(json!({"maxUnavailable": 0})), [true, true], [429, 429]),
        (Some(json!({"maxUnavailable": "100%"})), [true, true], [201, 201]),
        (Some(json!({})), [true, true], [201, 429]),
        // A Pod that is not ready may go while enough others are.
        (Some(json!({"minAvailable": 1})), [false, true], [201, 429]),
        (Some(json!({"minAvailable": 2})), [false, true], [429, 429]),
        (
            Some(json!({"minAvailable": 2, "unhealthyPodEvictionPolicy": "AlwaysAllow"})),
            [false, true],
            [201, 429],
        ),
    ];
    for (budget, ready, expected) in cases {
        let server = server();
        for (name, ready) in [("one", ready[0]), ("two", ready[1])] {
            let live = server.api.store.get("/pods", "a", name).unwrap();
            server.api.store.replace("/pods", "a", name, live.revision, pod(name, ready)).unwrap();
        }
        if let Some(mut spec) = budget.clone() {
            spec["selector"] = json!({"matchLabels": {"app": "web"}});
            server.put(
                "policy/poddisruptionbudgets",
                json!({"metadata": {"name": "web", "namespace": "a"}, "spec": spec}),
            );
        }
        let (code, message) = evict(&server, "one", "?dryRun=All");
        assert_eq!(code, expected[0], "{budget:?} tried: {message}");
        assert!(is_there(&server, "one"), "a trial evicts nothing");
        let (code, message) = evict(&server, "one", "");
        assert_eq!(code, expected[0], "{budget:?}: {message}");
        if code == 429 {
            assert_eq!(message, "Cannot evict pod as it would violate the pod's disruption budget.");
        }
        assert_eq!(is_there(&server, "one"), code == 429, "{budget:?}");
        let (code, message) = evict(&server, "two", "");
        assert_eq!(code, expected[1], "{budget:?} then: {message}");
        let answer =
            server.send(&root(), Method::DELETE, "/api/v1/namespaces/a/pods/two", "application/json", None);
        assert!(matches!(answer.code, 200 | 404), "{answer:?}");
    }
}

#[test]
fn a_scale_is_answered_as_it_became() {
    let server = server();
    let path = "/apis/apps/v1/namespaces/a/replicasets/web/scale";
    let body = json!({"spec": {"replicas": 5}});
    for (query, stored) in [("?dryRun=All", 2), ("", 5)] {
        let answer = server.send(
            &root(),
            Method::PATCH,
            &format!("{path}{query}"),
            "application/merge-patch+json",
            Some(&body),
        );
        assert_eq!((answer.code, &answer.body["spec"]["replicas"]), (200, &json!(5)), "{answer:?}");
        let live = server.api.store.get("apps/replicasets", "a", "web").unwrap().value;
        assert_eq!(live["spec"]["replicas"], stored, "{query}");
    }
}

#[test]
fn finalize_changes_the_finalizers_of_a_namespace_and_an_update_does_not() {
    let server = server();
    let body = json!({"metadata": {"name": "a", "labels": {"istio.io/dataplane-mode": "none"}}, "spec": {"finalizers": ["x.io/y"]}});
    let put = |path: &str, body: &Value| {
        server.send(&root(), Method::PUT, path, "application/json", Some(body)).code
    };
    let live = || server.api.store.get("/namespaces", "", "a").unwrap().value;
    assert_eq!(put("/api/v1/namespaces/a/finalize", &body), 200);
    assert_eq!(live()["spec"]["finalizers"], json!(["x.io/y"]));
    assert!(live()["metadata"]["labels"].is_null(), "{}", live());
    let body = json!({"metadata": {"name": "a"}, "spec": {"finalizers": []}});
    assert_eq!(put("/api/v1/namespaces/a", &body), 200);
    assert_eq!(live()["spec"]["finalizers"], json!(["x.io/y"]));
}

#[test]
fn what_is_being_deleted_gets_no_new_finalizers() {
    let server = server();
    server.put("/configmaps", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m",
        "namespace": "a", "uid": "m", "finalizers": ["x.io/a", "x.io/b"], "deletionTimestamp": "2026-01-01T00:00:00Z",
        "deletionGracePeriodSeconds": 0}}));
    let patch = |finalizers: Value| {
        let path = "/api/v1/namespaces/a/configmaps/m";
        let body = json!({"metadata": {"finalizers": finalizers}});
        server.send(&root(), Method::PATCH, path, "application/merge-patch+json", Some(&body)).code
    };
    assert_eq!(patch(json!(["x.io/a", "x.io/c"])), 422);
    assert_eq!(patch(json!(["x.io/a"])), 200);
}

#[test]
fn an_immutable_configmap_keeps_its_data() {
    let server = server();
    server.put(
        "/configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m",
        "namespace": "a", "uid": "m"}, "data": {"k": "v"}, "immutable": true}),
    );
    let cases = [
        (json!({"data": {"k": "w"}}), 422),
        (json!({"immutable": false}), 422),
        (json!({"immutable": null}), 422),
        (json!({"binaryData": {"k2": "dg=="}}), 422),
        (json!({"metadata": {"labels": {"l": "m"}}}), 200),
    ];
    for (body, code) in cases {
        let path = "/api/v1/namespaces/a/configmaps/m";
        let answer = server.send(&root(), Method::PATCH, path, "application/merge-patch+json", Some(&body));
        assert_eq!(answer.code, code, "{body}: {answer:?}");
    }
}
