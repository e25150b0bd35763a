// SPDX-License-Identifier: Apache-2.0
//! Who owns whom, and what follows from it: pure.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::ApiResource;

use crate::cache::Key;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// A kind of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) plural: String,
    pub(super) namespaced: bool,
}

impl Kind {
    pub(super) fn of(resource: &ApiResource, namespaced: bool) -> Self {
        Self {
            group: resource.group.clone(),
            version: resource.version.clone(),
            kind: resource.kind.clone(),
            plural: resource.plural.clone(),
            namespaced,
        }
    }

    pub(super) fn resource(&self) -> ApiResource {
        let gvk = kube::api::GroupVersionKind::gvk(&self.group, &self.version, &self.kind);
        ApiResource::from_gvk_with_plural(&gvk, &self.plural)
    }
}

/// An object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) key: Key,
    pub(super) uid: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
}

impl Node {
    pub(super) fn of(kind: &Kind, meta: &ObjectMeta) -> Self {
        Self {
            kind: kind.clone(),
            key: Key::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }

    /// Whether a reference of `dependent` means this object. One across namespaces counts for nothing: it would let
    /// anybody hold up a deletion elsewhere.
    fn is_meant_by(&self, reference: &OwnerReference, dependent: &Self) -> bool {
        let (group, _) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
        self.uid == reference.uid
            && self.kind.kind == reference.kind
            && self.kind.group == group
            && self.key.name == reference.name
            && (!self.kind.namespaced || self.key.namespace == dependent.key.namespace)
    }

    fn waits(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|f| f == finalizer)
    }
}

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Keep,
    /// No owner is in the graph: delete it, if the API agrees that they are gone.
    Verify {
        node: Box<Node>,
        absent: Vec<OwnerReference>,
    },
    /// All its owners are gone or wait for it.
    DeleteWithOwner(Box<Node>),
    /// It waits for its dependents; these are not being deleted yet.
    WaitFor {
        dependents: Vec<Node>,
    },
    /// Nothing holds it any more.
    Release(Box<Node>),
    /// Its dependents stay, without it.
    Orphan {
        node: Box<Node>,
        dependents: Vec<Node>,
    },
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// Objects by their owner's uid, whether that owner is known or not.
    dependents: HashMap<String, HashSet<String>>,
    kinds: HashSet<Kind>,
}

impl Graph {
    /// A kind is watched from now on.
    pub(super) fn add_kind(&mut self, kind: Kind) {
        self.kinds.insert(kind);
    }

    /// Takes an object in; the uids to look at.
    pub(super) fn put(&mut self, node: Node) -> Vec<String> {
        self.unlink(&node.uid);
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(node.uid.clone());
        }
        let mut affected = Vec::new();
        if !node.owners.is_empty() || node.deleting {
            affected.push(node.uid.clone());
        }
        // An owner that waits may wait for this one no longer.
        let waits = |uid: &String| self.nodes.get(uid).is_some_and(|owner| owner.waits(FOREGROUND));
        affected.extend(node.owners.iter().map(|o| o.uid.clone()).filter(waits));
        self.nodes.insert(node.uid.clone(), node);
        affected
    }

    /// Takes an object out; the uids to look at.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut affected: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(node) = self.nodes.get(uid) {
            affected.extend(node.owners.iter().map(|o| o.uid.clone()));
        }
        self.unlink(uid);
        self.nodes.remove(uid);
        affected
    }

    /// A complete list of a kind's objects; the uids to look at.
    pub(super) fn replace_kind(&mut self, kind: &Kind, nodes: Vec<Node>) -> Vec<String> {
        let keep: HashSet<&str> = nodes.iter().map(|n| n.uid.as_str()).collect();
        let gone: Vec<String> = self
            .nodes
            .values()
            .filter(|n| n.kind == *kind && !keep.contains(n.uid.as_str()))
            .map(|n| n.uid.clone())
            .collect();
        let mut affected: Vec<String> = gone.iter().flat_map(|uid| self.remove(uid)).collect();
        affected.extend(nodes.into_iter().flat_map(|n| self.put(n)).collect::<Vec<_>>());
        affected
    }

    /// A kind is served no longer; the uids to look at.
    pub(super) fn remove_kind(&mut self, kind: &Kind) -> Vec<String> {
        self.kinds.remove(kind);
        self.replace_kind(kind, Vec::new())
    }

    /// The kind of an owner reference, if it is watched.
    pub(super) fn kind(&self, api_version: &str, kind: &str) -> Option<Kind> {
        let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kinds.iter().find(|k| k.group == group && k.kind == kind).cloned()
    }

    fn unlink(&mut self, uid: &str) {
        let Some(node) = self.nodes.get(uid) else { return };
        for owner in &node.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// What is to be done about an object.
    pub(super) fn judge(&self, uid: &str) -> Verdict {
        let Some(node) = self.nodes.get(uid) else { return Verdict::Keep };
        let dependents: Vec<&Node> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|dependent| self.nodes.get(dependent))
            .filter(|dependent| dependent.owners.iter().any(|owner| node.is_meant_by(owner, dependent)))
            .collect();
        if node.waits(ORPHAN) {
            let dependents = dependents.into_iter().cloned().collect();
            return Verdict::Orphan { node: Box::new(node.clone()), dependents };
        }
        if node.waits(FOREGROUND) {
            let blocks = |d: &&Node| {
                d.owners.iter().any(|o| node.is_meant_by(o, d) && o.block_owner_deletion == Some(true))
            };
            if !dependents.iter().any(blocks) {
                return Verdict::Release(Box::new(node.clone()));
            }
            let alone = |d: &&&Node| !d.deleting && d.owners.iter().all(|o| self.is_leaving(o, d));
            return Verdict::WaitFor {
                dependents: dependents.iter().filter(alone).map(|d| (*d).clone()).collect(),
            };
        }
        if node.deleting || node.owners.is_empty() || !node.owners.iter().all(|o| self.is_leaving(o, node)) {
            return Verdict::Keep;
        }
        let absent: Vec<_> = node.owners.iter().filter(|o| self.owner(o, node).is_none()).cloned().collect();
        if absent.len() == node.owners.len() {
            return Verdict::Verify { node: Box::new(node.clone()), absent };
        }
        Verdict::DeleteWithOwner(Box::new(node.clone()))
    }

    /// The owner that a reference means, if it is there.
    fn owner(&self, reference: &OwnerReference, dependent: &Node) -> Option<&Node> {
        self.nodes.get(&reference.uid).filter(|owner| owner.is_meant_by(reference, dependent))
    }

    /// Whether an owner is gone, or goes and waits for what it owns.
    fn is_leaving(&self, reference: &OwnerReference, dependent: &Node) -> bool {
        self.owner(reference, dependent).is_none_or(|owner| owner.waits(FOREGROUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str, owners: &[(&str, bool)], finalizers: &[&str]) -> Node {
        let reference = |(uid, block): &(&str, bool)| OwnerReference {
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(*block),
            ..OwnerReference::default()
        };
        Node {
            uid: uid.to_owned(),
            owners: owners.iter().map(reference).collect(),
            deleting: !finalizers.is_empty(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            ..Node::default()
        }
    }

    fn graph(nodes: &[Node]) -> Graph {
        let mut graph = Graph::default();
        for node in nodes {
            graph.put(node.clone());
        }
        graph
    }

    #[test]
    fn verdicts() {
        let owner = node("o", &[], &[]);
        let waiting = node("o", &[], &[FOREGROUND]);
        let child = node("c", &[("o", true)], &[]);
        let loose = node("c", &[("o", false)], &[]);
        let shared = node("c", &[("o", true), ("p", true)], &[]);
        let going = node("c", &[("o", true)], &["other"]);
        let boxed = |n: &Node| Box::new(n.clone());
        // what there is, what is looked at, what follows
        let cases = [
            (vec![owner.clone(), child.clone()], "c", Verdict::Keep),
            (vec![child.clone()], "c", Verdict::Verify { node: boxed(&child), absent: child.owners.clone() }),
            (vec![shared.clone(), node("p", &[], &[])], "c", Verdict::Keep),
            (vec![going.clone()], "c", Verdict::Keep),
            (vec![waiting.clone(), child.clone()], "o", Verdict::WaitFor { dependents: vec![child.clone()] }),
            (vec![waiting.clone(), child.clone()], "c", Verdict::DeleteWithOwner(boxed(&child))),
            (vec![waiting.clone(), going], "o", Verdict::WaitFor { dependents: vec![] }),
            (vec![waiting.clone(), loose], "o", Verdict::Release(boxed(&waiting))),
            (vec![waiting.clone()], "o", Verdict::Release(boxed(&waiting))),
            (
                vec![waiting.clone(), shared.clone(), node("p", &[], &[])],
                "o",
                Verdict::WaitFor { dependents: vec![] },
            ),
            (
                vec![node("o", &[], &[ORPHAN]), child.clone()],
                "o",
                Verdict::Orphan { node: boxed(&node("o", &[], &[ORPHAN])), dependents: vec![child] },
            ),
        ];
        for (nodes, uid, expected) in cases {
            assert_eq!(graph(&nodes).judge(uid), expected, "{uid} in {nodes:?}");
        }
    }

    #[test]
    fn a_reference_that_does_not_mean_the_owner_counts_for_nothing() {
        let kind = |kind: &str, namespaced| Kind { kind: kind.into(), namespaced, ..Kind::default() };
        let owner = Node {
            kind: kind("Deployment", true),
            key: Key::new("mine", "web"),
            ..node("o", &[], &[FOREGROUND])
        };
        let cluster = Node { kind: kind("Node", false), key: Key::new("", "web"), ..owner.clone() };
        let dependent = |namespace: &str, owner: &str, name: &str| {
            let mut node = node("c", &[("o", true)], &[]);
            node.key = Key::new(namespace, "child");
            node.owners[0].kind = owner.into();
            node.owners[0].name = name.into();
            node
        };
        // owner, dependent, whether the deletion waits for it
        let cases = [
            (&owner, dependent("mine", "Deployment", "web"), true),
            (&owner, dependent("other", "Deployment", "web"), false),
            (&owner, dependent("", "Deployment", "web"), false),
            (&owner, dependent("mine", "ReplicaSet", "web"), false),
            (&owner, dependent("mine", "Deployment", "api"), false),
            (&cluster, dependent("other", "Node", "web"), true),
            (&cluster, dependent("", "Node", "web"), true),
        ];
        for (owner, dependent, waits) in cases {
            let graph = graph(&[owner.clone(), dependent.clone()]);
            let released = graph.judge("o") == Verdict::Release(Box::new(owner.clone()));
            assert_eq!(released, !waits, "{owner:?} {dependent:?}");
            // Its owner is not there: it is deleted on its own account, once the API agrees.
            let verified = matches!(graph.judge("c"), Verdict::Verify { .. });
            assert_eq!(verified, !waits, "{owner:?} {dependent:?}");
        }
    }

    #[test]
    fn changes_name_whom_they_concern() {
        let mut graph = graph(&[node("o", &[], &[FOREGROUND]), node("c", &[("o", true)], &[])]);
        assert_eq!(graph.remove("c"), ["o"], "the owner that waits");
        assert_eq!(graph.put(node("d", &[("o", true)], &[])), ["d", "o"]);
        assert_eq!(graph.remove("o"), ["d"], "the dependent");
        assert_eq!(graph.replace_kind(&Kind::default(), vec![]), ["o"], "a list without it");
        assert!(graph.nodes.is_empty() && graph.dependents.is_empty());
    }
}
