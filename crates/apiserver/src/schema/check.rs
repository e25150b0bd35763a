// SPDX-License-Identifier: Apache-2.0
//! The walk over a schema and a value: structural schemas of CRDs and the schemas of built-in kinds.

mod bounds;
mod formats;

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use crate::status::Cause;

/// What is wrong with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Paths of fields that the schema does not know.
    pub unknown: Vec<String>,
    /// Everything else.
    pub causes: Vec<Cause>,
    /// Whether the schema is structural, as that of a CustomResourceDefinition is: an object that declares no fields
    /// has none, where the schemas of built-in kinds leave such fields open.
    structural: bool,
}

impl Found {
    /// For a structural schema.
    pub(super) fn structural() -> Self {
        Self { structural: true, ..Self::default() }
    }
}

/// Most faults, and most unknown fields, of one object that are named.
const MAX_FOUND: usize = 100;
/// Longest key of a map, and longest value, in the text of a fault, in bytes.
const MAX_SHOWN: usize = 256;

impl Found {
    fn fault(&mut self, cause: Cause) {
        if self.causes.len() < MAX_FOUND {
            self.causes.push(cause);
        }
    }

    fn unknown(&mut self, path: String) {
        if self.unknown.len() < MAX_FOUND {
            self.unknown.push(path);
        }
    }

    fn is_full(&self) -> bool {
        self.causes.len() >= MAX_FOUND
    }
}

/// The beginning of a text, for messages.
fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_SHOWN)).unwrap_or_default()
}

/// A value for messages: lists and maps by their kind only.
fn brief(value: &Value) -> Value {
    match value {
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
        Value::String(text) => shortened(text).into(),
        other => other.clone(),
    }
}

/// Deepest nesting that is looked at; what lies deeper is refused.
const MAX_DEPTH: usize = 64;

/// Checks a whole object.
pub(super) fn object(schema: &Value, value: &Value, found: &mut Found) {
    walk(schema, value, "", 0, found);
}

/// Checks metadata, whose schema is a built-in one in every object.
pub(super) fn metadata(value: &Value, path: &str, found: &mut Found) {
    let mut own = Found::default();
    walk(&object_meta(), value, path, 0, &mut own);
    own.unknown.into_iter().for_each(|path| found.unknown(path));
    own.causes.into_iter().for_each(|cause| found.fault(cause));
}

/// Follows `$ref` and `allOf` of one element (schemars wraps references so to add a description).
pub(super) fn resolve(schema: &Value) -> &Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    match reference.and_then(|r| r.strip_prefix("#/$defs/")) {
        Some(name) => super::definitions().get(name).map_or(schema, |s| s),
        None => schema,
    }
}

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn is_embedded(schema: &Value) -> bool {
    schema["x-kubernetes-embedded-resource"] == true
}

/// What an embedded object has beside the fields that its schema declares.
fn implied(key: &str) -> Option<Value> {
    match key {
        "apiVersion" | "kind" => Some(json!({"type": "string"})),
        "metadata" => Some(object_meta()),
        _ => None,
    }
}

/// The schema of metadata.
pub(super) fn object_meta() -> Value {
    json!({"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"})
}

fn int_or_string(schema: &Value) -> bool {
    schema["x-kubernetes-int-or-string"] == true
}

/// `format: byte` and date-times are texts; a schema without type and properties takes anything.
fn type_of(schema: &Value) -> Option<&str> {
    schema["type"].as_str()
}

fn walk(schema: &Value, value: &Value, path: &str, depth: usize, found: &mut Found) {
    if depth > MAX_DEPTH {
        found.fault(Cause::invalid(path, &Value::Null, "nested too deeply"));
        return;
    }
    let schema = resolve(schema);
    if value.is_null() || found.is_full() {
        return;
    }
    if int_or_string(schema) {
        if !value.is_string() && !value.is_number() {
            found.fault(type_fault(path, value, "integer or string"));
        }
        return bounds(schema, value, path, found);
    }
    match (type_of(schema), value) {
        (Some("object") | None, Value::Object(map)) => walk_object(schema, map, path, depth, found),
        (Some("array") | None, Value::Array(list)) => walk_array(schema, list, path, depth, found),
        (None, _) => {}
        (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("number"), Value::Number(_)) => {}
        (Some("integer"), Value::Number(n))
            if n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0) => {}
        (Some(expected), _) => {
            found.fault(type_fault(path, value, expected));
            return;
        }
    }
    bounds(schema, value, path, found);
}

fn type_fault(path: &str, value: &Value, expected: &str) -> Cause {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let message = format!("Invalid value: \"{kind}\": {path} in body must be of type {expected}: \"{kind}\"");
    Cause { field: path.to_owned(), reason: "FieldValueTypeInvalid", message }
}

fn child(path: &str, key: &str) -> String {
    let key = shortened(key);
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn walk_object(schema: &Value, map: &Map<String, Value>, path: &str, depth: usize, found: &mut Found) {
    let properties = schema["properties"].as_object();
    let additional = &schema["additionalProperties"];
    for (key, value) in map {
        let at = child(path, key);
        match implied(key).filter(|_| is_embedded(schema)) {
            Some(_) if key == "metadata" => {
                metadata(value, &at, found);
                continue;
            }
            Some(inner) => {
                walk(&inner, value, &at, depth + 1, found);
                continue;
            }
            None => {}
        }
        match properties.and_then(|p| p.get(key)) {
            Some(inner) => walk(inner, value, &at, depth + 1, found),
            None if additional.is_object() => {
                walk(additional, value, &format!("{path}[{}]", shortened(key)), depth + 1, found)
            }
            None if additional == true || preserves(schema) => {}
            // A schema that says nothing about its fields takes any (RawExtension and the like).
            None if is_open(schema, found.structural) && !path.is_empty() => {}
            None => found.unknown(at),
        }
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if map.get(required).is_none_or(Value::is_null) {
            found.fault(Cause::required(child(path, required)));
        }
    }
    if is_embedded(schema) {
        for key in
            ["apiVersion", "kind"].into_iter().filter(|key| map.get(*key).is_none_or(|value| *value == ""))
        {
            found.fault(Cause::required(child(path, key)));
        }
    }
    let count = map.len() as u64;
    if schema["maxProperties"].as_u64().is_some_and(|max| count > max) {
        found.fault(Cause::invalid(path, &count.into(), "has too many properties"));
    }
    if schema["minProperties"].as_u64().is_some_and(|min| count < min) {
        found.fault(Cause::invalid(path, &count.into(), "has too few properties"));
    }
}

/// Whether a schema says nothing about an object's fields.
fn is_open(schema: &Value, structural: bool) -> bool {
    schema["properties"].is_null() && !(structural && schema["type"] == "object")
}

fn walk_array(schema: &Value, list: &[Value], path: &str, depth: usize, found: &mut Found) {
    if schema["items"].is_object() {
        for (index, item) in list.iter().enumerate() {
            if item.is_null() && schema["items"]["nullable"] != true && found.structural {
                let expected = type_of(resolve(&schema["items"])).unwrap_or("object").to_owned();
                found.fault(type_fault(&format!("{path}[{index}]"), item, &expected));
            }
            walk(&schema["items"], item, &format!("{path}[{index}]"), depth + 1, found);
        }
    }
    let count = list.len() as u64;
    if let Some(max) = schema["maxItems"].as_u64().filter(|max| count > *max) {
        let message = format!("Too many: {count}: must have at most {max} items");
        found.fault(Cause { field: path.to_owned(), reason: "FieldValueTooMany", message });
    }
    if let Some(min) = schema["minItems"].as_u64().filter(|min| count < *min) {
        found.fault(Cause::invalid(
            path,
            &count.into(),
            format!("{path} in body should have at least {min} items"),
        ));
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let set = schema["x-kubernetes-list-type"] == "set";
    let mut seen = HashSet::new();
    for (index, item) in list.iter().enumerate().filter(|_| set || !keys.is_empty()) {
        let identity = if set {
            canonical(item)
        } else {
            keys.iter().map(|key| item.get(*key).map_or(String::new(), canonical) + "\0").collect()
        };
        if !seen.insert(identity) {
            let message = format!("Duplicate value: {}", brief(item));
            found.fault(Cause { field: format!("{path}[{index}]"), reason: "FieldValueDuplicate", message });
        }
    }
}

/// A text that equal values have in common, whatever the order of their fields.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, String> = map.iter().map(|(k, v)| (k, canonical(v))).collect();
            let fields: Vec<String> = sorted.iter().map(|(k, v)| format!("{k:?}:{v}")).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn bounds(schema: &Value, value: &Value, path: &str, found: &mut Found) {
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let texts: Vec<String> =
            allowed.iter().map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned)).collect();
        found.fault(Cause::unsupported(path, &brief(value), &texts));
    }
    if let Some(text) = value.as_str() {
        bounds::text(schema, text, path, found);
    }
    if value.is_number() {
        bounds::number(schema, value, path, found);
    }
    combinations(schema, value, path, found);
}

fn combinations(schema: &Value, value: &Value, path: &str, found: &mut Found) {
    let holds = |inner: &Value| {
        let mut faults = Found::default();
        partial(inner, value, path, &mut faults);
        faults.causes.is_empty()
    };
    let list = |key: &str| schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
    if !list("anyOf").is_empty() && !list("anyOf").iter().any(holds) {
        found.fault(Cause::invalid(
            path,
            &brief(value),
            format!("{path} in body must validate at least one schema (anyOf)"),
        ));
    }
    if !list("oneOf").is_empty() && list("oneOf").iter().filter(|s| holds(s)).count() != 1 {
        found.fault(Cause::invalid(
            path,
            &brief(value),
            format!("{path} in body must validate one and only one schema (oneOf)"),
        ));
    }
    if list("allOf").iter().any(|inner| inner.get("$ref").is_none() && !holds(inner)) {
        found.fault(Cause::invalid(
            path,
            &brief(value),
            format!("{path} in body must validate all the schemas (allOf)"),
        ));
    }
    if schema["not"].is_object() && holds(&schema["not"]) {
        found.fault(Cause::invalid(
            path,
            &brief(value),
            format!("{path} in body must not validate the schema (not)"),
        ));
    }
}

/// A schema inside `anyOf` and the like: only what it says counts, unknown fields are the outer schema's business.
fn partial(schema: &Value, value: &Value, path: &str, found: &mut Found) {
    if let Some(map) = value.as_object() {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = map.get(key) {
                partial(inner, value, &child(path, key), found);
            }
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if map.get(required).is_none_or(Value::is_null) {
                found.fault(Cause::required(child(path, required)));
            }
        }
    }
    if let Some(kind) = type_of(schema) {
        let fits = match kind {
            "string" => value.is_string(),
            "integer" | "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => false,
        };
        if !fits {
            found.fault(type_fault(path, value, kind));
        }
    }
    bounds(schema, value, path, found);
}

/// Removes what the schema does not know; what a structural schema does not declare, it does not know.
pub(super) fn prune(schema: &Value, value: &mut Value, structural: bool) {
    let schema = resolve(schema);
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].as_object();
            let additional = &schema["additionalProperties"];
            let embedded = |key: &str| implied(key).filter(|_| is_embedded(schema));
            let is_known =
                |key: &str| properties.is_some_and(|p| p.contains_key(key)) || embedded(key).is_some();
            let keeps_all = preserves(schema)
                || additional.is_object()
                || *additional == true
                || is_open(schema, structural);
            if !keeps_all {
                map.retain(|key, _| is_known(key));
            }
            for (key, inner) in map {
                if let Some(implied) = embedded(key) {
                    prune(&implied, inner, false);
                } else if let Some(schema) = properties.and_then(|properties| properties.get(key)) {
                    prune(schema, inner, structural);
                } else if additional.is_object() {
                    prune(additional, inner, structural);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| prune(&schema["items"], item, structural)),
        _ => {}
    }
}

/// Sets declared defaults where a field is missing.
pub(super) fn defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = inner.get("default")
                    && map.get(key).is_none_or(Value::is_null)
                {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(key) {
                    defaults(inner, value);
                }
            }
            let additional = &schema["additionalProperties"];
            if additional.is_object() {
                map.values_mut().for_each(|value| defaults(additional, value));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| defaults(&schema["items"], item)),
        _ => {}
    }
}
