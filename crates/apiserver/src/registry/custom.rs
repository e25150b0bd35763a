// SPDX-License-Identifier: Apache-2.0
//! The resources that a CustomResourceDefinition adds: one for each served version.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::{Custom, ResourceInfo, Scale};

pub(super) fn resources(definition: &Value) -> Vec<ResourceInfo> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let (group, plural, kind) = (text(&spec["group"]), text(&names["plural"]), text(&names["kind"]));
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    versions
        .iter()
        .filter(|version| version["served"].as_bool().unwrap_or(false))
        .map(|version| {
            let subresources = &version["subresources"];
            let scale = subresources.get("scale").map(|scale| Scale {
                spec_replicas: path(&scale["specReplicasPath"]),
                status_replicas: path(&scale["statusReplicasPath"]),
                label_selector: scale["labelSelectorPath"]
                    .as_str()
                    .map(|p| p.trim_start_matches('.').to_owned()),
            });
            let list_kind = match names["listKind"].as_str() {
                Some(kind) if !kind.is_empty() => kind.to_owned(),
                _ => format!("{kind}List"),
            };
            let singular = match names["singular"].as_str() {
                Some(singular) if !singular.is_empty() => singular.to_owned(),
                _ => kind.to_lowercase(),
            };
            ResourceInfo {
                group: group.clone(),
                version: text(&version["name"]),
                kind: kind.clone(),
                plural: plural.clone(),
                singular,
                short_names: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                status: subresources.get("status").is_some(),
                scale,
                virtual_only: false,
                custom: Some(Arc::new(Custom {
                    schema: version["schema"]["openAPIV3Schema"].clone(),
                    has_defaults: has_defaults(&version["schema"]["openAPIV3Schema"]),
                    checked: checked(&version["schema"]["openAPIV3Schema"]),
                    rules: OnceLock::new(),
                    digest: digest(&[names, version]),
                    columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
                    list_kind,
                    selectable: selectable(version),
                })),
                key: format!("{group}/{plural}").into(),
            }
        })
        .collect()
}

fn has_defaults(schema: &Value) -> bool {
    let properties = schema["properties"].as_object().into_iter().flat_map(|properties| properties.values());
    let inner = properties.chain([&schema["items"], &schema["additionalProperties"]]);
    schema.get("default").is_some() || inner.filter(|inner| inner.is_object()).any(has_defaults)
}

fn selectable(version: &Value) -> Vec<String> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields.map(|field| path(&field["jsonPath"])).filter(|path| !path.is_empty()).collect()
}

fn checked(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|r| r != "apiVersion" && r != "kind" && r != "metadata");
    }
    schema
}

fn digest(parts: &[&Value]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        part.to_string().hash(&mut hasher);
    }
    hasher.finish()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn path(value: &Value) -> String {
    text(value).trim_start_matches('.').to_owned()
}
