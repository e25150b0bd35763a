// SPDX-License-Identifier: Apache-2.0
//! Keeps the status of PodDisruptionBudgets, as `kubectl get pdb` shows it and tools that drain nodes wait for it. An
//! eviction does not read it: it may be older than the last eviction.

use std::convert::Infallible;
use std::time::Duration;

use meltemi_runtime::DrainWatch;
use serde_json::{Value, json};

use super::{Budget, compute};
use crate::api::Api;

const BUDGETS: &str = "policy/poddisruptionbudgets";
/// What a budget depends on, beside custom controllers: when those are scaled, their Pods change as well.
const WATCHED: [&str; 6] = [
    BUDGETS,
    "/pods",
    "apps/deployments",
    "apps/replicasets",
    "apps/statefulsets",
    "/replicationcontrollers",
];
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(200);

/// Writes the status of each budget when it changes, until the drain starts.
pub(crate) async fn keep(api: Api, mut drain: DrainWatch) -> Result<(), Infallible> {
    let mut changes = api.store.changes();
    let mut written_at = None;
    loop {
        changes.borrow_and_update();
        let last_change = WATCHED.iter().map(|resource| api.store.last_change(resource)).max();
        if last_change != written_at {
            written_at = last_change;
            write_all(&api);
        }
        let changed = async {
            let changed = changes.changed().await;
            tokio::time::sleep(GATHER).await;
            changed
        };
        tokio::select! {
            changed = changed => if changed.is_err() { return Ok(()) },
            () = drain.started() => return Ok(()),
        }
    }
}

fn write_all(api: &Api) {
    for stored in api.store.list(BUDGETS, None, None).0 {
        let metadata = &stored.value["metadata"];
        let (Some(namespace), Some(name)) = (metadata["namespace"].as_str(), metadata["name"].as_str())
        else {
            continue;
        };
        let wanted = status(&stored.value, compute(api, namespace, &stored.value), &api.now());
        if stored.value["status"] == wanted {
            continue;
        }
        let mut object = Value::clone(&stored.value);
        object["status"] = wanted;
        // A conflict is another write, after which this runs again.
        if let Err(error) = api.store.replace(BUDGETS, namespace, name, stored.revision, object) {
            tracing::debug!(namespace, name, %error, "status of a disruption budget not written");
        }
    }
}

/// The status of a budget, which keeps the time of its last transition.
fn status(object: &Value, budget: Budget, now: &str) -> Value {
    let allowed = budget.allowed();
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before = object["status"]["conditions"].as_array().into_iter().flatten();
    let before = before.clone().find(|condition| condition["type"] == "DisruptionAllowed");
    let since = before.filter(|condition| condition["status"] == status);
    let since = since.and_then(|condition| condition["lastTransitionTime"].as_str()).unwrap_or(now);
    let generation = &object["metadata"]["generation"];
    json!({
        "observedGeneration": generation,
        "currentHealthy": budget.healthy,
        "desiredHealthy": budget.desired,
        "disruptionsAllowed": allowed,
        "expectedPods": budget.expected,
        "conditions": [{
            "type": "DisruptionAllowed", "status": status, "reason": reason, "message": "",
            "observedGeneration": generation, "lastTransitionTime": since,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_allowed_and_since_when() {
        let budget = |healthy, desired, expected| Budget { healthy, desired, expected };
        let mut object = json!({"metadata": {"generation": 3}});
        for (counts, allowed, reason, now, since) in [
            (budget(3, 2, 3), 1, "SufficientPods", "t1", "t1"),
            (budget(5, 2, 5), 3, "SufficientPods", "t2", "t1"),
            (budget(2, 2, 3), 0, "InsufficientPods", "t3", "t3"),
            (budget(1, 2, 3), 0, "InsufficientPods", "t4", "t3"),
            (budget(0, 0, 0), 0, "InsufficientPods", "t5", "t3"),
        ] {
            object["status"] = status(&object, counts, now);
            let condition = &object["status"]["conditions"][0];
            assert_eq!(object["status"]["disruptionsAllowed"], allowed, "{counts:?}");
            assert_eq!(
                (&condition["reason"], &condition["lastTransitionTime"]),
                (&json!(reason), &json!(since))
            );
            assert_eq!(
                (&condition["observedGeneration"], &object["status"]["observedGeneration"]),
                (&json!(3), &json!(3))
            );
        }
    }
}
