// SPDX-License-Identifier: Apache-2.0
//! From the JSON schema of a Rust type to a structural schema of Kubernetes.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The structural schema of a type: everything inline, one `type` each, no unions, short descriptions.
pub fn of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    rewrite(&mut schema);
    schema
}

/// Makes a schema structural, in place.
pub fn rewrite(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for key in ["$schema", "title", "$defs", "definitions", "components"] {
        map.remove(key);
    }
    without_null(map);
    unions(map);
    if map.get("default").is_some_and(Value::is_null) {
        map.remove("default");
    }
    if let Some(Value::String(text)) = map.get("description") {
        let short = first_sentence(text);
        map.insert("description".to_owned(), Value::String(short));
    }
    // Formats that Kubernetes does not know say nothing; the bounds that schemars adds stay.
    if let Some(Value::String(format)) = map.get("format")
        && !matches!(format.as_str(), "int32" | "int64" | "date-time" | "byte" | "double" | "float")
    {
        map.remove("format");
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(inner) = map.get_mut(key) {
            rewrite(inner);
        }
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        // Structural schemas refuse unknown fields by themselves.
        map.remove("additionalProperties");
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(rewrite);
    }
}

/// `T | null` becomes `T`: Kubernetes treats an explicit null as an absent field.
fn without_null(map: &mut Map<String, Value>) {
    map.remove("nullable");
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|t| t != "null");
        if types.len() == 1 {
            let only = types.remove(0);
            map.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
}

/// Enums (each variant documented, so `oneOf` of constants) become one `enum`; a union with one member left
/// becomes that member.
fn unions(map: &mut Map<String, Value>) {
    for key in ["oneOf", "anyOf", "allOf"] {
        let Some(Value::Array(mut members)) = map.remove(key) else { continue };
        members.retain(|m| !is_null(m));
        members.iter_mut().for_each(rewrite);
        let constants: Option<Vec<Value>> =
            members.iter().map(constants).collect::<Option<Vec<_>>>().map(|v| v.concat());
        if let Some(constants) = constants.filter(|c| !c.is_empty()) {
            map.insert("type".to_owned(), Value::String("string".to_owned()));
            map.insert("enum".to_owned(), Value::Array(constants));
        } else if members.len() == 1 {
            if let Some(Value::Object(only)) = members.pop() {
                let description = map.get("description").cloned();
                map.extend(only);
                if let Some(description) = description {
                    map.insert("description".to_owned(), description);
                }
                without_null(map);
            }
        } else {
            map.insert(key.to_owned(), Value::Array(members));
        }
    }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|t| t == "null")
        || schema.get("enum").and_then(Value::as_array).is_some_and(|e| e.iter().all(Value::is_null))
        || schema.as_object().is_some_and(|m| m.len() == 1 && m.get("nullable").is_some())
}

fn constants(schema: &Value) -> Option<Vec<Value>> {
    if let Some(constant) = schema.get("const") {
        return Some(vec![constant.clone()]);
    }
    schema.get("enum").and_then(Value::as_array).filter(|e| e.iter().all(Value::is_string)).cloned()
}

fn first_sentence(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.find(". ") {
        Some(end) => flat[..=end].to_owned(),
        None => flat,
    }
}
