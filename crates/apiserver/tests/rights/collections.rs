// SPDX-License-Identifier: Apache-2.0
//! Deletions of whole collections.

use http::Method;
use serde_json::{Value, json};

use super::oracle::Who;
use super::world::Server;

const MAPS: &str = "/api/v1/namespaces/a/configmaps";

fn delete(server: &Server, path: &str) -> Value {
    let root = Who { name: "root".to_owned(), groups: vec!["system:masters".to_owned()] };
    let answer = server.send(&root, Method::DELETE, path, "application/json", None);
    assert_eq!(answer.code, 200, "{answer:?}");
    answer.body
}

/// ConfigMaps in the namespace `a`, half of them with the label `half=yes`, and one in `b`.
fn server(count: usize, size: usize) -> Server {
    let server = Server::new();
    for name in ["a", "b"] {
        server
            .put("/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    let map = |namespace: &str, name: &str, half: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "x".repeat(size)},
               "metadata": {"name": name, "namespace": namespace, "labels": {"half": half}}})
    };
    for number in 0..count {
        server
            .put("/configmaps", map("a", &format!("m{number}"), if number % 2 == 0 { "yes" } else { "no" }));
    }
    server.put("/configmaps", map("b", "other", "yes"));
    server
}

#[test]
fn a_small_collection_is_answered_with_its_objects_and_only_what_is_selected_goes() {
    let server = server(6, 10);
    let answer = delete(&server, &format!("{MAPS}?labelSelector=half%3Dyes"));
    assert_eq!(answer["kind"], "ConfigMapList");
    assert_eq!(answer["items"].as_array().map(Vec::len), Some(3));
    assert_eq!(server.api.store.list("/configmaps", None, None).0.len(), 4);
    // A finalizer keeps an object, and a dry run keeps all.
    delete(&server, &format!("{MAPS}?dryRun=All"));
    assert_eq!(server.api.store.list("/configmaps", Some("a"), None).0.len(), 3);
    server.put(
        "/configmaps",
        json!({"metadata": {"name": "kept", "namespace": "a", "finalizers": ["x.io/wait"]}}),
    );
    delete(&server, MAPS);
    let left = server.api.store.list("/configmaps", None, None).0;
    let names: Vec<&str> = left.iter().map(|one| one.value["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kept", "other"]);
}

/// The answer to a large one would hold all of it in memory twice.
#[test]
fn a_large_collection_is_answered_with_its_number() {
    let server = server(3_000, 1_000);
    let answer = delete(&server, MAPS);
    assert_eq!((&answer["kind"], &answer["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(answer["message"], "3000 configmaps deleted");
    assert!(answer["items"].is_null());
    assert_eq!(server.api.store.list("/configmaps", None, None).0.len(), 1);
}
