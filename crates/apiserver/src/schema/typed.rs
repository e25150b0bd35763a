// SPDX-License-Identifier: Apache-2.0
//! A place in a schema, walked beside an object by patches and by server-side apply: how is this list merged?

use serde_json::{Map, Value};

use super::{check, definition_name, definitions};
use crate::registry::ResourceInfo;

/// What the schema says at one place; nothing where it says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Typed<'a> {
    schema: Option<&'a Value>,
    /// At the top of a custom resource, whose schema leaves `metadata` to the server.
    top: bool,
}

/// How a list is merged under server-side apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind<'a> {
    /// Replaced as a whole.
    Atomic,
    /// Each value stands for itself.
    Set,
    /// Elements are found by these keys.
    Map(Vec<&'a str>),
}

impl<'a> Typed<'a> {
    /// The top of an object of this resource.
    pub fn of(info: &'a ResourceInfo) -> Self {
        let schema = match &info.custom {
            Some(custom) => Some(&custom.schema),
            None => definition_name(&info.group, &info.version, &info.kind)
                .and_then(|name| definitions().get(name)),
        };
        Self { schema, top: info.custom.is_some() }
    }

    /// The top of an object with this schema.
    pub fn new(schema: &'a Value) -> Self {
        Self { schema: Some(schema), top: false }
    }

    fn resolved(self) -> Option<&'a Value> {
        self.schema.map(check::resolve)
    }

    fn below(schema: Option<&'a Value>) -> Self {
        Self { schema, top: false }
    }

    /// A field of this object or map.
    pub fn field(self, name: &str) -> Self {
        if self.top && name == "metadata" {
            return Self::below(definitions().get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"));
        }
        let Some(schema) = self.resolved() else { return Self::below(None) };
        let declared = schema["properties"].get(name);
        Self::below(declared.or_else(|| schema.get("additionalProperties").filter(|a| a.is_object())))
    }

    /// An element of this list.
    pub fn items(self) -> Self {
        Self::below(self.resolved().and_then(|schema| schema.get("items")))
    }

    /// How this list is merged under server-side apply.
    pub fn list(self) -> ListKind<'a> {
        let Some(schema) = self.schema else { return ListKind::Atomic };
        match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => ListKind::Set,
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                ListKind::Map(keys.filter_map(Value::as_str).collect())
            }
            _ => ListKind::Atomic,
        }
    }

    /// Whether this map is owned and replaced as a whole.
    pub fn is_atomic_map(self) -> bool {
        let atomic = |schema: &Value| schema["x-kubernetes-map-type"] == "atomic";
        self.schema.is_some_and(atomic) || self.resolved().is_some_and(atomic)
    }

    /// How this list is merged by a strategic merge patch, which knows one key.
    pub fn strategic(self) -> ListKind<'a> {
        let Some(schema) = self.schema else { return ListKind::Atomic };
        let merged = schema["x-kubernetes-patch-strategy"].as_str().is_some_and(|s| s.contains("merge"));
        match schema["x-kubernetes-patch-merge-key"].as_str() {
            Some(key) if merged => ListKind::Map(vec![key]),
            None if merged => ListKind::Set,
            _ => ListKind::Atomic,
        }
    }

    /// The keys of an element, with the defaults that the schema declares for those left out.
    pub fn keys_of(self, item: &Value, keys: &[&str]) -> Map<String, Value> {
        let value = |key: &str| match item.get(key) {
            Some(value) => value.clone(),
            None => self.default_of(key),
        };
        keys.iter().map(|key| ((*key).to_owned(), value(key))).collect()
    }

    fn default_of(self, key: &str) -> Value {
        let declared = self.field(key).schema.and_then(|schema| schema.get("default")).cloned();
        // The built-in kinds' schemas do not carry theirs; this is the only one among keys.
        declared.unwrap_or(if key == "protocol" { "TCP".into() } else { Value::Null })
    }
}
