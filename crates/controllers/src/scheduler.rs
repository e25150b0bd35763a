// SPDX-License-Identifier: Apache-2.0
//! The scheduler: finds a node for each Pod that has none, and says why when there is none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::PostParams;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::{Key, namespaced};
use crate::cluster::Cluster;
use crate::placement::{self, Labels};
use crate::pods;
use crate::queue::{Outcome, Queue, is_conflict, is_gone};

const NAME: &str = "default-scheduler";

/// Pods that are bound but not yet seen so, by uid: the choices of the moment count each other.
type Assumed = Arc<Mutex<HashMap<String, String>>>;

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let assumed = Assumed::default();
    let (add, all, of) = (queue.clone(), cluster.pods.clone(), assumed.clone());
    cluster.pods.subscribe(move |change| {
        match change.new {
            Some(pod) if needs_node(pod) => add.add(Key::of(&**pod)),
            Some(pod) => {
                forget(&of, pod);
                if pods::is_finished(pod) && change.old.is_none_or(|old| !pods::is_finished(old)) {
                    // What it had is free.
                    again(&add, &all.all());
                }
            }
            None => {
                if let Some(pod) = change.old {
                    forget(&of, pod);
                }
                // Room, a port or a rival has gone.
                again(&add, &all.all());
            }
        }
    });
    let (add, all) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.subscribe(move |change| {
        let view = |node: &Arc<k8s_openapi::api::core::v1::Node>| {
            let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
            (node.spec.clone(), node.metadata.labels.clone(), placement::is_ready(node), allocatable)
        };
        // Heartbeats change nothing here.
        if change.old.map(view) != change.new.map(view) {
            again(&add, &all.all());
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.nodes.synced(), c.namespaces.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 16, synced, move |key| {
        let (cluster, assumed) = (cluster.clone(), assumed.clone());
        async move { schedule(&cluster, &assumed, &key).await }
    });
}

fn forget(assumed: &Assumed, pod: &Pod) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    assumed.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
}

fn again(queue: &Queue, pods: &[Arc<Pod>]) {
    for pod in pods.iter().filter(|p| needs_node(p)) {
        queue.add(Key::of(&**pod));
    }
}

fn needs_node(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME;
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    ours && !gated && spec.node_name.as_deref().unwrap_or_default().is_empty() && pods::is_active(pod)
}

async fn schedule(cluster: &Cluster, assumed: &Assumed, key: &Key) -> Outcome {
    let Some(pod) = cluster.pods.get(key).filter(|p| needs_node(p)) else { return Ok(None) };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    match decide(cluster, assumed, &pod, &uid) {
        None => Ok(None),
        Some(Ok(node)) => {
            let bound = bind(cluster, key, &uid, &node).await;
            if let Err(error) = &bound {
                assumed.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
                // Somebody else has placed or deleted it; the watch says so.
                if is_conflict(error) || is_gone(error) {
                    return Ok(None);
                }
            }
            bound?;
            cluster.events.normal(NAME, &*pod, "Scheduled", format!("Successfully assigned {key} to {node}"));
            Ok(None)
        }
        Some(Err(why)) => {
            let said = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let same = |c: &k8s_openapi::api::core::v1::PodCondition| {
                c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(why.as_str())
            };
            if !said.iter().any(same) {
                refuse(cluster, key, &pod, &why).await?;
            }
            Ok(None)
        }
    }
}

/// Chooses and notes the choice, so that choices made at the same time see it; `None` when it is made already.
fn decide(cluster: &Cluster, assumed: &Assumed, pod: &Pod, uid: &str) -> Option<Result<String, String>> {
    let mut assumed = assumed.lock().unwrap_or_else(PoisonError::into_inner);
    if assumed.contains_key(uid) {
        return None;
    }
    let placed: Vec<(Arc<Pod>, String)> = cluster
        .pods
        .all()
        .into_iter()
        .filter_map(|p| {
            let node = p.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
            let node = node.or_else(|| assumed.get(p.metadata.uid.as_deref()?).cloned())?;
            Some((p, node))
        })
        .collect();
    let nodes = cluster.nodes.all();
    let namespaces: Labels =
        cluster.namespaces.all().iter().map(|n| (n.name_any(), n.labels().clone())).collect();
    let choice = placement::choose(pod, &placement::hosts(&nodes, &placed), &namespaces).map(str::to_owned);
    if let Ok(node) = &choice {
        assumed.insert(uid.to_owned(), node.clone());
    }
    Some(choice)
}

async fn bind(cluster: &Cluster, key: &Key, uid: &str, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = namespaced::<Pod>(&cluster.client, &key.namespace);
    let answer: serde_json::Value =
        api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await?;
    tracing::debug!(pod = %key, node, status = %answer["status"], "bound");
    Ok(())
}

async fn refuse(cluster: &Cluster, key: &Key, pod: &Pod, why: &str) -> Result<(), kube::Error> {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.retain(|c| c.type_ != "PodScheduled");
    let mut conditions = json!(conditions);
    if let Some(list) = conditions.as_array_mut() {
        list.push(
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
            "lastTransitionTime": jiff::Timestamp::now()}),
        );
    }
    cluster.merge_status(&cluster.pods, key, json!({"conditions": conditions})).await?;
    cluster.events.warning(NAME, pod, "FailedScheduling", why.to_owned());
    Ok(())
}
