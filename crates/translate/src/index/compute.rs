// SPDX-License-Identifier: Apache-2.0
//! Computes again what a change has marked.

use std::sync::Arc;

use meltemi_model::names::WorkloadUid;
use meltemi_model::workload::GatewayAddress;
use meltemi_model::{NamespacedName, Workload};

use super::{Delta, Index, PolicyFacts, User};
use crate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts, ServicePort, TargetPort};
use crate::labels;
use crate::security::bypass;
use crate::waypoints::{self, Binding, Traffic, WaypointFacts, Wish};
use crate::{services, workloads};

impl Index {
    /// Computes what was marked and returns what is different from before.
    pub fn flush(&mut self) -> Delta {
        let mut delta = Delta::default();
        // Services first: a Service may change a policy and, with it, Pods.
        for name in std::mem::take(&mut self.dirty.services) {
            self.flush_service(&name, &mut delta);
        }
        let dirty = std::mem::take(&mut self.dirty);
        for name in dirty.policies {
            self.flush_policy(name, &mut delta);
        }
        for name in dirty.pods {
            self.flush_pod(&name, &mut delta);
        }
        for name in dirty.slices {
            self.flush_slice(&name, &mut delta);
        }
        delta
    }

    fn flush_policy(&mut self, name: NamespacedName, delta: &mut Delta) {
        match self.policies.get(&name) {
            Some(facts) => {
                if self.out.policies.get(&name) != Some(&facts.policy) {
                    self.out.policies.insert(name, facts.policy.clone());
                    delta.policies.push(facts.policy.clone());
                }
            }
            None => {
                if self.out.policies.remove(&name).is_some() {
                    delta.removed_policies.push(name);
                }
            }
        }
    }

    fn flush_service(&mut self, name: &NamespacedName, delta: &mut Delta) {
        let wish = self.wish_of_service(name);
        self.remember_wish(User::Service(name.clone()), &wish);
        let binding = self.bind(&name.namespace, &wish, Traffic::Service);
        let meant = match &binding {
            Binding::Bound { waypoint, .. } | Binding::Refused { waypoint, not_ready: true, .. } => {
                Some(waypoint)
            }
            _ => None,
        };
        if self.out.bound.get(name) != meant {
            match meant.cloned() {
                Some(waypoint) => self.out.bound.insert(name.clone(), waypoint),
                None => self.out.bound.remove(name),
            };
            delta.bindings.push(name.clone());
        }
        self.close_bypass(name, meant.cloned().as_ref());
        let guarded = self.guards.get(name).is_some_and(|g| !g.is_empty());
        let nothing = NamespaceFacts::default();
        let namespace = self.namespace(&name.namespace).unwrap_or(&nothing);
        let translated = self.service(name).and_then(|facts| {
            let further = self.own_addresses(facts);
            services::translate(facts, &further, namespace, &binding, guarded, &self.mesh)
        });
        let key = self.mesh.service_key(&name.namespace, &name.name);
        let conditions = translated.as_ref().map(|t| t.conditions.clone()).unwrap_or_default();
        match translated {
            Some(translated) => {
                if self.out.services.get(&key).is_none_or(|old| **old != translated.service) {
                    let service = Arc::new(translated.service);
                    self.out.services.insert(key, service.clone());
                    delta.services.push(service);
                }
            }
            None => {
                if self.out.services.remove(&key).is_some() {
                    delta.removed_services.push(key);
                }
            }
        }
        if self.out.conditions.get(name).map_or(&[][..], Vec::as_slice) != conditions {
            match conditions.is_empty() {
                false => self.out.conditions.insert(name.clone(), conditions.clone()),
                true => self.out.conditions.remove(name),
            };
            delta.service_conditions.push((name.clone(), conditions));
        }
    }

    /// The further addresses of a Service, without those that are cluster addresses of another one: whoever may write
    /// `externalIPs` must not lead the clients of that one to himself.
    fn own_addresses(&self, facts: &ServiceFacts) -> Vec<std::net::IpAddr> {
        let of_another = |ip: &std::net::IpAddr| {
            let mut others = self.namespaces.values().flat_map(|scope| scope.services.values());
            others.any(|other| other.name != facts.name && other.addresses.contains(ip))
        };
        facts.further_addresses.iter().copied().filter(|ip| !of_another(ip)).collect()
    }

    /// Where a Service asks for it, its Pods are for its waypoint only, ready or not.
    fn close_bypass(&mut self, service: &NamespacedName, waypoint: Option<&NamespacedName>) {
        let nothing = Labels::new();
        let of_namespace = self.namespace(&service.namespace).map_or(&nothing, |n| &n.labels);
        let closed = self.service(service).filter(|facts| bypass::is_closed(&facts.labels, of_namespace));
        let facts = closed.zip(waypoint).and_then(|(facts, waypoint)| {
            // A named port may be another at each Pod: then all are meant.
            let number = |port: &ServicePort| match port.target {
                TargetPort::Number(number) => Some(number),
                TargetPort::Named(_) => None,
            };
            let ports: Option<Vec<u16>> = facts.ports.iter().map(number).collect();
            // One that does not exist yet is expected to run as its own name.
            let account = self.waypoints.get(waypoint).map_or(waypoint, |facts| &facts.account);
            let policy = bypass::policy(service, &ports.unwrap_or_default(), account, &self.mesh);
            Some(PolicyFacts { policy: Arc::new(policy), selector: Some(facts.selector.clone()?) })
        });
        self.apply_policy(bypass::name(service), facts);
    }

    fn wish_of_service(&self, name: &NamespacedName) -> Wish {
        let Some(facts) = self.service(name) else { return Wish::Nothing };
        if is_waypoint(&facts.labels) {
            return Wish::Nothing;
        }
        self.wish(&name.namespace, &facts.labels)
    }

    fn wish(&self, namespace: &str, own: &Labels) -> Wish {
        let nothing = Labels::new();
        let of_namespace = self.namespace(namespace).map_or(&nothing, |n| &n.labels);
        waypoints::wish(namespace, own, of_namespace)
    }

    fn bind(&self, namespace: &str, wish: &Wish, traffic: Traffic) -> Binding {
        let nothing = Labels::new();
        let of_namespace = self.namespace(namespace).map_or(&nothing, |n| &n.labels);
        waypoints::bind(wish, traffic, (namespace, of_namespace), |name| self.waypoints.get(name))
    }

    fn remember_wish(&mut self, user: User, wish: &Wish) {
        let wanted = match wish {
            Wish::Nothing => None,
            Wish::Waypoint { name, .. } => Some(name),
        };
        if self.wishes.get(&user) == wanted {
            return;
        }
        if let Some(old) = self.wishes.remove(&user)
            && let Some(users) = self.users.get_mut(&old)
        {
            users.remove(&user);
        }
        if let Some(name) = wanted {
            self.users.entry(name.clone()).or_default().insert(user.clone());
            self.wishes.insert(user, name.clone());
        }
    }

    fn flush_pod(&mut self, name: &NamespacedName, delta: &mut Delta) {
        let wish = match self.pod(name) {
            Some(pod) if !is_waypoint(&pod.labels) => self.wish(&name.namespace, &pod.labels),
            _ => Wish::Nothing,
        };
        self.remember_wish(User::Pod(name.clone()), &wish);
        let uid = WorkloadUid::pod(&self.mesh.cluster_id, &name.namespace, &name.name);
        let workload = self
            .pod(name)
            .filter(|pod| workloads::is_workload(pod))
            .map(|pod| self.describe(pod, self.waypoint_of_pod(&name.namespace, &wish)));
        self.put_workload(uid, workload, delta);
    }

    /// The waypoint of what is addressed to a Pod itself. While the one that is meant for it is not ready, or does not admit
    /// it, connections are refused: what the Gateway's policies deny would get through.
    fn waypoint_of_pod(&self, namespace: &str, wish: &Wish) -> Option<GatewayAddress> {
        let binding = self.bind(namespace, wish, Traffic::Workload);
        let (name, inherited, not_ready) = match (wish, binding) {
            (_, Binding::Bound { address, .. }) => return Some(address),
            (Wish::Waypoint { name, inherited }, Binding::Refused { not_ready, .. }) => {
                (name, *inherited, not_ready)
            }
            _ => return None,
        };
        // Of a waypoint that does not exist nothing says that it is for Pods, unless the Pod itself asks for it.
        let is_meant = self.waypoints.get(name).map_or(!inherited, |w| w.takes.takes(Traffic::Workload));
        let refusing = || match not_ready {
            true => WaypointFacts::expected_address(name, &self.mesh),
            false => WaypointFacts::nowhere(name),
        };
        is_meant.then(refusing)
    }

    fn describe(&self, pod: &PodFacts, waypoint: Option<GatewayAddress>) -> Workload {
        let scope = self.namespaces.get(&pod.name.namespace);
        let services = scope.map(|s| s.services_selecting(pod)).unwrap_or_default();
        let named_by = scope.map(|s| s.services_naming(pod)).unwrap_or_default();
        let mut policies: Vec<NamespacedName> = Vec::new();
        let root = self.mesh.root_namespace.clone();
        let mut add = |namespace: &Arc<str>| {
            if let Some(scope) = self.namespaces.get(namespace) {
                let names = scope.policies_selecting(&pod.labels);
                policies.extend(names.into_iter().map(|n| NamespacedName::new(namespace.clone(), n)));
            }
        };
        add(&pod.name.namespace);
        if pod.name.namespace != root {
            add(&root);
        }
        policies.extend(self.peers.name_for(&pod.name.namespace, &pod.labels, &self.mesh));
        policies.sort();
        let application_tunnel = pod.labels.get(labels::GATEWAY_NAME).and_then(|gateway| {
            let name = NamespacedName::new(pod.name.namespace.clone(), gateway.as_str());
            self.waypoints.get(&name)?.inbound_binding
        });
        let locality = self.nodes.get(&pod.node).cloned().unwrap_or_default();
        let around =
            workloads::Surroundings { services, named_by, policies, waypoint, application_tunnel, locality };
        workloads::from_pod(pod, around, &self.mesh)
    }

    fn put_workload(&mut self, uid: WorkloadUid, workload: Option<Workload>, delta: &mut Delta) {
        match workload {
            Some(workload) => {
                if self.out.workloads.get(&uid).is_none_or(|old| **old != workload) {
                    let workload = Arc::new(workload);
                    self.out.workloads.insert(uid, workload.clone());
                    delta.workloads.push(workload);
                }
            }
            None => {
                if self.out.workloads.remove(&uid).is_some() {
                    delta.removed_workloads.push(uid);
                }
            }
        }
    }

    fn flush_slice(&mut self, name: &NamespacedName, delta: &mut Delta) {
        let found = self.namespaces.get(&name.namespace).and_then(|scope| {
            let slice = scope.slices.get(&name.name)?;
            let service = scope.services.get(&slice.service)?;
            Some(workloads::from_slice(slice, service, &self.mesh))
        });
        let now = found.unwrap_or_default();
        let before = self.out.slices.remove(name).unwrap_or_default();
        for uid in before {
            if now.iter().all(|w| w.uid != uid) {
                self.put_workload(uid, None, delta);
            }
        }
        if !now.is_empty() {
            self.out.slices.insert(name.clone(), now.iter().map(|w| w.uid.clone()).collect());
        }
        for workload in now {
            self.put_workload(workload.uid.clone(), Some(workload), delta);
        }
    }
}

/// Whether an object stands behind a waypoint: it uses none itself.
fn is_waypoint(of: &Labels) -> bool {
    of.get(labels::MANAGED).is_some_and(|v| v == "istio.io-mesh-controller")
}
