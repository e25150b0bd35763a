// SPDX-License-Identifier: Apache-2.0
//! What was learnt from the objects, and what depends on what: one changed object touches its dependents only.
//!
//! [`Index::apply`] takes one change and marks what has to be computed again; [`Index::flush`] computes it and
//! returns what is different from before. Applying many changes before one flush costs each dependent once.

mod apply;
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
    /// Conditions of Services; empty when there is nothing to say any more.
    pub service_conditions: Vec<(NamespacedName, Vec<Condition>)>,
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
    conditions: HashMap<NamespacedName, Vec<Condition>>,
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

    /// Waypoints of the Services that a Pod belongs to, and its own: their clients reach it with the waypoint's identity.
    pub fn waypoints_of_pod(&self, pod: &PodFacts) -> BTreeSet<NamespacedName> {
        let scope = self.namespaces.get(&pod.name.namespace);
        let services = scope.map(|scope| scope.services_of(pod)).unwrap_or_default();
        let uid = WorkloadUid::pod(&self.mesh.cluster_id, &pod.name.namespace, &pod.name.name);
        let has_own = self.workload(&uid).is_some_and(|workload| workload.waypoint.is_some());
        let own = self.wishes.get(&User::Pod(pod.name.clone())).filter(|_| has_own);
        services
            .into_iter()
            .filter_map(|service| self.waypoint_of(&service.name))
            .chain(own)
            .cloned()
            .collect()
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

    /// Takes other settings. Only what nothing in here was computed from may differ: aliases of the trust domain, how
    /// paths are normalised, names of providers.
    pub fn set_mesh(&mut self, mesh: MeshConfig) {
        self.mesh = mesh;
    }

    /// The PeerAuthentications.
    pub fn peers(&self) -> &Peers {
        &self.peers
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
}

/// Whether a selector policy of `namespace` with that selector applies to a Pod.
pub fn policy_selects(namespace: &str, selector: &Labels, pod: &PodFacts, mesh: &MeshConfig) -> bool {
    (namespace == &*mesh.root_namespace || namespace == &*pod.name.namespace)
        && selects(selector, &pod.labels)
}

#[cfg(test)]
mod tests;
