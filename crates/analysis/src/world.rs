// SPDX-License-Identifier: Apache-2.0
//! What the objects say: policies, and what they can be attached to. Objects may be all of a cluster, or a few files that
//! leave most of it out; what is left out is assumed where an answer needs it.

mod attach;
mod binding;
mod closed;
mod enrolment;
mod names;
mod read;
mod routes;
mod tokens;
mod unacted;

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::NamespacedName;
use meltemi_model::l7::PathNormalization;
use meltemi_policy::http::Normalization;
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::{Labels, selects};
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::security::Authorization;
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::security::request::Tokens;
use meltemi_translate::waypoints::WaypointFacts;
use serde_json::Value;

pub use binding::{Binding, Path};
pub use closed::Beside;
pub use names::Known;
pub(crate) use routes::difference;
pub(crate) use tokens::space_delimited;

/// An object, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {message}")]
pub struct Fault {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: NamespacedName,
    /// What is wrong with it, as admission says it, or what its author should know.
    pub message: String,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its labels.
    pub labels: Labels,
    /// Which Pods it has.
    pub selector: Labels,
    /// Its ports and those of its Pods; a named port of a Pod is none.
    pub ports: Vec<(u16, Option<u16>)>,
    /// Names of Pods' ports, by the Service's.
    pub named: BTreeMap<u16, String>,
    /// Ports that are declared to be TCP or TLS: a waypoint judges connections there, and no requests.
    pub streams: BTreeSet<u16>,
    /// Ports that declare no protocol: a waypoint judges requests there, and what is none as a connection.
    pub undeclared: BTreeSet<u16>,
    /// It has no address of its own: its clients connect to its Pods.
    pub headless: bool,
}

/// A Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Its class; none when it is another controller's.
    pub class: Option<Class>,
    /// Its listeners, as they are written.
    pub listeners: Value,
    /// Ports of its listeners.
    pub ports: BTreeSet<u16>,
    /// Labels of its proxies: as they are rendered, and of those that are known to run.
    pub pod_labels: Vec<Labels>,
    /// ServiceAccount that its proxies run as; none when it has no proxies.
    pub account: Option<NamespacedName>,
    /// The waypoint, where it is one.
    pub waypoint: Option<WaypointFacts>,
}

/// Pods that are alike: a Pod, or the template of what makes Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `Pod`, `Deployment`, ….
    pub kind: String,
    /// Its name.
    pub name: NamespacedName,
    /// Labels of its Pods.
    pub labels: Labels,
    /// Their ServiceAccount.
    pub account: String,
    /// Ports that have a name.
    pub ports: BTreeMap<String, u16>,
    /// Every port that its containers declare.
    pub listens: BTreeSet<u16>,
    /// It uses the node's network.
    pub host_network: bool,
    /// It has a sidecar of another implementation of the mesh.
    pub has_sidecar: bool,
    /// Its annotation keeps connections to it from being captured.
    pub bypasses_inbound: bool,
}

impl Workload {
    /// A workload without labels and ports.
    pub fn new(kind: &str, name: NamespacedName) -> Self {
        Self {
            kind: kind.to_owned(),
            name,
            labels: Labels::new(),
            account: String::new(),
            ports: BTreeMap::new(),
            listens: BTreeSet::new(),
            host_network: false,
            has_sidecar: false,
            bypasses_inbound: false,
        }
    }

    /// Whether another one is the same object, perhaps at another time.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.kind, &self.name) == (&other.kind, &other.name)
    }
}

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Settings of the mesh.
    pub mesh: MeshConfig,
    /// AuthorizationPolicies that are valid, by name.
    pub policies: BTreeMap<NamespacedName, Authorization>,
    /// PeerAuthentications.
    pub peers: Vec<Peer>,
    /// RequestAuthentications.
    pub tokens: BTreeMap<NamespacedName, Tokens>,
    /// Services.
    pub services: BTreeMap<NamespacedName, Service>,
    /// Labels of Namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Gateways.
    pub gateways: BTreeMap<NamespacedName, Gateway>,
    /// GatewayClasses that somebody has made for a controller of the mesh, by name.
    pub classes: BTreeMap<String, Class>,
    /// ServiceAccounts.
    pub accounts: BTreeSet<NamespacedName>,
    /// What runs.
    pub workloads: Vec<Workload>,
    /// Routes and grants, which decide with policies and are not modelled, by kind and name: what of them can differ.
    pub unmodelled: BTreeMap<(String, NamespacedName), Value>,
    /// Objects that admission would refuse.
    pub faults: Vec<Fault>,
    /// Objects of which admission would warn.
    pub warnings: Vec<Fault>,
    /// Objects, and fields of objects, that are stored and not acted on.
    pub inert: Vec<Fault>,
    /// Kind and name of every object that was read.
    pub objects: BTreeSet<(String, NamespacedName)>,
    /// What is not here does not exist: these are all objects of a cluster.
    pub complete: bool,
}

impl World {
    /// Takes from another what this one says nothing about: a file of policies says nothing of Services. Policies are
    /// never taken.
    pub fn borrow(&mut self, other: &Self) {
        // Routes are given with the Services that they are for.
        if self.holds_only_policies() {
            self.unmodelled.clone_from(&other.unmodelled);
        }
        if self.services.is_empty() {
            self.services.clone_from(&other.services);
        }
        if self.namespaces.is_empty() {
            self.namespaces.clone_from(&other.namespaces);
        }
        if self.gateways.is_empty() {
            self.gateways.clone_from(&other.gateways);
        }
        if self.accounts.is_empty() {
            self.accounts.clone_from(&other.accounts);
        }
        if self.workloads.is_empty() {
            self.workloads.clone_from(&other.workloads);
        }
    }

    /// Whether there is nothing but policies.
    pub fn holds_only_policies(&self) -> bool {
        self.services.is_empty()
            && self.namespaces.is_empty()
            && self.gateways.is_empty()
            && self.workloads.is_empty()
            && self.unmodelled.is_empty()
    }

    /// This world with the objects of another laid over it, as `kubectl apply` would.
    #[must_use]
    pub fn overlaid(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.policies.extend(other.policies.clone());
        out.peers.retain(|p| other.peers.iter().all(|o| o.name != p.name));
        out.peers.extend(other.peers.iter().cloned());
        out.unmodelled.extend(other.unmodelled.clone());
        out.tokens.extend(other.tokens.clone());
        out.services.extend(other.services.clone());
        out.namespaces.extend(other.namespaces.clone());
        out.gateways.extend(other.gateways.clone());
        out.accounts.extend(other.accounts.iter().cloned());
        out.workloads.retain(|w| other.workloads.iter().all(|o| (&o.kind, &o.name) != (&w.kind, &w.name)));
        out.workloads.extend(other.workloads.iter().cloned());
        let replaced = |f: &Fault| other.objects.contains(&(f.kind.clone(), f.name.clone()));
        for (own, new) in [
            (&mut out.faults, &other.faults),
            (&mut out.warnings, &other.warnings),
            (&mut out.inert, &other.inert),
        ] {
            own.retain(|f| !replaced(f));
            own.extend(new.iter().cloned());
        }
        out.objects.extend(other.objects.iter().cloned());
        out
    }

    /// How waypoints of the mesh normalise paths.
    pub fn normalization(&self) -> Normalization {
        match self.mesh.path_normalization {
            PathNormalization::None => Normalization::None,
            PathNormalization::Base => Normalization::Base,
            PathNormalization::MergeSlashes => Normalization::MergeSlashes,
            PathNormalization::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
        }
    }

    /// The first object that means nothing, as an error.
    ///
    /// # Errors
    /// Its name and what is wrong with it.
    pub fn whole(self) -> Result<Self, Fault> {
        match self.faults.first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(self),
        }
    }

    /// Principals of the ServiceAccounts that exist, and of Pods that run.
    pub fn identities(&self) -> Vec<String> {
        let domain = &self.mesh.trust_domain;
        let accounts = self.accounts.iter().map(|a| (a.namespace.to_string(), a.name.to_string()));
        let running = self.workloads.iter().map(|w| (w.name.namespace.to_string(), w.account.clone()));
        let all: BTreeSet<(String, String)> = accounts.chain(running).collect();
        all.into_iter().map(|(namespace, name)| format!("{domain}/ns/{namespace}/sa/{name}")).collect()
    }

    /// What runs behind a Service.
    fn behind<'a>(
        &'a self,
        name: &'a NamespacedName,
        service: &'a Service,
    ) -> impl Iterator<Item = &'a Workload> {
        let near = self.workloads.iter().filter(|w| w.name.namespace == name.namespace);
        near.filter(|w| {
            !service.selector.is_empty() && service.selector.iter().all(|(k, v)| w.labels.get(k) == Some(v))
        })
    }

    /// Services that select a workload.
    pub fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a Service)> {
        self.services.iter().filter(|(name, service)| {
            name.namespace == workload.name.namespace
                && !service.selector.is_empty()
                && selects(&service.selector, &workload.labels)
        })
    }

    /// What the status of each PeerAuthentication says beside that it is accepted.
    pub fn peer_notices(&self) -> Vec<(NamespacedName, String)> {
        let peers = Peers::new(self.peers.clone());
        let all = self.peers.iter().filter_map(|peer| Some((peer, peers.condition(&peer.name, &self.mesh)?)));
        let noted = all.filter(|(_, condition)| condition.reason != "Accepted");
        noted.map(|(peer, condition)| (peer.name.clone(), condition.message)).collect()
    }

    /// Ports of a Service and those of its Pods; none where the Pods' port has a name that they do not all have for one
    /// and the same port.
    pub fn ports(&self, service: &NamespacedName) -> Vec<(u16, Option<u16>)> {
        let Some(known) = self.services.get(service) else { return Vec::new() };
        let resolved = |(port, target): &(u16, Option<u16>)| {
            let named = known.named.get(port).and_then(|name| {
                let all: BTreeSet<Option<u16>> =
                    self.behind(service, known).map(|w| w.ports.get(name).copied()).collect();
                if all.len() == 1 { all.into_iter().next().flatten() } else { None }
            });
            (*port, target.or(named))
        };
        known.ports.iter().map(resolved).collect()
    }

    /// Labels of Pods of a Service: of what it selects, else what it selects by.
    pub fn pod_labels(&self, service: &NamespacedName) -> Vec<Labels> {
        let Some(known) = self.services.get(service) else { return Vec::new() };
        let mut all: Vec<Labels> = self.behind(service, known).map(|w| w.labels.clone()).collect();
        all.sort();
        all.dedup();
        if all.is_empty() && !known.selector.is_empty() {
            all.push(known.selector.clone());
        }
        all
    }
}
