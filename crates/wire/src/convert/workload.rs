// SPDX-License-Identifier: Apache-2.0
//! `istio.workload.Workload`.

use meltemi_model::TrustDomain;
use meltemi_model::identity::DEFAULT_TRUST_DOMAIN;
use meltemi_model::names::{NamespacedHostname, NamespacedName, WorkloadUid};
use meltemi_model::service::{AppProtocol, PortMapping};
use meltemi_model::workload::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, Health, Locality, NetworkMode, TunnelProtocol,
    Workload, WorkloadType,
};

use super::enums::OnWire as _;
use super::{Invalid, hostname, ip, ip_bytes, network_address, port};
use crate::proto::workload as proto;

/// HBONE's port when a gateway's address names none.
const HBONE_PORT: u16 = 15008;

pub(super) fn gateway_to_proto(gateway: &GatewayAddress) -> proto::GatewayAddress {
    use proto::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(name) => Destination::Hostname(proto::NamespacedHostname {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => Destination::Address(proto::NetworkAddress {
            network: address.network.to_string(),
            address: ip_bytes(address.ip),
            length: None,
        }),
    };
    proto::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_port.into() }
}

pub(super) fn gateway_from_proto(
    field: &str,
    message: proto::GatewayAddress,
) -> Result<GatewayAddress, Invalid> {
    use proto::gateway_address::Destination;
    let proto::GatewayAddress { destination, hbone_mtls_port } = message;
    let destination = match destination.ok_or_else(|| Invalid::new(field, "destination is not set"))? {
        Destination::Hostname(name) => GatewayDestination::Hostname(hostname(&name)),
        Destination::Address(address) => GatewayDestination::Address(network_address(field, &address)?),
    };
    let hbone_port = if hbone_mtls_port == 0 { HBONE_PORT } else { port(field, hbone_mtls_port)? };
    Ok(GatewayAddress { destination, hbone_port })
}

pub(super) fn port_to_proto(mapping: &PortMapping) -> proto::Port {
    proto::Port {
        service_port: mapping.service_port.into(),
        target_port: mapping.target_port.into(),
        app_protocol: mapping.app_protocol.number(),
    }
}

pub(super) fn port_from_proto(message: &proto::Port) -> Result<PortMapping, Invalid> {
    let proto::Port { service_port, target_port, app_protocol } = message;
    Ok(PortMapping {
        service_port: port("ports.service_port", *service_port)?,
        target_port: port("ports.target_port", *target_port)?,
        app_protocol: AppProtocol::read("ports.app_protocol", *app_protocol)?,
    })
}

pub(super) fn to_proto(w: &Workload) -> proto::Workload {
    let default_domain = w.trust_domain.as_str() == DEFAULT_TRUST_DOMAIN;
    proto::Workload {
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|ip| ip_bytes(*ip)).collect(),
        network: w.network.to_string(),
        tunnel_protocol: w.tunnel_protocol.number(),
        // Istio's control plane leaves out what is the default.
        trust_domain: if default_domain { String::new() } else { w.trust_domain.to_string() },
        service_account: if &*w.service_account == "default" {
            String::new()
        } else {
            w.service_account.to_string()
        },
        waypoint: w.waypoint.as_ref().map(gateway_to_proto),
        node: w.node.to_string(),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: w.workload_type.number(),
        workload_name: w.workload_name.to_string(),
        native_tunnel: w.native_tunnel,
        authorization_policies: w.authorization_policies.iter().map(ToString::to_string).collect(),
        status: w.health.number(),
        cluster_id: w.cluster_id.to_string(),
        network_gateway: w.network_gateway.as_ref().map(gateway_to_proto),
        uid: w.uid.to_string(),
        hostname: w.hostname.to_string(),
        services: w
            .services
            .iter()
            .map(|(key, ports)| {
                (key.to_string(), proto::PortList { ports: ports.iter().map(port_to_proto).collect() })
            })
            .collect(),
        application_tunnel: w.application_tunnel.map(|tunnel| proto::ApplicationTunnel {
            protocol: i32::from(tunnel.proxy_protocol),
            port: tunnel.port.into(),
        }),
        locality: (w.locality != Locality::default()).then(|| proto::Locality {
            region: w.locality.region.to_string(),
            zone: w.locality.zone.to_string(),
            subzone: w.locality.subzone.to_string(),
        }),
        network_mode: w.network_mode.number(),
        extensions: Vec::new(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    }
}

pub(super) fn from_proto(message: proto::Workload) -> Result<Workload, Invalid> {
    let proto::Workload {
        name,
        namespace,
        addresses,
        network,
        tunnel_protocol,
        trust_domain,
        service_account,
        waypoint,
        node,
        canonical_name,
        canonical_revision,
        workload_type,
        workload_name,
        native_tunnel,
        authorization_policies,
        status,
        cluster_id,
        network_gateway,
        uid,
        hostname,
        services,
        application_tunnel,
        locality,
        network_mode,
        // Extensions change nothing that is decided here.
        extensions: _,
        capacity,
    } = message;
    if uid.is_empty() {
        return Err(Invalid::new("uid", "is empty"));
    }
    let trust_domain = if trust_domain.is_empty() {
        TrustDomain::default()
    } else {
        TrustDomain::parse(&trust_domain).map_err(|e| Invalid::new("trust_domain", e))?
    };
    Ok(Workload {
        uid: WorkloadUid(uid.into()),
        name: name.into(),
        namespace: namespace.into(),
        addresses: addresses.iter().map(|bytes| ip("addresses", bytes)).collect::<Result<_, _>>()?,
        network: network.into(),
        tunnel_protocol: TunnelProtocol::read("tunnel_protocol", tunnel_protocol)?,
        trust_domain,
        service_account: if service_account.is_empty() { "default".into() } else { service_account.into() },
        waypoint: waypoint.map(|g| gateway_from_proto("waypoint", g)).transpose()?,
        node: node.into(),
        canonical_name: canonical_name.into(),
        canonical_revision: canonical_revision.into(),
        workload_type: WorkloadType::read("workload_type", workload_type)?,
        workload_name: workload_name.into(),
        native_tunnel,
        authorization_policies: authorization_policies
            .iter()
            .map(|name| name.parse::<NamespacedName>().map_err(|e| Invalid::new("authorization_policies", e)))
            .collect::<Result<_, _>>()?,
        health: Health::read("status", status)?,
        cluster_id: cluster_id.into(),
        network_gateway: network_gateway.map(|g| gateway_from_proto("network_gateway", g)).transpose()?,
        hostname: hostname.into(),
        services: services
            .iter()
            .map(|(key, list)| {
                let key: NamespacedHostname = key.parse().map_err(|e| Invalid::new("services", e))?;
                Ok((key, list.ports.iter().map(port_from_proto).collect::<Result<_, Invalid>>()?))
            })
            .collect::<Result<_, Invalid>>()?,
        application_tunnel: application_tunnel.map(tunnel_from_proto).transpose()?,
        locality: locality
            .map(|l| Locality { region: l.region.into(), zone: l.zone.into(), subzone: l.subzone.into() })
            .unwrap_or_default(),
        network_mode: NetworkMode::read("network_mode", network_mode)?,
        capacity: capacity.unwrap_or(1),
    })
}

fn tunnel_from_proto(message: proto::ApplicationTunnel) -> Result<ApplicationTunnel, Invalid> {
    use proto::application_tunnel::Protocol;
    let proto::ApplicationTunnel { protocol, port: number } = message;
    let proxy_protocol = match Protocol::try_from(protocol) {
        Ok(Protocol::None) => false,
        Ok(Protocol::Proxy) => true,
        Err(_) => {
            return Err(Invalid::new("application_tunnel.protocol", format!("unknown value {protocol}")));
        }
    };
    Ok(ApplicationTunnel { proxy_protocol, port: port("application_tunnel.port", number)? })
}
