// SPDX-License-Identifier: Apache-2.0
//! `istio.workload.Service`.

use ipnet::IpNet;
use meltemi_model::names::NamespacedHostname;
use meltemi_model::service::{
    IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, Service, Visibility, WeightedWaypoint,
};

use super::enums::OnWire as _;
use super::workload::{gateway_from_proto, gateway_to_proto, port_from_proto, port_to_proto};
use super::{Invalid, ip, ip_bytes, network_address};
use crate::proto::workload as proto;
use crate::proto::workload::load_balancing::HealthPolicy;

pub(super) fn to_proto(s: &Service) -> proto::Service {
    let addresses = s.addresses.iter().map(|a| (&a.network, a.ip, None));
    let ranges =
        s.address_ranges.iter().map(|(net, range)| (net, range.addr(), Some(u32::from(range.prefix_len()))));
    proto::Service {
        name: s.name.to_string(),
        namespace: s.key.namespace.to_string(),
        hostname: s.key.hostname.to_string(),
        addresses: addresses
            .chain(ranges)
            .map(|(network, ip, length)| proto::NetworkAddress {
                network: network.to_string(),
                address: ip_bytes(ip),
                length,
            })
            .collect(),
        ports: s.ports.iter().map(port_to_proto).collect(),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_ref().map(gateway_to_proto),
        load_balancing: (s.load_balancing != LoadBalancing::default())
            .then(|| balancing_to_proto(&s.load_balancing)),
        ip_families: s.ip_families.number(),
        extensions: Vec::new(),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|w| proto::WeightedWaypoint {
                destination: Some(gateway_to_proto(&w.destination)),
                weight: w.weight,
            })
            .collect(),
        visibility: s.visibility.number(),
    }
}

fn balancing_to_proto(balancing: &LoadBalancing) -> proto::LoadBalancing {
    proto::LoadBalancing {
        routing_preference: balancing.routing_preference.iter().map(|s| s.number()).collect(),
        mode: balancing.mode.number(),
        health_policy: if balancing.allow_unhealthy {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        }
        .into(),
    }
}

fn balancing_from_proto(message: &proto::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    let proto::LoadBalancing { routing_preference, mode, health_policy } = message;
    Ok(LoadBalancing {
        routing_preference: routing_preference
            .iter()
            .map(|value| LocalityScope::read("load_balancing.routing_preference", *value))
            .collect::<Result<_, _>>()?,
        mode: LoadBalancingMode::read("load_balancing.mode", *mode)?,
        allow_unhealthy: match HealthPolicy::try_from(*health_policy) {
            Ok(HealthPolicy::OnlyHealthy) => false,
            Ok(HealthPolicy::AllowAll) => true,
            Err(_) => {
                return Err(Invalid::new(
                    "load_balancing.health_policy",
                    format!("unknown value {health_policy}"),
                ));
            }
        },
    })
}

pub(super) fn from_proto(message: proto::Service) -> Result<Service, Invalid> {
    let proto::Service {
        name,
        namespace,
        hostname,
        addresses,
        ports,
        subject_alt_names,
        waypoint,
        load_balancing,
        ip_families,
        // Extensions change nothing that is decided here.
        extensions: _,
        canonical,
        ingress_use_waypoint,
        weighted_waypoints,
        visibility,
    } = message;
    if namespace.is_empty() || hostname.is_empty() {
        return Err(Invalid::new("hostname", "namespace or hostname is empty"));
    }
    let mut service = Service::empty(NamespacedHostname::new(namespace, hostname), name);
    for address in &addresses {
        match address.length {
            None => service.addresses.push(network_address("addresses", address)?),
            Some(length) => {
                let ip = ip("addresses", &address.address)?;
                let length = u8::try_from(length).map_err(|_| Invalid::new("addresses.length", length))?;
                let range = IpNet::new(ip, length).map_err(|e| Invalid::new("addresses.length", e))?;
                service.address_ranges.push((address.network.as_str().into(), range));
            }
        }
    }
    service.ports = ports.iter().map(port_from_proto).collect::<Result<_, _>>()?;
    service.subject_alt_names = subject_alt_names.into_iter().map(Into::into).collect();
    service.waypoint = waypoint.map(|g| gateway_from_proto("waypoint", g)).transpose()?;
    service.load_balancing =
        load_balancing.as_ref().map(balancing_from_proto).transpose()?.unwrap_or_default();
    service.ip_families = IpFamilies::read("ip_families", ip_families)?;
    service.canonical = canonical;
    service.ingress_use_waypoint = ingress_use_waypoint;
    service.weighted_waypoints = weighted_waypoints
        .into_iter()
        .map(|w| {
            let destination =
                w.destination.ok_or_else(|| Invalid::new("weighted_waypoints", "destination is not set"))?;
            Ok(WeightedWaypoint {
                destination: gateway_from_proto("weighted_waypoints", destination)?,
                weight: w.weight,
            })
        })
        .collect::<Result<_, Invalid>>()?;
    service.visibility = Visibility::read("visibility", visibility)?;
    Ok(service)
}
