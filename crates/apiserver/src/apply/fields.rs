// SPDX-License-Identifier: Apache-2.0
//! Sets of fields in the form `fieldsV1`: `f:<field>`, `k:{<keys>}` and `v:<value>` for elements of lists.

use serde_json::{Map, Value, json};

use crate::bounds::{OverBound, Work};
use crate::schema::{ListKind, Typed};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A field of a map.
    Field(String),
    /// The element of a list that has these keys.
    Key(Map<String, Value>),
    /// An element of a set.
    Value(Value),
}

/// A path from the root of an object.
pub(super) type Path = Vec<Step>;

/// A set of fields, as the tree that `fieldsV1` writes down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldSet(Map<String, Value>);

/// Never owned: identity of the object and what the server writes.
const UNOWNED: &[&str] = &["apiVersion", "kind"];
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
];

impl FieldSet {
    /// The fields that an applied configuration names.
    pub fn of(object: &Value, typed: Typed<'_>) -> Self {
        let mut tree = Map::new();
        for (key, value) in object.as_object().into_iter().flatten() {
            if UNOWNED.contains(&key.as_str()) {
                continue;
            }
            if key == "metadata" {
                let kept: Map<String, Value> = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(k, _)| !UNOWNED_METADATA.contains(&k.as_str()))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                if !kept.is_empty() {
                    tree.insert("f:metadata".into(), subtree(&Value::Object(kept), typed.field(key)));
                }
                continue;
            }
            tree.insert(format!("f:{key}"), subtree(value, typed.field(key)));
        }
        Self(tree)
    }

    /// From `fieldsV1`.
    pub fn from_v1(value: &Value) -> Self {
        Self(value.as_object().cloned().unwrap_or_default())
    }

    /// As `fieldsV1`.
    pub fn to_v1(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls `see` with the path of each leaf.
    pub(super) fn visit(
        &self,
        see: &mut dyn FnMut(&[Step]) -> Result<(), OverBound>,
    ) -> Result<(), OverBound> {
        visit(&self.0, &mut Vec::new(), see)
    }

    /// Whether a leaf (or what is above it) is in the set.
    pub(super) fn has(&self, path: &[Step], work: &mut Work) -> Result<bool, OverBound> {
        Ok(self.at(path, work)?.is_some())
    }

    /// Whether exactly this is a leaf of the set: owned itself, not only through something below it.
    pub(super) fn has_leaf(&self, path: &[Step], work: &mut Work) -> Result<bool, OverBound> {
        Ok(self.at(path, work)?.is_some_and(|tree| tree.keys().all(|key| key == ".")))
    }

    fn at(&self, path: &[Step], work: &mut Work) -> Result<Option<&Map<String, Value>>, OverBound> {
        let mut tree = &self.0;
        for step in path {
            work.spend(1)?;
            match tree.get(&name(step)).and_then(Value::as_object) {
                Some(next) => tree = next,
                None => return Ok(None),
            }
        }
        Ok(Some(tree))
    }

    /// The leaves for which `keep` holds.
    pub(super) fn filter(
        &self,
        mut keep: impl FnMut(&[Step]) -> Result<bool, OverBound>,
    ) -> Result<Self, OverBound> {
        let mut kept = Map::new();
        self.visit(&mut |path| {
            if keep(path)? {
                insert(&mut kept, path);
            }
            Ok(())
        })?;
        Ok(Self(kept))
    }

    /// Both sets together.
    pub(super) fn union(&self, other: &Self) -> Result<Self, OverBound> {
        let mut all = self.0.clone();
        other.visit(&mut |path| {
            insert(&mut all, path);
            Ok(())
        })?;
        Ok(Self(all))
    }
}

fn subtree(value: &Value, typed: Typed<'_>) -> Value {
    match value {
        Value::Object(map) if !map.is_empty() && !typed.is_atomic_map() => {
            Value::Object(map.iter().map(|(k, v)| (format!("f:{k}"), subtree(v, typed.field(k)))).collect())
        }
        Value::Array(list) => match typed.list() {
            ListKind::Set => {
                Value::Object(list.iter().map(|item| (format!("v:{item}"), json!({}))).collect())
            }
            ListKind::Map(keys) if list.iter().all(Value::is_object) => Value::Object(
                list.iter()
                    .map(|item| {
                        let mut inner = subtree(item, typed.items());
                        inner["."] = json!({});
                        (name(&Step::Key(typed.items().keys_of(item, &keys))), inner)
                    })
                    .collect(),
            ),
            ListKind::Map(_) | ListKind::Atomic => json!({}),
        },
        _ => json!({}),
    }
}

fn name(step: &Step) -> String {
    match step {
        Step::Field(field) => format!("f:{field}"),
        Step::Key(keys) => format!("k:{}", Value::Object(keys.clone())),
        Step::Value(value) => format!("v:{value}"),
    }
}

fn step(name: &str) -> Option<Step> {
    if let Some(field) = name.strip_prefix("f:") {
        return Some(Step::Field(field.to_owned()));
    }
    if let Some(keys) = name.strip_prefix("k:") {
        return serde_json::from_str(keys).ok().map(Step::Key);
    }
    serde_json::from_str(name.strip_prefix("v:")?).ok().map(Step::Value)
}

fn visit(
    tree: &Map<String, Value>,
    at: &mut Path,
    see: &mut dyn FnMut(&[Step]) -> Result<(), OverBound>,
) -> Result<(), OverBound> {
    let mut is_leaf = true;
    for (key, inner) in tree {
        if let (Some(step), Some(inner)) = (step(key), inner.as_object()) {
            is_leaf = false;
            at.push(step);
            visit(inner, at, see)?;
            at.pop();
        }
    }
    if is_leaf && !at.is_empty() { see(at) } else { Ok(()) }
}

fn insert(tree: &mut Map<String, Value>, path: &[Step]) {
    let mut at = tree;
    for step in path {
        let inner = at
            .entry(name(step))
            .or_insert_with(|| if matches!(step, Step::Key(_)) { json!({".": {}}) } else { json!({}) });
        match inner.as_object_mut() {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// The value at a path.
pub(super) fn value<'a>(
    object: &'a Value,
    path: &[Step],
    work: &mut Work,
) -> Result<Option<&'a Value>, OverBound> {
    let mut value = object;
    for step in path {
        work.spend(1)?;
        let next = match step {
            Step::Field(field) => value.get(field),
            Step::Key(keys) => {
                let list = value.as_array().map_or(&[][..], Vec::as_slice);
                let at = list.iter().position(|item| has_keys(item, keys));
                work.spend(at.unwrap_or(list.len()))?;
                at.map(|at| &list[at])
            }
            Step::Value(wanted) => {
                let list = value.as_array().map_or(&[][..], Vec::as_slice);
                let at = list.iter().position(|item| item == wanted);
                work.spend(at.unwrap_or(list.len()))?;
                at.map(|at| &list[at])
            }
        };
        match next {
            Some(next) => value = next,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

fn has_keys(item: &Value, keys: &Map<String, Value>) -> bool {
    keys.iter().all(|(key, wanted)| {
        let default = if key == "protocol" { json!("TCP") } else { Value::Null };
        item.get(key).unwrap_or(&default) == wanted
    })
}

/// Removes the value at a path, and what is left empty above it by that.
pub(super) fn remove(object: &mut Value, path: &[Step]) {
    let Some((first, rest)) = path.split_first() else { return };
    match first {
        Step::Field(field) => {
            let Some(map) = object.as_object_mut() else { return };
            let Some(inner) = map.get_mut(field) else { return };
            if rest.is_empty() {
                map.remove(field);
                return;
            }
            remove(inner, rest);
            let empty =
                inner.as_object().is_some_and(Map::is_empty) || inner.as_array().is_some_and(Vec::is_empty);
            if empty {
                map.remove(field);
            }
        }
        Step::Key(keys) => {
            let Some(list) = object.as_array_mut() else { return };
            let Some(at) = list.iter().position(|item| has_keys(item, keys)) else { return };
            // A key stays as long as the element does, which is found by it.
            let is_key = matches!(rest, [Step::Field(field)] if keys.contains_key(field));
            if !is_key {
                remove(&mut list[at], rest);
            }
            // Nothing but the keys is left: the element itself was owned.
            let bare = list[at].as_object().is_some_and(|item| item.keys().all(|k| keys.contains_key(k)));
            if rest.is_empty() || bare {
                list.remove(at);
            }
        }
        Step::Value(wanted) => {
            if let Some(list) = object.as_array_mut() {
                list.retain(|item| item != wanted);
            }
        }
    }
}

/// Merges an applied configuration into an object: maps by field, keyed lists by element, all else replaced.
pub(super) fn merge(
    object: &mut Value,
    wanted: &Value,
    typed: Typed<'_>,
    work: &mut Work,
) -> Result<(), OverBound> {
    match (&mut *object, wanted) {
        (Value::Object(target), Value::Object(wanted)) if !typed.is_atomic_map() => {
            for (key, value) in wanted {
                match target.get_mut(key) {
                    Some(inner) => merge(inner, value, typed.field(key), work)?,
                    None => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(list), Value::Array(items)) => match typed.list() {
            ListKind::Set => {
                work.spend_pairs(list.len(), items.len())?;
                let new: Vec<Value> = items.iter().filter(|item| !list.contains(item)).cloned().collect();
                list.extend(new);
            }
            ListKind::Map(keys) if list.iter().chain(items).all(Value::is_object) => {
                for item in items {
                    work.spend(list.len())?;
                    let wanted = typed.items().keys_of(item, &keys);
                    match list.iter_mut().find(|item| has_keys(item, &wanted)) {
                        Some(found) => merge(found, item, typed.items(), work)?,
                        None => list.push(item.clone()),
                    }
                }
            }
            ListKind::Map(_) | ListKind::Atomic => list.clone_from(items),
        },
        _ => *object = wanted.clone(),
    }
    Ok(())
}

/// A path as Kubernetes writes it in messages.
pub(super) fn display(path: &[Step]) -> String {
    path.iter()
        .map(|step| match step {
            Step::Field(field) => format!(".{field}"),
            Step::Key(keys) => {
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", pairs.join(","))
            }
            Step::Value(value) => format!("[={value}]"),
        })
        .collect()
}
