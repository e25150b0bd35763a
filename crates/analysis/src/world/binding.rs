// SPDX-License-Identifier: Apache-2.0
//! Which waypoint a Service uses, and what becomes of connections to it.

use meltemi_model::NamespacedName;
use meltemi_translate::facts::Labels;
use meltemi_translate::labels::USE_WAYPOINT;
use meltemi_translate::waypoints::{self, Traffic, Wish, wish};

use super::{Known, World};

/// The waypoint that requests to a Service go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// None.
    Nothing,
    /// This one.
    Waypoint(NamespacedName),
    /// Some waypoint: a policy is attached to the Service, and nothing says that the Service has none.
    Assumed(NamespacedName),
    /// One that does not exist.
    Absent(NamespacedName),
    /// One that does not take the Service, with the reason; none where the namespace asks for a waypoint that is for
    /// other traffic.
    Refused(NamespacedName, Option<String>),
}

impl Binding {
    /// The waypoint that enforces policies of the Service, or will once it is there.
    pub fn gateway(&self) -> Option<&NamespacedName> {
        match self {
            Self::Nothing | Self::Refused(..) => None,
            Self::Waypoint(name) | Self::Assumed(name) | Self::Absent(name) => Some(name),
        }
    }

    /// The waypoint that is asked for, whether it takes the Service or not.
    pub fn waypoint(&self) -> Option<&NamespacedName> {
        if let Self::Refused(name, _) = self { Some(name) } else { self.gateway() }
    }
}

/// What becomes of connections from the mesh to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// They go to its Pods.
    Direct,
    /// They go through a waypoint.
    Through(NamespacedName),
    /// They are refused: policies are attached to the Service, and the waypoint that is to enforce them does not.
    Refused(String),
}

impl World {
    /// The waypoint of a Service.
    pub fn waypoint_of(&self, service: &NamespacedName) -> Binding {
        if self.knows_service(service) == Known::No {
            return Binding::Nothing;
        }
        let own = self.services.get(service).map(|s| &s.labels);
        let of_namespace = self.namespaces.get(&*service.namespace);
        let none = Labels::new();
        let wished = wish(&service.namespace, own.unwrap_or(&none), of_namespace.unwrap_or(&none));
        let Wish::Waypoint { name, .. } = &wished else {
            let silent = |labels: Option<&Labels>| labels.is_none_or(|l| !l.contains_key(USE_WAYPOINT));
            let unknown = (own.is_none() || of_namespace.is_none()) && silent(own) && silent(of_namespace);
            if unknown && (self.targeted().contains(service) || self.has_tokens(service)) {
                return Binding::Assumed(self.likely_waypoint(&service.namespace));
            }
            return Binding::Nothing;
        };
        if self.knows_gateway(name) == Known::Assumed {
            return Binding::Waypoint(name.clone());
        }
        let namespace = (&*service.namespace, of_namespace.unwrap_or(&none));
        let find = |name: &NamespacedName| self.gateways.get(name)?.waypoint.as_ref();
        match waypoints::bind(&wished, Traffic::Service, namespace, find) {
            waypoints::Binding::NotWanted => Binding::Nothing,
            waypoints::Binding::Bound { waypoint, .. } => Binding::Waypoint(waypoint),
            waypoints::Binding::Refused { waypoint, not_ready: true, .. } => Binding::Absent(waypoint),
            waypoints::Binding::Refused { waypoint, condition, .. } => {
                Binding::Refused(waypoint, condition.map(|c| c.message))
            }
        }
    }

    /// The waypoint of what is addressed to Pods themselves, by their namespace and labels, whether it is ready for them or
    /// not; `None` where there is none, or none that takes such traffic.
    pub fn waypoint_of_pods(&self, namespace: &str, labels: &Labels) -> Option<NamespacedName> {
        let none = Labels::new();
        let of_namespace = self.namespaces.get(namespace).unwrap_or(&none);
        let Wish::Waypoint { name, inherited } = wish(namespace, labels, of_namespace) else { return None };
        let facts = self.gateways.get(&name).and_then(|gateway| gateway.waypoint.as_ref());
        // As the control plane takes it: of one that does not exist nothing but the Pod's own label says what it is for.
        facts.map_or(!inherited, |facts| facts.takes.takes(Traffic::Workload)).then_some(name)
    }

    /// Whether clients of a Service connect to its Pods, for it has no address.
    pub fn is_headless(&self, service: &NamespacedName) -> bool {
        self.services.get(service).is_some_and(|service| service.headless)
    }

    /// What becomes of connections to a Service, as `services::translate` sends them.
    pub fn path_to(&self, service: &NamespacedName) -> Path {
        let guarded = || self.targeted().contains(service);
        match self.waypoint_of(service) {
            Binding::Nothing => Path::Direct,
            Binding::Waypoint(name) | Binding::Assumed(name) => Path::Through(name),
            Binding::Absent(name) if guarded() => Path::Refused(format!("waypoint {name} does not exist")),
            Binding::Refused(_, Some(reason)) if guarded() => Path::Refused(reason),
            Binding::Absent(_) | Binding::Refused(..) => Path::Direct,
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
}
