// SPDX-License-Identifier: Apache-2.0
//! Unknown and duplicate fields: all of them are named at once, as the client asks with `fieldValidation`.

use serde_json::Value;

use super::client::client;
use super::custom::WIDGETS;
use super::server::Server;

const DEPLOYMENT: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
    "spec": {"unknownField": "foo", "replicas": 2, "replicas": 3, "selector": {"matchLabels": {"app": "a"}},
    "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [
        {"name": "a", "image": "b", "imagee": "c", "image": "d"}]}}}}"#;
const FAULTS: [&str; 4] = [
    r#"unknown field "spec.unknownField""#,
    r#"duplicate field "spec.replicas""#,
    r#"unknown field "spec.template.spec.containers[0].imagee""#,
    r#"duplicate field "spec.template.spec.containers[0].image""#,
];

/// Code, message and warnings of an answer.
pub(crate) async fn send(
    client: &kube::Client,
    method: &str,
    uri: &str,
    kind: &str,
    body: &str,
) -> (u16, String, Vec<String>) {
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", kind)
        .body(body.as_bytes().to_vec().into())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let texts = response.headers().get_all("warning").iter().map(|text| text.to_str().unwrap().to_owned());
    let warnings = texts.collect();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    (code, body["message"].as_str().unwrap_or_default().to_owned(), warnings)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_unknown_and_duplicate_fields_are_named_together() {
    let server = Server::start();
    let client = client(&server).await;
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let json = "application/json";
    let (code, message, _) =
        send(&client, "POST", &format!("{all}?fieldValidation=Strict"), json, DEPLOYMENT).await;
    let expected = format!("strict decoding error: {}", FAULTS.join(", "));
    assert_eq!(code, 400);
    assert!(message.ends_with(&expected), "{message}");
    for (validation, told) in [("Ignore", 0), ("Warn", FAULTS.len()), ("", FAULTS.len())] {
        let uri = format!("{all}?dryRun=All&fieldValidation={validation}");
        let (code, message, warnings) = send(&client, "POST", &uri, json, DEPLOYMENT).await;
        assert_eq!((code, warnings.len()), (201, told), "{validation}: {message} {warnings:?}");
        for (warning, fault) in warnings.iter().zip(FAULTS) {
            assert_eq!(*warning, format!("299 - {}", Value::from(fault)));
        }
    }
    // The last of two values counts.
    let uri = format!("{all}?fieldValidation=Ignore");
    assert_eq!(send(&client, "POST", &uri, json, DEPLOYMENT).await.0, 201);
    assert_eq!(server.value("deployment/d", ".spec.replicas"), "3");
    assert_eq!(server.value("deployment/d", ".spec.template.spec.containers[0].image"), "d");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: b\n  a: c\nextra: 1\n";
    let uri = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let (code, message, _) = send(&client, "POST", uri, "application/yaml", yaml).await;
    assert_eq!(code, 400);
    let expected = r#"strict decoding error: line 7: key "a" already set in map, unknown field "extra""#;
    assert!(message.ends_with(expected), "{message}");
    // Patches, updates.
    let one = format!("{all}/d?fieldValidation=Strict");
    let patch = r#"{"spec": {"replicas": 4, "replicas": 5, "bad": 1}}"#;
    for kind in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        let (code, message, _) = send(&client, "PATCH", &one, kind, patch).await;
        assert_eq!(code, 400, "{kind}");
        let expected = r#"error: duplicate field "spec.replicas", unknown field "spec.bad""#;
        assert!(message.ends_with(expected), "{kind}: {message}");
    }
    let (code, message, _) = send(&client, "PUT", &one, json, DEPLOYMENT).await;
    assert!(code == 400 && message.contains(FAULTS[3]), "{code} {message}");
    assert_eq!(server.value("deployment/d", ".spec.replicas"), "3");
    // What is no stored object is read strictly, whatever the client asks.
    let scale = r#"{"metadata": {"name": "d"}, "spec": {"replicas": 1, "replicas": 0}}"#;
    let uri = format!("{all}/d/scale?fieldValidation=Ignore");
    assert_eq!(send(&client, "PUT", &uri, json, scale).await.0, 400);
    assert_eq!(server.value("deployment/d", ".spec.replicas"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_resource_is_read_twice_and_a_strict_group_is_always_strict() {
    let server = Server::start();
    server.apply(WIDGETS);
    server.apply(&WIDGETS.replace("example.com", "other.example.org"));
    let client = client(&server).await;
    let body = |group: &str| {
        format!(
            r#"{{"apiVersion": "{group}/v1", "kind": "Widget", "metadata": {{"name": "w"}},
            "spec": {{"sise": 1, "size": 1, "size": 2}}}}"#
        )
    };
    let faults = [r#"duplicate field "spec.size""#, r#"unknown field "spec.sise""#];
    let uri = |group: &str, query: &str| format!("/apis/{group}/v1/namespaces/default/widgets{query}");
    let json = "application/json";
    for (group, query, code) in [
        ("other.example.org", "?fieldValidation=Strict", 400),
        ("example.com", "?fieldValidation=Ignore", 400),
        ("example.com", "", 400),
        ("other.example.org", "", 201),
    ] {
        let (given, message, warnings) = send(&client, "POST", &uri(group, query), json, &body(group)).await;
        assert_eq!(given, code, "{group} {query}: {message}");
        if code == 400 {
            assert!(message.ends_with(&faults.join(", ")), "{group} {query}: {message}");
        } else {
            assert_eq!(warnings.len(), 2, "{warnings:?}");
        }
    }
    assert_eq!(server.value("widgets.other.example.org/w", ".spec.size"), "2");
    // Server-side apply tracks fields by their types: what has none is refused whatever is asked.
    let apply = "application/apply-patch+yaml";
    let one = |query: &str| uri("other.example.org", &format!("/a?fieldManager=m{query}"));
    let head =
        "apiVersion: other.example.org/v1\nkind: Widget\nunknownField: x\nmetadata:\n  name: a\n  odd: 1\n";
    let (code, message, _) =
        send(&client, "PATCH", &one(""), apply, &format!("{head}spec: {{size: 1}}")).await;
    assert_eq!(code, 400);
    for path in [".unknownField", ".metadata.odd"] {
        assert!(message.contains(&format!("{path}: field not declared in schema")), "{message}");
    }
    // Who manages what is for the server to say: an object that was read cannot be applied as it is.
    let managed = format!(
        "{}  managedFields: [{{manager: x}}]\nspec: {{size: 1}}",
        head.replace("unknownField: x\n", "").replace("  odd: 1\n", "")
    );
    let (code, message, _) = send(&client, "PATCH", &one(""), apply, &managed).await;
    assert!(code == 400 && message.contains("managedFields must be nil"), "{code} {message}");
    let twice = "apiVersion: other.example.org/v1\nkind: Widget\nspec:\n  size: 1\n  size: 2\n";
    let (code, message, _) = send(&client, "PATCH", &one("&fieldValidation=Strict"), apply, twice).await;
    assert!(code == 400 && message.contains(r#"line 5: key "size" already set in map"#), "{code} {message}");
    let (code, _, warnings) = send(&client, "PATCH", &one(""), apply, twice).await;
    assert_eq!((code, warnings.len()), (201, 1), "{warnings:?}");
}
