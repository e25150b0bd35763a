// SPDX-License-Identifier: Apache-2.0
//! What is known of the mesh: workloads, services and policies, with the indices that resolution needs.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::authz::{Policy, Scope};
use meltemi_model::{NamespacedHostname, NamespacedName, NetworkAddress, Service, Workload, WorkloadUid};
use meltemi_policy::{InvalidPolicy, PolicySet};
use rpds::RedBlackTreeMapSync;
use smallvec::{SmallVec, smallvec};

use crate::SharedMap;
use crate::policies::Policies;

/// A change of the snapshot.
#[derive(Clone, Debug)]
pub enum Delta {
    /// A workload that is new or has changed.
    Workload(Box<Workload>),
    /// A service that is new or has changed.
    Service(Box<Service>),
    /// A workload's uid or a service's `<namespace>/<hostname>` that is gone.
    AddressGone(String),
    /// A policy that is new or has changed.
    Policy(Box<Policy>),
    /// A policy that is gone.
    PolicyGone(NamespacedName),
    /// A policy that could not be read: what was known of it before stays in force; if nothing was, nothing is allowed
    /// where it applies.
    PolicyRefused {
        /// Its name.
        name: NamespacedName,
        /// Where it applies; everywhere, when that is not known.
        scope: Option<Scope>,
        /// Why.
        reason: Arc<str>,
    },
}

/// The mesh as one control plane tells it. A clone shares all that does not change later, so that a message of the control
/// plane costs what it changes, and not what is known.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    generation: u64,
    workloads: SharedMap<WorkloadUid, Arc<Workload>>,
    /// In the order in which they took the address; the last one has it. Two have one for a moment, when a new Pod is heard
    /// of before the end of the one before it, or longer, when a Pod is forced out whose node cannot be reached.
    by_ip: SharedMap<NetworkAddress, SmallVec<[WorkloadUid; 1]>>,
    /// By namespace and name.
    by_name: SharedMap<NamespacedName, BTreeSet<WorkloadUid>>,
    services: SharedMap<NamespacedHostname, Arc<Service>>,
    by_vip: SharedMap<NetworkAddress, BTreeSet<NamespacedHostname>>,
    by_hostname: SharedMap<Arc<str>, BTreeSet<NamespacedHostname>>,
    /// Services with ranges of addresses: few, looked at for each address that nothing else has.
    ranged: RedBlackTreeMapSync<NamespacedHostname, Arc<Service>>,
    endpoints: SharedMap<NamespacedHostname, RedBlackTreeMapSync<WorkloadUid, Arc<Workload>>>,
    policies: Policies,
}

impl Snapshot {
    /// Applies changes in order; the generation grows by one. Returns the policies that are not valid: they are refused
    /// ([`Delta::PolicyRefused`]), all else is applied.
    pub fn apply(&mut self, deltas: impl IntoIterator<Item = Delta>) -> Vec<InvalidPolicy> {
        let mut invalid = Vec::new();
        for delta in deltas {
            match delta {
                Delta::Workload(workload) => self.put_workload(Arc::new(*workload)),
                Delta::Service(service) => self.put_service(Arc::new(*service)),
                Delta::AddressGone(name) => self.remove_address(&name),
                Delta::Policy(policy) => invalid.extend(self.policies.put(*policy).err()),
                Delta::PolicyGone(name) => self.policies.remove(&name),
                Delta::PolicyRefused { name, scope, reason } => self.policies.refuse(name, scope, reason),
            }
        }
        self.generation += 1;
        invalid
    }

    /// Grows with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn put_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid.clone());
        for ip in &workload.addresses {
            // Pods on their node's network share its address: it says nothing about who is behind it.
            if workload.network_mode == meltemi_model::workload::NetworkMode::Standard {
                let address = NetworkAddress::new(workload.network.clone(), *ip);
                if let Some(uids) = self.by_ip.get_mut(&address) {
                    uids.push(workload.uid.clone());
                } else {
                    self.by_ip.insert_mut(address, smallvec![workload.uid.clone()]);
                }
            }
        }
        insert_in_set(&mut self.by_name, name_of(&workload), workload.uid.clone());
        for key in workload.services.keys() {
            if !self.endpoints.contains_key(key) {
                self.endpoints.insert_mut(key.clone(), RedBlackTreeMapSync::new_sync());
            }
            if let Some(endpoints) = self.endpoints.get_mut(key) {
                endpoints.insert_mut(workload.uid.clone(), workload.clone());
            }
        }
        self.workloads.insert_mut(workload.uid.clone(), workload);
    }

    fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(old) = self.workloads.get(uid).cloned() else { return };
        self.workloads.remove_mut(uid);
        for ip in &old.addresses {
            let address = NetworkAddress::new(old.network.clone(), *ip);
            let Some(uids) = self.by_ip.get_mut(&address) else { continue };
            uids.retain(|other| other != uid);
            if uids.is_empty() {
                self.by_ip.remove_mut(&address);
            }
        }
        remove_from_set(&mut self.by_name, &name_of(&old), uid);
        for key in old.services.keys() {
            if let Some(endpoints) = self.endpoints.get_mut(key) {
                endpoints.remove_mut(uid);
                if endpoints.is_empty() {
                    self.endpoints.remove_mut(key);
                }
            }
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.key.clone());
        for address in &service.addresses {
            insert_in_set(&mut self.by_vip, address.clone(), service.key.clone());
        }
        insert_in_set(&mut self.by_hostname, service.key.hostname.clone(), service.key.clone());
        if !service.address_ranges.is_empty() {
            self.ranged.insert_mut(service.key.clone(), service.clone());
        }
        self.services.insert_mut(service.key.clone(), service);
    }

    fn remove_service(&mut self, key: &NamespacedHostname) {
        let Some(old) = self.services.get(key).cloned() else { return };
        self.services.remove_mut(key);
        self.ranged.remove_mut(key);
        for address in &old.addresses {
            remove_from_set(&mut self.by_vip, address, key);
        }
        remove_from_set(&mut self.by_hostname, &key.hostname, key);
    }

    fn remove_address(&mut self, name: &str) {
        let uid = WorkloadUid(name.into());
        if self.workloads.contains_key(&uid) {
            self.remove_workload(&uid);
        } else if let Ok(key) = name.parse() {
            self.remove_service(&key);
        }
    }

    /// A workload by uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has an address of its own.
    pub fn workload_at(&self, network: &Arc<str>, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(self.by_ip.get(&NetworkAddress::new(network.clone(), ip))?.last()?)
    }

    /// A workload by namespace and name.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(self.by_name.get(&NamespacedName::new(namespace, name))?.first()?)
    }

    /// A service by key.
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that has a virtual address, as seen from a namespace: the own namespace's first, then canonical ones.
    pub fn service_at(&self, network: &Arc<str>, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let exact = self.by_vip.get(&NetworkAddress::new(network.clone(), ip));
        let exact = exact.into_iter().flatten().filter_map(|key| self.services.get(key));
        if let Some(found) = best(exact, namespace) {
            return Some(found);
        }
        let in_range = self.ranged.values().filter_map(|s| {
            let length = s
                .address_ranges
                .iter()
                .filter(|(n, r)| n == network && r.contains(&ip))
                .map(|(_, r)| r.prefix_len())
                .max();
            length.map(|length| (length, s))
        });
        in_range.max_by_key(|(length, _)| *length).map(|(_, s)| s).filter(|s| visible(s, namespace))
    }

    /// The service of a host name, as seen from a namespace.
    pub fn service_named(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let keys = self.by_hostname.get(hostname).into_iter().flatten();
        best(keys.filter_map(|key| self.services.get(key)), namespace)
    }

    /// The endpoints of a service.
    pub fn endpoints(&self, key: &NamespacedHostname) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(key).into_iter().flat_map(RedBlackTreeMapSync::values)
    }

    /// All workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.all()
    }

    /// Why a policy was refused, if its last version was.
    pub fn refused(&self, name: &NamespacedName) -> Option<&Arc<str>> {
        self.policies.refused(name)
    }

    /// The policies that apply at a workload: of the mesh, of its namespace, and those that it names. A name that is not
    /// known is told as missing. The set is compiled once for all workloads with the same list and kept as long as none
    /// of its policies changes.
    pub fn policies_for(&self, workload: &Workload) -> Arc<PolicySet> {
        self.policies.of(workload)
    }
}

fn name_of(workload: &Workload) -> NamespacedName {
    NamespacedName::new(workload.namespace.clone(), workload.name.clone())
}

/// Adds a member to the set of a key.
fn insert_in_set<K: Clone + Eq + Hash, V: Ord + Clone>(
    sets: &mut SharedMap<K, BTreeSet<V>>,
    key: K,
    member: V,
) {
    if let Some(set) = sets.get_mut(&key) {
        set.insert(member);
    } else {
        sets.insert_mut(key, BTreeSet::from([member]));
    }
}

/// Takes a member out of the set of a key, and an empty set out of the map.
fn remove_from_set<K: Clone + Eq + Hash, V: Ord + Clone>(
    sets: &mut SharedMap<K, BTreeSet<V>>,
    key: &K,
    member: &V,
) {
    let Some(set) = sets.get_mut(key) else { return };
    set.remove(member);
    if set.is_empty() {
        sets.remove_mut(key);
    }
}

fn visible(service: &Service, namespace: &str) -> bool {
    service.visibility == meltemi_model::service::Visibility::Public || *service.key.namespace == *namespace
}

fn best<'a>(all: impl Iterator<Item = &'a Arc<Service>>, namespace: &str) -> Option<&'a Arc<Service>> {
    all.filter(|s| visible(s, namespace)).max_by_key(|s| (*s.key.namespace == *namespace, s.canonical))
}

#[cfg(test)]
mod tests;
