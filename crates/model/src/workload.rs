// SPDX-License-Identifier: Apache-2.0
//! A workload: a Pod (or what stands for one) with its identity, addresses and bindings
//! (`istio.workload.Workload`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::{InvalidIdentity, SpiffeId, TrustDomain};
use crate::names::{NamespacedHostname, NamespacedName, WorkloadUid};
use crate::net::NetworkAddress;
use crate::net::PortMapping;

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    None,
    /// HBONE on port 15008.
    Hbone,
    /// Istio's older sidecar protocol: never dialled by us, kept so that nothing is lost in a round trip.
    LegacyIstioMtls,
}

/// Health as endpoints see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Ready: may receive traffic.
    #[default]
    Healthy,
    /// Not ready: only for services that publish unready addresses.
    Unhealthy,
}

/// What owns a workload, for telemetry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// A Deployment (the wire's zero value).
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Pod.
    Pod,
    /// A Job.
    Job,
}

/// Whether the workload shares the network of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// A network namespace of its own.
    #[default]
    Standard,
    /// The node's network: the address says nothing about who speaks.
    HostNetwork,
}

/// Where a waypoint or a network gateway is found (`istio.workload.GatewayAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// Hostname (preferred) or address.
    pub destination: GatewayDestination,
    /// Its HBONE port, 15008 unless said otherwise.
    pub hbone_port: u16,
}

/// The two ways to name a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A service of the mesh.
    Hostname(NamespacedHostname),
    /// An address.
    Address(NetworkAddress),
}

/// A tunnel that the application itself understands (`istio.workload.ApplicationTunnel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// The PROXY protocol when true; none otherwise.
    pub proxy_protocol: bool,
    /// Port to use instead of the original one; 0 keeps the original.
    pub port: u16,
}

/// Where a workload runs, for locality-aware load balancing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// A workload of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique name on the wire.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Addresses, IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// Network the addresses belong to, often empty.
    pub network: Arc<str>,
    /// How it is reached.
    pub tunnel_protocol: TunnelProtocol,
    /// Trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Service account of its identity.
    pub service_account: Arc<str>,
    /// Waypoint for workload-addressed traffic.
    pub waypoint: Option<GatewayAddress>,
    /// Node it runs on.
    pub node: Arc<str>,
    /// `service.istio.io/canonical-name`.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`.
    pub canonical_revision: Arc<str>,
    /// What owns it.
    pub workload_type: WorkloadType,
    /// Name of what owns it.
    pub workload_name: Arc<str>,
    /// It terminates HBONE itself.
    pub native_tunnel: bool,
    /// Names of the selector policies that apply to it; a name that is not known yet is *missing*, never skipped.
    pub authorization_policies: Vec<NamespacedName>,
    /// Health.
    pub health: Health,
    /// Cluster it belongs to.
    pub cluster_id: Arc<str>,
    /// Gateway towards its network, when that is another one.
    pub network_gateway: Option<GatewayAddress>,
    /// DNS name to resolve when it has no address.
    pub hostname: Arc<str>,
    /// Services it belongs to, with its ports for each.
    pub services: BTreeMap<NamespacedHostname, Vec<PortMapping>>,
    /// Tunnel that its application understands.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    pub locality: Locality,
    /// Whose network it uses.
    pub network_mode: NetworkMode,
    /// Weight among the endpoints of a service, ≥ 1 unless explicitly 0.
    pub capacity: u32,
}

impl Workload {
    /// The workload's identity.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of a SPIFFE id.
    pub fn identity(&self) -> Result<SpiffeId, InvalidIdentity> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// A workload with the given uid, name and namespace and everything else at the wire's defaults.
    pub fn empty(uid: WorkloadUid, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            uid,
            name: name.into(),
            namespace: namespace.into(),
            addresses: Vec::new(),
            network: "".into(),
            tunnel_protocol: TunnelProtocol::None,
            trust_domain: TrustDomain::default(),
            service_account: "default".into(),
            waypoint: None,
            node: "".into(),
            canonical_name: "".into(),
            canonical_revision: "".into(),
            workload_type: WorkloadType::Pod,
            workload_name: "".into(),
            native_tunnel: false,
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            cluster_id: "".into(),
            network_gateway: None,
            hostname: "".into(),
            services: BTreeMap::new(),
            application_tunnel: None,
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            capacity: 1,
        }
    }
}
