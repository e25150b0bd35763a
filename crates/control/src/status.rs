// SPDX-License-Identifier: Apache-2.0
//! Writes status: the newest wish for each object, in one server-side apply by one manager, only when it differs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_translate::condition::Condition;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::leader::Leadership;

/// How long wishes are gathered before they are written: a burst of changes costs one write each object.
const GATHER: Duration = Duration::from_millis(20);
/// Writes at the same time.
const PARALLEL: usize = 8;
/// Before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The object whose status it is, and who writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `apiVersion` of the object.
    pub api_version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its plural.
    pub plural: &'static str,
    /// Its name; the namespace is empty for what has none.
    pub name: NamespacedName,
    /// Field manager.
    pub manager: &'static str,
}

/// What the status should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// These conditions and nothing else.
    Conditions {
        /// Generation that they were computed from.
        generation: Option<i64>,
        /// The conditions.
        conditions: Vec<Condition>,
    },
    /// A whole status that its maker shapes; [`fill`] completes its conditions.
    Whole(Value),
}

/// Takes wishes from anywhere; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatusQueue(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    wishes: Mutex<BTreeMap<Key, Wish>>,
    more: Notify,
}

impl StatusQueue {
    /// Wishes that the status of an object be so; an older wish for it is forgotten.
    pub fn set(&self, key: Key, wish: Wish) {
        self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, wish);
        self.0.more.notify_one();
    }

    fn set_if_absent(&self, key: Key, wish: Wish) {
        self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(wish);
        self.0.more.notify_one();
    }

    pub(crate) fn take(&self) -> BTreeMap<Key, Wish> {
        std::mem::take(&mut self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the writer; it writes while this replica leads.
pub fn start(client: Client, tasks: &Tasks, queue: &StatusQueue, leader: Leadership) {
    let mut drain = tasks.drain();
    let queue = queue.clone();
    tasks.spawn("status writer", async move {
        tokio::select! {
            () = drain.started() => {}
            () = write_forever(&client, &queue, leader) => {}
        }
        Ok::<(), Infallible>(())
    });
}

async fn write_forever(client: &Client, queue: &StatusQueue, mut leader: Leadership) {
    loop {
        queue.0.more.notified().await;
        tokio::time::sleep(GATHER).await;
        leader.acquired().await;
        let wishes = queue.take();
        let failed: HashSet<bool> = futures::stream::iter(wishes)
            .map(|(key, wish)| async move {
                match write(client, &key, &wish).await {
                    Ok(()) => false,
                    Err(error) => {
                        tracing::warn!(kind = key.kind, name = %key.name, %error, "status not written, trying again");
                        queue.set_if_absent(key, wish);
                        true
                    }
                }
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        if failed.contains(&true) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn write(client: &Client, key: &Key, wish: &Wish) -> Result<(), kube::Error> {
    let (group, version) = key.api_version.rsplit_once('/').unwrap_or(("", key.api_version));
    let gvk = kube::api::GroupVersionKind::gvk(group, version, key.kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, key.plural);
    let api: Api<DynamicObject> = if key.name.namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &key.name.namespace, &resource)
    };
    // The object may be gone by now, and with it the wish.
    let Some(current) = api.get_opt(&key.name.name).await? else { return Ok(()) };
    let before = &current.data["status"];
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let status = match wish {
        Wish::Conditions { generation, conditions } => {
            let previous = before.get("conditions");
            let filled: Vec<Value> =
                conditions.iter().map(|c| c.to_json(*generation, previous, &now)).collect();
            json!({ "conditions": filled })
        }
        Wish::Whole(status) => fill(status, before, &now),
    };
    if holds(before, &status) && owns_alike(&current, key.manager, &status) {
        return Ok(());
    }
    let body = json!({
        "apiVersion": key.api_version,
        "kind": key.kind,
        "metadata": { "name": &*key.name.name },
        "status": status,
    });
    let params = PatchParams::apply(key.manager).force();
    match api.patch_status(&key.name.name, &params, &Patch::Apply(&body)).await {
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Whether a manager owns the conditions that it wants and no other: what it wants no longer goes with its next apply.
fn owns_alike(current: &DynamicObject, manager: &str, wanted: &Value) -> bool {
    let types = |conditions: &Value| -> BTreeSet<String> {
        let all = conditions.as_array().into_iter().flatten();
        all.filter_map(|c| c["type"].as_str().map(str::to_owned)).collect()
    };
    let mut entries = current.metadata.managed_fields.iter().flatten();
    let ours = entries
        .find(|f| f.manager.as_deref() == Some(manager) && f.subresource.as_deref() == Some("status"))
        .and_then(|f| f.fields_v1.as_ref())
        .and_then(|f| f.0["f:status"]["f:conditions"].as_object());
    let owned = match ours {
        None => BTreeSet::new(),
        // Where the schema says nothing of the list, it is owned as a whole.
        Some(fields) if fields.is_empty() => types(&current.data["status"]["conditions"]),
        Some(fields) => {
            let keys = fields.keys().filter_map(|key| key.strip_prefix("k:"));
            let parsed = keys.filter_map(|key| serde_json::from_str::<Value>(key).ok());
            parsed.filter_map(|key| key["type"].as_str().map(str::to_owned)).collect()
        }
    };
    owned == types(&wanted["conditions"])
}

/// Conditions without their transition times, for a status that its maker shapes.
pub(crate) fn untimed(conditions: &[Condition], generation: Option<i64>) -> Vec<Value> {
    let one = |c: &Condition| {
        json!({
            "type": c.kind,
            "status": c.status_text(),
            "reason": c.reason,
            "message": c.message,
            "observedGeneration": generation.unwrap_or(0),
        })
    };
    conditions.iter().map(one).collect()
}

/// Gives every condition anywhere in `status` its transition time: that of the same place in `before` when its
/// status is the same, else `now`. Lists of objects are matched by `name`, `parentRef` or `type`.
pub fn fill(status: &Value, before: &Value, now: &str) -> Value {
    match status {
        Value::Object(map) => {
            let mut out: serde_json::Map<String, Value> =
                map.iter().map(|(k, v)| (k.clone(), fill(v, &before[k], now))).collect();
            if out.contains_key("reason") && out.contains_key("type") && out.contains_key("status") {
                let same = before["type"] == out["type"] && before["status"] == out["status"];
                let time = before["lastTransitionTime"].as_str().filter(|_| same).unwrap_or(now);
                out.insert("lastTransitionTime".to_owned(), json!(time));
            }
            Value::Object(out)
        }
        Value::Array(items) => {
            let previous = |item: &Value| {
                let id = ["type", "name", "parentRef"].into_iter().find(|k| !item[*k].is_null());
                let all = before.as_array().into_iter().flatten();
                id.and_then(|id| all.into_iter().find(|b| b[id] == item[id])).cloned().unwrap_or(Value::Null)
            };
            Value::Array(items.iter().map(|item| fill(item, &previous(item), now)).collect())
        }
        other => other.clone(),
    }
}

/// Whether everything of `wanted` is already in `current`; the conditions of other managers do not matter, other
/// lists have to be equal.
fn holds(current: &Value, wanted: &Value) -> bool {
    match (current, wanted) {
        (Value::Object(current), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| match (key.as_str(), value) {
                ("conditions", Value::Array(wanted)) => {
                    let current = current.get(key).and_then(Value::as_array);
                    wanted.iter().all(|w| current.into_iter().flatten().any(|c| c == w))
                }
                _ => current.get(key).is_some_and(|c| holds(c, value)),
            })
        }
        (Value::Array(current), Value::Array(wanted)) => {
            current.len() == wanted.len() && current.iter().zip(wanted).all(|(c, w)| holds(c, w))
        }
        _ => current == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let before = json!({ "conditions": [
            { "type": "Accepted", "status": "True", "reason": "Old", "lastTransitionTime": "t0" },
            { "type": "Programmed", "status": "False", "reason": "Old", "lastTransitionTime": "t0" },
        ]});
        let status = json!({ "conditions": [
            { "type": "Programmed", "status": "True", "reason": "New" },
            { "type": "Accepted", "status": "True", "reason": "New" },
        ]});
        let filled = fill(&status, &before, "t1");
        assert_eq!(filled["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(filled["conditions"][1]["lastTransitionTime"], "t0");
    }

    #[test]
    fn other_managers_conditions_are_not_ours_to_compare() {
        let condition = json!({ "type": "A", "status": "True", "reason": "R" });
        let current = json!({ "conditions": [json!({ "type": "Z" }), condition], "addresses": [1] });
        assert!(holds(&current, &json!({ "conditions": [condition] })));
        assert!(!holds(&current, &json!({ "conditions": [condition], "addresses": [1, 2] })));
        assert!(!holds(
            &current,
            &json!({ "conditions": [{ "type": "A", "status": "False", "reason": "R" }] })
        ));
        assert!(!holds(&Value::Null, &json!({ "conditions": [condition] })));
    }

    #[test]
    fn a_condition_that_is_wanted_no_longer_is_ours_to_remove() {
        let key = |kind: &str| format!("k:{}", json!({ "type": kind }));
        let object = |fields: Value| -> DynamicObject {
            let entry = |manager: &str, subresource: &str, fields: &Value| {
                json!({ "manager": manager, "subresource": subresource, "operation": "Apply", "fieldsType": "FieldsV1",
                    "fieldsV1": { "f:status": { "f:conditions": fields } } })
            };
            let others = json!({ key("Other"): {} });
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": "a", "managedFields": [entry("them", "status", &others), entry("us", "status", &fields)] },
                "status": { "conditions": [{ "type": "Other" }, { "type": "A" }, { "type": "B" }] },
            }))
            .unwrap()
        };
        let wanted = |types: &[&str]| json!({ "conditions": types.iter().map(|t| json!({ "type": t })).collect::<Vec<_>>() });
        let cases: [(Value, &[&str], bool); 7] = [
            (json!({ key("A"): {}, key("B"): {} }), &["B", "A"], true),
            (json!({ key("A"): {}, key("B"): {} }), &["A"], false),
            (json!({ key("A"): {}, key("B"): {} }), &[], false),
            (json!({ key("A"): {} }), &["A", "B"], false),
            (json!({}), &["A", "B", "Other"], true),
            (json!({}), &["A", "B"], false),
            (Value::Null, &[], true),
        ];
        for (fields, types, alike) in cases {
            assert_eq!(
                owns_alike(&object(fields.clone()), "us", &wanted(types)),
                alike,
                "{fields} {types:?}"
            );
        }
    }

    #[test]
    fn a_newer_wish_replaces_an_older_one() {
        let queue = StatusQueue::default();
        let key = Key {
            api_version: "v1",
            kind: "Service",
            plural: "services",
            name: NamespacedName::new("a", "b"),
            manager: "m",
        };
        queue.set(key.clone(), Wish::Whole(json!(1)));
        queue.set(key.clone(), Wish::Whole(json!(2)));
        queue.set_if_absent(key.clone(), Wish::Whole(json!(3)));
        assert_eq!(queue.take().remove(&key), Some(Wish::Whole(json!(2))));
    }
}
