// SPDX-License-Identifier: Apache-2.0
//! What objects must look like: schemas of the built-in kinds and of CustomResourceDefinitions, and the check of an
//! object against them (unknown fields, types, required fields, bounds, CEL rules, defaults).

mod body;
mod builtin;
mod check;
mod cost;
mod pattern;
mod strict;
mod typed;

use std::sync::OnceLock;

use kube_cel::{CompiledSchema, ErrorKind, ValidationError, Validator};
use serde_json::{Value, json};

use crate::bounds::Work;
use crate::registry::ResourceInfo;
use crate::stack;
use crate::status::Cause;

pub use self::body::{delete_options, review_body, strict_body, undecodable};
pub use self::check::Found;
pub(crate) use self::cost::{Size, expression_steps};
pub use self::strict::strict_faults;
pub use self::typed::{ListKind, Typed};

/// Definitions of all built-in kinds, by name (`io.k8s.api.core.v1.Pod`), as JSON schema with `#/$defs/` references.
pub fn definitions() -> &'static serde_json::Map<String, Value> {
    static DEFINITIONS: OnceLock<serde_json::Map<String, Value>> = OnceLock::new();
    DEFINITIONS.get_or_init(builtin::definitions)
}

/// Name of the definition of a built-in kind.
pub fn definition_name(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    static NAMES: OnceLock<std::collections::HashMap<(String, String, String), String>> = OnceLock::new();
    let names = NAMES.get_or_init(builtin::names);
    names.get(&(group.to_owned(), version.to_owned(), kind.to_owned())).map(String::as_str)
}

/// Checks an object against the schema of its resource.
pub fn check(info: &ResourceInfo, object: &Value, old: Option<&Value>) -> Found {
    let mut found = Found::default();
    match &info.custom {
        Some(custom) => {
            found = Found::structural();
            custom_object(&custom.checked, object, &mut found);
            if found.causes.is_empty() && found.unknown.is_empty() {
                match cost::spend(&custom.schema, object, &mut Work::default()) {
                    Ok(_) => {
                        let judged = stack::with_room(|| {
                            let compiled =
                                custom.rules.get_or_init(|| kube_cel::compile_schema(&custom.schema));
                            rules(compiled, object, old)
                        });
                        let unread = || vec![Cause::forbidden("", "its rules cannot be evaluated now")];
                        found.causes.extend(judged.unwrap_or_else(unread));
                    }
                    Err(over) => {
                        let why = format!("its validation rules may take {over}; make its lists shorter");
                        found.causes.push(Cause::forbidden("spec", why));
                    }
                }
            }
        }
        None => {
            if let Some(name) = definition_name(&info.group, &info.version, &info.kind) {
                check::object(&json!({"$ref": format!("#/$defs/{name}")}), object, &mut found);
            }
        }
    }
    found
}

/// The top of a custom resource: the schema declares spec and status; identity and metadata are the server's.
fn custom_object(schema: &Value, object: &Value, found: &mut Found) {
    check::metadata(&object["metadata"], "metadata", found);
    let mut rest = object.clone();
    if let Some(rest) = rest.as_object_mut() {
        for key in ["apiVersion", "kind", "metadata"] {
            rest.remove(key);
        }
    }
    check::object(schema, &rest, found);
}

fn rules(schema: &CompiledSchema, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let Err(errors) = Validator::new().validate_compiled(schema, object, old) else { return Vec::new() };
    errors
        .into_iter()
        .map(|error| Cause {
            field: error.field_path.clone(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: {}", shown(object, &error.field_path), rule_message(&error)),
        })
        .collect()
}

/// What a failed rule says; one that could not be evaluated is named, without the evaluator's own notation.
fn rule_message(error: &ValidationError) -> String {
    if error.kind == ErrorKind::ValidationFailure {
        return error.message.clone();
    }
    let message = error.message.split(": Error {").next().unwrap_or_default();
    format!("{message} evaluating rule: {}", error.rule)
}

/// A value in a message: objects and lists by their type only, as Kubernetes shows them.
fn shown(object: &Value, path: &str) -> String {
    let pointer: String =
        path.replace('[', ".").replace(']', "").split('.').map(|step| format!("/{step}")).collect();
    match object.pointer(&pointer) {
        Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => value.to_string(),
        Some(Value::Array(_)) => "\"array\"".into(),
        _ => "\"object\"".into(),
    }
}

/// Removes what is null: a field without a value is a field that is not there.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Removes the fields that [`check`] found unknown, as Kubernetes does unless asked to be strict.
pub fn prune(info: &ResourceInfo, object: &mut Value) {
    if let Some(custom) = &info.custom {
        // The schema leaves identity and metadata to the server.
        let keys = ["apiVersion", "kind", "metadata"];
        let own = keys.map(|key| object.as_object_mut().and_then(|map| map.remove(key)));
        check::prune(&custom.schema, object, true);
        for (key, value) in keys.into_iter().zip(own) {
            if let Some(value) = value {
                object[key] = value;
            }
        }
        check::prune(&check::object_meta(), &mut object["metadata"], false);
    } else if let Some(name) = definition_name(&info.group, &info.version, &info.kind) {
        check::prune(&json!({"$ref": format!("#/$defs/{name}")}), object, false);
    }
}

/// Sets the defaults that a CustomResourceDefinition declares.
pub fn default_fields(info: &ResourceInfo, object: &mut Value) {
    if let Some(custom) = &info.custom {
        check::defaults(&custom.schema, object);
    }
}

#[cfg(test)]
mod tests;
