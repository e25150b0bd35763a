// SPDX-License-Identifier: Apache-2.0
//! Structural schemas: every value has a type, every list says what is in it. Clients build on that, and old kubectls
//! refuse to apply anything while one definition in the cluster is otherwise.

use serde_json::Value;

use crate::status::Cause;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const LIST_TYPES: [&str; 3] = ["atomic", "map", "set"];
const MAP_TYPES: [&str; 2] = ["atomic", "granular"];

/// What is wrong with the schema of a version.
pub(super) fn faults(schema: &Value, path: &str, faults: &mut Vec<Cause>) {
    if schema["type"] != "object" {
        let why = "must be object at the root";
        faults.push(Cause::invalid(format!("{path}.type"), &schema["type"], why));
    }
    node(schema, path, "at the root", faults);
}

fn required(field: String, why: &str) -> Cause {
    Cause { field, reason: "FieldValueRequired", message: format!("Required value: {why}") }
}

fn forbidden(field: String, why: &str) -> Cause {
    Cause { field, reason: "FieldValueForbidden", message: format!("Forbidden: {why}") }
}

fn node(schema: &Value, path: &str, place: &str, faults: &mut Vec<Cause>) {
    let is_open = schema["x-kubernetes-preserve-unknown-fields"] == true
        || schema["x-kubernetes-int-or-string"] == true;
    match schema["type"].as_str() {
        None | Some("") if is_open => {}
        None | Some("") => {
            faults.push(required(format!("{path}.type"), &format!("must not be empty {place}")));
        }
        Some(kind) if !TYPES.contains(&kind) => {
            faults.push(Cause::unsupported(
                format!("{path}.type"),
                &schema["type"],
                &TYPES.map(str::to_owned),
            ));
        }
        Some("array") if !schema["items"].is_object() => {
            faults.push(required(format!("{path}.items"), "must be specified"));
        }
        Some(_) => {}
    }
    if schema["uniqueItems"] == true {
        faults.push(forbidden(format!("{path}.uniqueItems"), "uniqueItems cannot be set to true"));
    }
    if !schema["$ref"].is_null() {
        faults.push(forbidden(format!("{path}.$ref"), "$ref is not supported"));
    }
    if !schema["properties"].is_null() && schema["additionalProperties"].is_object() {
        let why = "additionalProperties and properties are mutual exclusive";
        faults.push(forbidden(format!("{path}.additionalProperties"), why));
    }
    list(schema, path, faults);
    if let Some(kind) = schema.get("x-kubernetes-map-type")
        && !MAP_TYPES.iter().any(|known| kind == known)
    {
        let field = format!("{path}.x-kubernetes-map-type");
        faults.push(Cause::unsupported(field, kind, &MAP_TYPES.map(str::to_owned)));
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        node(inner, &format!("{path}.properties[{name}]"), "for specified object fields", faults);
    }
    if schema["items"].is_object() {
        node(&schema["items"], &format!("{path}.items"), "for specified array items", faults);
    }
    if schema["additionalProperties"].is_object() {
        let at = format!("{path}.additionalProperties");
        node(&schema["additionalProperties"], &at, "for specified object fields", faults);
    }
}

/// How a list is merged.
fn list(schema: &Value, path: &str, faults: &mut Vec<Cause>) {
    let Some(kind) = schema.get("x-kubernetes-list-type") else { return };
    let field = format!("{path}.x-kubernetes-list-type");
    if !LIST_TYPES.iter().any(|known| kind == known) {
        faults.push(Cause::unsupported(field, kind, &LIST_TYPES.map(str::to_owned)));
        return;
    }
    if schema["type"] != "array" {
        faults.push(Cause::invalid(
            field,
            kind,
            "must be of type array if x-kubernetes-list-type is specified",
        ));
    }
    if kind != "map" {
        return;
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let at = format!("{path}.x-kubernetes-list-map-keys");
    if keys.is_empty() {
        faults.push(required(at.clone(), "must not be empty if x-kubernetes-list-type is map"));
    }
    for key in keys.iter().filter_map(Value::as_str) {
        if schema["items"]["properties"][key].is_null() {
            let why = "entries must all be names of item properties";
            faults.push(Cause::invalid(at.clone(), &key.into(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_schema_says_what_is_where() {
        let cases = [
            (json!({"type": "object", "properties": {"a": {"type": "string"}}}), ""),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-preserve-unknown-fields": true}}}),
                "",
            ),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
                "",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}),
                "",
            ),
            (json!({"type": "array", "items": {"type": "string"}}), "s.type: Invalid value"),
            (json!({"properties": {}}), "s.type: Invalid value"),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                "s.properties[a].items: Required value",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
                "s.properties[a].items.type: Required value",
            ),
            (
                json!({"type": "object", "properties": {"a": {"description": "x"}}}),
                "s.properties[a].type: Required value",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "text"}}}),
                "s.properties[a].type: Unsupported value",
            ),
            (
                json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
                "s.additionalProperties: Forbidden",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}}}),
                "s.properties[a].uniqueItems: Forbidden",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"},
                "x-kubernetes-list-type": "bag"}}}),
                "s.properties[a].x-kubernetes-list-type: Unsupported value",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"},
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}}}),
                "s.properties[a].x-kubernetes-list-map-keys: Invalid value",
            ),
        ];
        for (schema, expected) in cases {
            let mut faults = Vec::new();
            super::faults(&schema, "s", &mut faults);
            let said: Vec<String> =
                faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
            let said = said.join("; ");
            assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{schema}: {said}");
        }
    }
}
