// SPDX-License-Identifier: Apache-2.0
//! A changed fact enters the index: what depends on it is marked, nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::workload::Locality;

use super::{Index, PolicyFacts, User};
use crate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts, SliceFacts};
use crate::labels;
use crate::security::peer::Peers;
use crate::waypoints::WaypointFacts;

impl Index {
    pub(super) fn apply_pod(&mut self, name: NamespacedName, facts: Option<PodFacts>) {
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

    pub(super) fn apply_service(&mut self, name: NamespacedName, facts: Option<ServiceFacts>) {
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
        let of_it = scope.slices.values().filter(|s| s.service == name.name);
        pods.extend(of_it.clone().flat_map(|s| s.named.iter().map(|endpoint| endpoint.pod.clone())));
        let slices: Vec<_> = of_it.map(|s| s.name.clone()).collect();
        let namespace = name.namespace.clone();
        self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(namespace.clone(), p)));
        self.dirty.slices.extend(slices);
        self.dirty.services.insert(name);
    }

    pub(super) fn apply_slice(&mut self, name: NamespacedName, facts: Option<SliceFacts>) {
        let scope = self.scope(&name.namespace);
        if scope.slices.get(&name.name) == facts.as_ref() {
            return;
        }
        let pods = scope.set_slice(&name.name, facts);
        let namespace = name.namespace.clone();
        self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(namespace.clone(), p)));
        self.dirty.slices.insert(name);
    }

    pub(super) fn apply_namespace(&mut self, name: Arc<str>, facts: Option<NamespaceFacts>) {
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

    pub(super) fn apply_node(&mut self, name: Arc<str>, locality: Option<Locality>) {
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

    pub(super) fn apply_waypoint(&mut self, name: NamespacedName, facts: Option<WaypointFacts>) {
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

    pub(super) fn apply_policy(&mut self, name: NamespacedName, facts: Option<PolicyFacts>) {
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

    pub(super) fn mark_selected(&mut self, namespace: &Arc<str>, selector: &Labels) {
        let everywhere = *namespace == self.mesh.root_namespace;
        for (name, scope) in &self.namespaces {
            if everywhere || name == namespace {
                let pods = scope.pods_selected(selector);
                self.dirty.pods.extend(pods.into_iter().map(|p| NamespacedName::new(name.clone(), p)));
            }
        }
    }

    pub(super) fn apply_peers(&mut self, peers: Peers) {
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

    pub(super) fn apply_targets(&mut self, policy: NamespacedName, services: Vec<NamespacedName>) {
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
