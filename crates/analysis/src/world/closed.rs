// SPDX-License-Identifier: Apache-2.0
//! Closed Services: node proxies keep everybody but the waypoint away from their Pods, and the waypoint holds their policies
//! against what reaches those Pods by another Service too.

use meltemi_model::NamespacedName;
use meltemi_policy::ValidPolicy;
use meltemi_translate::facts::Labels;
use meltemi_translate::security::{attachment, bypass};

use super::World;
use super::attach::{as_enforced, of_labels};
use crate::side::Attached;

/// A closed Service that can have Pods in common with another Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The closed Service.
    pub closed: NamespacedName,
    /// Its waypoint.
    pub waypoint: NamespacedName,
    /// Labels of its Pods.
    pub selector: Labels,
    /// Ports of the other Service, each with a port of the closed one that leads to the same port of a Pod, or may: where
    /// a Pod's port has a name, its number is not always known.
    pub ports: Vec<(u16, u16)>,
}

impl World {
    /// Whether a Service is for its waypoint only.
    pub fn is_closed(&self, name: &NamespacedName) -> bool {
        let nothing = Labels::new();
        let of_namespace = self.namespaces.get(&*name.namespace).unwrap_or(&nothing);
        self.services.get(name).is_some_and(|service| {
            attachment::is_closed(&service.labels, of_namespace, Some(&service.selector))
        })
    }

    /// The policies of a namespace's node proxies that admit waypoints only.
    pub(super) fn kept_for_waypoints(&self, namespace: &str) -> Vec<Attached> {
        let near = self.services.iter().filter(|(name, _)| *name.namespace == *namespace);
        let attached = near.filter_map(|(name, service)| {
            let ports: Option<Vec<u16>> = service.ports.iter().map(|(_, target)| *target).collect();
            let policy = self.kept_for_waypoint(name, &ports.unwrap_or_default())?;
            Some(Attached { policy, guard: of_labels(&service.selector) })
        });
        attached.collect()
    }

    /// The policy by which node proxies admit only the waypoint of a Service, at some ports of its Pods or at all of them;
    /// `None` for a Service that is not closed.
    pub fn kept_for_waypoint(&self, name: &NamespacedName, ports: &[u16]) -> Option<ValidPolicy> {
        let binding = self.waypoint_of(name);
        let waypoint = binding.gateway().filter(|_| self.is_closed(name))?;
        let account = NamespacedName::new(waypoint.namespace.clone(), self.proxy_account(waypoint));
        Some(as_enforced(bypass::policy(name, ports, &account, &self.mesh)))
    }

    /// Closed Services that can have Pods, and ports of them, in common with a Service.
    pub fn closed_beside(&self, service: &NamespacedName) -> Vec<Beside> {
        let Some(own) = self.services.get(service).filter(|own| !own.selector.is_empty()) else {
            return Vec::new();
        };
        let ports = self.ports(service);
        let near = self.services.iter().filter(|(name, _)| {
            name.namespace == service.namespace && *name != service && self.is_closed(name)
        });
        near.filter(|(_, other)| is_compatible(&own.selector, &other.selector))
            .filter_map(|(name, other)| {
                let theirs = self.ports(name);
                let same = |a: Option<u16>, b: Option<u16>| a.is_none() || b.is_none() || a == b;
                let shared = |(port, target): &(u16, Option<u16>)| {
                    let found = theirs.iter().filter(|(_, other)| same(*target, *other));
                    found.map(|(other, _)| (*port, *other)).collect::<Vec<_>>()
                };
                let shared: Vec<(u16, u16)> = ports.iter().flat_map(shared).collect();
                let waypoint = self.waypoint_of(name).gateway()?.clone();
                let (closed, selector) = (name.clone(), other.selector.clone());
                (!shared.is_empty()).then_some(Beside { closed, waypoint, selector, ports: shared })
            })
            .collect()
    }
}

/// Whether a Pod can have the labels of both.
fn is_compatible(one: &Labels, other: &Labels) -> bool {
    one.iter().all(|(key, value)| other.get(key).is_none_or(|v| v == value))
}
