// SPDX-License-Identifier: Apache-2.0
//! Delta xDS, knowing no resource: names, versions, acknowledgements and reconnects.

pub mod client;
pub mod publisher;
pub mod server;

/// End of the version of a response that another one completes: until that has come, something of the type is missing.
pub(crate) const MORE: &str = "+";

/// Type URLs.
pub mod types {
    /// Workloads and services.
    pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    /// Layer 4 policies.
    pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    /// Policies of a layer 7 proxy.
    pub const HTTP_POLICY: &str = "type.googleapis.com/meltemi.v1.HttpPolicy";
    /// Routes.
    pub const ROUTE: &str = "type.googleapis.com/meltemi.v1.Route";
    /// Listeners.
    pub const LISTENER: &str = "type.googleapis.com/meltemi.v1.Listener";
    /// Token rules.
    pub const JWT: &str = "type.googleapis.com/meltemi.v1.Jwt";
    /// What is the same for the whole mesh.
    pub const SETTINGS: &str = "type.googleapis.com/meltemi.v1.Settings";
    /// Certificates with keys.
    pub const TLS_SECRET: &str = "type.googleapis.com/meltemi.v1.TlsSecret";
}

pub use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
pub use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

#[cfg(test)]
mod tests;
