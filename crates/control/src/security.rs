// SPDX-License-Identifier: Apache-2.0
//! Objects of `security.istio.io`: read, translated, attached, and reported on.
//!
//! An object that is not valid (it came past the admission webhook) changes nothing: what was known of it stays in
//! force, and its status says why.

mod attach;
pub mod enforced;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kube::api::DynamicObject;
use meltemi_model::{NamespacedName, l7};
use meltemi_resources::policies::validate;
use meltemi_translate::condition::Condition;
use meltemi_translate::facts::Labels;
use meltemi_translate::index::PolicyFacts;
use meltemi_translate::routes::table::For;
use meltemi_translate::security::authorization::{self, Authorization};
use meltemi_translate::security::layer4;
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::{Change, Index, MeshConfig};

use crate::publish::Step;
use crate::source::Kind;
use crate::status::{Key, StatusQueue, Wish};
use crate::xds::Proxies;
use enforced::{Generations, Where};

/// Field manager of every condition on a policy.
const MANAGER: &str = "istio-ambient-policy";

/// An AuthorizationPolicy and what became of it.
#[derive(Debug)]
struct Entry {
    generation: Option<i64>,
    authorization: Option<Authorization>,
    /// What is said of it whatever the mesh looks like.
    fixed: Vec<Condition>,
    /// Where it is attached, for one with targets.
    attached: attach::Attached,
    since: Generations,
}

/// The objects.
#[derive(Debug)]
pub struct Security {
    mesh: MeshConfig,
    policies: HashMap<NamespacedName, Entry>,
    peers: BTreeMap<NamespacedName, Peer>,
    /// Policies by the Services that they target.
    by_service: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    changes: Vec<Change>,
    /// Policies with targets to be attached again.
    unattached: BTreeSet<NamespacedName>,
    /// What was sent to gateways.
    sent: HashMap<NamespacedName, For<l7::HttpPolicy>>,
    /// Policies whose status is to be written.
    unreported: BTreeSet<NamespacedName>,
    /// Policies that not every proxy has acknowledged.
    pending: BTreeSet<NamespacedName>,
    gone: BTreeSet<NamespacedName>,
    proxies: Proxies,
}

impl Security {
    /// No objects yet.
    pub fn new(mesh: MeshConfig, proxies: Proxies) -> Self {
        Self {
            mesh,
            policies: HashMap::new(),
            peers: BTreeMap::new(),
            by_service: HashMap::new(),
            changes: Vec::new(),
            unattached: BTreeSet::new(),
            sent: HashMap::new(),
            unreported: BTreeSet::new(),
            pending: BTreeSet::new(),
            gone: BTreeSet::new(),
            proxies,
        }
    }

    /// An object is new, changed or gone.
    pub fn set(&mut self, kind: Kind, name: &NamespacedName, object: Option<&Arc<DynamicObject>>) {
        match kind {
            Kind::AuthorizationPolicy => self.set_policy(name, object.map(|o| &**o)),
            Kind::PeerAuthentication => self.set_peer(name, object.map(|o| &**o)),
            // Its definition takes no spec: there is nothing in it that could be enforced.
            _ => {}
        }
    }

    fn set_peer(&mut self, name: &NamespacedName, object: Option<&DynamicObject>) {
        let peer = match object {
            None => None,
            Some(object) => {
                let spec = spec(object).and_then(|spec| {
                    validate::peer_authentication(&spec)?;
                    Ok(spec)
                });
                match spec {
                    Ok(spec) => {
                        let created = object.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
                        Some(Peer { name: name.clone(), created: created.unwrap_or_default(), spec })
                    }
                    Err(reason) => {
                        tracing::error!(%name, %reason, "PeerAuthentication is not valid; what was known of it stays");
                        return;
                    }
                }
            }
        };
        if self.peers.get(name) == peer.as_ref() {
            return;
        }
        match peer {
            Some(peer) => self.peers.insert(name.clone(), peer),
            None => self.peers.remove(name),
        };
        self.changes.push(Change::Peers(Peers::new(self.peers.values().cloned().collect())));
    }

    fn set_policy(&mut self, name: &NamespacedName, object: Option<&DynamicObject>) {
        let Some(object) = object else {
            self.policies.remove(name);
            self.gone.insert(name.clone());
            self.unreported.remove(name);
            self.pending.remove(name);
            self.unattached.insert(name.clone());
            self.changes.push(Change::Policy(name.clone(), None));
            self.target(name, BTreeSet::new());
            return;
        };
        let annotations: Labels = object.metadata.annotations.clone().unwrap_or_default();
        let read = spec(object).and_then(|spec| authorization::read(name, &spec, &annotations, &self.mesh));
        let generation = object.metadata.generation;
        match read {
            Ok(authorization) => self.take(name, generation, authorization),
            Err(reason) => {
                tracing::error!(policy = %name, %reason, "AuthorizationPolicy is not valid; what was known of it stays");
                let entry = self.policies.entry(name.clone()).or_insert_with(|| Entry {
                    generation,
                    authorization: None,
                    fixed: Vec::new(),
                    attached: attach::Attached::default(),
                    since: Generations::default(),
                });
                entry.generation = generation;
                entry.fixed = vec![Condition::no(layer4::ZTUNNEL_ACCEPTED, "Invalid", reason)];
                self.unreported.insert(name.clone());
            }
        }
    }

    fn take(&mut self, name: &NamespacedName, generation: Option<i64>, authorization: Authorization) {
        let before = self.policies.get_mut(name);
        if let Some(entry) = before
            && entry.authorization.as_ref() == Some(&authorization)
        {
            if entry.generation != generation {
                entry.generation = generation;
                self.unreported.insert(name.clone());
            }
            return;
        }
        let projected = layer4::project(&authorization);
        let facts = projected
            .policy
            .map(|policy| PolicyFacts { policy: Arc::new(policy), selector: authorization.selector.clone() });
        self.changes.push(Change::Policy(name.clone(), facts));
        let services: BTreeSet<NamespacedName> = authorization
            .targets
            .iter()
            .filter_map(|t| match t {
                authorization::Reference::Service(s) => {
                    Some(NamespacedName::new(name.namespace.clone(), s.as_str()))
                }
                _ => None,
            })
            .collect();
        self.target(name, services);
        let entry = Entry {
            generation,
            authorization: Some(authorization),
            fixed: projected.condition.into_iter().collect(),
            attached: attach::Attached::default(),
            since: Generations::default(),
        };
        self.policies.insert(name.clone(), entry);
        self.gone.remove(name);
        self.unattached.insert(name.clone());
        self.unreported.insert(name.clone());
    }

    /// Notes which Services a policy targets.
    fn target(&mut self, policy: &NamespacedName, services: BTreeSet<NamespacedName>) {
        self.by_service.retain(|_, policies| {
            policies.remove(policy);
            !policies.is_empty()
        });
        for service in &services {
            self.by_service.entry(service.clone()).or_default().insert(policy.clone());
        }
        self.changes.push(Change::Targets(policy.clone(), services.into_iter().collect()));
    }

    /// A Service changed, or its waypoint did.
    pub fn see_service(&mut self, name: &NamespacedName) {
        self.unattached.extend(self.by_service.get(name).into_iter().flatten().cloned());
    }

    /// A Gateway changed or is gone.
    pub fn see_gateway(&mut self) {
        let with_gateways = self.policies.iter().filter(|(_, e)| {
            e.authorization.as_ref().is_some_and(|a| a.targets.iter().any(attach::is_of_gateway))
        });
        self.unattached.extend(with_gateways.map(|(name, _)| name.clone()));
    }

    /// Changes for the index.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Attaches what is to be attached and adds it to a step.
    pub fn flush(&mut self, world: &attach::World<'_>, step: &mut Step) {
        for name in std::mem::take(&mut self.unattached) {
            let Some(entry) = self.policies.get_mut(&name) else {
                if self.sent.remove(&name).is_some() {
                    step.removed_http_policies.push(name);
                }
                continue;
            };
            let Some(authorization) = entry.authorization.as_ref().filter(|a| !a.targets.is_empty()) else {
                if self.sent.remove(&name).is_some() {
                    step.removed_http_policies.push(name);
                }
                continue;
            };
            let attached = attach::attach(authorization, world);
            if entry.attached.condition != attached.condition {
                self.unreported.insert(name.clone());
            }
            let gateways = attached.gateways.clone();
            let targets = attached.targets.clone();
            entry.attached = attached;
            if gateways.is_empty() {
                if self.sent.remove(&name).is_some() {
                    step.removed_http_policies.push(name);
                }
                continue;
            }
            let what = l7::HttpPolicy { policy: authorization.policy.clone(), targets };
            let sent = For { what, gateways };
            if self.sent.get(&name) != Some(&sent) {
                self.sent.insert(name, sent.clone());
                step.http_policies.push(sent);
            }
        }
        // Workloads that came or went: their namespace's policies have other nodes to be on.
        let mut namespaces: BTreeSet<&str> = step.delta.workloads.iter().map(|w| &*w.namespace).collect();
        let removed = step.delta.removed_workloads.iter().filter_map(|uid| uid.as_str().split('/').nth(3));
        namespaces.extend(removed);
        if !namespaces.is_empty() {
            let root = &self.mesh.root_namespace;
            let of = |n: &&NamespacedName| namespaces.contains(&*n.namespace) || n.namespace == *root;
            self.unreported.extend(self.policies.keys().filter(of).cloned());
        }
    }

    /// A step became a generation: what it brought has to be acknowledged at it.
    pub fn published(&mut self, generation: u64, step: &Step) {
        let addresses = if step.delta.workloads.is_empty() { 0 } else { generation };
        for policy in &step.delta.policies {
            if let Some(entry) = self.policies.get_mut(&policy.name) {
                entry.since = Generations { policy: generation, addresses };
                self.unreported.insert(policy.name.clone());
            }
        }
        for policy in &step.http_policies {
            let name = &policy.what.policy.name;
            if let Some(entry) = self.policies.get_mut(name) {
                entry.since = Generations { policy: generation, addresses: 0 };
                self.unreported.insert(name.clone());
            }
        }
    }

    /// Hands on the statuses that may be others now.
    pub fn report(&mut self, index: &Index, status: &StatusQueue) {
        self.gone.clear();
        let due = std::mem::take(&mut self.unreported);
        self.write(due, index, status);
    }

    /// A proxy has come, gone or said something: looks again at what not every proxy had acknowledged.
    pub fn acknowledged(&mut self, index: &Index, status: &StatusQueue) {
        let due = self.pending.clone();
        self.write(due, index, status);
    }

    fn write(&mut self, due: BTreeSet<NamespacedName>, index: &Index, status: &StatusQueue) {
        if due.is_empty() {
            return;
        }
        let proxies = self.proxies.all();
        for name in due {
            let Some(entry) = self.policies.get(&name) else { continue };
            let mut conditions = entry.fixed.clone();
            conditions.extend(entry.attached.condition.clone());
            let at = place(entry, index, &name);
            let enforced = at.map(|at| enforced::condition(&name, &at, entry.since, &proxies));
            match &enforced {
                Some(c) if c.reason == "Pending" => self.pending.insert(name.clone()),
                _ => self.pending.remove(&name),
            };
            conditions.extend(enforced);
            let key = Key {
                api_version: "security.istio.io/v1",
                kind: "AuthorizationPolicy",
                plural: "authorizationpolicies",
                name: name.clone(),
                manager: MANAGER,
            };
            status.set(key, Wish::Conditions { generation: entry.generation, conditions });
        }
    }
}

/// Proxies that have to know a policy; none when nobody is told of it at all.
fn place(entry: &Entry, index: &Index, name: &NamespacedName) -> Option<Where> {
    let authorization = entry.authorization.as_ref()?;
    if !authorization.targets.is_empty() {
        return Some(Where::Gateways(entry.attached.gateways.clone()));
    }
    index.policy(name)?;
    let pods = index.pods_selected(&name.namespace, authorization.selector.as_ref());
    let nodes = pods.into_iter().filter(|p| p.alive && p.enrolled).map(|p| p.node.clone());
    Some(Where::Nodes(nodes.collect()))
}

/// The spec of an object; an absent one is empty.
fn spec<T: serde::de::DeserializeOwned>(object: &DynamicObject) -> Result<T, String> {
    let spec = object.data.get("spec").cloned().unwrap_or_else(|| serde_json::json!({}));
    serde_json::from_value(spec).map_err(|e| e.to_string())
}

pub use attach::World;
