// SPDX-License-Identifier: Apache-2.0
//! DaemonSets: one Pod on each node that may have it.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSetStatus;
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
};
use kube::ResourceExt as _;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::{Key, controllers_of};
use crate::cluster::Cluster;
use crate::pods;
use crate::queue::{Outcome, Queue};
use crate::revisions::{self, HASH_LABEL};

const NAME: &str = "daemonset-controller";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.daemon_sets.subscribe(move |change| {
        if let Some(set) = change.new {
            add.add(Key::of(&**set));
        }
    });
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        for key in controllers_of(change, "DaemonSet") {
            add.add(key);
        }
    });
    let (add, sets) = (queue.clone(), cluster.daemon_sets.clone());
    cluster.nodes.subscribe(move |change| {
        let view = |n: &Arc<k8s_openapi::api::core::v1::Node>| (n.spec.clone(), n.metadata.labels.clone());
        if change.old.map(view) != change.new.map(view) {
            sets.all().iter().for_each(|set| add.add(Key::of(&**set)));
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.nodes.synced(), c.daemon_sets.synced(), c.revisions.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 4, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.daemon_sets.get(key) else { return Ok(None) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let spec = set.spec.clone().unwrap_or_default();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let owned = cluster.pods.controlled_by(&key.namespace, uid);
    let in_use: Vec<&str> =
        owned.iter().filter_map(|p| p.labels().get(HASH_LABEL).map(String::as_str)).collect();
    let history = spec.revision_history_limit.unwrap_or(10);
    let hash = revisions::ensure(cluster, &*set, &spec.template, history, &in_use).await?;
    let mut pod_spec = spec.template.spec.clone().unwrap_or_default();
    tolerate(&mut pod_spec);
    let nodes = cluster.nodes.all();
    let plan = plan::plan(&set, &pod_spec, &nodes, &owned, &hash, Timestamp::now());
    for pod in &plan.delete {
        cluster.delete(&**pod).await?;
        cluster.events.normal(NAME, &*set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
    }
    for node in &plan.create {
        let mut template = spec.template.clone();
        let mut pod_spec = pod_spec.clone();
        pin(&mut pod_spec, node);
        template.spec = Some(pod_spec);
        let generation = set.metadata.generation.unwrap_or(0).to_string();
        let labels = [(HASH_LABEL, hash.as_str()), ("pod-template-generation", generation.as_str())];
        let pod = pods::from_template(&*set, &template, pods::generated(&key.name), &labels);
        let made = cluster.create(&cluster.pods, &pod).await?;
        cluster.events.normal(NAME, &*set, "SuccessfulCreate", format!("Created pod: {}", made.name_any()));
    }
    let old = set.status.clone().unwrap_or_default();
    if differs(&old, &plan.status) {
        let mut patch = json!(plan.status);
        for field in ["numberAvailable", "numberUnavailable", "updatedNumberScheduled"] {
            if patch.get(field).is_none() {
                patch[field] = json!(null);
            }
        }
        cluster.merge_status(&cluster.daemon_sets, key, patch).await?;
    }
    Ok(plan.again)
}

fn differs(old: &DaemonSetStatus, new: &DaemonSetStatus) -> bool {
    let view = |s: &DaemonSetStatus| {
        let n = |n: Option<i32>| n.unwrap_or(0);
        (
            [s.current_number_scheduled, s.desired_number_scheduled, s.number_misscheduled, s.number_ready],
            [n(s.number_available), n(s.number_unavailable), n(s.updated_number_scheduled)],
            s.observed_generation,
        )
    };
    view(old) != view(new)
}

/// What every DaemonSet's Pod tolerates: a node's own troubles do not drive it away.
fn tolerate(spec: &mut PodSpec) {
    let mut keys = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        keys.push(("network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in keys {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Binds a Pod to one node by affinity; the scheduler does the rest.
fn pin(spec: &mut PodSpec, node: &str) {
    let name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut NodeAffinity =
        spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_default();
    let terms = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if terms.node_selector_terms.is_empty() {
        terms.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut terms.node_selector_terms {
        term.match_fields = Some(vec![name.clone()]);
    }
}
