// SPDX-License-Identifier: Apache-2.0
//! ReplicaSets: as many Pods as asked for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::{Key, controllers_of};
use crate::cluster::Cluster;
use crate::pods::{self, Availability, availability};
use crate::queue::{Outcome, Queue};

/// Pods made or deleted in one go.
const BURST: usize = 100;
const NAME: &str = "replicaset-controller";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.replica_sets.subscribe(move |change| {
        if let Some(set) = change.new {
            add.add(Key::of(&**set));
        }
    });
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        for key in controllers_of(change, "ReplicaSet") {
            add.add(key);
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.replica_sets.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 8, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

/// What is to be done for a ReplicaSet.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: usize,
    delete: Vec<String>,
    status: ReplicaSetStatus,
    /// When a Pod may become available by the mere passing of time.
    again: Option<Duration>,
}

fn plan(set: &ReplicaSet, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let mut active: Vec<&Arc<Pod>> = owned.iter().filter(|p| pods::is_active(p)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let mut plan = Plan::default();
    let mut available = 0;
    for pod in &active {
        match availability(pod, spec.min_ready_seconds.unwrap_or(0), now) {
            Availability::Yes => available += 1,
            Availability::In(after) => plan.again = pods::sooner(plan.again, Some(after)),
            Availability::No => {}
        }
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        template.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
    };
    let terminating =
        owned.iter().filter(|p| !pods::is_finished(p) && p.metadata.deletion_timestamp.is_some()).count();
    plan.status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(count(active.iter().filter(|p| labelled(p)).count())),
        ready_replicas: Some(count(active.iter().filter(|p| pods::is_ready(p)).count())),
        available_replicas: Some(available),
        observed_generation: set.metadata.generation,
        terminating_replicas: Some(count(terminating)),
        conditions: None,
    };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    if active.len() < wanted {
        plan.create = (wanted - active.len()).min(BURST);
    } else {
        active.sort_by_key(|pod| pods::deletion_rank(pod));
        let surplus = active.iter().take(active.len() - wanted).take(BURST);
        plan.delete = surplus.filter_map(|p| p.metadata.name.clone()).collect();
    }
    plan
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.replica_sets.get(key) else { return Ok(None) };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let owned = cluster.pods.controlled_by(&key.namespace, uid);
    let Plan { create, delete, status, again } = plan(&set, &owned, Timestamp::now());
    let made = make(cluster, &set, key, create).await;
    for pod in owned.iter().filter(|p| p.metadata.name.as_ref().is_some_and(|n| delete.contains(n))) {
        cluster.delete(&**pod).await?;
        let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
        cluster.events.normal(NAME, &*set, "SuccessfulDelete", message);
    }
    let failure = made.as_ref().err().map(ToString::to_string);
    write_status(cluster, &set, key, &status, failure).await?;
    made?;
    Ok(again)
}

async fn make(cluster: &Cluster, set: &ReplicaSet, key: &Key, count: usize) -> Result<(), kube::Error> {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let pods = (0..count).map(|_| {
        let pod = pods::from_template(set, &template, pods::generated(&key.name), &[]);
        async move { cluster.create(&cluster.pods, &pod).await }
    });
    for made in futures::future::join_all(pods).await {
        match made {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                cluster.events.normal(NAME, set, "SuccessfulCreate", message);
            }
            Err(error) => {
                cluster.events.warning(NAME, set, "FailedCreate", format!("Error creating: {error}"));
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn write_status(
    cluster: &Cluster,
    set: &ReplicaSet,
    key: &Key,
    status: &ReplicaSetStatus,
    failure: Option<String>,
) -> Result<(), kube::Error> {
    let old = set.status.clone().unwrap_or_default();
    let failed = |s: &ReplicaSetStatus| s.conditions.iter().flatten().any(|c| c.type_ == "ReplicaFailure");
    let same_numbers = ReplicaSetStatus { conditions: None, ..old.clone() } == normal(status);
    if same_numbers && failed(&old) == failure.is_some() {
        return Ok(());
    }
    let mut patch = json!(normal(status));
    patch["conditions"] = match failure {
        Some(message) => json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": message, "lastTransitionTime": Timestamp::now()}]),
        None => json!(null),
    };
    // Zero is written as absent by the API's types: a merge must say so.
    for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas"] {
        if patch.get(field).is_none() {
            patch[field] = json!(null);
        }
    }
    cluster.merge_status(&cluster.replica_sets, key, patch).await
}

/// As the API writes it: a count of zero is absent, as is what only newer versions know.
fn normal(status: &ReplicaSetStatus) -> ReplicaSetStatus {
    let some = |n: Option<i32>| n.filter(|n| *n != 0);
    ReplicaSetStatus {
        fully_labeled_replicas: some(status.fully_labeled_replicas),
        ready_replicas: some(status.ready_replicas),
        available_replicas: some(status.available_replicas),
        terminating_replicas: some(status.terminating_replicas),
        ..status.clone()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        ReplicaSet::deserialize(json!({"metadata": {"name": "web", "namespace": "a", "uid": "rs"},
            "spec": {"replicas": replicas, "selector": {}, "minReadySeconds": 10}}))
        .unwrap()
    }

    fn pod(name: &str, status: Value) -> Arc<Pod> {
        Arc::new(
            Pod::deserialize(
                json!({"metadata": {"name": name}, "spec": {"containers": []}, "status": status}),
            )
            .unwrap(),
        )
    }

    fn ready(name: &str, at: &str) -> Arc<Pod> {
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": at});
        pod(name, json!({"phase": "Running", "conditions": [condition]}))
    }

    #[test]
    fn as_many_pods_as_asked_for() {
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let old = ready("old", "2026-01-01T00:00:00Z");
        let young = ready("young", "2026-01-01T00:00:15Z");
        let pending = pod("pending", json!({"phase": "Pending"}));
        let failed = pod("failed", json!({"phase": "Failed"}));
        let mut deleted = Pod::clone(&old);
        deleted.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        let all = [old, young, pending, failed, Arc::new(deleted)];
        // (wanted, create, delete)
        let cases: [(i32, usize, &[&str]); 4] =
            [(5, 2, &[]), (3, 0, &[]), (2, 0, &["pending"]), (0, 0, &["pending", "young", "old"])];
        for (wanted, create, delete) in cases {
            let plan = plan(&set(wanted), &all, now);
            assert_eq!((plan.create, plan.delete.len()), (create, delete.len()), "{wanted}");
            assert!(delete.iter().all(|d| plan.delete.iter().any(|p| p == d)), "{wanted}: {:?}", plan.delete);
            let status = &plan.status;
            assert_eq!(
                (status.replicas, status.ready_replicas, status.available_replicas),
                (3, Some(2), Some(1))
            );
            assert_eq!(plan.again, Some(Duration::from_secs(5)));
        }
    }
}
