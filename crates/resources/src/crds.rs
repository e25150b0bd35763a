// SPDX-License-Identifier: Apache-2.0
//! CustomResourceDefinitions as values: built from Rust types, tightened by tables of rules, ready to apply.
//!
//! The schema of a kind comes from its type (schemars), is made structural as `apiextensions.k8s.io/v1` asks
//! ([`structural`]), and is then given what types cannot say: defaults, bounds, patterns and CEL rules
//! ([`rules`]). A field that is not in the type is therefore not in the schema, and the API refuses it.

pub mod gateway;
pub mod networking;
pub mod rules;
pub mod security;
pub mod structural;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

/// What a definition says beside its schemas.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group.
    pub group: &'static str,
    /// Kind, e.g. `Gateway`.
    pub kind: &'static str,
    /// Plural, lower case.
    pub plural: &'static str,
    /// Short names of `kubectl`.
    pub short_names: &'static [&'static str],
    /// Categories of `kubectl get`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Labels of the definition itself.
    pub labels: &'static [(&'static str, &'static str)],
    /// Annotations of the definition itself.
    pub annotations: &'static [(&'static str, &'static str)],
}

/// One served version of a kind.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its name, e.g. `v1`.
    pub name: &'static str,
    /// Whether objects are stored in it; true for exactly one.
    pub storage: bool,
    /// Schema of `spec`, structural.
    pub spec: Value,
    /// Schema of `status`, structural; with it comes the subresource.
    pub status: Option<Value>,
    /// Columns of `kubectl get`, as `additionalPrinterColumns`.
    pub columns: Value,
    /// Whether an object without `spec` is refused.
    pub spec_required: bool,
}

/// Every definition that the mesh needs.
pub fn all() -> Vec<CustomResourceDefinition> {
    [gateway::all(), security::all(), networking::all()].concat()
}

/// Builds a definition.
///
/// # Panics
/// Never for the definitions of this crate: a test builds every one of them.
pub fn definition(kind: &Kind, versions: Vec<Version>) -> CustomResourceDefinition {
    let versions: Vec<Value> = versions.into_iter().map(|v| version(kind, v)).collect();
    let labels: serde_json::Map<String, Value> =
        kind.labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    let annotations: serde_json::Map<String, Value> =
        kind.annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    let mut names = json!({
        "kind": kind.kind,
        "listKind": format!("{}List", kind.kind),
        "plural": kind.plural,
        "singular": kind.kind.to_lowercase(),
    });
    if !kind.short_names.is_empty() {
        names["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        names["categories"] = json!(kind.categories);
    }
    let object = json!({
        "metadata": {
            "name": format!("{}.{}", kind.plural, kind.group),
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "versions": versions,
        },
    });
    serde_json::from_value(object).expect("a definition built from its parts has the form of one")
}

fn version(kind: &Kind, version: Version) -> Value {
    let mut properties = json!({
        "apiVersion": { "type": "string" },
        "kind": { "type": "string" },
        "metadata": { "type": "object" },
        "spec": version.spec,
    });
    let mut out = json!({
        "name": version.name,
        "served": true,
        "storage": version.storage,
        "additionalPrinterColumns": version.columns,
    });
    if let Some(status) = version.status {
        properties["status"] = status;
        out["subresources"] = json!({ "status": {} });
    }
    let mut schema = json!({
        "type": "object",
        "description": format!("{} ({}/{}).", kind.kind, kind.group, version.name),
        "properties": properties,
    });
    if version.spec_required {
        schema["required"] = json!(["spec"]);
    }
    out["schema"] = json!({ "openAPIV3Schema": schema });
    out
}

/// A printer column.
pub fn column(name: &str, path: &str, kind: &str) -> Value {
    json!({ "name": name, "jsonPath": path, "type": kind })
}
