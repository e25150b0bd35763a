// SPDX-License-Identifier: Apache-2.0
//! Which policies apply where: at the node proxies of a namespace, by labels; at a waypoint, by Service and Gateway.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_translate::facts::{Labels, selects};
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::labels::GATEWAY_NAME;
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::security::{Authorization, Reference};
use meltemi_translate::security::{bypass, layer4};
use meltemi_translate::waypoints::{Wish, wish};

use super::World;
use crate::proof::Guard;
use crate::side::Attached;

/// The waypoint that requests to a Service go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// None.
    Nothing,
    /// This one.
    Waypoint(NamespacedName),
    /// Some waypoint: a policy is attached to the Service, and nothing says that the Service has none.
    Assumed(NamespacedName),
}

impl Binding {
    /// The waypoint.
    pub fn gateway(&self) -> Option<&NamespacedName> {
        match self {
            Self::Nothing => None,
            Self::Waypoint(name) | Self::Assumed(name) => Some(name),
        }
    }
}

fn of_labels(labels: &Labels) -> Guard {
    labels.iter().map(|(k, v)| vec![(k.clone(), v.clone(), true)]).collect()
}

/// Workloads without at least one of the labels.
fn without(labels: &Labels) -> Vec<(String, String, bool)> {
    labels.iter().map(|(k, v)| (k.clone(), v.clone(), false)).collect()
}

fn peer_selector(peer: &Peer) -> Option<&Labels> {
    peer.spec.selector.as_ref()?.match_labels.as_ref().filter(|l| !l.is_empty())
}

impl World {
    /// What the node proxies of a namespace enforce.
    pub fn at_node_proxy(&self, namespace: &str) -> Vec<Attached> {
        let near = |p: &&Authorization| {
            let own = &p.policy.name.namespace;
            p.targets.is_empty() && (**own == *namespace || *own == self.mesh.root_namespace)
        };
        let projected = self.policies.values().filter(near).filter_map(|p| {
            let guard = p.selector.as_ref().map(of_labels).unwrap_or_default();
            layer4::project(p).policy.map(|policy| Attached { policy: Arc::new(policy), guard })
        });
        projected.chain(self.strict(namespace)).chain(self.closed(namespace)).collect()
    }

    /// Services whose Pods are for their waypoint only.
    fn closed(&self, namespace: &str) -> Vec<Attached> {
        let nothing = Labels::new();
        let of_namespace = self.namespaces.get(namespace).unwrap_or(&nothing);
        let near = self.services.iter().filter(|(name, service)| {
            *name.namespace == *namespace
                && !service.selector.is_empty()
                && bypass::is_closed(&service.labels, of_namespace)
        });
        let attached = near.filter_map(|(name, service)| {
            let waypoint = self.waypoint_of(name).gateway()?.clone();
            let ports: Option<Vec<u16>> = service.ports.iter().map(|(_, target)| *target).collect();
            let policy = bypass::policy(name, &ports.unwrap_or_default(), &waypoint, &self.mesh);
            Some(Attached { policy: Arc::new(policy), guard: of_labels(&service.selector) })
        });
        attached.collect()
    }

    /// PeerAuthentications as the policies that they become.
    fn strict(&self, namespace: &str) -> Vec<Attached> {
        let root = &self.mesh.root_namespace;
        let mut sorted: Vec<&Peer> = self.peers.iter().collect();
        sorted.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
        let wide: Vec<Peer> =
            sorted.iter().filter(|p| peer_selector(p).is_none()).map(|p| (*p).clone()).collect();
        // In the root namespace a selector has no effect.
        let own = sorted.iter().filter(|p| *p.name.namespace == *namespace && **root != *namespace);
        let mut out = Vec::new();
        let mut older: Guard = Vec::new();
        let mut add = |peers: &Peers, labels: &Labels, guard: Guard| {
            let name = peers.name_for(namespace, labels, &self.mesh);
            let policy = name.and_then(|name| peers.policies(&self.mesh).remove(&name));
            out.extend(policy.map(|policy| Attached { policy, guard }));
        };
        for (peer, selector) in own.filter_map(|p| Some((*p, peer_selector(p)?))) {
            let mut alone = wide.clone();
            alone.push(peer.clone());
            let guard = older.iter().cloned().chain(of_labels(selector)).collect();
            add(&Peers::new(alone), selector, guard);
            older.push(without(selector));
        }
        add(&Peers::new(wide), &Labels::new(), older);
        out
    }

    /// What a waypoint enforces for requests to a Service; to any other one without.
    pub fn at_waypoint(&self, gateway: &NamespacedName, service: Option<&NamespacedName>) -> Vec<Attached> {
        let applies = |p: &Authorization| {
            let own = &p.policy.name.namespace;
            if p.targets.is_empty() {
                return self.selects_gateway(p, gateway);
            }
            p.targets.iter().any(|target| match target {
                Reference::Service(name) => service.is_some_and(|s| s.namespace == *own && *s.name == **name),
                Reference::Gateway(name) => gateway.namespace == *own && *gateway.name == **name,
                Reference::GatewayClass(class) => {
                    *own == self.mesh.root_namespace
                        && classes::of(class) == Some(Class::Waypoint)
                        && self.is_waypoint(gateway)
                }
                Reference::ServiceEntry(_) => false,
            })
        };
        let all = self.policies.values().filter(|p| applies(p));
        all.map(|p| Attached { policy: Arc::new(p.policy.clone()), guard: Guard::new() }).collect()
    }

    /// Whether a policy without targets is for an ingress gateway: of its namespace, or of every one from the root.
    fn selects_gateway(&self, policy: &Authorization, gateway: &NamespacedName) -> bool {
        let own = &policy.policy.name.namespace;
        let ingress =
            self.gateways.get(gateway).is_some_and(|g| classes::of(&g.class) == Some(Class::Ingress));
        if !ingress || (*own != gateway.namespace && *own != self.mesh.root_namespace) {
            return false;
        }
        let Some(selector) = &policy.selector else { return true };
        let made = Labels::from([(GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
        let pods = self.workloads.iter().filter(|w| {
            w.name.namespace == gateway.namespace
                && w.labels.get(GATEWAY_NAME).is_some_and(|n| **n == *gateway.name)
        });
        selects(selector, &made) || pods.into_iter().any(|w| selects(selector, &w.labels))
    }

    /// A Gateway that is not known is taken for a waypoint.
    pub fn is_waypoint(&self, gateway: &NamespacedName) -> bool {
        self.gateways.get(gateway).is_none_or(|g| classes::of(&g.class) == Some(Class::Waypoint))
    }

    /// The waypoint of a Service.
    pub fn waypoint_of(&self, service: &NamespacedName) -> Binding {
        let own = self.services.get(service).map(|s| &s.labels);
        let of_namespace = self.namespaces.get(&*service.namespace);
        let none = Labels::new();
        match wish(&service.namespace, own.unwrap_or(&none), of_namespace.unwrap_or(&none)) {
            Wish::Waypoint { name, .. } => Binding::Waypoint(name),
            Wish::Nothing => {
                let silent = |labels: Option<&Labels>| {
                    labels.is_none_or(|l| !l.contains_key(meltemi_translate::labels::USE_WAYPOINT))
                };
                let unknown =
                    (own.is_none() || of_namespace.is_none()) && silent(own) && silent(of_namespace);
                if unknown && self.targeted().contains(service) {
                    return Binding::Assumed(self.likely_waypoint(&service.namespace));
                }
                Binding::Nothing
            }
        }
    }

    /// The only waypoint of the namespace, else the one with the usual name.
    fn likely_waypoint(&self, namespace: &str) -> NamespacedName {
        let mut near = self.gateways.keys().filter(|g| *g.namespace == *namespace && self.is_waypoint(g));
        match (near.next(), near.next()) {
            (Some(only), None) => only.clone(),
            _ => NamespacedName::new(namespace, "waypoint"),
        }
    }

    /// Services that a policy names.
    pub fn targeted(&self) -> BTreeSet<NamespacedName> {
        let named = self.policies.values().flat_map(|p| {
            let services = p.targets.iter().filter_map(|t| match t {
                Reference::Service(name) => Some(name.as_str()),
                _ => None,
            });
            services.map(|name| NamespacedName::new(p.policy.name.namespace.clone(), name))
        });
        named.collect()
    }

    /// Gateways that a policy names, and ingress gateways.
    pub fn named_gateways(&self) -> BTreeSet<NamespacedName> {
        let named = self.policies.values().flat_map(|p| {
            let gateways = p.targets.iter().filter_map(|t| match t {
                Reference::Gateway(name) => Some(name.as_str()),
                _ => None,
            });
            gateways.map(|name| NamespacedName::new(p.policy.name.namespace.clone(), name))
        });
        let ingress = self.gateways.iter().filter(|(_, g)| classes::of(&g.class) == Some(Class::Ingress));
        named.chain(ingress.map(|(name, _)| name.clone())).collect()
    }

    /// Identity of a waypoint.
    pub fn waypoint_identity(&self, gateway: &NamespacedName) -> String {
        format!("{}/ns/{}/sa/{}", self.mesh.trust_domain, gateway.namespace, gateway.name)
    }
}
