// SPDX-License-Identifier: Apache-2.0
//! Deployments: a ReplicaSet for each template, and the way from one to the next.

mod plan;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::{Key, controllers_of};
use crate::cluster::Cluster;
use crate::pods;
use crate::queue::{Outcome, Queue, is_conflict};

const NAME: &str = "deployment-controller";
const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.deployments.subscribe(move |change| {
        if let Some(deployment) = change.new {
            add.add(Key::of(&**deployment));
        }
    });
    let add = queue.clone();
    cluster.replica_sets.subscribe(move |change| {
        for key in controllers_of(change, "Deployment") {
            add.add(key);
        }
    });
    // Recreate waits for the last of the old Pods.
    let (add, sets) = (queue.clone(), cluster.replica_sets.clone());
    cluster.pods.subscribe(move |change| {
        if change.new.is_some_and(|p| !pods::is_finished(p)) {
            return;
        }
        for set in controllers_of(change, "ReplicaSet") {
            let owner = sets.get(&set).and_then(|s| crate::cache::controller(&*s).map(|o| o.name.clone()));
            if let Some(owner) = owner {
                add.add(Key::new(&set.namespace, &owner));
            }
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.replica_sets.synced(), c.deployments.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 8, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(deployment) = cluster.deployments.get(key) else { return Ok(None) };
    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
    let mut sets = cluster.replica_sets.controlled_by(&key.namespace, uid);
    if deployment.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let spec = deployment.spec.clone().unwrap_or_default();
    let paused = spec.paused == Some(true);
    let mut current = plan::find_current(&deployment, &sets);
    let old_pods = |current: Option<&Arc<ReplicaSet>>| {
        let of = |set: &&Arc<ReplicaSet>| current.is_none_or(|c| c.metadata.uid != set.metadata.uid);
        let running = |set: &Arc<ReplicaSet>| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            cluster.pods.controlled_by(&key.namespace, uid).iter().any(|p| !pods::is_finished(p))
        };
        sets.iter().filter(of).any(running)
    };
    let wait_for_old = plan::is_recreate(&spec) && old_pods(current.as_ref());
    if current.is_none() && !paused && !wait_for_old {
        let Some(made) = make_current(cluster, &deployment, &sets).await? else { return Ok(None) };
        sets.push(made.clone());
        current = Some(made);
    }
    if let Some(current) = &current
        && !paused
    {
        mark_current(cluster, &deployment, current, &sets).await?;
    }
    let wanted = plan::replicas(&deployment, &sets, current.as_ref(), wait_for_old);
    for (set, replicas) in wanted {
        scale(cluster, &deployment, &set, replicas).await?;
    }
    for set in plan::expired(&spec, &sets, current.as_ref()) {
        cluster.delete(&*set).await?;
    }
    // As they are now: with what the scaling above has changed.
    let sets = cluster.replica_sets.controlled_by(&key.namespace, uid);
    let current = plan::find_current(&deployment, &sets);
    let Some(deployment) = cluster.deployments.get(key) else { return Ok(None) };
    let (status, again) = status::compute(&deployment, &sets, current.as_ref(), Timestamp::now());
    if status::differs(&deployment, &status) {
        cluster.merge_status(&cluster.deployments, key, status::patch(&status)).await?;
    }
    Ok(again)
}

/// Makes the ReplicaSet of the present template; `None` when its name was taken and the next attempt takes another.
async fn make_current(
    cluster: &Cluster,
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> Result<Option<Arc<ReplicaSet>>, kube::Error> {
    let key = Key::of(deployment);
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = pods::short_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labelled = |labels: &mut Option<BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    };
    labelled(&mut template.metadata.get_or_insert_default().labels);
    let mut selector = spec.selector.clone();
    labelled(&mut selector.match_labels);
    let revision = plan::next_revision(sets);
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", key.name)),
            namespace: Some(key.namespace.clone()),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            annotations: Some(annotations(deployment, None, revision)),
            owner_references: Some(vec![pods::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(plan::first_replicas(deployment, sets)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    match cluster.create(&cluster.replica_sets, &set).await {
        Ok(made) => {
            let (name, n) = (&set.metadata.name, set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0));
            let message =
                format!("Scaled up replica set {} from 0 to {n}", name.as_deref().unwrap_or_default());
            if n > 0 {
                cluster.events.normal(NAME, deployment, "ScalingReplicaSet", message);
            }
            Ok(Some(Arc::new(made)))
        }
        Err(error) if is_conflict(&error) => {
            // The name belongs to another template (or to a ReplicaSet that the cache does not show yet).
            let patch = json!({"collisionCount": collisions + 1});
            cluster.merge_status(&cluster.deployments, &key, patch).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The annotations of a ReplicaSet: the Deployment's, the revision, and the sizes the Deployment had.
fn annotations(deployment: &Deployment, set: Option<&ReplicaSet>, revision: i64) -> BTreeMap<String, String> {
    let mut all = set.and_then(|s| s.metadata.annotations.clone()).unwrap_or_default();
    let own = deployment.metadata.annotations.iter().flatten();
    all.extend(
        own.filter(|(k, _)| !k.starts_with("deployment.kubernetes.io/") && *k != LAST_APPLIED)
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    if let Some(before) = all.insert(REVISION.into(), revision.to_string())
        && before != revision.to_string()
    {
        let history = all.get(REVISION_HISTORY).filter(|h| !h.is_empty());
        let history = history.map_or(before.clone(), |h| format!("{h},{before}"));
        all.insert(REVISION_HISTORY.into(), history);
    }
    let (desired, max) = plan::sizes(deployment);
    all.insert(DESIRED.into(), desired.to_string());
    all.insert(MAX.into(), max.to_string());
    all
}

/// The current ReplicaSet has the newest revision, and the Deployment says which that is.
async fn mark_current(
    cluster: &Cluster,
    deployment: &Deployment,
    current: &ReplicaSet,
    sets: &[Arc<ReplicaSet>],
) -> Result<(), kube::Error> {
    let newest =
        sets.iter().filter(|s| s.metadata.uid != current.metadata.uid).map(|s| plan::revision(s)).max();
    let revision = plan::revision(current).max(newest.unwrap_or(0) + 1);
    let wanted = annotations(deployment, Some(current), revision);
    let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
    let has_min_ready = current.spec.as_ref().and_then(|s| s.min_ready_seconds);
    if current.metadata.annotations.as_ref() != Some(&wanted)
        || min_ready.unwrap_or(0) != has_min_ready.unwrap_or(0)
    {
        let patch = json!({"metadata": {"annotations": wanted}, "spec": {"minReadySeconds": min_ready}});
        cluster.merge(&cluster.replica_sets, &Key::of(current), patch).await?;
    }
    let said = deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
    if said.map(String::as_str) != Some(&revision.to_string()) {
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        cluster.merge(&cluster.deployments, &Key::of(deployment), patch).await?;
    }
    Ok(())
}

async fn scale(
    cluster: &Cluster,
    deployment: &Deployment,
    set: &ReplicaSet,
    replicas: i32,
) -> Result<(), kube::Error> {
    let before = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    if before == replicas {
        return Ok(());
    }
    let (desired, max) = plan::sizes(deployment);
    let patch = json!({
        "metadata": {"annotations": {DESIRED: desired.to_string(), MAX: max.to_string()}},
        "spec": {"replicas": replicas},
    });
    cluster.merge(&cluster.replica_sets, &Key::of(set), patch).await?;
    let direction = if replicas > before { "up" } else { "down" };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let message = format!("Scaled {direction} replica set {name} from {before} to {replicas}");
    cluster.events.normal(NAME, deployment, "ScalingReplicaSet", message);
    Ok(())
}
