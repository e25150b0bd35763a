// SPDX-License-Identifier: Apache-2.0
//! What a Rust type cannot say about its fields, as a table applied to its schema.

use serde_json::{Value, json};

/// One rule: where, and the keywords to merge into the schema there.
///
/// A path is dotted; `[]` steps into the items of a list, e.g. `listeners[].port`.
pub type Rule = (&'static str, Value);

/// Merges every rule into `schema`.
///
/// # Panics
/// When a path names no field: a rule that applies to nothing protects nothing. The crate's tests build every
/// schema, so this cannot reach a user.
pub fn apply(schema: &mut Value, rules: Vec<Rule>) {
    for (path, keywords) in rules {
        let Some(place) = locate(schema, path) else { panic!("schema rule for {path:?}: no such field") };
        let (Value::Object(place), Value::Object(keywords)) = (place, keywords) else {
            panic!("schema rule for {path:?} is not an object")
        };
        place.extend(keywords);
    }
}

/// As [`apply`], for rules whose paths begin at `path`.
///
/// # Panics
/// As [`apply`].
pub fn apply_at(schema: &mut Value, path: &str, rules: Vec<Rule>) {
    match locate(schema, path) {
        Some(place) => apply(place, rules),
        None => panic!("schema rules at {path:?}: no such field"),
    }
}

fn locate<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    if path.is_empty() {
        return Some(schema);
    }
    let mut place = schema;
    for step in path.split('.') {
        let (name, items) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        place = place.get_mut("properties")?.get_mut(name)?;
        if items {
            place = place.get_mut("items")?;
        }
    }
    Some(place)
}

/// Removes a field from a schema, so that the API refuses it: what is not supported is said, not ignored.
///
/// # Panics
/// As [`apply`].
pub fn remove(schema: &mut Value, path: &str) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let removed = locate(schema, parent)
        .and_then(|p| p.get_mut("properties"))
        .and_then(Value::as_object_mut)
        .and_then(|p| p.remove(field));
    assert!(removed.is_some(), "schema: no field {path:?} to remove");
}

/// A CEL rule with its message.
pub fn cel(rule: &str, message: &str) -> Value {
    json!({ "x-kubernetes-validations": [{ "rule": rule, "message": message }] })
}

/// Several CEL rules with their messages.
pub fn cels(rules: &[(&str, &str)]) -> Value {
    let rules: Vec<Value> = rules.iter().map(|(r, m)| json!({ "rule": r, "message": m })).collect();
    json!({ "x-kubernetes-validations": rules })
}

/// A list that is merged by the given keys.
pub fn list_map(keys: &[&str], min: u32, max: u32) -> Value {
    let mut out =
        json!({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "maxItems": max });
    if min > 0 {
        out["minItems"] = json!(min);
    }
    out
}

/// A bounded list.
pub fn list(min: u32, max: u32) -> Value {
    let mut out = json!({ "maxItems": max });
    if min > 0 {
        out["minItems"] = json!(min);
    }
    out
}

/// A default value.
pub fn default(value: Value) -> Value {
    json!({ "default": value })
}

/// A port number.
pub fn port() -> Value {
    json!({ "minimum": 1, "maximum": 65535 })
}

/// A name of an object.
pub fn name() -> Value {
    json!({ "minLength": 1, "maxLength": 253 })
}
