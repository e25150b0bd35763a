// SPDX-License-Identifier: Apache-2.0
//! Discovery: which groups, versions and resources there are, in the classic and in the aggregated form.

use serde_json::{Value, json};

use crate::registry::{Registry, ResourceInfo};

/// `/api`.
pub fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/apis`.
pub fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = registry
        .groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(&group, &versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`; none when nothing serves it.
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let (group, versions) = registry.groups().into_iter().find(|(group, _)| group == name)?;
    let mut value = group_value(&group, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let all: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v})).collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first()})
}

/// `/api/v1` and `/apis/<group>/<version>`; none when nothing serves it.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let all = registry.all();
    let mine: Vec<_> = all.iter().filter(|r| r.group == group && r.version == version).collect();
    let group_version = mine.first()?.api_version();
    let mut list = Vec::new();
    for info in mine {
        list.push(json!({
            "name": info.plural, "singularName": info.singular, "namespaced": info.namespaced, "kind": info.kind,
            "verbs": info.verbs(), "shortNames": info.short_names, "categories": info.categories,
        }));
        for sub in info.subresources() {
            let mut value = json!({
                "name": format!("{}/{}", info.plural, sub.name()), "singularName": "", "namespaced": info.namespaced,
                "kind": sub.kind(info), "verbs": sub.verbs(),
            });
            if let Some((group, version)) = sub.group_version() {
                value["group"] = group.into();
                value["version"] = version.into();
            }
            list.push(value);
        }
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// `APIGroupDiscoveryList` (`apidiscovery.k8s.io/v2`): the core group for `/api`, all others for `/apis`.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let all = registry.all();
    let groups = registry.groups().into_iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let mine = all.iter().filter(|r| r.group == group && r.version == *version);
                    let resources: Vec<Value> = mine.map(|info| aggregated_resource(info)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": group}, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(info: &ResourceInfo) -> Value {
    let subs: Vec<Value> = info
        .subresources()
        .into_iter()
        .map(|sub| {
            let (group, version) = sub.group_version().unwrap_or((&info.group, &info.version));
            json!({"subresource": sub.name(), "verbs": sub.verbs(),
                   "responseKind": {"group": group, "version": version, "kind": sub.kind(info)}})
        })
        .collect();
    json!({
        "resource": info.plural, "singularResource": info.singular, "verbs": info.verbs(),
        "scope": if info.namespaced { "Namespaced" } else { "Cluster" },
        "shortNames": info.short_names, "categories": info.categories, "subresources": subs,
        "responseKind": {"group": info.group, "version": info.version, "kind": info.kind},
    })
}
