// SPDX-License-Identifier: Apache-2.0
//! On which nodes a DaemonSet's Pods are missing, too many or out of date: pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use kube::ResourceExt as _;

use crate::placement;
use crate::pods::{self, Availability};
use crate::revisions::HASH_LABEL;
use crate::rolling;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that need a Pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
    pub(super) again: Option<Duration>,
}

/// A Pod's node: where it is, or where its affinity pins it.
fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first().map(String::as_str)
}

/// What a node holds of the set.
#[derive(Default)]
struct OnNode {
    fresh: Vec<Arc<Pod>>,
    stale: Vec<Arc<Pod>>,
    /// Being deleted: their place (and ports) is not free yet.
    leaving: usize,
}

pub(super) fn plan(
    set: &DaemonSet,
    spec: &PodSpec,
    nodes: &[Arc<Node>],
    owned: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let set_spec = set.spec.clone().unwrap_or_default();
    let min_ready = set_spec.min_ready_seconds.unwrap_or(0);
    let wanted: Vec<&str> = nodes
        .iter()
        .filter(|n| n.metadata.deletion_timestamp.is_none() && placement::node_obstacle(spec, n).is_none())
        .filter_map(|n| n.metadata.name.as_deref())
        .collect();
    let (surge, unavailable) = limits(&set_spec, wanted.len());
    let mut is_available = |pod: &Pod| match pods::availability(pod, min_ready, now) {
        Availability::Yes => true,
        Availability::No => false,
        Availability::In(after) => {
            plan.again = pods::sooner(plan.again, Some(after));
            false
        }
    };
    let mut status = DaemonSetStatus {
        desired_number_scheduled: count(wanted.len()),
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated, mut surging) = (0, 0, 0);
    let mut replaceable = Vec::new();
    for node in &wanted {
        let on = on_node(owned, node, hash, &mut plan.delete);
        let serving = on.fresh.iter().chain(&on.stale).any(|p| is_available(p));
        status.current_number_scheduled += i32::from(!on.fresh.is_empty() || !on.stale.is_empty());
        status.number_ready += i32::from(on.fresh.iter().chain(&on.stale).any(|p| pods::is_ready(p)));
        available += i32::from(serving);
        updated += i32::from(!on.fresh.is_empty());
        match (on.fresh.is_empty(), on.stale.is_empty()) {
            (true, true) if on.leaving == 0 => plan.create.push((*node).to_owned()),
            (true, true) | (false, true) => {}
            (true, false) => replaceable.push(Outdated { node, pods: on.stale, serving }),
            // The new one serves (or the old one does not): the old one can go.
            (false, false) => {
                surging += 1;
                if on.fresh.iter().any(|p| is_available(p)) || !on.stale.iter().any(|p| is_available(p)) {
                    plan.delete.extend(on.stale);
                }
            }
        }
    }
    if set_spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
        let budget = unavailable - (count(wanted.len()) - available);
        roll(
            replaceable,
            Budget { surge: surge > 0, surging: surge - surging, unavailable: budget },
            &mut plan,
        );
    }
    misplaced(owned, &wanted, nodes, spec, &mut plan.delete, &mut status);
    status.number_available = Some(available);
    status.number_unavailable = Some(count(wanted.len()) - available);
    status.updated_number_scheduled = Some(updated);
    plan.status = status;
    plan
}

/// A node whose Pods are all out of date.
struct Outdated<'a> {
    node: &'a str,
    pods: Vec<Arc<Pod>>,
    serving: bool,
}

/// What a rolling update may still do.
struct Budget {
    /// New Pods come beside old ones.
    surge: bool,
    /// So many more.
    surging: i32,
    /// So many more nodes may be without a Pod that serves.
    unavailable: i32,
}

fn roll(outdated: Vec<Outdated<'_>>, mut left: Budget, plan: &mut Plan) {
    for Outdated { node, pods, serving } in outdated {
        if left.surge && serving {
            if left.surging > 0 {
                left.surging -= 1;
                plan.create.push(node.to_owned());
            }
        } else if !serving {
            plan.delete.extend(pods);
        } else if left.unavailable > 0 {
            left.unavailable -= 1;
            plan.delete.extend(pods);
        }
    }
}

fn limits(spec: &k8s_openapi::api::apps::v1::DaemonSetSpec, total: usize) -> (i32, i32) {
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let total = count(total);
    let surge = rolling::resolve(rolling.and_then(|r| r.max_surge.as_ref()), "0", total, true);
    let unavailable = rolling::resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), "1", total, true);
    rolling::bounds(surge, unavailable, total)
}

/// The set's Pods of a node; surplus and finished ones go to `delete`.
fn on_node(owned: &[Arc<Pod>], node: &str, hash: &str, delete: &mut Vec<Arc<Pod>>) -> OnNode {
    let mut on = OnNode::default();
    for pod in owned.iter().filter(|p| node_of(p) == Some(node)) {
        if pod.metadata.deletion_timestamp.is_some() {
            on.leaving += 1;
        } else if pods::is_finished(pod) {
            delete.push(pod.clone());
            on.leaving += 1;
        } else if pod.labels().get(HASH_LABEL).map(String::as_str) == Some(hash) {
            on.fresh.push(pod.clone());
        } else {
            on.stale.push(pod.clone());
        }
    }
    for list in [&mut on.fresh, &mut on.stale] {
        // Keep the Pod that is closest to ready, delete the others.
        list.sort_by_key(|p| std::cmp::Reverse(pods::deletion_rank(p)));
        delete.extend(list.drain(1.min(list.len())..));
    }
    on
}

/// Pods on nodes that should have none. A taint that is no NoExecute drives nobody away who runs already.
fn misplaced(
    owned: &[Arc<Pod>],
    wanted: &[&str],
    nodes: &[Arc<Node>],
    spec: &PodSpec,
    delete: &mut Vec<Arc<Pod>>,
    status: &mut DaemonSetStatus,
) {
    for pod in owned.iter().filter(|p| pods::is_active(p)) {
        let Some(name) = node_of(pod).filter(|n| !wanted.contains(n)) else { continue };
        status.number_misscheduled += 1;
        let Some(node) = nodes.iter().find(|n| n.metadata.name.as_deref() == Some(name)) else { continue };
        let mut tolerant = Node::clone(node);
        if let Some(node_spec) = &mut tolerant.spec {
            node_spec.taints.iter_mut().for_each(|t| t.retain(|t| t.effect == "NoExecute"));
        }
        if placement::node_obstacle(spec, &tolerant).is_some() {
            delete.push(pod.clone());
        }
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn set(rolling: Value) -> DaemonSet {
        DaemonSet::deserialize(json!({"metadata": {"name": "z"}, "spec": {"selector": {}, "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}}))
        .unwrap()
    }

    fn nodes(n: usize) -> Vec<Arc<Node>> {
        let node = |i| {
            let taints = if i == 9 { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!(null) };
            Arc::new(
                Node::deserialize(json!({"metadata": {"name": format!("n{i}")}, "spec": {"taints": taints}}))
                    .unwrap(),
            )
        };
        (1..=n).map(node).collect()
    }

    /// `node hash state`: state is r(eady), p(ending), d(eleted).
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<_> = text.split(' ').collect();
        let ready = if words[2] == "p" { "False" } else { "True" };
        let deleted = (words[2] == "d").then_some("2026-01-01T00:00:00Z");
        Arc::new(
            Pod::deserialize(json!({
                "metadata": {"name": text.replace(' ', "-"), "labels": {HASH_LABEL: words[1]}, "deletionTimestamp": deleted},
                "spec": {"nodeName": words[0], "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn one_pod_on_each_node_and_rolling_within_bounds() {
        let one = json!({"maxUnavailable": 1});
        let surge = json!({"maxSurge": 1, "maxUnavailable": 0});
        // strategy, nodes, Pods, created on, deleted
        type Case<'a> = (&'a Value, usize, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let cases: [Case<'_>; 12] = [
            (&one, 2, &[], &["n1", "n2"], &[]),
            (&one, 2, &["n1 new r", "n2 new r"], &[], &[]),
            (&one, 2, &["n1 new r", "n1 new p", "n2 new r"], &[], &["n1-new-p"]),
            (&one, 2, &["n1 old r", "n2 old r"], &[], &["n1-old-r"]),
            (&one, 2, &["n1 old d", "n2 old r"], &[], &[]),
            (&one, 2, &["n2 old r"], &["n1"], &[]),
            (&one, 2, &["n1 new p", "n2 old r"], &[], &[]),
            // What does not serve can go at once.
            (&one, 2, &["n1 old p", "n2 old p"], &[], &["n1-old-p", "n2-old-p"]),
            (&surge, 2, &["n1 old r", "n2 old r"], &["n1"], &[]),
            (&surge, 2, &["n1 old r", "n1 new p", "n2 old r"], &[], &[]),
            (&surge, 2, &["n1 old r", "n1 new r", "n2 old r"], &[], &["n1-old-r"]),
            // A node with a taint: a Pod that is there already stays.
            (&one, 9, &["n9 new r"], &["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"], &[]),
        ];
        for (rolling, n, pods, create, delete) in cases {
            let owned: Vec<_> = pods.iter().map(|p| pod(p)).collect();
            let plan = plan(
                &set(rolling.clone()),
                &PodSpec::default(),
                &nodes(n),
                &owned,
                "new",
                Timestamp::UNIX_EPOCH,
            );
            let deleted: Vec<_> = plan.delete.iter().map(|p| p.name_any()).collect();
            assert_eq!(
                (plan.create.as_slice(), deleted.as_slice()),
                (
                    create.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().as_slice(),
                    delete.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().as_slice()
                ),
                "{pods:?} {rolling}"
            );
        }
    }
}
