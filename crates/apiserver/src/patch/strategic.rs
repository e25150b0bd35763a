// SPDX-License-Identifier: Apache-2.0
//! Strategic merge patch: maps are merged, lists of objects are merged by their key where the API declares one, with
//! the directives `$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys`.

use serde_json::{Map, Value};

use crate::bounds::{OverBound, Work};
use crate::schema::{ListKind, Typed};

/// Applies a strategic merge patch. The object is undefined after an error.
///
/// # Errors
/// Comparing lists with lists takes more work than one request may cause.
pub fn strategic(object: &mut Value, patch: &Value, typed: Typed<'_>) -> Result<(), OverBound> {
    merge_values(object, patch, typed, &mut Work::default())
}

fn merge_values(
    object: &mut Value,
    patch: &Value,
    typed: Typed<'_>,
    work: &mut Work,
) -> Result<(), OverBound> {
    match (object, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_maps(target, patch, typed, work)?,
        (target, patch) => *target = without_directives(patch),
    }
    Ok(())
}

fn merge_maps(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    typed: Typed<'_>,
    work: &mut Work,
) -> Result<(), OverBound> {
    work.spend(1 + patch.len())?;
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target =
                patch.iter().filter(|(k, _)| *k != "$patch").map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        _ => {}
    }
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        work.spend_pairs(target.len(), keep.len())?;
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(list)), Some(gone)) = (target.get_mut(field), change.as_array()) {
                work.spend_pairs(list.len(), gone.len())?;
                list.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // $setElementOrder is honoured after the merge, below.
        } else if change.is_null() {
            target.remove(key);
        } else {
            merge_field(target, key, change, typed.field(key), work)?;
        }
    }
    for (key, order) in patch {
        if let (Some(field), Some(order)) = (key.strip_prefix("$setElementOrder/"), order.as_array())
            && let Some(Value::Array(list)) = target.get_mut(field)
        {
            work.spend_pairs(list.len(), order.len())?;
            reorder(typed.field(field), list, order);
        }
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    change: &Value,
    typed: Typed<'_>,
    work: &mut Work,
) -> Result<(), OverBound> {
    match (target.get_mut(key), change) {
        (Some(Value::Object(target)), Value::Object(change)) => merge_maps(target, change, typed, work)?,
        (Some(Value::Array(list)), Value::Array(changes)) => merge_lists(list, changes, typed, work)?,
        (_, change) => {
            target.insert(key.to_owned(), without_directives(change));
        }
    }
    Ok(())
}

fn merge_lists(
    list: &mut Vec<Value>,
    changes: &[Value],
    typed: Typed<'_>,
    work: &mut Work,
) -> Result<(), OverBound> {
    let replaces = changes.iter().any(|c| c.get("$patch").and_then(Value::as_str) == Some("replace"));
    let keys = match typed.strategic() {
        ListKind::Set => {
            work.spend_pairs(list.len(), changes.len())?;
            list.extend(changes.iter().filter(|c| !list.contains(c)).cloned().collect::<Vec<_>>());
            return Ok(());
        }
        ListKind::Map(keys) if !replaces && list.iter().chain(changes).all(Value::is_object) => keys,
        ListKind::Map(_) | ListKind::Atomic => {
            *list = changes.iter().filter(|c| c.get("$patch").is_none()).map(without_directives).collect();
            return Ok(());
        }
    };
    for change in changes {
        work.spend_pairs(list.len(), keys.len())?;
        let same = |item: &Value| keys.iter().all(|key| item.get(key) == change.get(key));
        if change.get("$patch").and_then(Value::as_str) == Some("delete") {
            list.retain(|item| !same(item));
        } else if let Some(item) = list.iter_mut().find(|item| same(item)) {
            merge_values(item, change, typed.items(), work)?;
        } else {
            list.push(without_directives(change));
        }
    }
    Ok(())
}

fn reorder(typed: Typed<'_>, list: &mut [Value], order: &[Value]) {
    let kind = typed.strategic();
    let rank = |item: &Value| {
        let same = |wanted: &Value| match &kind {
            ListKind::Map(keys) if item.is_object() => {
                keys.iter().all(|key| item.get(key) == wanted.get(key))
            }
            _ => item == wanted,
        };
        order.iter().position(same).unwrap_or(order.len())
    };
    // Once for each element, not for each comparison.
    list.sort_by_cached_key(rank);
}

fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
                .map(|(key, value)| (key.clone(), without_directives(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(without_directives).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_merge_by_key_and_maps_by_field() {
        let schema = json!({"properties": {
            "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
            "spec": {"$ref": "#/$defs/io.k8s.api.core.v1.PodSpec"},
            "container": {"$ref": "#/$defs/io.k8s.api.core.v1.Container"},
            "service": {"$ref": "#/$defs/io.k8s.api.core.v1.ServiceSpec"}}});
        let cases = [
            (
                json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}),
                json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}}),
                json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]}}),
            ),
            (
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                json!({"spec": {"containers": [{"name": "b"}]}}),
            ),
            (
                json!({"args": ["1", "2"], "metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"args": ["3"], "metadata": {"labels": {"a": null, "c": "3"}}}),
                json!({"args": ["3"], "metadata": {"labels": {"b": "2", "c": "3"}}}),
            ),
            (
                json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
                json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
                json!({"strategy": {"type": "Recreate"}}),
            ),
            (
                json!({"metadata": {"finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": ["b"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": ["b"]}}),
            ),
            (
                json!({"container": {"env": [{"name": "a"}, {"name": "b"}]}}),
                json!({"container": {"$setElementOrder/env": [{"name": "b"}, {"name": "a"}],
                    "env": [{"name": "b", "value": "1"}]}}),
                json!({"container": {"env": [{"name": "b", "value": "1"}, {"name": "a"}]}}),
            ),
            (
                json!({"service": {"ports": [{"port": 80, "targetPort": 1}]}}),
                json!({"service": {"ports": [{"port": 80, "targetPort": 2}, {"port": 81}]}}),
                json!({"service": {"ports": [{"port": 80, "targetPort": 2}, {"port": 81}]}}),
            ),
            (
                json!({"container": {"ports": [{"containerPort": 80}, {"containerPort": 81}]}}),
                json!({"container": {"ports": [{"containerPort": 81, "name": "b"}]}}),
                json!({"container": {"ports": [{"containerPort": 80}, {"containerPort": 81, "name": "b"}]}}),
            ),
        ];
        for (object, patch, expected) in cases {
            let mut result = object.clone();
            strategic(&mut result, &patch, Typed::new(&schema)).unwrap();
            assert_eq!(result, expected, "{object} + {patch}");
        }
    }

    #[test]
    fn lists_that_take_too_long_to_compare_are_refused() {
        let schema = json!({"properties": {
            "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
            "spec": {"$ref": "#/$defs/io.k8s.api.core.v1.PodSpec"}}});
        let containers =
            |at: usize| json!((at..at + 9_000).map(|n| json!({"name": n.to_string()})).collect::<Vec<_>>());
        let texts = |at: usize| json!((at..at + 9_000).map(|n| n.to_string()).collect::<Vec<_>>());
        for (object, patch) in [
            (
                json!({"spec": {"containers": containers(0)}}),
                json!({"spec": {"containers": containers(9_000)}}),
            ),
            (
                json!({"metadata": {"finalizers": texts(0)}}),
                json!({"metadata": {"finalizers": texts(9_000)}}),
            ),
            (json!({"a": texts(0)}), json!({"$deleteFromPrimitiveList/a": texts(9_000)})),
            (json!({"a": texts(0)}), json!({"$setElementOrder/a": texts(9_000)})),
        ] {
            let mut result = object.clone();
            assert_eq!(strategic(&mut result, &patch, Typed::new(&schema)), Err(OverBound::Work));
        }
    }
}
