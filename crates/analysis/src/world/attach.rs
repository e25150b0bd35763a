// SPDX-License-Identifier: Apache-2.0
//! Which policies apply where: at the node proxies of a namespace, by labels; at a waypoint, by Service and Gateway.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::authz::{Policy, Scope};
use meltemi_model::{NamespacedName, l7};
use meltemi_policy::ValidPolicy;
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::Labels;
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::labels::GATEWAY_NAME;
use meltemi_translate::security::attachment::{self, TargetService};
use meltemi_translate::security::peer::{Peer, Peers};
use meltemi_translate::security::{Authorization, Reference, layer4};

use super::{Known, World};
use crate::proof::Guard;
use crate::side::Attached;

/// The objects, for the question what one Gateway enforces.
struct View<'a> {
    world: &'a World,
    gateway: &'a NamespacedName,
}

impl attachment::World for View<'_> {
    fn mesh(&self) -> &MeshConfig {
        &self.world.mesh
    }

    fn service(&self, name: &NamespacedName) -> Option<TargetService> {
        if self.world.knows_service(name) == Known::No {
            return None;
        }
        let closed = self.world.is_closed(name);
        Some(TargetService { waypoint: self.world.waypoint_of(name).gateway().cloned(), closed })
    }

    fn has_gateway(&self, name: &NamespacedName) -> bool {
        match self.world.gateways.get(name) {
            Some(gateway) => gateway.account.is_some(),
            None => self.world.knows_gateway(name) == Known::Assumed,
        }
    }

    fn waypoints(&self) -> BTreeSet<NamespacedName> {
        self.world.is_waypoint(self.gateway).then(|| self.gateway.clone()).into_iter().collect()
    }

    fn ingress_gateways(&self) -> BTreeSet<NamespacedName> {
        let ingress = self.world.gateways.get(self.gateway).is_some_and(|g| g.class == Some(Class::Ingress));
        ingress.then(|| self.gateway.clone()).into_iter().collect()
    }

    fn proxy_labels(&self, gateway: &NamespacedName) -> Vec<Labels> {
        let made = self.world.gateways.get(gateway).map(|g| g.pod_labels.clone()).unwrap_or_default();
        let running = self.world.workloads.iter().filter(|w| {
            w.name.namespace == gateway.namespace
                && w.labels.get(GATEWAY_NAME).is_some_and(|name| **name == *gateway.name)
        });
        made.into_iter().chain(running.map(|w| w.labels.clone())).collect()
    }
}

fn as_policy(policy: &Authorization) -> attachment::Policy<'_> {
    attachment::Policy {
        kind: "AuthorizationPolicy",
        name: &policy.policy.name,
        selector: policy.selector.as_ref(),
        targets: &policy.targets,
    }
}

/// Whether a policy names the Gateway or the Service at all, or neither; most do not and need not be attached.
fn may_apply(
    policy: attachment::Policy<'_>,
    gateway: &NamespacedName,
    service: Option<&NamespacedName>,
) -> bool {
    let own = &policy.name.namespace;
    policy.targets.is_empty()
        || policy.targets.iter().any(|target| match target {
            Reference::Service(name) => service.is_some_and(|s| s.namespace == *own && *s.name == **name),
            Reference::Gateway(name) => gateway.namespace == *own && *gateway.name == **name,
            Reference::GatewayClass(_) => true,
            Reference::ServiceEntry(_) => false,
        })
}

/// A policy that the control plane makes, as a node proxy takes it: one that it rejects lets nothing through.
pub(super) fn as_enforced(policy: impl Into<Arc<Policy>>) -> ValidPolicy {
    ValidPolicy::new(policy)
        .unwrap_or_else(|invalid| ValidPolicy::deny_everything(invalid.policy, Scope::WorkloadSelector))
}

pub(super) fn of_labels(labels: &Labels) -> Guard {
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
            layer4::project(p).policy.map(|policy| Attached { policy, guard })
        });
        projected.chain(self.strict(namespace)).chain(self.kept_for_waypoints(namespace)).collect()
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
            out.extend(policy.map(|policy| Attached { policy: as_enforced(policy), guard }));
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

    /// What a Gateway enforces for requests that are addressed to a Service; without one, for all others that pass it.
    pub fn at_waypoint(&self, gateway: &NamespacedName, service: Option<&NamespacedName>) -> Vec<Attached> {
        let addressed = service.map(|s| l7::Target::Service(self.mesh.service_key(&s.namespace, &s.name)));
        self.attached(gateway, service, addressed.as_ref())
    }

    /// What a waypoint enforces for requests that it forwards to Pods of a closed Service and that are addressed to another
    /// one.
    pub fn at_backend(&self, gateway: &NamespacedName, closed: &NamespacedName) -> Vec<Attached> {
        let forwarded = l7::Target::Backend(self.mesh.service_key(&closed.namespace, &closed.name));
        self.attached(gateway, Some(closed), Some(&forwarded))
    }

    fn attached(
        &self,
        gateway: &NamespacedName,
        service: Option<&NamespacedName>,
        to: Option<&l7::Target>,
    ) -> Vec<Attached> {
        let applies = |p: &&Authorization| self.is_attached(as_policy(p), gateway, service, to);
        let all = self.policies.values().filter(applies);
        all.map(|p| Attached { policy: p.policy.clone(), guard: Guard::new() }).collect()
    }

    /// Whether a Gateway enforces a policy of any kind for requests `to` a Service; `service` is that Service.
    pub(super) fn is_attached(
        &self,
        policy: attachment::Policy<'_>,
        gateway: &NamespacedName,
        service: Option<&NamespacedName>,
        to: Option<&l7::Target>,
    ) -> bool {
        let view = View { world: self, gateway };
        may_apply(policy, gateway, service) && attachment::attach(policy, &view).enforces(gateway, to)
    }

    /// A Gateway that is not known is taken for a waypoint.
    pub fn is_waypoint(&self, gateway: &NamespacedName) -> bool {
        self.gateways.get(gateway).is_none_or(|g| g.class == Some(Class::Waypoint))
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

    /// Gateways that a policy or a RequestAuthentication names, and ingress gateways.
    pub fn named_gateways(&self) -> BTreeSet<NamespacedName> {
        let policies = self.policies.values().map(|p| (&p.policy.name, &p.targets));
        let tokens = self.tokens.values().map(|t| (&t.name, &t.targets));
        let named = policies.chain(tokens).flat_map(|(own, targets)| {
            let gateways = targets.iter().filter_map(|t| match t {
                Reference::Gateway(name) => Some(name.as_str()),
                _ => None,
            });
            gateways.map(|name| NamespacedName::new(own.namespace.clone(), name))
        });
        let ingress = self.gateways.iter().filter(|(_, g)| g.class == Some(Class::Ingress));
        named.chain(ingress.map(|(name, _)| name.clone())).collect()
    }

    /// ServiceAccount that the proxies of a Gateway run as.
    pub fn proxy_account(&self, gateway: &NamespacedName) -> String {
        let known = self.gateways.get(gateway).and_then(|g| g.account.as_ref());
        known.unwrap_or(gateway).name.to_string()
    }

    /// Identity of a waypoint.
    pub fn waypoint_identity(&self, gateway: &NamespacedName) -> String {
        format!("{}/ns/{}/sa/{}", self.mesh.trust_domain, gateway.namespace, self.proxy_account(gateway))
    }
}
