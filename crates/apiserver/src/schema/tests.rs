// SPDX-License-Identifier: Apache-2.0
//! Objects that are right, and objects that are wrong in one way each.

use serde_json::{Value, json};

use super::check;
use crate::registry::Registry;

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn built_in_kinds() {
    let info = Registry::new().find("", "v1", "pods").unwrap();
    let cases = [
        (pod(json!({"containers": [{"name": "a", "image": "b"}]})), None, None),
        (pod(json!({"containers": [{"name": "a", "imge": "b"}]})), Some("spec.containers[0].imge"), None),
        (pod(json!({"containers": [{"image": "b"}]})), None, Some("spec.containers[0].name")),
        (pod(json!({"containers": {}})), None, Some("spec.containers")),
        (
            pod(json!({"containers": [], "nodeSelector": {"a": "b"}, "terminationGracePeriodSeconds": "x"})),
            None,
            Some("spec.terminationGracePeriodSeconds"),
        ),
        (
            pod(json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]})),
            None,
            None,
        ),
    ];
    for (object, unknown, cause) in cases {
        let found = check(&info, &object, None);
        assert_eq!(found.unknown.first().map(String::as_str), unknown, "{object}");
        assert_eq!(found.causes.first().map(|c| c.field.as_str()), cause, "{object} {found:?}");
    }
}

#[test]
fn custom_resources() {
    let registry = Registry::new();
    registry.add_definition(&json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
            "required": ["size"],
            "x-kubernetes-validations": [{"rule": "self.size < 10 || has(self.big)", "message": "size needs big"}],
            "properties": {
                "size": {"type": "integer", "minimum": 1},
                "big": {"type": "boolean"},
                "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
                "names": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 2}}}}}}}]}}));
    let info = registry.find("x.io", "v1", "foos").unwrap();
    let cases = [
        (json!({"size": 1}), ""),
        (json!({"size": 1, "sise": 2}), "unknown spec.sise"),
        (json!({}), "spec.size: Required value"),
        (
            json!({"size": 0}),
            "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        ),
        (json!({"size": 11}), "size needs big"),
        (json!({"size": 11, "big": true}), ""),
        (
            json!({"size": 1, "mode": "C"}),
            "spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\"",
        ),
        (json!({"size": 1, "names": ["a", "B"]}), "spec.names[1]"),
        (json!({"size": 1, "names": ["a", "b", "c"]}), "Too many"),
    ];
    for (spec, expected) in cases {
        let object = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
        let found = check(&info, &object, None);
        let text: Vec<String> = found
            .unknown
            .iter()
            .map(|u| format!("unknown {u}"))
            .chain(found.causes.iter().map(|c| format!("{}: {}", c.field, c.message)))
            .collect();
        let text = text.join("; ");
        assert!(text.contains(expected) && (expected.is_empty() == text.is_empty()), "{object}: {text}");
    }
    let mut object = json!({"spec": {"size": 1}});
    super::default_fields(&info, &mut object);
    assert_eq!(object["spec"]["mode"], "A");
}
