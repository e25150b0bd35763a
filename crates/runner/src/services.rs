// SPDX-License-Identifier: Apache-2.0
//! Services and their endpoints as the node sees them: one view, kept by two watches, for addresses and for names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meltemi_linux::nft::L4;

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Addresses that stand for it: cluster address and those of its load balancer.
    pub addresses: Vec<Ipv4Addr>,
    /// Clients look its endpoints up themselves.
    pub headless: bool,
    pub external_name: Option<String>,
    pub ports: Vec<Port>,
    /// A client stays with one endpoint.
    pub sticky: bool,
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are not ready have names too.
    pub publish_not_ready: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub name: String,
    pub number: u16,
    pub protocol: L4,
}

/// An endpoint at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub address: Ipv4Addr,
    pub hostname: Option<String>,
    pub ready: bool,
    /// Port name, protocol and number.
    pub ports: Vec<(String, L4, u16)>,
}

/// By namespace and name.
pub(crate) type Table = BTreeMap<(String, String), Known>;

/// Builds the view.
pub(crate) fn table(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Table {
    let mut table: Table = services
        .iter()
        .filter_map(|s| {
            let key = (s.metadata.namespace.clone()?, s.metadata.name.clone()?);
            Some((key, service(s)))
        })
        .collect();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|l| l.get("kubernetes.io/service-name")) else { continue };
        let Some(namespace) = slice.metadata.namespace.clone() else { continue };
        if let Some(known) = table.get_mut(&(namespace, name.clone())) {
            known.endpoints.extend(endpoints(slice));
        }
    }
    for known in table.values_mut() {
        known.endpoints.sort_by_key(|e| e.address);
    }
    table
}

fn service(service: &Service) -> Known {
    let spec = service.spec.clone().unwrap_or_default();
    let cluster = spec.cluster_ip.unwrap_or_default();
    let balancer = service
        .status
        .iter()
        .flat_map(|s| s.load_balancer.iter())
        .flat_map(|l| l.ingress.iter().flatten())
        .filter_map(|i| i.ip.as_deref());
    let external = spec.external_ips.iter().flatten().map(String::as_str);
    let addresses = std::iter::once(cluster.as_str()).chain(balancer).chain(external);
    Known {
        addresses: addresses.filter_map(|a| a.parse().ok()).collect(),
        headless: cluster == "None",
        external_name: (spec.type_.as_deref() == Some("ExternalName"))
            .then(|| spec.external_name.unwrap_or_default()),
        ports: spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| {
                Some(Port {
                    name: p.name.clone().unwrap_or_default(),
                    number: u16::try_from(p.port).ok()?,
                    protocol: protocol(p.protocol.as_deref())?,
                })
            })
            .collect(),
        sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
        endpoints: Vec::new(),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
    }
}

fn protocol(text: Option<&str>) -> Option<L4> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(L4::Tcp),
        "UDP" => Some(L4::Udp),
        _ => None,
    }
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: Vec<(String, L4, u16)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            let number = p.port.and_then(|n| u16::try_from(n).ok())?;
            Some((p.name.clone().unwrap_or_default(), protocol(p.protocol.as_deref())?, number))
        })
        .collect();
    slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|e| {
            let ready = e.conditions.as_ref().and_then(|c| c.ready) != Some(false);
            let ports = ports.clone();
            e.addresses.iter().filter_map(|a| a.parse().ok()).map(move |address| Endpoint {
                address,
                hostname: e.hostname.clone(),
                ready,
                ports: ports.clone(),
            })
        })
        .collect()
}

impl Known {
    /// Where a port of this Service leads to now.
    pub(crate) fn targets(&self, port: &Port) -> Vec<SocketAddr> {
        let ready = self.endpoints.iter().filter(|e| e.ready || self.publish_not_ready);
        let mut all: Vec<SocketAddr> = ready
            .flat_map(|e| {
                e.ports
                    .iter()
                    .filter(|(name, l4, _)| *name == port.name && *l4 == port.protocol)
                    .map(|(_, _, number)| SocketAddr::new(IpAddr::V4(e.address), *number))
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }
}
