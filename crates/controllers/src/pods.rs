// SPDX-License-Identifier: Apache-2.0
//! Pods as controllers see them: made from a template, ready, available, finished.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};

/// Letters and digits that cannot form words, as Kubernetes uses them in generated names.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random suffix of generated names.
pub(crate) fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(SAFE[rng.random_range(0..SAFE.len())])).collect()
}

/// A short name for a value: the same for equal values, another one for a greater `collisions`.
pub(crate) fn short_hash<T: serde::Serialize>(value: &T, collisions: i32) -> String {
    // By way of `Value`, and sorted: the order of fields must not count.
    let sorted = sorted(serde_json::to_value(value).unwrap_or_default());
    let mut hash = Sha256::new();
    hash.update(sorted.to_string());
    hash.update(collisions.to_be_bytes());
    hash.finalize().iter().take(10).map(|b| char::from(SAFE[usize::from(*b) % SAFE.len()])).collect()
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let map: BTreeMap<String, Value> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(map.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// The reference of an object to its controller.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A Pod made from a template for its controller.
pub(crate) fn from_template<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    name: String,
    labels: &[(&str, &str)],
) -> Pod {
    let given = template.metadata.clone().unwrap_or_default();
    let mut all = given.labels.unwrap_or_default();
    all.extend(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: Some(all),
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A Pod's name that says where it comes from.
pub(crate) fn generated(owner: &str) -> String {
    // Names are labels of DNS: at most 63 characters.
    let stem: String = owner.chars().take(57).collect();
    format!("{stem}-{}", random_suffix())
}

/// The phase, `Pending` when nothing has been said.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether it has ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// When the last of its containers ended; none while one has not.
pub(crate) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    let ends = statuses.iter().map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Whether it counts: neither ended nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether its condition `Ready` is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Since when it is ready.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// Whether it has been ready for `min_ready_seconds`; if not yet, after what time it may be.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    let Some(since) = ready_since(pod) else { return Availability::No };
    let needed = i64::from(min_ready_seconds.max(0));
    let elapsed = now.as_second() - since.as_second();
    if needed == 0 || elapsed >= needed {
        return Availability::Yes;
    }
    Availability::In(Duration::from_secs(u64::try_from(needed - elapsed).unwrap_or(1)))
}

/// See [`availability`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Yes,
    No,
    In(Duration),
}

/// The sooner of two.
pub(crate) fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Which Pod to delete first: not placed, pending, not ready, young.
pub(crate) fn deletion_rank(pod: &Pod) -> (bool, bool, bool, std::cmp::Reverse<Option<Timestamp>>) {
    let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (placed, phase(pod) == "Running", is_ready(pod), std::cmp::Reverse(created))
}

/// Whether the labels match the selector. An operator that is unknown matches nothing.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let empty = BTreeMap::new();
    let labels = labels.unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
