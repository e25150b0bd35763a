// SPDX-License-Identifier: Apache-2.0
//! Whether a Pod may run on a node, and how well it fits: pure.

mod room;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint, Toleration,
};
use kube::ResourceExt as _;

use crate::pods;

/// A node with what runs or will run on it.
pub(crate) struct Host<'a> {
    pub(crate) node: &'a Node,
    pub(crate) pods: Vec<&'a Pod>,
}

/// Why not; worded as in the scheduler's message.
pub(crate) fn obstacle(pod: &Pod, host: &Host<'_>, all: &[Host<'_>], namespaces: &Labels) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(why) = node_obstacle(spec, host.node) {
        return Some(why);
    }
    if !is_ready(host.node) {
        return Some("node(s) were not ready".into());
    }
    let used: Vec<_> = host.pods.iter().flat_map(|p| ports(p)).collect();
    if ports(pod).iter().any(|port| used.contains(port)) {
        return Some("node(s) didn't have free ports for the requested pod ports".into());
    }
    room::obstacle(pod, host.node, &host.pods).or_else(|| pod_affinity(pod, host, all, namespaces))
}

/// Labels of namespaces by name.
pub(crate) type Labels = BTreeMap<String, BTreeMap<String, String>>;

/// Whether the node itself refuses: selector, affinity, taints, cordon.
pub(crate) fn node_obstacle(spec: &PodSpec, node: &Node) -> Option<String> {
    if !matches_node(spec, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    let node_spec = node.spec.clone().unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node_spec.unschedulable == Some(true) {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if !tolerated(&cordon, tolerations) {
            return Some("node(s) were unschedulable".into());
        }
    }
    let taints = node_spec.taints.unwrap_or_default();
    let taint = taints.iter().find(|t| t.effect != "PreferNoSchedule" && !tolerated(t, tolerations))?;
    let value = taint.value.as_deref().unwrap_or_default();
    Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key))
}

/// Whether one of the tolerations covers the taint.
pub(crate) fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && ((key.is_empty() && exists) || key == taint.key)
            && (exists
                || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| matches_term(t, node)))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (expressions, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    // A term without requirements matches nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| matches_requirement(r, node.labels().get(&r.key)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && matches_requirement(r, node.metadata.name.as_ref()))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.contains(v));
    let compared = || {
        let have: i64 = value?.parse().ok()?;
        let limit: i64 = values.first()?.parse().ok()?;
        Some(have.cmp(&limit))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// The node's ports that the Pod takes; with the node's network every container port is one.
fn ports(pod: &Pod) -> Vec<(String, i32)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let on_host = spec.host_network == Some(true);
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0).or_else(|| on_host.then_some(p.container_port))?;
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), port))
        })
        .collect()
}

/// Whether the node says that it is ready; one that says nothing yet is not.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn pod_affinity(pod: &Pod, host: &Host<'_>, all: &[Host<'_>], namespaces: &Labels) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let near = affinity.pod_affinity.as_ref();
    let near = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity.pod_anti_affinity.as_ref();
    let far = far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let beside = |term: &PodAffinityTerm| {
        let domain = host.node.labels().get(&term.topology_key)?;
        let same = all.iter().filter(|h| h.node.labels().get(&term.topology_key) == Some(domain));
        Some(same.flat_map(|h| h.pods.iter()).any(|other| term_selects(term, pod, other, namespaces)))
    };
    if far.into_iter().flatten().any(|term| beside(term) == Some(true)) {
        return Some("node(s) didn't match pod anti-affinity rules".into());
    }
    let anywhere = |term: &PodAffinityTerm| {
        all.iter().flat_map(|h| h.pods.iter()).any(|other| term_selects(term, pod, other, namespaces))
    };
    // The first Pod of a group that wants to be together has nobody to join.
    let first = |term: &PodAffinityTerm| !anywhere(term) && term_selects(term, pod, pod, namespaces);
    let missing = near.into_iter().flatten().any(|term| beside(term) != Some(true) && !first(term));
    missing.then(|| "node(s) didn't match pod affinity rules".into())
}

fn term_selects(term: &PodAffinityTerm, of: &Pod, other: &Pod, namespaces: &Labels) -> bool {
    let Some(selector) = &term.label_selector else { return false };
    let namespace = other.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let here = match &term.namespace_selector {
        Some(selector) => pods::selects(selector, namespaces.get(namespace)),
        None if listed.is_empty() => of.metadata.namespace == other.metadata.namespace,
        None => false,
    };
    (here || listed.iter().any(|n| n == namespace)) && pods::selects(selector, other.metadata.labels.as_ref())
}

/// The best of the nodes that may take the Pod, or what is in the way, counted.
pub(crate) fn choose<'a>(pod: &Pod, hosts: &'a [Host<'a>], namespaces: &Labels) -> Result<&'a str, String> {
    let mut obstacles: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for host in hosts {
        match obstacle(pod, host, hosts, namespaces) {
            Some(why) => *obstacles.entry(why).or_default() += 1,
            None => fitting.push(host),
        }
    }
    let best = fitting.iter().max_by_key(|host| {
        let owner = crate::cache::controller_uid(pod);
        let siblings = |p: &&&Pod| owner.is_some() && crate::cache::controller_uid(**p) == owner;
        let alike = host.pods.iter().filter(siblings).count();
        let name = host.node.metadata.name.as_deref().unwrap_or_default();
        (preference(pod, host.node), Reverse(alike), Reverse(host.pods.len()), Reverse(name))
    });
    match best {
        Some(host) => Ok(host.node.metadata.name.as_deref().unwrap_or_default()),
        None if hosts.is_empty() => Err("no nodes available to schedule pods".into()),
        None => {
            let list: Vec<String> = obstacles.iter().map(|(why, n)| format!("{n} {why}")).collect();
            Err(format!("0/{} nodes are available: {}.", hosts.len(), list.join(", ")))
        }
    }
}

/// The weight of preferred node affinity, less what is tainted PreferNoSchedule.
fn preference(pod: &Pod, node: &Node) -> i32 {
    let spec = pod.spec.clone().unwrap_or_default();
    let preferred = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let weight: i32 = preferred.iter().filter(|p| matches_term(&p.preference, node)).map(|p| p.weight).sum();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let avoided =
        taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerated(t, tolerations)).count();
    weight - i32::try_from(avoided).unwrap_or(i32::MAX).saturating_mul(100)
}

/// Nodes with the Pods on them.
pub(crate) fn hosts<'a>(nodes: &'a [Arc<Node>], pods: &'a [(Arc<Pod>, String)]) -> Vec<Host<'a>> {
    let on = |node: &Node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let here = pods.iter().filter(|(p, n)| n == name && !pods::is_finished(p));
        here.map(|(p, _)| &**p).collect()
    };
    nodes
        .iter()
        .filter(|n| n.metadata.deletion_timestamp.is_none())
        .map(|n| Host { node: n, pods: on(n) })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, spec: Value) -> Arc<Node> {
        Arc::new(
            Node::deserialize(
                json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "disk": "2"}},
                "spec": spec, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            )
            .unwrap(),
        )
    }

    fn pod(spec: Value) -> Pod {
        let mut full = json!({"containers": [{"name": "c"}]});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        Pod::deserialize(json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "p"},
            "ownerReferences": [{"uid": "rs", "controller": true, "kind": "ReplicaSet", "name": "rs", "apiVersion": "apps/v1"}]},
            "spec": full}))
        .unwrap()
    }

    fn required(key: &str, operator: &str, values: Value) -> Value {
        let requirement = json!({"key": key, "operator": operator, "values": values});
        let field = if key == "metadata.name" { "matchFields" } else { "matchExpressions" };
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{field: [requirement]}]}}}})
    }

    #[test]
    fn pods_go_where_they_may() {
        let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let nodes = [node("n1", json!({})), node("n2", taint), node("n3", json!({"unschedulable": true}))];
        let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "p"}}}]}}});
        let host_port =
            json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]});
        let all = json!([{"operator": "Exists"}]);
        // what the Pod says, what is on n1 already, where it goes
        let cases = [
            (json!({}), None, Ok("n1")),
            (
                json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}}),
                None,
                Err("untolerated taint {k: v}"),
            ),
            (
                json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}, "tolerations": [{"key": "k", "value": "v"}]}),
                None,
                Ok("n2"),
            ),
            (required("metadata.name", "In", json!(["n3"])), None, Err("1 node(s) were unschedulable")),
            (required("disk", "Gt", json!(["1"])), None, Ok("n1")),
            (
                required("disk", "Lt", json!(["1"])),
                None,
                Err("3 node(s) didn't match Pod's node affinity/selector"),
            ),
            (required("disk", "Near", json!(["1"])), None, Err("affinity/selector")),
            (json!({"tolerations": all}), Some(json!({})), Ok("n2")),
            (anti, Some(json!({})), Err("1 node(s) didn't match pod anti-affinity rules")),
            (host_port.clone(), Some(host_port), Err("free ports")),
        ];
        for (spec, there, expected) in cases {
            let there: Vec<_> = there.into_iter().map(|s| (Arc::new(pod(s)), "n1".to_owned())).collect();
            let hosts = hosts(&nodes, &there);
            match (choose(&pod(spec.clone()), &hosts, &Labels::new()), expected) {
                (Ok(node), Ok(expected)) => assert_eq!(node, expected, "{spec}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{spec}: {why}"),
                (got, expected) => panic!("{spec}: {got:?}, not {expected:?}"),
            }
        }
        assert_eq!(
            choose(&pod(json!({})), &[], &Labels::new()),
            Err("no nodes available to schedule pods".into())
        );
    }

    #[test]
    fn replicas_spread() {
        let nodes = [node("n1", json!({})), node("n2", json!({}))];
        let mut placed = Vec::new();
        for _ in 0..4 {
            let pod = pod(json!({}));
            let chosen = choose(&pod, &hosts(&nodes, &placed), &Labels::new()).unwrap().to_owned();
            placed.push((Arc::new(pod), chosen));
        }
        let order: Vec<_> = placed.iter().map(|(_, n)| n.as_str()).collect();
        assert_eq!(order, ["n1", "n2", "n1", "n2"]);
    }
}
