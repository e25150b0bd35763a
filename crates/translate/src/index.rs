// SPDX-License-Identifier: Apache-2.0
//! What was learnt from the objects, and what depends on what: one changed object touches its dependents only.
//!
//! [`Index::apply`] takes one change and marks what has to be computed again; [`Index::flush`] computes it and
//! returns what is different from before. Applying many changes before one flush costs each dependent once.

mod compute;
mod labelled;
mod scope;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use meltemi_model::authz::Policy;
use meltemi_model::names::{NamespacedHostname, WorkloadUid};
use meltemi_model::workload::Locality;
use meltemi_model::{NamespacedName, Service, Workload};

use crate::condition::Condition;
use crate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts, SliceFacts, selects};
use crate::labels;
use crate::mesh::MeshConfig;
use crate::security::peer::Peers;
use crate::waypoints::WaypointFacts;
use scope::Scope;

/// One change to one object; `None` means that it is gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Pod.
    Pod(NamespacedName, Option<Box<PodFacts>>),
    /// A Service.
    Service(NamespacedName, Option<Box<ServiceFacts>>),
    /// An EndpointSlice.
    Slice(NamespacedName, Option<SliceFacts>),
    /// A Namespace.
    Namespace(Arc<str>, Option<NamespaceFacts>),
    /// Where a Node is.
    Node(Arc<str>, Option<Locality>),
    /// A Gateway, as far as it is a waypoint.
    Waypoint(NamespacedName, Option<WaypointFacts>),
    /// A policy that node proxies enforce.
    Policy(NamespacedName, Option<PolicyFacts>),
    /// Every PeerAuthentication.
    Peers(Peers),
    /// Services that some AuthorizationPolicy targets, by the policy's name.
    Targets(NamespacedName, Vec<NamespacedName>),
}

/// A policy for node proxies, and which workloads name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFacts {
    /// What is sent.
    pub policy: Arc<Policy>,
    /// Workloads that name it: by labels, in its namespace (everywhere when that is the root namespace). None
    /// when it applies by its scope.
    pub selector: Option<Labels>,
}

/// What is different after a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New or changed policies.
    pub policies: Vec<Arc<Policy>>,
    /// Policies that are gone.
    pub removed_policies: Vec<NamespacedName>,
    /// New or changed workloads.
    pub workloads: Vec<Arc<Workload>>,
    /// Workloads that are gone.
    pub removed_workloads: Vec<WorkloadUid>,
    /// New or changed services.
    pub services: Vec<Arc<Service>>,
    /// Services that are gone.
    pub removed_services: Vec<NamespacedHostname>,
    /// Services whose waypoint is another one (or none) now, or that came or went.
    pub bindings: Vec<NamespacedName>,
    /// `istio.io/WaypointBound` of Services; none when there is nothing to say any more.
    pub service_conditions: Vec<(NamespacedName, Option<Condition>)>,
}

impl Delta {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Who wishes for a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum User {
    Pod(NamespacedName),
    Service(NamespacedName),
}

#[derive(Debug, Default)]
struct Dirty {
    pods: BTreeSet<NamespacedName>,
    services: BTreeSet<NamespacedName>,
    slices: BTreeSet<NamespacedName>,
    policies: BTreeSet<NamespacedName>,
}

/// The objects as facts, their dependencies, and what was last computed from them.
#[derive(Debug)]
pub struct Index {
    mesh: MeshConfig,
    namespaces: HashMap<Arc<str>, Scope>,
    nodes: HashMap<Arc<str>, Locality>,
    pods_of_node: HashMap<Arc<str>, BTreeSet<NamespacedName>>,
    waypoints: HashMap<NamespacedName, WaypointFacts>,
    /// Objects by the waypoint that they wish for, whether it exists or not.
    users: HashMap<NamespacedName, BTreeSet<User>>,
    wishes: HashMap<User, NamespacedName>,
    policies: HashMap<NamespacedName, PolicyFacts>,
    peers: Peers,
    /// Services by the policies that target them.
    guards: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    targets: HashMap<NamespacedName, Vec<NamespacedName>>,
    dirty: Dirty,
    out: Outputs,
}

#[derive(Debug, Default)]
struct Outputs {
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    slices: HashMap<NamespacedName, Vec<WorkloadUid>>,
    services: HashMap<NamespacedHostname, Arc<Service>>,
    policies: HashMap<NamespacedName, Arc<Policy>>,
    conditions: HashMap<NamespacedName, Condition>,
    /// Waypoints that are meant to serve a Service, ready or not.
    bound: HashMap<NamespacedName, NamespacedName>,
}

impl Index {
    /// An empty index.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            mesh,
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            pods_of_node: HashMap::new(),
            waypoints: HashMap::new(),
            users: HashMap::new(),
            wishes: HashMap::new(),
            policies: HashMap::new(),
            peers: Peers::default(),
            guards: HashMap::new(),
            targets: HashMap::new(),
            dirty: Dirty::default(),
            out: Outputs::default(),
        }
    }

    /// The mesh's settings.
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// A Pod's facts.
    pub fn pod(&self, name: &NamespacedName) -> Option<&PodFacts> {
        self.namespaces.get(&name.namespace)?.pods.get(&name.name)
    }

    /// Every Pod.
    pub fn pods(&self) -> impl Iterator<Item = &PodFacts> {
        self.namespaces.values().flat_map(|s| s.pods.values())
    }

    /// A Service's facts.
    pub fn service(&self, name: &NamespacedName) -> Option<&ServiceFacts> {
        self.namespaces.get(&name.namespace)?.services.get(&name.name)
    }

    /// A namespace's facts.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceFacts> {
        self.namespaces.get(name)?.facts.as_ref()
    }

    /// A waypoint's facts.
    pub fn waypoint(&self, name: &NamespacedName) -> Option<&WaypointFacts> {
        self.waypoints.get(name)
    }

    /// The waypoint that serves a Service (or will, once it is ready), as last computed.
    pub fn waypoint_of(&self, service: &NamespacedName) -> Option<&NamespacedName> {
        self.out.bound.get(service)
    }

    /// Every waypoint.
    pub fn waypoints(&self) -> impl Iterator<Item = &WaypointFacts> {
        self.waypoints.values()
    }

    /// A workload as last computed.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.out.workloads.get(uid)
    }

    /// A policy for node proxies, as it was given.
    pub fn policy(&self, name: &NamespacedName) -> Option<&PolicyFacts> {
        self.policies.get(name)
    }

    /// Pods that a selector of a namespace selects; every Pod there without one. The root namespace's policies
    /// look at every namespace.
    pub fn pods_selected(&self, namespace: &str, selector: Option<&Labels>) -> Vec<&PodFacts> {
        let everywhere = *namespace == *self.mesh.root_namespace;
        let mut out = Vec::new();
        for (name, scope) in &self.namespaces {
            if !everywhere && **name != *namespace {
                continue;
            }
            match selector {
                Some(selector) => {
                    out.extend(scope.pods_selected(selector).iter().filter_map(|pod| scope.pods.get(pod)));
                }
                None => out.extend(scope.pods.values()),
            }
        }
        out
    }

    /// Every workload as last computed.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.out.workloads.values()
    }

    /// Every service as last computed.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.out.services.values()
    }

    /// Takes a change and marks what depends on it.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Pod(name, facts) => self.apply_pod(name, facts.map(|f| *f)),
            Change::Service(name, facts) => self.apply_service(name, facts.map(|f| *f)),
            Change::Slice(name, facts) => self.apply_slice(name, facts),
            Change::Namespace(name, facts) => self.apply_namespace(name, facts),
            Change::Node(name, locality) => self.apply_node(name, locality),
            Change::Waypoint(name, facts) => self.apply_waypoint(name, facts),
            Change::Policy(name, facts) => self.apply_policy(name, facts),
            Change::Peers(peers) => self.apply_peers(peers),
            Change::Targets(policy, services) => self.apply_targets(policy, services),
        }
    }

    fn scope(&mut self, namespace: &Arc<str>) -> &mut Scope {
        self.namespaces.entry(namespace.clone()).or_default()
    }

    fn apply_pod(&mut self, name: NamespacedName, facts: Option<PodFacts>) {
        let scope = self.scope(&name.namespace);
        if scope.pods.get(&name.name) == facts.as_ref() {
            return;
        }
        let old_node = scope.pods.get(&name.name).map(|p| p.node.clone());
        let new_node = facts.as_ref().map(|p| p.node.clone());
        scope.set_pod(&name.name, facts);
        if old_node != new_node {
            if let Some(pods) = old_node.and_then(|n| self.pods_of_node.get_mut(&n)) {
                pods.remove(&name);
            }
            if let Some(node) = new_node {
                self.pods_of_node.entry(node).or_default().insert(name.clone());
            }
        }
        self.dirty.pods.insert(name);
    }

    fn apply_service(&mut self, name: NamespacedName, facts: Option<ServiceFacts>) {
        let scope = self.scope(&name.namespace);
        let before = scope.services.get(&name.name);
        if before == facts.as_ref() {
            return;
        }
        let selectors =
            [before.and_then(|s| s.selector.clone()), facts.as_ref().and_then(|s| s.selector.clone())];
        scope.set_service(&name.name, facts);
        let mut pods = BTreeSet::new();
        for selector in selectors.iter().flatten() {
            pods.extend(scope.pods_selected(selector));
        }
        let slices: Vec<_> =
            scope.slices.values().filter(|s| s.service == name.name).map(|s| s.name.clone()).collect();
        let namespace = name.namespace.clone();
        self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(namespace.clone(), p)));
        self.dirty.slices.extend(slices);
        self.dirty.services.insert(name);
    }

    fn apply_slice(&mut self, name: NamespacedName, facts: Option<SliceFacts>) {
        let scope = self.scope(&name.namespace);
        if scope.slices.get(&name.name) == facts.as_ref() {
            return;
        }
        match facts {
            Some(facts) => scope.slices.insert(name.name.clone(), facts),
            None => scope.slices.remove(&name.name),
        };
        self.dirty.slices.insert(name);
    }

    fn apply_namespace(&mut self, name: Arc<str>, facts: Option<NamespaceFacts>) {
        let scope = self.scope(&name);
        if scope.facts == facts {
            return;
        }
        scope.facts = facts;
        let pods: Vec<_> = scope.pods.keys().cloned().collect();
        let services: Vec<_> = scope.services.keys().cloned().collect();
        self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(name.clone(), p)));
        self.dirty.services.extend(services.into_iter().map(|s| NamespacedName::new(name.clone(), s)));
    }

    fn apply_node(&mut self, name: Arc<str>, locality: Option<Locality>) {
        let before = match locality {
            Some(locality) => {
                if self.nodes.get(&name) == Some(&locality) {
                    return;
                }
                self.nodes.insert(name.clone(), locality)
            }
            None => self.nodes.remove(&name),
        };
        drop(before);
        if let Some(pods) = self.pods_of_node.get(&name) {
            self.dirty.pods.extend(pods.iter().cloned());
        }
    }

    fn apply_waypoint(&mut self, name: NamespacedName, facts: Option<WaypointFacts>) {
        if self.waypoints.get(&name) == facts.as_ref() {
            return;
        }
        let binding = |facts: Option<&WaypointFacts>| facts.and_then(|f| f.inbound_binding);
        let rebind_instances = binding(self.waypoints.get(&name)) != binding(facts.as_ref());
        match facts {
            Some(facts) => self.waypoints.insert(name.clone(), facts),
            None => self.waypoints.remove(&name),
        };
        for user in self.users.get(&name).into_iter().flatten() {
            match user {
                User::Pod(pod) => self.dirty.pods.insert(pod.clone()),
                User::Service(service) => self.dirty.services.insert(service.clone()),
            };
        }
        if rebind_instances && let Some(scope) = self.namespaces.get(&name.namespace) {
            let selector = Labels::from([(labels::GATEWAY_NAME.to_owned(), name.name.to_string())]);
            let namespace = name.namespace.clone();
            let pods = scope.pods_selected(&selector);
            self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(namespace.clone(), p)));
        }
    }

    fn apply_policy(&mut self, name: NamespacedName, facts: Option<PolicyFacts>) {
        let before = self.policies.get(&name);
        if before == facts.as_ref() {
            return;
        }
        let before = before.and_then(|p| p.selector.clone());
        let after = facts.as_ref().and_then(|p| p.selector.clone());
        if before != after {
            for selector in [&before, &after].into_iter().flatten() {
                self.mark_selected(&name.namespace, selector);
            }
            self.scope(&name.namespace).set_selector_policy(&name.name, after);
        }
        match facts {
            Some(facts) => self.policies.insert(name.clone(), facts),
            None => self.policies.remove(&name),
        };
        self.dirty.policies.insert(name);
    }

    fn mark_selected(&mut self, namespace: &Arc<str>, selector: &Labels) {
        let everywhere = *namespace == self.mesh.root_namespace;
        for (name, scope) in &self.namespaces {
            if everywhere || name == namespace {
                let pods = scope.pods_selected(selector);
                self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(name.clone(), p)));
            }
        }
    }

    fn apply_peers(&mut self, peers: Peers) {
        let differs = peers.differs(&self.peers, &self.mesh);
        let before = self.peers.policies(&self.mesh);
        let after = peers.policies(&self.mesh);
        self.peers = peers;
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.apply_policy(name.clone(), None);
        }
        for (name, policy) in after {
            self.apply_policy(name, Some(PolicyFacts { policy, selector: None }));
        }
        for (namespace, scope) in &self.namespaces {
            if differs.as_ref().is_none_or(|only| only.contains(namespace)) {
                let pods = scope.pods.keys().map(|p| NamespacedName::new(namespace.clone(), p.clone()));
                self.dirty.pods.extend(pods);
            }
        }
    }

    fn apply_targets(&mut self, policy: NamespacedName, services: Vec<NamespacedName>) {
        let before = match services.is_empty() {
            true => self.targets.remove(&policy),
            false => self.targets.insert(policy.clone(), services.clone()),
        };
        for service in before.into_iter().flatten() {
            if let Some(policies) = self.guards.get_mut(&service) {
                policies.remove(&policy);
            }
            self.dirty.services.insert(service);
        }
        for service in services {
            self.guards.entry(service.clone()).or_default().insert(policy.clone());
            self.dirty.services.insert(service);
        }
    }
}

/// Whether a selector policy of `namespace` with that selector applies to a Pod.
pub fn policy_selects(namespace: &str, selector: &Labels, pod: &PodFacts, mesh: &MeshConfig) -> bool {
    (namespace == &*mesh.root_namespace || namespace == &*pod.name.namespace)
        && selects(selector, &pod.labels)
}

#[cfg(test)]
mod tests;
