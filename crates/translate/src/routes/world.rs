// SPDX-License-Identifier: Apache-2.0
//! What routes look at beside themselves, whoever holds it.

use gateway_api::gateways::Gateway;
use meltemi_model::NamespacedName;

use super::kind::Referrer;
use crate::facts::Labels;

/// What attachment looks at; the index answers in the control plane, files answer offline.
pub trait World {
    /// A Gateway.
    fn gateway(&self, name: &NamespacedName) -> Option<&Gateway>;
    /// Ports of a Service; none when there is no such Service.
    fn service_ports(&self, name: &NamespacedName) -> Option<Vec<u16>>;
    /// Labels of a namespace.
    fn namespace_labels(&self, name: &str) -> Labels;
    /// The waypoint that a Service is bound to; an error says why there is none.
    fn waypoint_of(&self, service: &NamespacedName) -> Result<NamespacedName, &'static str>;
    /// Whether a ReferenceGrant lets a route refer to a Service of another namespace.
    fn granted(&self, from: Referrer<'_>, to: &NamespacedName) -> bool;
}
