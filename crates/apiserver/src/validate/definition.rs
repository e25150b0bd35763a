// SPDX-License-Identifier: Apache-2.0
//! CustomResourceDefinitions: one stored version, a schema each, rules that can be evaluated.
//!
//! A rule or pattern that cannot be compiled is refused here, when somebody looks, and not with every object.

mod structural;

use kube_cel::{CompiledSchema, compile_schema};
use serde_json::Value;

use crate::expression::within_bounds;
use crate::stack;
use crate::status::Cause;

pub(super) fn faults(object: &Value, faults: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let wanted = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if object["metadata"]["name"] != wanted.as_str() {
        let why = "must be spec.names.plural+\".\"+spec.group";
        faults.push(Cause::invalid("metadata.name", &object["metadata"]["name"], why));
    }
    if spec["scope"] != "Namespaced" && spec["scope"] != "Cluster" {
        let allowed = ["Cluster".to_owned(), "Namespaced".to_owned()];
        faults.push(Cause::unsupported("spec.scope", &spec["scope"], &allowed));
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        faults.push(Cause::invalid("spec.versions", &"array".into(), why));
    }
    if spec["conversion"]["strategy"] == "Webhook" {
        let allowed = ["None".to_owned()];
        faults.push(Cause::unsupported("spec.conversion.strategy", &"Webhook".into(), &allowed));
    }
    for version in object["status"]["storedVersions"].as_array().into_iter().flatten() {
        if versions.iter().all(|one| one["name"] != *version) {
            let why = "must appear in spec.versions";
            faults.push(Cause::invalid("status.storedVersions", version, why));
        }
    }
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            structural::faults(schema, &path, faults);
            patterns(schema, &path, faults);
            compiled(schema, &path, faults);
        } else {
            let message = "Required value: schemas are required".to_owned();
            faults.push(Cause { field: path, reason: "FieldValueRequired", message });
        }
    }
}

/// The name of the version in which objects are stored.
pub(crate) fn storage_version(object: &Value) -> Option<&Value> {
    let versions = object["spec"]["versions"].as_array()?;
    versions.iter().find(|version| version["storage"] == true).map(|version| &version["name"])
}

/// What names the objects that are stored already cannot change.
pub(crate) fn changes(live: &Value, object: &Value) -> Vec<Cause> {
    let paths = ["/spec/group", "/spec/scope", "/spec/names/plural", "/spec/names/kind"];
    let differs = |path: &&str| live.pointer(path) != object.pointer(path);
    let fault = |path: &str| {
        let field = path.trim_start_matches('/').replace('/', ".");
        Cause::invalid(field, object.pointer(path).unwrap_or(&Value::Null), "field is immutable")
    };
    paths.iter().filter(|path| differs(path)).map(|path| fault(path)).collect()
}

/// Reads the rules, if all of them can be read at all.
fn compiled(schema: &Value, path: &str, faults: &mut Vec<Cause>) {
    let before = faults.len();
    complex_rules(schema, path, faults);
    if faults.len() == before {
        let read = stack::with_room(|| {
            let mut faults = Vec::new();
            rules(&compile_schema(schema), path, &mut faults);
            faults
        });
        let unread = || vec![Cause::invalid(path, &"rule".into(), "its rules cannot be read now")];
        faults.extend(read.unwrap_or_else(unread));
    }
}

fn complex_rules(schema: &Value, path: &str, faults: &mut Vec<Cause>) {
    let all = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    for text in all.flat_map(|rule| [&rule["rule"], &rule["messageExpression"]]).filter_map(Value::as_str) {
        if let Err(why) = within_bounds(text) {
            faults.push(Cause::invalid(
                format!("{path}.x-kubernetes-validations"),
                &"rule".into(),
                why.to_string(),
            ));
        }
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        complex_rules(inner, &format!("{path}.properties[{name}]"), faults);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            complex_rules(&schema[key], &format!("{path}.{key}"), faults);
        }
    }
}

fn rules(schema: &CompiledSchema, path: &str, faults: &mut Vec<Cause>) {
    for error in schema.compilation_errors() {
        let field = format!("{path}.x-kubernetes-validations");
        faults.push(Cause::invalid(field, &"rule".into(), format!("compilation failed: {error}")));
    }
    for (name, inner) in &schema.properties {
        rules(inner, &format!("{path}.properties[{name}]"), faults);
    }
    if let Some(inner) = &schema.items {
        rules(inner, &format!("{path}.items"), faults);
    }
    if let Some(inner) = &schema.additional_properties {
        rules(inner, &format!("{path}.additionalProperties"), faults);
    }
}

fn patterns(schema: &Value, path: &str, faults: &mut Vec<Cause>) {
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = regex_automata::meta::Regex::new(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        faults.push(Cause::invalid(format!("{path}.pattern"), &pattern.into(), why));
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        patterns(inner, &format!("{path}.properties[{name}]"), faults);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            patterns(&schema[key], &format!("{path}.{key}"), faults);
        }
    }
}
