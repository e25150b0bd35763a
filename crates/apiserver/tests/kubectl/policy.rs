// SPDX-License-Identifier: Apache-2.0
//! ValidatingAdmissionPolicies: in force as soon as they are acknowledged, for every way to write, and closed when they
//! cannot be evaluated.

use serde_json::{Value, json};

use super::client::client;
use super::custom::WIDGETS;
use super::decoding::send;
use super::server::Server;

/// A policy on ConfigMaps and its binding; `spec` and `binding` are merged into theirs.
fn policy(name: &str, spec: Value, binding: Value) -> String {
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["configmaps"]}]);
    let mut policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": rules}}});
    let mut bound = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    for (object, fields) in [(&mut policy, spec), (&mut bound, binding)] {
        for (key, value) in fields.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, bound]}).to_string()
}

fn map(name: &str, data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_holds_for_every_way_to_write_from_its_acknowledgement_on() {
    let server = Server::start();
    let client = client(&server).await;
    server.apply(&map("old", json!({"n": "5"})));
    let spec = json!({"variables": [{"name": "n", "expression": "int(object.data.n)"}],
        "validations": [
            {"expression": "!has(object.data) || !has(object.data.n) || variables.n <= 3", "reason": "Forbidden",
             "messageExpression": "'n is ' + string(variables.n) + ' in ' + request.namespace + ' of ' + request.userInfo.username"},
            {"expression": "object.metadata.name != 'bad'"}]});
    server.apply(&policy("small", spec, json!({})));
    assert_eq!(server.value("validatingadmissionpolicy/small", ".status.observedGeneration"), "1");
    let (code, message, _) = send(&client, "POST", MAPS, JSON, &map("a", json!({"n": "4"}))).await;
    assert_eq!(code, 403);
    let expected = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'small' denied \
                    request: n is 4 in default of ";
    assert!(message.starts_with(expected), "{message}");
    let (code, message, _) = send(&client, "POST", MAPS, JSON, &map("bad", json!({}))).await;
    assert_eq!(code, 422);
    assert!(
        message.ends_with("denied request: failed expression: object.metadata.name != 'bad'"),
        "{message}"
    );
    // Every other way to write, and dry runs.
    let one = format!("{MAPS}/old");
    let larger = r#"{"data": {"n": "6"}}"#;
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"n": "9"}}).to_string();
    for (method, uri, kind, body) in [
        ("POST", format!("{MAPS}?dryRun=All"), JSON, map("a", json!({"n": "4"}))),
        ("PUT", one.clone(), JSON, map("old", json!({"n": "6"}))),
        ("PATCH", one.clone(), "application/merge-patch+json", larger.to_owned()),
        ("PATCH", one.clone(), "application/strategic-merge-patch+json", larger.to_owned()),
        (
            "PATCH",
            one.clone(),
            "application/json-patch+json",
            r#"[{"op": "replace", "path": "/data/n", "value": "7"}]"#.to_owned(),
        ),
        ("PATCH", format!("{one}?fieldManager=m&force=true"), "application/apply-patch+yaml", apply.clone()),
        ("PATCH", format!("{MAPS}/new?fieldManager=m"), "application/apply-patch+yaml", apply),
        (
            "PATCH",
            one.clone(),
            "application/merge-patch+json",
            r#"{"metadata": {"labels": {"a": "b"}}}"#.to_owned(),
        ),
    ] {
        let (code, message, _) = send(&client, method, &uri, kind, &body).await;
        assert_eq!(code, 403, "{method} {uri} {kind}: {message}");
    }
    assert_eq!(server.value("configmap/old", ".data.n"), "5");
    server.apply(&map("fine", json!({"n": "3"})));
    // Deletions are not among its operations, and it ends with its binding.
    server.kubectl(&["delete", "configmap", "old"]);
    server.kubectl(&["delete", "validatingadmissionpolicybinding", "small"]);
    server.apply(&map("bad", json!({"n": "4"})));
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_selectors_and_actions_decide_where_and_what() {
    let server = Server::start();
    let client = client(&server).await;
    let never = json!([{"expression": "false", "message": "never"}]);
    let spec = json!({"validations": never, "matchConditions": [
        {"name": "named", "expression": "object.metadata.name.startsWith('x')"}]});
    let quiet = json!({"validationActions": ["Warn", "Audit"]});
    server.apply(&policy("warned", spec.clone(), quiet));
    let (code, _, warnings) = send(&client, "POST", MAPS, JSON, &map("x1", json!({}))).await;
    let expected = "Validation failed for ValidatingAdmissionPolicy 'warned' with binding 'warned': never";
    assert_eq!((code, warnings), (201, vec![format!("299 - \"{expected}\"")]));
    let (code, _, warnings) = send(&client, "POST", MAPS, JSON, &map("y1", json!({}))).await;
    assert_eq!((code, warnings), (201, Vec::<String>::new()));
    server.kubectl(&["delete", "validatingadmissionpolicy", "warned"]);

    let selectors = json!({"matchResources": {"namespaceSelector": {"matchLabels": {"closed": "yes"}},
        "objectSelector": {"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]}}});
    server.apply(&policy("closed", json!({"validations": never}), selectors));
    server.kubectl(&["create", "namespace", "shut"]);
    server.kubectl(&["label", "namespace", "shut", "closed=yes"]);
    server.apply(&map("open", json!({})));
    let said = server.refused(&["create", "-n", "shut", "-f", "-"], &map("z", json!({})));
    assert!(said.contains("'closed' denied request: never"), "{said}");
    let free = map("z", json!({})).replace(r#""metadata":{"#, r#""metadata":{"labels":{"free":"yes"},"#);
    server.kubectl_with(&["create", "-n", "shut", "-f", "-"], &free);
    // A label that takes an object out of the selection is judged by what the object was, too.
    let said = server.refused(&["label", "-n", "shut", "configmap", "z", "free-"], "");
    assert!(said.contains("'closed' denied request: never"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_read_when_they_are_needed() {
    let server = Server::start();
    let client = client(&server).await;
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "Secret"},
        "validations": [{"expression": "object.data.size() <= int(params.metadata.labels.most)"}]});
    let reference = json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    server.apply(&policy("sized", spec.clone(), reference));
    let two = map("two", json!({"a": "1", "b": "2"}));
    let (code, message, _) = send(&client, "POST", MAPS, JSON, &two).await;
    assert!(code == 422 && message.contains("no params found"), "{code} {message}");
    let secret = |most: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "limit", "labels": {"most": most}}})
            .to_string()
    };
    server.apply(&secret("1"));
    assert_eq!(send(&client, "POST", MAPS, JSON, &two).await.0, 422);
    server.apply(&secret("2"));
    assert_eq!(send(&client, "POST", MAPS, JSON, &two).await.0, 201);
    let unknown = json!({"paramKind": {"apiVersion": "no.such/v1", "kind": "Thing"}, "validations": [{"expression": "true"}]});
    server.apply(&policy(
        "sized",
        unknown,
        json!({"paramRef": {"name": "x", "parameterNotFoundAction": "Allow"}}),
    ));
    let (code, message, _) = send(&client, "POST", MAPS, JSON, &map("three", json!({}))).await;
    assert!(code == 422 && message.contains("no kind Thing"), "{code} {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_evaluated_denies_unless_the_policy_ignores_failures() {
    let server = Server::start();
    let client = client(&server).await;
    for (failure, expected) in [("Fail", 422), ("Ignore", 201)] {
        for (index, expression) in [
            "object.data.missing == 'x'",
            "object.metadata.name",
            "noSuchFunction(object)",
            "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, object.data.all(e, true)))))",
        ]
        .into_iter()
        .enumerate()
        {
            let spec = json!({"failurePolicy": failure, "validations": [{"expression": expression}]});
            server.apply(&policy("broken", spec, json!({})));
            let data: serde_json::Map<String, Value> = (0..60).map(|n| (format!("k{n}"), json!("v"))).collect();
            let name = format!("m{index}-{}", failure.to_lowercase());
            let (code, message, _) = send(&client, "POST", MAPS, JSON, &map(&name, data.into())).await;
            assert_eq!(code, expected, "{failure} {expression}: {message}");
            assert!(code == 201 || message.contains("resulted in error"), "{expression}: {message}");
        }
    }
    // A broken policy can always be mended: the configuration of admission is not judged.
    let all = json!({"matchConstraints": {"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"],
        "operations": ["*"], "resources": ["*/*"]}]}, "validations": [{"expression": "false"}]});
    server.apply(&policy("broken", all, json!({})));
    server.refused(&["create", "namespace", "x"], "");
    server.refused(&["delete", "namespace", "kube-public"], "");
    server.kubectl(&["delete", "validatingadmissionpolicy", "broken"]);
    server.kubectl(&["create", "namespace", "x"]);
}

/// An older version of a path, a subresource and a stream are no ways around.
#[tokio::test(flavor = "multi_thread")]
async fn other_versions_and_streams_are_judged() {
    let server = Server::start();
    let client = client(&server).await;
    server.apply(WIDGETS);
    let rules = |group: &str, resource: &str, operation: &str| {
        json!({"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "operations": [operation],
            "resources": [resource]}]})
    };
    let spec = json!({"matchConstraints": rules("example.com", "widgets", "CREATE"), "validations": [
        {"expression": "object.apiVersion != 'example.com/v1' || request.requestKind.version != 'v1beta1'"}]});
    server.apply(&policy("versions", spec, json!({})));
    let widget = json!({"apiVersion": "example.com/v1beta1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"size": 1}});
    let uri = "/apis/example.com/v1beta1/namespaces/default/widgets";
    let (code, message, _) = send(&client, "POST", uri, JSON, &widget.to_string()).await;
    assert_eq!(code, 422, "{message}");
    let scale = json!({"matchConstraints": rules("example.com", "widgets/scale", "UPDATE"), "validations": [
        {"expression": "object.kind == 'Scale' && object.spec.replicas <= 2 && oldObject.spec.replicas == 1"}]});
    server.apply(&policy("scales", scale, json!({})));
    server.kubectl(&["delete", "validatingadmissionpolicy", "versions"]);
    server.apply(&widget.to_string());
    let said = server.refused(&["scale", "widget", "w", "--replicas=3"], "");
    assert!(said.contains("'scales' denied request"), "{said}");
    server.kubectl(&["scale", "widget", "w", "--replicas=2"]);
    let connect = json!({"matchConstraints": rules("", "pods/exec", "CONNECT"), "validations": [
        {"expression": "!object.command.exists(word, word == 'sh')", "message": "no shells", "reason": "Forbidden"}]});
    server.apply(&policy("streams", connect, json!({})));
    server.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: x}]}");
    let said = server.refused(&["exec", "p", "--", "sh"], "");
    assert!(said.contains("denied request: no shells"), "{said}");
    let said = server.refused(&["exec", "p", "--", "ls"], "");
    assert!(!said.contains("no shells"), "{said}");
}

/// The kind of policy that Gateway API's manifests bring along: which definitions may replace which.
#[test]
fn a_policy_guards_definitions() {
    let server = Server::start();
    let annotated = |channel: &str, version: &str| {
        WIDGETS.replace(
            "metadata: {name: widgets.example.com}",
            &format!("metadata: {{name: widgets.example.com, annotations: {{x.io/channel: {channel}, x.io/version: {version}}}}}"),
        )
    };
    server.apply(&annotated("standard", "v1.6.1"));
    let spec = json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apiextensions.k8s.io"], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["*"]}]},
        "validations": [
            {"expression": "object.spec.group != 'example.com' || oldObject == null || (has(object.metadata.annotations) && \
                object.metadata.annotations.exists(k, k == 'x.io/channel') && object.metadata.annotations['x.io/channel'] == 'standard')",
             "message": "not over standard", "reason": "Invalid"},
            {"expression": "object.spec.group != 'example.com' || !matches(object.metadata.annotations['x.io/version'], 'v1.[0-5].\\\\d+')",
             "message": "too old", "reason": "Invalid"}]});
    let binding = json!({"matchResources": {"resourceRules": [{"apiGroups": ["apiextensions.k8s.io"],
        "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["customresourcedefinitions"]}]}});
    server.apply(&policy("safe", spec, binding));
    for (channel, version, expected) in [
        ("experimental", "v1.6.1", Some("not over standard")),
        ("standard", "v1.4.0", Some("too old")),
        ("standard", "v1.7.0", None),
    ] {
        let said = server.say(&["apply", "-f", "-"], &annotated(channel, version));
        assert_eq!(said.ok, expected.is_none(), "{channel} {version}: {} {}", said.out, said.err);
        assert!(expected.is_none_or(|text| said.err.contains(text)), "{}", said.err);
    }
    let table = server.kubectl(&["get", "validatingadmissionpolicies", "--no-headers"]);
    assert_eq!(table.split_whitespace().take(3).collect::<Vec<_>>(), ["safe", "2", "<unset>"]);
}
