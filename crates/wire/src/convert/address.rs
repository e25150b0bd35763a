// SPDX-License-Identifier: Apache-2.0
//! `istio.workload.Address` from and to [`Workload`] and [`Service`].

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use meltemi_model::service::{
    AppProtocol, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, PortMapping, Visibility,
    WeightedWaypoint,
};
use meltemi_model::workload::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, Health, Locality, NetworkMode, TunnelProtocol,
    WorkloadType,
};
use meltemi_model::{
    NamespacedHostname, NetworkAddress, Service, TrustDomain, Workload, WorkloadUid, net::ports,
};

use super::{Invalid, ip, ip_bytes, port};
use crate::proto::workload as pb;

/// Type URL of workloads and services.
pub const TYPE_URL: &str = "type.googleapis.com/istio.workload.Address";

/// A workload or a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
}

impl Address {
    /// Its name on the wire.
    pub fn name(&self) -> String {
        match self {
            Self::Workload(w) => w.uid.to_string(),
            Self::Service(s) => s.key.to_string(),
        }
    }

    /// Other names by which it can be asked for: `<network>/<ip>`.
    pub fn aliases(&self) -> Vec<String> {
        match self {
            Self::Workload(w) if w.network_mode == NetworkMode::HostNetwork => Vec::new(),
            Self::Workload(w) => w.addresses.iter().map(|ip| format!("{}/{ip}", w.network)).collect(),
            Self::Service(s) => s.addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Decodes and checks a workload or a service. Fields that are not known are ignored here: newer control planes
/// describe workloads in ever more words, and none of them weakens a policy.
///
/// # Errors
/// Whatever is not understood: see [`Invalid`].
pub fn decode(bytes: &[u8]) -> Result<Address, Invalid> {
    let message: pb::Address = super::decode(bytes)?;
    match message.r#type {
        Some(pb::address::Type::Workload(w)) => workload(w).map(|w| Address::Workload(Arc::new(w))),
        Some(pb::address::Type::Service(s)) => service(s).map(|s| Address::Service(Arc::new(s))),
        None => Err(Invalid::Missing("workload or service")),
    }
}

fn workload(m: pb::Workload) -> Result<Workload, Invalid> {
    if m.uid.is_empty() {
        return Err(Invalid::Missing("uid"));
    }
    let mut out = Workload::empty(WorkloadUid(m.uid.into()), m.namespace, m.name);
    out.addresses = m.addresses.iter().map(|a| ip("addresses", a)).collect::<Result<_, _>>()?;
    out.network = m.network.into();
    out.tunnel_protocol = match pb::TunnelProtocol::try_from(m.tunnel_protocol) {
        Ok(pb::TunnelProtocol::None) => TunnelProtocol::None,
        Ok(pb::TunnelProtocol::Hbone) => TunnelProtocol::Hbone,
        Ok(pb::TunnelProtocol::LegacyIstioMtls) => TunnelProtocol::LegacyIstioMtls,
        Err(_) => return Err(Invalid::UnknownValue { field: "tunnel_protocol", value: m.tunnel_protocol }),
    };
    if !m.trust_domain.is_empty() {
        out.trust_domain =
            TrustDomain::parse(&m.trust_domain).map_err(|e| Invalid::value("trust_domain", e))?;
    }
    if !m.service_account.is_empty() {
        out.service_account = m.service_account.into();
    }
    out.waypoint = m.waypoint.map(gateway).transpose()?;
    out.network_gateway = m.network_gateway.map(gateway).transpose()?;
    out.node = m.node.into();
    out.canonical_name = m.canonical_name.into();
    out.canonical_revision = m.canonical_revision.into();
    out.workload_type = match pb::WorkloadType::try_from(m.workload_type) {
        Ok(pb::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(pb::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(pb::WorkloadType::Job) => WorkloadType::Job,
        // Only for telemetry: a kind that is not known is a Pod there.
        Ok(pb::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    };
    out.workload_name = m.workload_name.into();
    out.native_tunnel = m.native_tunnel;
    out.authorization_policies = m
        .authorization_policies
        .iter()
        .map(|p| p.parse().map_err(|e| Invalid::value("authorization_policies", e)))
        .collect::<Result<_, _>>()?;
    out.health = match pb::WorkloadStatus::try_from(m.status) {
        Ok(pb::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(pb::WorkloadStatus::Unhealthy) => Health::Unhealthy,
        Err(_) => return Err(Invalid::UnknownValue { field: "status", value: m.status }),
    };
    out.cluster_id = m.cluster_id.into();
    out.hostname = m.hostname.into();
    out.services = services(m.services)?;
    out.application_tunnel = m.application_tunnel.map(tunnel).transpose()?;
    let locality = m.locality.unwrap_or_default();
    out.locality = Locality {
        region: locality.region.into(),
        zone: locality.zone.into(),
        subzone: locality.subzone.into(),
    };
    out.network_mode = match pb::NetworkMode::try_from(m.network_mode) {
        Ok(pb::NetworkMode::Standard) => NetworkMode::Standard,
        Ok(pb::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
        Err(_) => return Err(Invalid::UnknownValue { field: "network_mode", value: m.network_mode }),
    };
    out.capacity = m.capacity.unwrap_or(1);
    Ok(out)
}

fn services(
    all: BTreeMap<String, pb::PortList>,
) -> Result<BTreeMap<NamespacedHostname, Vec<PortMapping>>, Invalid> {
    all.into_iter()
        .map(|(key, list)| {
            let key: NamespacedHostname = key.parse().map_err(|e| Invalid::value("services", e))?;
            Ok((key, ports_of(list.ports)?))
        })
        .collect()
}

fn ports_of(all: Vec<pb::Port>) -> Result<Vec<PortMapping>, Invalid> {
    all.into_iter()
        .map(|p| {
            Ok(PortMapping {
                service_port: port("service_port", p.service_port)?,
                target_port: port("target_port", p.target_port)?,
                app_protocol: match pb::AppProtocol::try_from(p.app_protocol) {
                    Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
                    Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
                    Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
                    Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
                    Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
                    Ok(pb::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
                },
            })
        })
        .collect()
}

fn tunnel(m: pb::ApplicationTunnel) -> Result<ApplicationTunnel, Invalid> {
    let proxy_protocol = match pb::application_tunnel::Protocol::try_from(m.protocol) {
        Ok(pb::application_tunnel::Protocol::None) => false,
        Ok(pb::application_tunnel::Protocol::Proxy) => true,
        Err(_) => return Err(Invalid::UnknownValue { field: "application_tunnel", value: m.protocol }),
    };
    Ok(ApplicationTunnel { proxy_protocol, port: port("application_tunnel.port", m.port)? })
}

fn gateway(m: pb::GatewayAddress) -> Result<GatewayAddress, Invalid> {
    use pb::gateway_address::Destination;
    let destination = match m.destination {
        Some(Destination::Hostname(h)) => {
            GatewayDestination::Hostname(NamespacedHostname::new(h.namespace, h.hostname))
        }
        Some(Destination::Address(a)) => {
            GatewayDestination::Address(NetworkAddress::new(a.network, ip("gateway address", &a.address)?))
        }
        None => return Err(Invalid::Missing("gateway destination")),
    };
    let hbone_port = match m.hbone_mtls_port {
        0 => ports::HBONE,
        other => port("hbone_mtls_port", other)?,
    };
    Ok(GatewayAddress { destination, hbone_port })
}

fn service(m: pb::Service) -> Result<Service, Invalid> {
    if m.hostname.is_empty() {
        return Err(Invalid::Missing("hostname"));
    }
    let mut out = Service::empty(NamespacedHostname::new(m.namespace, m.hostname), m.name);
    for address in m.addresses {
        let ip = ip("addresses", &address.address)?;
        match address.length {
            None => out.addresses.push(NetworkAddress::new(address.network, ip)),
            Some(length) => {
                let length = u8::try_from(length).unwrap_or(u8::MAX);
                let range = IpNet::new(ip, length).map_err(|e| Invalid::value("addresses", e))?;
                out.address_ranges.push((address.network.into(), range));
            }
        }
    }
    out.ports = ports_of(m.ports)?;
    out.subject_alt_names = m.subject_alt_names.into_iter().map(Into::into).collect();
    out.waypoint = m.waypoint.map(gateway).transpose()?;
    out.load_balancing = m.load_balancing.map(load_balancing).transpose()?.unwrap_or_default();
    out.ip_families = match pb::IpFamilies::try_from(m.ip_families) {
        Ok(pb::IpFamilies::Ipv4Only) => IpFamilies::V4Only,
        Ok(pb::IpFamilies::Ipv6Only) => IpFamilies::V6Only,
        Ok(pb::IpFamilies::Dual) => IpFamilies::Dual,
        Ok(pb::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
    };
    out.canonical = m.canonical;
    out.ingress_use_waypoint = m.ingress_use_waypoint;
    out.weighted_waypoints = m
        .weighted_waypoints
        .into_iter()
        .map(|w| {
            let destination = gateway(w.destination.ok_or(Invalid::Missing("weighted waypoint"))?)?;
            Ok(WeightedWaypoint { destination, weight: w.weight })
        })
        .collect::<Result<_, Invalid>>()?;
    out.visibility = match pb::Visibility::try_from(m.visibility) {
        Ok(pb::Visibility::Public) => Visibility::Public,
        // What is not known is seen by as few as possible.
        Ok(pb::Visibility::Namespace) | Err(_) => Visibility::Namespace,
    };
    Ok(out)
}

fn load_balancing(m: pb::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    use pb::load_balancing::{HealthPolicy, Mode, Scope};
    let mut routing_preference = Vec::new();
    for scope in m.routing_preference {
        routing_preference.push(match Scope::try_from(scope) {
            Ok(Scope::Region) => LocalityScope::Region,
            Ok(Scope::Zone) => LocalityScope::Zone,
            Ok(Scope::Subzone) => LocalityScope::Subzone,
            Ok(Scope::Node) => LocalityScope::Node,
            Ok(Scope::Cluster) => LocalityScope::Cluster,
            Ok(Scope::Network) => LocalityScope::Network,
            Ok(Scope::UnspecifiedScope) | Err(_) => {
                return Err(Invalid::UnknownValue { field: "routing_preference", value: scope });
            }
        });
    }
    let mode = match Mode::try_from(m.mode) {
        Ok(Mode::UnspecifiedMode) => LoadBalancingMode::Unspecified,
        Ok(Mode::Strict) => LoadBalancingMode::Strict,
        Ok(Mode::Failover) => LoadBalancingMode::Failover,
        Ok(Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(Invalid::UnknownValue { field: "mode", value: m.mode }),
    };
    let allow_unhealthy = matches!(HealthPolicy::try_from(m.health_policy), Ok(HealthPolicy::AllowAll));
    Ok(LoadBalancing { routing_preference, mode, allow_unhealthy })
}

/// Encodes a workload or a service.
pub fn to_proto(address: &Address) -> pb::Address {
    let inner = match address {
        Address::Workload(w) => pb::address::Type::Workload(encode_workload(w)),
        Address::Service(s) => pb::address::Type::Service(encode_service(s)),
    };
    pb::Address { r#type: Some(inner) }
}

fn encode_workload(w: &Workload) -> pb::Workload {
    let or_default =
        |text: &str, default: &str| if text == default { String::new() } else { text.to_owned() };
    pb::Workload {
        uid: w.uid.to_string(),
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|a| ip_bytes(*a)).collect(),
        hostname: w.hostname.to_string(),
        network: w.network.to_string(),
        tunnel_protocol: match w.tunnel_protocol {
            TunnelProtocol::None => pb::TunnelProtocol::None,
            TunnelProtocol::Hbone => pb::TunnelProtocol::Hbone,
            TunnelProtocol::LegacyIstioMtls => pb::TunnelProtocol::LegacyIstioMtls,
        }
        .into(),
        trust_domain: or_default(w.trust_domain.as_str(), meltemi_model::identity::DEFAULT_TRUST_DOMAIN),
        service_account: or_default(&w.service_account, "default"),
        waypoint: w.waypoint.as_ref().map(encode_gateway),
        network_gateway: w.network_gateway.as_ref().map(encode_gateway),
        node: w.node.to_string(),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: match w.workload_type {
            WorkloadType::Deployment => pb::WorkloadType::Deployment,
            WorkloadType::CronJob => pb::WorkloadType::Cronjob,
            WorkloadType::Pod => pb::WorkloadType::Pod,
            WorkloadType::Job => pb::WorkloadType::Job,
        }
        .into(),
        workload_name: w.workload_name.to_string(),
        native_tunnel: w.native_tunnel,
        authorization_policies: w.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match w.health {
            Health::Healthy => pb::WorkloadStatus::Healthy,
            Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: w.cluster_id.to_string(),
        services: w
            .services
            .iter()
            .map(|(key, ports)| {
                (key.to_string(), pb::PortList { ports: ports.iter().map(encode_port).collect() })
            })
            .collect(),
        application_tunnel: w
            .application_tunnel
            .map(|t| pb::ApplicationTunnel { protocol: i32::from(t.proxy_protocol), port: t.port.into() }),
        locality: (w.locality != Locality::default()).then(|| pb::Locality {
            region: w.locality.region.to_string(),
            zone: w.locality.zone.to_string(),
            subzone: w.locality.subzone.to_string(),
        }),
        network_mode: match w.network_mode {
            NetworkMode::Standard => pb::NetworkMode::Standard,
            NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: Vec::new(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    }
}

fn encode_port(p: &PortMapping) -> pb::Port {
    let app_protocol = match p.app_protocol {
        AppProtocol::Unknown => pb::AppProtocol::Unknown,
        AppProtocol::Http11 => pb::AppProtocol::Http11,
        AppProtocol::Http2 => pb::AppProtocol::Http2,
        AppProtocol::Grpc => pb::AppProtocol::Grpc,
        AppProtocol::Tcp => pb::AppProtocol::Tcp,
        AppProtocol::Tls => pb::AppProtocol::Tls,
    };
    pb::Port {
        service_port: p.service_port.into(),
        target_port: p.target_port.into(),
        app_protocol: app_protocol.into(),
    }
}

fn encode_gateway(g: &GatewayAddress) -> pb::GatewayAddress {
    use pb::gateway_address::Destination;
    let destination = match &g.destination {
        GatewayDestination::Hostname(h) => Destination::Hostname(pb::NamespacedHostname {
            namespace: h.namespace.to_string(),
            hostname: h.hostname.to_string(),
        }),
        GatewayDestination::Address(a) => Destination::Address(network_address(&a.network, a.ip, None)),
    };
    pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: g.hbone_port.into() }
}

fn network_address(network: &str, ip: std::net::IpAddr, length: Option<u8>) -> pb::NetworkAddress {
    pb::NetworkAddress { network: network.to_owned(), address: ip_bytes(ip), length: length.map(Into::into) }
}

fn encode_service(s: &Service) -> pb::Service {
    let single = s.addresses.iter().map(|a| network_address(&a.network, a.ip, None));
    let ranges = s.address_ranges.iter().map(|(n, r)| network_address(n, r.addr(), Some(r.prefix_len())));
    pb::Service {
        name: s.name.to_string(),
        namespace: s.key.namespace.to_string(),
        hostname: s.key.hostname.to_string(),
        addresses: single.chain(ranges).collect(),
        ports: s.ports.iter().map(encode_port).collect(),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_ref().map(encode_gateway),
        load_balancing: (s.load_balancing != LoadBalancing::default())
            .then(|| encode_load_balancing(&s.load_balancing)),
        ip_families: match s.ip_families {
            IpFamilies::Automatic => pb::IpFamilies::Automatic,
            IpFamilies::V4Only => pb::IpFamilies::Ipv4Only,
            IpFamilies::V6Only => pb::IpFamilies::Ipv6Only,
            IpFamilies::Dual => pb::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|w| pb::WeightedWaypoint {
                destination: Some(encode_gateway(&w.destination)),
                weight: w.weight,
            })
            .collect(),
        visibility: match s.visibility {
            Visibility::Public => pb::Visibility::Public,
            Visibility::Namespace => pb::Visibility::Namespace,
        }
        .into(),
    }
}

fn encode_load_balancing(l: &LoadBalancing) -> pb::LoadBalancing {
    use pb::load_balancing::{HealthPolicy, Mode, Scope};
    let scope = |s: &LocalityScope| match s {
        LocalityScope::Region => Scope::Region,
        LocalityScope::Zone => Scope::Zone,
        LocalityScope::Subzone => Scope::Subzone,
        LocalityScope::Node => Scope::Node,
        LocalityScope::Cluster => Scope::Cluster,
        LocalityScope::Network => Scope::Network,
    };
    let mode = match l.mode {
        LoadBalancingMode::Unspecified => Mode::UnspecifiedMode,
        LoadBalancingMode::Strict => Mode::Strict,
        LoadBalancingMode::Failover => Mode::Failover,
        LoadBalancingMode::Passthrough => Mode::Passthrough,
    };
    let health = if l.allow_unhealthy { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    pb::LoadBalancing {
        routing_preference: l.routing_preference.iter().map(|s| scope(s).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_workload_survives_the_wire() {
        let mut w = Workload::empty(WorkloadUid::pod("Kubernetes", "default", "curl"), "default", "curl");
        w.addresses = vec!["10.244.1.5".parse().unwrap(), "fd00::1".parse().unwrap()];
        w.tunnel_protocol = TunnelProtocol::Hbone;
        w.service_account = "curl".into();
        w.authorization_policies = vec!["default/p".parse().unwrap()];
        w.services = [(
            NamespacedHostname::new("default", "curl.default.svc.cluster.local"),
            vec![PortMapping { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11 }],
        )]
        .into();
        w.capacity = 0;
        w.waypoint = Some(GatewayAddress {
            destination: GatewayDestination::Hostname(NamespacedHostname::new(
                "default",
                "waypoint.default.svc",
            )),
            hbone_port: 15008,
        });
        w.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: 0 });
        w.locality.region = "r".into();
        let address = Address::Workload(Arc::new(w));
        assert_eq!(decode(&to_proto(&address).encode_to_vec()).unwrap(), address);
        assert_eq!(address.aliases(), ["/10.244.1.5", "/fd00::1"]);
    }

    #[test]
    fn a_service_survives_the_wire() {
        let key = NamespacedHostname::new("default", "productpage.default.svc.cluster.local");
        let mut s = Service::empty(key, "productpage");
        s.addresses = vec![NetworkAddress::local("10.96.1.1".parse().unwrap())];
        s.address_ranges = vec![("".into(), "10.1.0.0/16".parse().unwrap())];
        s.ports = vec![PortMapping { service_port: 80, target_port: 0, app_protocol: AppProtocol::Unknown }];
        s.load_balancing = LoadBalancing {
            routing_preference: vec![LocalityScope::Network, LocalityScope::Node],
            mode: LoadBalancingMode::Failover,
            allow_unhealthy: true,
        };
        s.ingress_use_waypoint = true;
        s.visibility = Visibility::Namespace;
        let address = Address::Service(Arc::new(s));
        assert_eq!(decode(&to_proto(&address).encode_to_vec()).unwrap(), address);
    }

    #[test]
    fn what_would_mislead_is_refused() {
        let mut message = pb::Workload { uid: "u".into(), ..pb::Workload::default() };
        message.authorization_policies = vec!["nonsense".into()];
        assert!(workload(message.clone()).is_err(), "a policy that cannot be named cannot be missed");
        message.authorization_policies.clear();
        message.tunnel_protocol = 9;
        assert!(workload(message).is_err(), "an unknown tunnel must not become plain text");
    }
}
