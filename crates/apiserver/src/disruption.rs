// SPDX-License-Identifier: Apache-2.0
//! PodDisruptionBudgets: what each allows at this moment, computed from the Pods and their controllers. Evictions ask for
//! it; [`status`] shows it.

pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::api::Api;
use crate::selector::Labels;

/// A budget in numbers of Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Pods that are ready and stay.
    pub(crate) healthy: i64,
    /// Pods that must be healthy.
    pub(crate) desired: i64,
    /// Pods that there should be.
    pub(crate) expected: i64,
}

impl Budget {
    /// How many more Pods may go.
    pub(crate) fn allowed(self) -> i64 {
        if self.expected > 0 { (self.healthy - self.desired).max(0) } else { 0 }
    }
}

/// Whether a budget is about a Pod: one without a selector is about none.
pub(crate) fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object() && Labels::from_object(selector).matches(pod)
}

/// Whether a Pod is ready and stays.
pub(crate) fn is_healthy(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
    !pod["metadata"]["deletionTimestamp"].is_string() && ready.any(|condition| condition["status"] == "True")
}

/// The budget of an object of kind PodDisruptionBudget.
pub(crate) fn compute(api: &Api, namespace: &str, budget: &Value) -> Budget {
    let pods = api.store.list("/pods", Some(namespace), None).0;
    let pods: Vec<Arc<Value>> =
        pods.into_iter().map(|pod| pod.value).filter(|pod| selects(budget, pod)).collect();
    let healthy = count(pods.iter().filter(|pod| is_healthy(pod)).count());
    let (minimum, maximum) = (&budget["spec"]["minAvailable"], &budget["spec"]["maxUnavailable"]);
    let (desired, expected) = match (minimum.as_i64(), maximum.is_null()) {
        // A number of Pods that must be there asks for no controller.
        (Some(minimum), true) => (minimum, count(pods.len())),
        _ => {
            let expected = expected(api, namespace, &pods);
            // What cannot be read lets no Pod go.
            let desired = match (minimum.is_null(), maximum.is_null()) {
                (true, true) => 1,
                (false, true) => scaled(minimum, expected).unwrap_or(expected),
                (_, false) => expected - scaled(maximum, expected).unwrap_or(0),
            };
            (desired.max(0), expected)
        }
    };
    Budget { healthy, desired, expected }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number, or a percentage of `whole`, rounded up.
fn scaled(value: &Value, whole: i64) -> Option<i64> {
    let percent = || value.as_str()?.strip_suffix('%')?.parse::<i64>().ok();
    value.as_i64().or_else(|| percent().map(|percent| whole.saturating_mul(percent).saturating_add(99) / 100))
}

/// How many Pods the controllers of these Pods want; a Pod without a controller counts for itself.
fn expected(api: &Api, namespace: &str, pods: &[Arc<Value>]) -> i64 {
    let mut controllers: BTreeMap<String, i64> = BTreeMap::new();
    let mut alone = 0;
    for pod in pods {
        match controller(pod).and_then(|owner| wanted(api, namespace, owner)) {
            Some((uid, replicas)) => drop(controllers.insert(uid, replicas)),
            None => alone += 1,
        }
    }
    controllers.values().sum::<i64>() + alone
}

fn controller(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

/// uid and replicas of the topmost controller that can be scaled.
fn wanted(api: &Api, namespace: &str, owner: &Value) -> Option<(String, i64)> {
    let (group, version) =
        owner["apiVersion"].as_str()?.rsplit_once('/').unwrap_or(("", owner["apiVersion"].as_str()?));
    let info = api.registry.find_kind(group, version, owner["kind"].as_str()?)?;
    let object = api.store.get(&info.key, namespace, owner["name"].as_str()?)?.value;
    if object["metadata"]["uid"] != owner["uid"] {
        return None;
    }
    // A ReplicaSet is scaled by its Deployment; in a rollout neither of two ReplicaSets has the whole number.
    if let Some(above) = controller(&object).and_then(|above| wanted(api, namespace, above)) {
        return Some(above);
    }
    let scale = info.scale.as_ref()?;
    let replicas =
        scale.spec_replicas.split('.').fold(&*object, |value, key| &value[key]).as_i64().unwrap_or(0);
    Some((object["metadata"]["uid"].as_str()?.to_owned(), replicas))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percentages_are_rounded_up() {
        let cases = [
            (json!(2), 5, Some(2)),
            (json!("50%"), 5, Some(3)),
            (json!("0%"), 5, Some(0)),
            (json!("100%"), 7, Some(7)),
            (json!("x"), 7, None),
        ];
        for (value, whole, expected) in cases {
            assert_eq!(scaled(&value, whole), expected, "{value}");
        }
    }
}
