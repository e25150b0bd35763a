// SPDX-License-Identifier: Apache-2.0
//! Removes Pods that no node will ever report on: their node is gone, or they were deleted before they had one.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Preconditions};
use meltemi_runtime::Tasks;

use crate::cache::{Key, namespaced};
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue, gone_is_fine};

/// A node that has gone may only be registering anew.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        if let Some(pod) = change.new
            && (node(pod).is_some() || pod.metadata.deletion_timestamp.is_some())
        {
            add.add(Key::of(&**pod));
        }
    });
    let (add, all) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.subscribe(move |change| {
        if let (Some(old), None) = (change.old, change.new) {
            let name = old.metadata.name.as_deref();
            for pod in all.all().iter().filter(|p| node(p) == name) {
                add.add_after(Key::of(&**pod), PATIENCE);
            }
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.nodes.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, "pod-garbage-collector", 4, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(pod) = cluster.pods.get(key) else { return Ok(None) };
    let lost = match node(&pod) {
        Some(node) => cluster.nodes.get(&Key::new("", node)).is_none(),
        None => pod.metadata.deletion_timestamp.is_some(),
    };
    if !lost {
        return Ok(None);
    }
    if node(&pod).is_some() {
        let age = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(i64::MAX, |t| jiff::Timestamp::now().as_second() - t.0.as_second());
        if age < i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX) {
            return Ok(Some(PATIENCE));
        }
    }
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::background()
    };
    gone_is_fine(namespaced::<Pod>(&cluster.client, &key.namespace).delete(&key.name, &params).await)?;
    Ok(None)
}
