// SPDX-License-Identifier: Apache-2.0
//! Objects with one fault each, and what is said of it.

use serde_json::json;

use super::*;
use crate::registry::Registry;

fn said(group: &str, plural: &str, object: &Value) -> Vec<String> {
    let info = Registry::new().find(group, "v1", plural).unwrap();
    faults(&info, object).iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[test]
fn pods() {
    let fine = json!({"metadata": {"labels": {"app.kubernetes.io/name": "x", "empty": ""}}, "spec": {
        "restartPolicy": "Always", "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 1}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    assert_eq!(said("", "pods", &fine), [""; 0]);
    let cases: [(&str, Value, &str); 9] = [
        ("/spec/containers", json!([]), "spec.containers: Required value"),
        ("/spec/containers/0/image", json!(""), "spec.containers[0].image: Required value"),
        (
            "/spec/containers/0/name",
            json!("A"),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123",
        ),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!(70000),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        ("/spec/volumes", json!([]), "spec.containers[0].volumeMounts[0].name: Not found: \"v\""),
        (
            "/spec/volumes",
            json!([{"name": "v"}, {"name": "v"}]),
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ),
        ("/spec/restartPolicy", json!("Maybe"), "spec.restartPolicy: Unsupported value: \"Maybe\""),
        ("/metadata/labels", json!({"a": "b c"}), "metadata.labels: Invalid value: \"b c\""),
        ("/metadata/labels", json!({"a/b/c": "d"}), "metadata.labels: Invalid value: \"a/b/c\""),
    ];
    for (at, value, expected) in cases {
        let mut object = fine.clone();
        *object.pointer_mut(at).unwrap() = value;
        let said = said("", "pods", &object);
        assert!(said.len() == 1 && said[0].starts_with(expected), "{at}: {said:?}");
    }
}

#[test]
fn services_workloads_and_secrets() {
    let port = |number: i64, name: &str| json!({"port": number, "name": name});
    let service = |kind: &str, ports: &[Value]| json!({"spec": {"type": kind, "ports": ports}});
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]});
    let cases = [
        ("", "services", service("ClusterIP", &[port(80, "a"), port(81, "b")]), ""),
        ("", "services", service("ClusterIP", &[]), "spec.ports: Required value"),
        ("", "services", service("Cluster", &[port(80, "a")]), "spec.type: Unsupported value: \"Cluster\""),
        ("", "services", service("NodePort", &[port(0, "a")]), "spec.ports[0].port: Invalid value: 0"),
        (
            "",
            "services",
            service("ClusterIP", &[port(1, "a"), port(2, "a")]),
            "spec.ports[1].name: Duplicate value",
        ),
        ("", "services", service("ExternalName", &[]), "spec.externalName: Required value"),
        ("", "secrets", json!({"data": {"a": "YQ=="}}), ""),
        ("", "secrets", json!({"data": {"a": "%"}}), "data[a]: Invalid value"),
        (
            "apps",
            "deployments",
            json!({"spec": {"template": {"spec": pod}}}),
            "spec.template.spec.restartPolicy",
        ),
        ("batch", "jobs", json!({"spec": {"template": {"spec": pod}}}), ""),
    ];
    for (group, plural, object, expected) in cases {
        let said = said(group, plural, &object).join("; ");
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{object}: {said}");
    }
}

#[test]
fn sizes() {
    let text = |n: usize| Value::from("x".repeat(n));
    let coded = |n: usize| Value::from(STANDARD.encode(vec![0; n]));
    let annotated = |n: usize| json!({"metadata": {"annotations": {"a": text(n)}}});
    let (data, annotations) = (1024 * 1024, 256 * 1024);
    let cases = [
        ("configmaps", json!({"data": {"a": text(data)}}), ""),
        ("configmaps", json!({"data": {"a": text(data), "b": "x"}}), "data: Too long"),
        ("configmaps", json!({"data": {"a": "x"}, "binaryData": {"b": coded(data)}}), "data: Too long"),
        ("secrets", json!({"data": {"a": coded(data)}}), ""),
        ("secrets", json!({"data": {"a": coded(data + 1)}}), "data: Too long"),
        ("configmaps", annotated(annotations - 1), ""),
        ("configmaps", annotated(annotations), "metadata.annotations: Too long"),
    ];
    for (plural, object, expected) in cases {
        let said = said("", plural, &object).join("\n");
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{plural}: {said}");
    }
}
