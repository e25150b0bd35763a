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
fn of_many_faults_some_are_named() {
    let info = Registry::new().find("", "v1", "pods").unwrap();
    let unknown: serde_json::Map<String, Value> = (0..5_000).map(|n| (format!("f{n}"), json!(n))).collect();
    let mut spec = Value::Object(unknown);
    spec["containers"] = json!(vec![json!({"name": 1}); 5_000]);
    let found = check(&info, &pod(spec), None);
    assert_eq!((found.unknown.len(), found.causes.len()), (100, 100));
    // The next object is judged as ever.
    let found = check(&info, &pod(json!({"containers": [{"name": "a", "imge": "b"}]})), None);
    assert_eq!((found.unknown.len(), found.causes.len()), (1, 0));
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
                "when": {"type": "string", "format": "date-time"},
                "part": {"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 1, "exclusiveMaximum": true},
                "step": {"type": "integer", "format": "int32", "multipleOf": 5},
                "bare": {"type": "object"},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
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
        (json!({"size": 1, "names": [null]}), "spec.names[0] in body must be of type string: \"null\""),
        (json!({"size": 1, "when": "2026-01-01T00:00:00Z", "part": 0.5, "step": 10}), ""),
        (json!({"size": 1, "when": "notadate"}), "spec.when in body must be of type date-time"),
        (json!({"size": 1, "part": 0}), "spec.part in body should be greater than 0"),
        (json!({"size": 1, "part": 1}), "spec.part in body should be less than 1"),
        (json!({"size": 1, "step": 7}), "spec.step in body should be a multiple of 5"),
        (json!({"size": 1, "step": 5_000_000_000_u64}), "format int32"),
        (json!({"size": 1, "bare": {"x": 1}}), "unknown spec.bare.x"),
        (json!({"size": 1, "any": {"x": 1}}), ""),
        (
            json!({"size": 1, "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"x": 1}}}),
            "",
        ),
        (json!({"size": 1, "template": {"kind": "Pod"}}), "spec.template.apiVersion: Required value"),
        (
            json!({"size": 1, "template": {"apiVersion": "v1", "kind": "Pod", "x": 1}}),
            "unknown spec.template.x",
        ),
        (
            json!({"size": 1, "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"nam": "a"}}}),
            "unknown spec.template.metadata.nam",
        ),
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
    let mut object = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f", "x": 1}, "x": 1,
        "spec": {"size": 1, "sise": 2, "bare": {"x": 1}, "any": {"x": 1}, "names": ["a"],
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "x": 1}, "x": 1, "spec": {"x": 1}}}});
    super::prune(&info, &mut object);
    let expected = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f"},
        "spec": {"size": 1, "bare": {}, "any": {"x": 1}, "names": ["a"],
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"x": 1}}}});
    assert_eq!(object, expected);
}
