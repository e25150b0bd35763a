// SPDX-License-Identifier: Apache-2.0
//! A service: a name with virtual addresses and ports (`istio.workload.Service`).

use std::sync::Arc;

use ipnet::IpNet;

use crate::names::NamespacedHostname;
use crate::net::NetworkAddress;
pub use crate::net::{AppProtocol, PortMapping};
use crate::workload::GatewayAddress;

/// One step of a locality preference (`istio.workload.LoadBalancing.Scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalityScope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How the preference is used (`istio.workload.LoadBalancing.Mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancingMode {
    /// No preference.
    #[default]
    Unspecified,
    /// Only endpoints that match every scope.
    Strict,
    /// The best-matching endpoints first.
    Failover,
    /// The original address is used as it is.
    Passthrough,
}

/// Load balancing of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LoadBalancing {
    /// Scopes, most significant first.
    pub routing_preference: Vec<LocalityScope>,
    /// How they are used.
    pub mode: LoadBalancingMode,
    /// Unready endpoints are used too.
    pub allow_unhealthy: bool,
}

/// Address families of a service (`istio.workload.IPFamilies`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpFamilies {
    /// Follows the addresses.
    #[default]
    Automatic,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

/// A waypoint that receives a share of the connections (canary).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Share, 0..=100.
    pub weight: u32,
}

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and host name: its key.
    pub key: NamespacedHostname,
    /// Short name.
    pub name: Arc<str>,
    /// Virtual addresses; none when headless.
    pub addresses: Vec<NetworkAddress>,
    /// Virtual address ranges (ServiceEntries with CIDRs), with their network.
    pub address_ranges: Vec<(Arc<str>, IpNet)>,
    /// Ports.
    pub ports: Vec<PortMapping>,
    /// Identities that a client accepts beside those of the endpoints, as whole SPIFFE ids.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Waypoint of the service.
    pub waypoint: Option<GatewayAddress>,
    /// Load balancing.
    pub load_balancing: LoadBalancing,
    /// Address families.
    pub ip_families: IpFamilies,
    /// It stands for its host name even where another service claims it.
    pub canonical: bool,
    /// Ingress traffic goes through the waypoint as well (`istio.io/ingress-use-waypoint`).
    pub ingress_use_waypoint: bool,
    /// Shares of several waypoints.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with the given key and name and everything else at the wire's defaults.
    pub fn empty(key: NamespacedHostname, name: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            name: name.into(),
            addresses: Vec::new(),
            address_ranges: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: true,
            ingress_use_waypoint: false,
            weighted_waypoints: Vec::new(),
            visibility: Visibility::Public,
        }
    }
}
