// SPDX-License-Identifier: Apache-2.0
//! Answers attachment's questions from the index and the Gateways that are known.

use std::collections::{BTreeMap, BTreeSet};

use meltemi_model::NamespacedName;
use meltemi_translate::facts::{Labels, PodFacts};
use meltemi_translate::security::attachment::{self, TargetService};
use meltemi_translate::security::captured::{Passage, passage};
use meltemi_translate::{Index, MeshConfig, labels};

use crate::access::GatewayAccounts;

/// Services, waypoints and Gateways, for attaching policies to them.
#[derive(Debug)]
pub struct World<'a> {
    /// Services and waypoints.
    pub index: &'a Index,
    /// Gateways that have proxies.
    pub gateways: &'a GatewayAccounts,
    /// The mesh's settings.
    pub mesh: &'a MeshConfig,
}

/// Ingress gateways, with the labels of their proxies as they are rendered.
pub(super) type Ingress = BTreeMap<NamespacedName, Labels>;

/// The world with the ingress gateways.
pub(super) struct WithIngress<'a>(pub(super) &'a World<'a>, pub(super) &'a Ingress);

impl attachment::World for WithIngress<'_> {
    fn mesh(&self) -> &MeshConfig {
        self.0.mesh
    }

    fn service(&self, name: &NamespacedName) -> Option<TargetService> {
        let index = self.0.index;
        let facts = index.service(name)?;
        let nothing = Labels::new();
        let of_namespace = index.namespace(&name.namespace).map_or(&nothing, |n| &n.labels);
        // Only a node proxy keeps others away from a Pod.
        let kept = |pod: &PodFacts| matches!(passage(pod, of_namespace), Passage::Proxy | Passage::Nothing);
        let pods = index.pods_selected(&name.namespace, facts.selector.as_ref());
        let closed = attachment::is_closed(&facts.labels, of_namespace, facts.selector.as_ref())
            && pods.iter().filter(|pod| pod.name.namespace == name.namespace).all(|pod| kept(pod));
        Some(TargetService { waypoint: index.waypoint_of(name).cloned(), closed })
    }

    fn has_gateway(&self, name: &NamespacedName) -> bool {
        self.0.gateways.has(name)
    }

    fn waypoints(&self) -> BTreeSet<NamespacedName> {
        self.0.index.waypoints().map(|w| w.name.clone()).collect()
    }

    fn ingress_gateways(&self) -> BTreeSet<NamespacedName> {
        self.1.keys().cloned().collect()
    }

    fn proxy_labels(&self, gateway: &NamespacedName) -> Vec<Labels> {
        let own = Labels::from([(labels::GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
        let pods = self.0.index.pods_selected(&gateway.namespace, Some(&own));
        let near = pods.into_iter().filter(|p| p.name.namespace == gateway.namespace);
        self.1.get(gateway).cloned().into_iter().chain(near.map(|p| p.labels.clone())).collect()
    }
}
