// SPDX-License-Identifier: Apache-2.0
//! The rules of a route without the mesh that it is for: everything that it names is taken as there and permitted.

use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::gateways::Gateway;
use meltemi_model::{NamespacedName, l7};
use serde_json::Value;

use super::kind::{Referrer, RouteKind};
use super::world::World;
use super::{convert, grpc, tls};
use crate::facts::Labels;
use crate::mesh::MeshConfig;

/// The rules as a layer 7 proxy is told them, in their order; `None` when the object is no route of the kind.
pub fn rules(
    kind: RouteKind,
    namespace: &str,
    object: &Value,
    mesh: &MeshConfig,
) -> Option<Vec<l7::RouteRule>> {
    let mut route: HttpRoute = match kind {
        RouteKind::Http => serde_json::from_value(object.clone()).ok()?,
        RouteKind::Grpc => {
            let metadata = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
            grpc::as_http(&metadata, &object["spec"]).ok()?
        }
        RouteKind::Tls => {
            let metadata = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
            tls::as_http(&metadata, &object["spec"]).ok()?
        }
    };
    route.metadata.namespace = Some(namespace.to_owned());
    let backends = route.spec.rules.iter().flatten().flat_map(|rule| rule.backend_refs.iter().flatten());
    let ports = backends.filter_map(|backend| u16::try_from(backend.port?).ok()).collect();
    Some(convert::rules(&route, kind, &Anything { ports }, mesh).0)
}

/// A mesh where there is everything, with these ports.
struct Anything {
    ports: Vec<u16>,
}

impl World for Anything {
    fn gateway(&self, _: &NamespacedName) -> Option<&Gateway> {
        None
    }

    fn service_ports(&self, _: &NamespacedName) -> Option<Vec<u16>> {
        Some(self.ports.clone())
    }

    fn namespace_labels(&self, _: &str) -> Labels {
        Labels::new()
    }

    fn waypoint_of(&self, _: &NamespacedName) -> Result<NamespacedName, &'static str> {
        Err("nothing is attached")
    }

    fn granted(&self, _: Referrer<'_>, _: &NamespacedName) -> bool {
        true
    }
}
