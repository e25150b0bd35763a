// SPDX-License-Identifier: Apache-2.0
//! Node lifecycle: a node whose lease is not renewed is unknown; its Pods serve no longer and are deleted in time.

mod leases;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use meltemi_runtime::Tasks;
use serde_json::json;
use tokio::time::Instant;

use self::leases::Leases;
use crate::cache::Key;
use crate::cluster::Cluster;
use crate::placement::tolerated;
use crate::pods;
use crate::queue::{Outcome, Queue, gone_is_fine};

const NAME: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// A node that has not renewed its lease for so long is lost, unless the configuration says otherwise.
pub(crate) const GRACE: Duration = Duration::from_secs(40);
/// Pause between two reads of the leases.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time without a successful read of the leases in which a node still counts as watched.
const READ_GAP: Duration = Duration::from_secs(5);
/// How long a Pod without a word about it stays on a lost node.
const EVICTION: i64 = 300;
const LOOK: Duration = Duration::from_secs(5);

pub(crate) fn start(cluster: &Arc<Cluster>, grace: Duration, tasks: &Tasks) {
    let leases = Arc::new(Mutex::new(Leases::new(READ_GAP)));
    let reading = read_leases(cluster.clone(), leases.clone());
    let mut drain = tasks.drain();
    tasks.spawn("node leases", async move {
        tokio::select! {
            () = reading => {}
            () = drain.started() => {}
        }
        Ok::<(), Infallible>(())
    });
    let queue = Queue::default();
    let add = queue.clone();
    cluster.nodes.subscribe(move |change| {
        if let Some(node) = change.new {
            add.add(Key::of(&**node));
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.nodes.synced(), c.pods.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 4, synced, move |key| {
        let (cluster, leases) = (cluster.clone(), leases.clone());
        async move {
            let silence =
                leases.lock().unwrap_or_else(PoisonError::into_inner).silence(&key.name, Instant::now());
            match silence {
                Some(silence) => reconcile(&cluster, &key, silence > grace).await,
                None => Ok(Some(READ_INTERVAL)),
            }
        }
    });
}

/// Reads all leases again and again: from the API itself, so that a watch that is behind kills no node.
async fn read_leases(cluster: Arc<Cluster>, leases: Arc<Mutex<Leases>>) {
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), LEASES);
    loop {
        // The time before the answer: what it shows may be as old as that.
        let asked = Instant::now();
        match tokio::time::timeout(READ_GAP, api.list(&ListParams::default())).await {
            Ok(Ok(list)) => {
                let versions = list.items.into_iter().filter_map(|lease| {
                    Some((lease.metadata.name?, lease.metadata.resource_version.unwrap_or_default()))
                });
                leases.lock().unwrap_or_else(PoisonError::into_inner).read(versions, asked);
            }
            Ok(Err(error)) => tracing::debug!(%error, "leases not read"),
            Err(_) => tracing::debug!("leases not read in time"),
        }
        tokio::time::sleep(READ_INTERVAL).await;
    }
}

/// What is known of a node's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Ready,
    /// It says itself that it is not.
    NotReady,
    /// It says nothing any more.
    Lost,
}

fn health(node: &Node, lost: bool) -> Health {
    if lost {
        return Health::Lost;
    }
    if crate::placement::is_ready(node) { Health::Ready } else { Health::NotReady }
}

/// The taints of a node in this state; others stay as they are.
fn taints(old: &[Taint], health: Health, now: Timestamp) -> Vec<Taint> {
    let key = match health {
        Health::Ready => None,
        Health::NotReady => Some(NOT_READY),
        Health::Lost => Some(UNREACHABLE),
    };
    let ours = |t: &&Taint| t.key == UNREACHABLE || t.key == NOT_READY;
    let mut taints: Vec<Taint> =
        old.iter().filter(|t| !ours(t) || Some(t.key.as_str()) == key).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        if let Some(key) = key
            && !taints.iter().any(|t| t.key == key && t.effect == effect)
        {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added });
        }
    }
    taints
}

async fn reconcile(cluster: &Cluster, key: &Key, lost: bool) -> Outcome {
    let Some(node) = cluster.nodes.get(key) else { return Ok(None) };
    let now = Timestamp::now();
    let health = health(&node, lost);
    let api: Api<Node> = Api::all(cluster.client.clone());
    if health == Health::Lost {
        mark_lost(cluster, &api, &node, now).await?;
    }
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let wanted = taints(&old, health, now);
    if wanted != old {
        let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": if wanted.is_empty() { json!(null) } else { json!(wanted) }}});
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if let Ok(written) = &written {
            cluster.nodes.put(written.clone());
        }
        gone_is_fine(written)?;
    }
    if health != Health::Ready {
        evict(cluster, &key.name, &wanted, now).await?;
    }
    Ok(Some(LOOK))
}

/// Says that nobody knows how the node is, and that its Pods are not ready.
async fn mark_lost(
    cluster: &Cluster,
    api: &Api<Node>,
    node: &Node,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if conditions.iter().any(|c| c.type_ == "Ready" && c.status != "Unknown") {
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(Time(now));
        }
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        gone_is_fine(api.patch_status(name, &PatchParams::default(), &patch).await)?;
        let message = format!("Node {name} status is now: NodeNotReady");
        cluster.events.warning(NAME, node, "NodeNotReady", message);
    }
    for pod in on_node(cluster, name).iter().filter(|p| pods::is_ready(p)) {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(Time(now));
        }
        cluster.merge_status(&cluster.pods, &Key::of(&**pod), json!({"conditions": conditions})).await?;
    }
    Ok(())
}

fn on_node(cluster: &Cluster, name: &str) -> Vec<Arc<Pod>> {
    let mut pods = cluster.pods.all();
    pods.retain(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name));
    pods
}

/// When the taint drives the Pod away; `None` when it never does.
fn eviction(pod: &Pod, taint: &Taint) -> Option<i64> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    let since = taint.time_added.as_ref().map_or(0, |t| t.0.as_second());
    let mut covering = tolerations.iter().filter(|t| tolerated(taint, std::slice::from_ref(t))).peekable();
    if covering.peek().is_none() {
        return Some(since + EVICTION);
    }
    let limits: Vec<Option<i64>> = covering.map(|t| t.toleration_seconds).collect();
    // Any toleration without an end holds for ever; otherwise the shortest counts.
    if limits.contains(&None) { None } else { limits.into_iter().flatten().min().map(|s| since + s.max(0)) }
}

async fn evict(cluster: &Cluster, node: &str, taints: &[Taint], now: Timestamp) -> Result<(), kube::Error> {
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        for pod in on_node(cluster, node).iter().filter(|p| pods::is_active(p)) {
            if eviction(pod, taint).is_some_and(|at| at <= now.as_second()) {
                let message = format!("Cancelling the Pod: node {node} is tainted {}", taint.key);
                cluster.events.normal("taint-eviction-controller", &**pod, "TaintManagerEviction", message);
                cluster.delete(&**pod).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    #[test]
    fn health_comes_from_the_lease_and_the_node() {
        let node = |ready: &str| {
            Node::deserialize(json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap()
        };
        let cases = [
            ("True", false, Health::Ready),
            ("False", false, Health::NotReady),
            ("Unknown", false, Health::NotReady),
            ("True", true, Health::Lost),
            ("False", true, Health::Lost),
        ];
        for (ready, lost, expected) in cases {
            assert_eq!(health(&node(ready), lost), expected, "{ready} {lost}");
        }
    }

    #[test]
    fn taints_come_and_go_and_drive_away_what_does_not_tolerate_them() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let other = Taint { key: "mine".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let lost = taints(std::slice::from_ref(&other), Health::Lost, now);
        assert_eq!(lost.len(), 3);
        assert_eq!(taints(&lost, Health::Lost, now), lost, "idempotent");
        assert_eq!(taints(&lost, Health::Ready, now), [other]);
        let taint = lost.iter().find(|t| t.effect == "NoExecute").unwrap();
        let pod = |tolerations: Value| {
            Pod::deserialize(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap()
        };
        let start = now.as_second();
        let cases = [
            (json!([]), Some(start + EVICTION)),
            (
                json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]),
                Some(start + 5),
            ),
            (json!([{"operator": "Exists"}]), None),
        ];
        for (tolerations, expected) in cases {
            assert_eq!(eviction(&pod(tolerations.clone()), taint), expected, "{tolerations}");
        }
    }
}
