// SPDX-License-Identifier: Apache-2.0
//! What offline analysis needs of a Gateway, by the functions by which the control plane reads, renders and binds it.

use std::collections::BTreeSet;

use gateway_api::gateways::Gateway;
use meltemi_model::NamespacedName;
use serde_json::{Value, json};

use super::classes::{self, Class};
use super::deployment;
use crate::facts::{Labels, name_of};
use crate::mesh::MeshConfig;
use crate::waypoints::WaypointFacts;

/// A Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayFacts {
    /// Its class; `None` when it is another controller's.
    pub class: Option<Class>,
    /// Ports of its listeners.
    pub ports: BTreeSet<u16>,
    /// Labels of its proxies as they are rendered; `None` when nothing is deployed for it.
    pub pod_labels: Option<Labels>,
    /// ServiceAccount that its proxies run as; `None` when nothing is deployed for it.
    pub account: Option<NamespacedName>,
    /// The waypoint, where it is one; taken as ready.
    pub waypoint: Option<WaypointFacts>,
}

impl GatewayFacts {
    /// Reads an object; one without listeners has none.
    ///
    /// # Errors
    /// The object is not a Gateway.
    pub fn read(object: &Value, mesh: &MeshConfig) -> Result<Self, serde_json::Error> {
        let mut object = object.clone();
        if object["spec"].is_object() && object["spec"]["listeners"].is_null() {
            object["spec"]["listeners"] = json!([]);
        }
        let gateway: Gateway = serde_json::from_value(object)?;
        let name = name_of(&gateway.metadata);
        let mut waypoint = WaypointFacts::read(&gateway, mesh);
        if let Some(waypoint) = &mut waypoint {
            waypoint.address.get_or_insert_with(|| WaypointFacts::expected_address(&name, mesh));
        }
        let ports = gateway.spec.listeners.iter().filter_map(|l| u16::try_from(l.port).ok());
        Ok(Self {
            class: classes::of(&gateway.spec.gateway_class_name),
            ports: ports.collect(),
            pod_labels: deployment::pod_labels(&gateway),
            account: deployment::service_account(&gateway)
                .map(|account| NamespacedName::new(name.namespace.clone(), account)),
            waypoint,
        })
    }
}
