// SPDX-License-Identifier: Apache-2.0
//! Which resources are served: the built-in ones and those that CustomResourceDefinitions add.

mod builtin;
mod custom;
mod subresource;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use kube_cel::CompiledSchema;
use serde_json::Value;

use crate::store::ResourceKey;

pub use subresource::Subresource;

/// Where a resource is served and what may be done with it.
#[derive(Clone, Debug)]
pub struct ResourceInfo {
    /// API group; empty for the core group.
    pub group: String,
    /// Version of the group.
    pub version: String,
    /// Kind of an object.
    pub kind: String,
    /// Plural name, as in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names of kubectl.
    pub short_names: Vec<String>,
    /// Categories of kubectl, e.g. `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether the status is a subresource.
    pub status: bool,
    /// The scale subresource.
    pub scale: Option<Scale>,
    /// Nothing is stored: the answer is computed (`create` only).
    pub virtual_only: bool,
    /// What a CustomResourceDefinition says about this version; none for built-in resources.
    pub custom: Option<Arc<Custom>>,
    /// Key in the store.
    pub key: ResourceKey,
}

/// Paths of the scale subresource, without leading dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// E.g. `spec.replicas`.
    pub spec_replicas: String,
    /// E.g. `status.replicas`.
    pub status_replicas: String,
    /// E.g. `status.labelSelector`.
    pub label_selector: Option<String>,
}

/// One version of a CustomResourceDefinition.
#[derive(Debug)]
pub struct Custom {
    /// `schema.openAPIV3Schema`.
    pub schema: Value,
    /// Whether the schema declares defaults anywhere.
    pub has_defaults: bool,
    /// The same without what the server sees to: `apiVersion`, `kind` and `metadata` being there.
    pub checked: Value,
    /// Its CEL rules, compiled when first needed.
    pub rules: OnceLock<CompiledSchema>,
    /// Changes with everything that clients are told of this version.
    pub digest: u64,
    /// `additionalPrinterColumns`.
    pub columns: Vec<Value>,
    /// Kind of a list.
    pub list_kind: String,
    /// Paths of `selectableFields`, without leading dot.
    pub selectable: Vec<String>,
}

impl ResourceInfo {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As Kubernetes names it in messages: `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Kind of a list of these.
    pub fn list_kind(&self) -> String {
        self.custom.as_ref().map_or_else(|| format!("{}List", self.kind), |c| c.list_kind.clone())
    }

    /// The verbs that are served, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.virtual_only {
            return &["create"];
        }
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    }
}

/// The served resources; clones share them.
#[derive(Clone, Debug)]
pub struct Registry {
    custom: Arc<RwLock<BTreeMap<String, Vec<Arc<ResourceInfo>>>>>,
    builtin: Arc<Vec<Arc<ResourceInfo>>>,
}

impl Registry {
    /// The built-in resources only.
    pub fn new() -> Self {
        Self {
            custom: Arc::default(),
            builtin: Arc::new(builtin::resources().into_iter().map(Arc::new).collect()),
        }
    }

    /// Serves what a CustomResourceDefinition defines, or what it defines now.
    pub fn add_definition(&self, definition: &Value) {
        let Some(name) = definition["metadata"]["name"].as_str() else { return };
        let resources = custom::resources(definition).into_iter().map(Arc::new).collect();
        self.custom.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), resources);
    }

    /// Serves it no more.
    pub fn remove_definition(&self, name: &str) {
        self.custom.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Every resource, built-in ones first.
    pub fn all(&self) -> Vec<Arc<ResourceInfo>> {
        let custom = self.custom.read().unwrap_or_else(PoisonError::into_inner);
        self.builtin.iter().chain(custom.values().flatten()).cloned().collect()
    }

    /// The resource of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceInfo>> {
        let matches = |r: &&Arc<ResourceInfo>| r.group == group && r.version == version && r.plural == plural;
        if let Some(found) = self.builtin.iter().find(matches) {
            return Some(found.clone());
        }
        let custom = self.custom.read().unwrap_or_else(PoisonError::into_inner);
        custom.values().flatten().find(matches).cloned()
    }

    /// The resource of a kind.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<ResourceInfo>> {
        self.all().into_iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// Changes with everything that is served of a group version; with any, when none is named.
    pub fn digest(&self, of: Option<(&str, &str)>) -> u64 {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        for resource in self.all() {
            if of.is_none_or(|(group, version)| resource.group == group && resource.version == version) {
                let custom = resource.custom.as_ref().map(|custom| custom.digest);
                (resource.api_version(), &resource.plural, custom).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Groups with their versions, preferred version first, in the order of first appearance; the core group first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in self.all() {
            match groups.iter_mut().find(|(group, _)| *group == resource.group) {
                Some((_, versions)) if versions.contains(&resource.version) => {}
                Some((_, versions)) => versions.push(resource.version.clone()),
                None => groups.push((resource.group.clone(), vec![resource.version.clone()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

/// Kubernetes' order of versions: `v2` before `v1` before `v1beta1` before `v1alpha1` before anything else.
pub fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let level =
        |word: &str, rank| rest[digits..].strip_prefix(word).map(|n| (rank, major, n.parse().unwrap_or(0)));
    if digits == rest.len() {
        return (3, major, 0);
    }
    level("beta", 2).or_else(|| level("alpha", 1)).unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_does() {
        let mut versions = vec!["v1alpha1", "foo", "v1", "v2beta1", "v2", "v1beta2"];
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }

    #[test]
    fn a_definition_is_served_and_withdrawn() {
        let registry = Registry::new();
        registry.add_definition(&json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}}}]}}));
        let foo = registry.find("x.io", "v1", "foos").unwrap();
        assert_eq!(registry.digest(Some(("", "v1"))), Registry::new().digest(Some(("", "v1"))));
        assert_ne!(registry.digest(None), Registry::new().digest(None));
        assert!(foo.status && foo.namespaced && foo.singular == "foo" && foo.list_kind() == "FooList");
        registry.remove_definition("foos.x.io");
        assert!(registry.find("x.io", "v1", "foos").is_none());
    }
}
