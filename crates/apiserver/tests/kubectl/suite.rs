// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes' own conformance suite asks for and once found missing; K2, K3 and K5 are in `decoding` and `custom`.

use serde_json::{Value, json};

use super::client::client;
use super::custom::WIDGETS;
use super::decoding::send;
use super::server::Server;

/// K1, K7: selectors by fields that are unset, and of objects that were just made.
#[test]
fn field_selectors_find_what_was_just_made_and_what_is_unset() {
    let server = Server::start();
    server.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-a}");
    for (selector, expected) in
        [("spec.unschedulable=false", "node/node-a\n"), ("spec.unschedulable=true", "")]
    {
        assert_eq!(server.kubectl(&["get", "nodes", "-o", "name", "--field-selector", selector]), expected);
    }
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Do", "reason": "Test", "type": "Normal", "note": "x",
        "reportingController": "test.io/c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}});
    server.kubectl_with(&["create", "-f", "-"], &event.to_string());
    for group in ["events.events.k8s.io", "events"] {
        let selector = "reason=Test,metadata.name=e";
        let found = server.kubectl(&["get", group, "-o", "name", "--field-selector", selector]);
        assert_eq!(found.lines().count(), 1, "{group}: {found}");
    }
    let found = server.kubectl(&[
        "get",
        "events.events.k8s.io",
        "-o",
        "name",
        "--field-selector",
        "reportingController=test.io/c",
    ]);
    assert_eq!(found.lines().count(), 1, "{found}");
}

/// K4: a merge of a status whose parts have schemas of their own.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_definition_can_be_patched() {
    let server = Server::start();
    server.apply(WIDGETS);
    let client = client(&server).await;
    let uri = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com/status";
    let condition = json!({"type": "Tested", "status": "True", "reason": "E2E", "message": "x", "lastTransitionTime": null});
    let patch = json!({"status": {"conditions": [condition]}}).to_string();
    let (code, message, _) = send(&client, "PATCH", uri, "application/merge-patch+json", &patch).await;
    assert_eq!(code, 200, "{message}");
    let types = server.value("crd/widgets.example.com", ".status.conditions[*].type");
    assert!(types.contains("Tested"), "{types}");
}

/// K6, K8: what has no metadata has no table, and the group of APIServices is discovered in both forms.
#[tokio::test(flavor = "multi_thread")]
async fn forms_of_answers_are_those_of_kubernetes() {
    let server = Server::start();
    let client = client(&server).await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let get = async |method: &str, uri: &str, accept: &str, body: String| {
        let request = http::Request::builder().method(method).uri(uri).header("accept", accept);
        let request =
            request.header("content-type", "application/json").body(body.into_bytes().into()).unwrap();
        let response = client.send(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (code, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(get("POST", uri, table, review.to_string()).await.0, 406);
    assert_eq!(get("POST", uri, &format!("{table},application/json"), review.to_string()).await.0, 201);
    let aggregated = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json";
    for accept in [aggregated, "application/json"] {
        let (code, groups) = get("GET", "/apis", accept, String::new()).await;
        assert!(code == 200 && groups.to_string().contains("apiregistration.k8s.io"), "{accept}");
    }
    let (code, list) =
        get("GET", "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps", "application/json", String::new())
            .await;
    assert!(code == 200 && list["status"]["conditions"][0]["status"] == "True", "{list}");
}
