// SPDX-License-Identifier: Apache-2.0
//! PeerAuthentications: as objects, and what their status says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::api::DynamicObject;
use meltemi_model::NamespacedName;
use meltemi_resources::policies::validate;
use meltemi_translate::condition::Condition;
use meltemi_translate::security::layer4;
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::{Change, Index};

use super::enforced::{self, Generations, Where};
use super::exposure::{self, Exposure};
use super::report::{is_pending, key};
use crate::publish::Step;
use crate::status::{StatusQueue, Wish};
use crate::xds::Proxy;

/// An object and what became of it.
#[derive(Debug)]
struct Entry {
    generation: Option<i64>,
    /// None when it was never valid.
    peer: Option<Peer>,
    fault: Option<String>,
    since: Generations,
}

/// The objects.
#[derive(Debug, Default)]
pub(super) struct PeerObjects {
    all: BTreeMap<NamespacedName, Entry>,
    /// Changed since the last step.
    moved: BTreeSet<NamespacedName>,
    unreported: BTreeSet<NamespacedName>,
    pending: BTreeSet<NamespacedName>,
}

impl PeerObjects {
    /// An object is new, changed or gone.
    pub(super) fn set(&mut self, name: &NamespacedName, object: Option<&DynamicObject>) -> Option<Change> {
        let before = self.all.get(name).and_then(|e| e.peer.clone());
        match object {
            None => {
                self.all.remove(name);
                self.pending.remove(name);
            }
            Some(object) => {
                let (peer, fault) = match read(name, object) {
                    Ok(peer) => (Some(peer), None),
                    Err(reason) => {
                        tracing::error!(%name, %reason, "PeerAuthentication is not valid; what was known of it stays");
                        (before.clone(), Some(reason))
                    }
                };
                let since = self.all.get(name).map(|e| e.since).unwrap_or_default();
                let generation = object.metadata.generation;
                self.all.insert(name.clone(), Entry { generation, peer, fault, since });
                self.unreported.insert(name.clone());
            }
        }
        if self.all.get(name).and_then(|e| e.peer.as_ref()) == before.as_ref() {
            return None;
        }
        self.moved.insert(name.clone());
        // Which one is the oldest may be another one now.
        self.unreported.extend(self.all.keys().filter(|n| n.namespace == name.namespace).cloned());
        Some(Change::Peers(Peers::new(self.all.values().filter_map(|e| e.peer.clone()).collect())))
    }

    /// Workloads of these namespaces came or went.
    pub(super) fn see_workloads(&mut self, namespaces: &BTreeSet<&str>, root: &Arc<str>) {
        let of = |n: &&NamespacedName| namespaces.contains(&*n.namespace) || n.namespace == *root;
        self.unreported.extend(self.all.keys().filter(of).cloned());
    }

    /// A step became a generation.
    pub(super) fn published(&mut self, generation: u64, step: &Step) {
        let delta = &step.delta;
        for name in std::mem::take(&mut self.moved) {
            let Some(entry) = self.all.get_mut(&name) else { continue };
            if !(delta.policies.is_empty() && delta.removed_policies.is_empty()) {
                entry.since.layer4 = generation;
            }
            if !(delta.workloads.is_empty() && delta.removed_workloads.is_empty()) {
                entry.since.addresses = generation;
            }
            self.unreported.insert(name);
        }
    }

    /// Hands on the statuses that may be others now.
    pub(super) fn report(&mut self, index: &Index, proxies: &[Proxy], status: &StatusQueue) {
        let due = std::mem::take(&mut self.unreported);
        self.write(due, index, proxies, status);
    }

    /// Looks again at what not every proxy had acknowledged.
    pub(super) fn report_pending(&mut self, index: &Index, proxies: &[Proxy], status: &StatusQueue) {
        let due = self.pending.clone();
        self.write(due, index, proxies, status);
    }

    fn write(
        &mut self,
        due: BTreeSet<NamespacedName>,
        index: &Index,
        proxies: &[Proxy],
        status: &StatusQueue,
    ) {
        for name in due {
            let Some(entry) = self.all.get(&name) else { continue };
            let conditions = conditions(&name, entry, index, proxies);
            match is_pending(&conditions) {
                true => self.pending.insert(name.clone()),
                false => self.pending.remove(&name),
            };
            let key = key("PeerAuthentication", "peerauthentications", &name);
            status.set(key, Wish::Conditions { generation: entry.generation, conditions });
        }
    }
}

fn read(name: &NamespacedName, object: &DynamicObject) -> Result<Peer, String> {
    let spec = serde_json::json!({ "spec": object.data.get("spec") });
    let spec = validate::spec(&spec)?;
    validate::peer_authentication(&spec)?;
    let created = object.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
    Ok(Peer { name: name.clone(), created: created.unwrap_or_default(), spec })
}

fn conditions(name: &NamespacedName, entry: &Entry, index: &Index, proxies: &[Proxy]) -> Vec<Condition> {
    let (peers, mesh) = (index.peers(), index.mesh());
    let accepted = match (&entry.fault, &entry.peer) {
        (Some(fault), Some(_)) => Some(Condition::no(
            layer4::ZTUNNEL_ACCEPTED,
            "Invalid",
            format!("{fault}; what was accepted before stays in force"),
        )),
        (Some(fault), None) => Some(Condition::no(layer4::ZTUNNEL_ACCEPTED, "Invalid", fault.clone())),
        (None, _) => peers.condition(name, mesh),
    };
    let mut out: Vec<Condition> = accepted.into_iter().collect();
    if out.iter().any(|c| c.status) || (entry.fault.is_some() && entry.peer.is_some()) {
        let exposure = Exposure::of(index, &name.namespace, peers.selector_of(name), proxies);
        let at = Where { nodes: exposure.nodes(), ..Where::default() };
        let names = Peers::made_of(name, mesh).map(|n| n.to_string());
        exposure::add_outside(&mut out, &exposure);
        out.push(enforced::condition(&names, &at, entry.since, proxies, &exposure.open));
    }
    out
}
