// SPDX-License-Identifier: Apache-2.0
//! Pods of a namespace whose ServiceAccount `default` is still to be made.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::oracle::Who;
use super::world::{Answer, Server};

fn server(made: &str) -> Server {
    let server = Server::new();
    let metadata = json!({"name": "a", "creationTimestamp": made});
    server.put("/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    server
}

fn put_account(server: &Server) {
    let metadata = json!({"name": "default", "namespace": "a"});
    server
        .put("/serviceaccounts", json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
}

fn create_pod(server: &Server, account: Option<&str>) -> Answer {
    let mut pod: Value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "x"}]}});
    if let Some(account) = account {
        pod["spec"]["serviceAccountName"] = account.into();
    }
    let root = Who { name: "root".to_owned(), groups: vec!["system:masters".to_owned()] };
    server.send(&root, Method::POST, "/api/v1/namespaces/a/pods", "application/json", Some(&pod))
}

#[test]
fn a_pod_waits_for_the_account_of_its_new_namespace() {
    let now = jiff::Timestamp::now().to_string();
    for account in [None, Some("default")] {
        let server = server(&now);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                put_account(&server);
            });
            let answer = create_pod(&server, account);
            assert_eq!(answer.code, 201, "{account:?}: {answer:?}");
        });
    }
}

#[test]
fn a_pod_is_refused_by_name_where_no_account_comes() {
    let now = jiff::Timestamp::now().to_string();
    for (made, account) in
        [(now.as_str(), None), ("2020-01-01T00:00:00Z", None), (now.as_str(), Some("other"))]
    {
        let answer = create_pod(&server(made), account);
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert!(answer.code == 403 && message.contains("error looking up service account"), "{answer:?}");
    }
}
