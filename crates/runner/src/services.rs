// SPDX-License-Identifier: Apache-2.0
//! Services and their endpoints as the node sees them: one view, kept by two watches, for addresses and for names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meltemi_linux::nft::L4;

/// Cluster addresses of Services.
pub(crate) const CLUSTER_ADDRESSES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
/// Addresses of load balancers, and the only ones that `spec.externalIPs` can name: those of nodes, Pods and other Services
/// are not for a Service to take.
const BALANCER_ADDRESSES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 1, 0), 24);

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
    let owners = owners(services);
    for (key, known) in &mut table {
        known.addresses.retain(|address| owners.get(address) == Some(key));
    }
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

/// The Service that each address stands for. Of several that claim it, the one to which it was assigned comes first, then
/// the oldest: a Service cannot take what another one has.
fn owners(services: &[Arc<Service>]) -> BTreeMap<Ipv4Addr, (String, String)> {
    let mut claims = Vec::new();
    for service in services {
        let meta = &service.metadata;
        let (Some(namespace), Some(name)) = (meta.namespace.clone(), meta.name.clone()) else { continue };
        let created = meta.creation_timestamp.as_ref().map(|t| t.0);
        for (address, assigned) in addresses(service) {
            claims.push((address, !assigned, created, namespace.clone(), name.clone()));
        }
    }
    claims.sort();
    let mut owners = BTreeMap::new();
    for (address, _, _, namespace, name) in claims {
        owners.entry(address).or_insert((namespace, name));
    }
    owners
}

/// The addresses that a Service claims, each with whether it was assigned to it and not only asked for.
fn addresses(service: &Service) -> Vec<(Ipv4Addr, bool)> {
    let spec = service.spec.as_ref();
    if spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
        return Vec::new();
    }
    let cluster = spec.and_then(|s| s.cluster_ip.as_deref());
    let cluster = cluster.and_then(|ip| ip.parse().ok()).filter(|ip| CLUSTER_ADDRESSES.contains(ip));
    let balancer = service
        .status
        .iter()
        .flat_map(|s| s.load_balancer.iter())
        .flat_map(|l| l.ingress.iter().flatten())
        .filter_map(|i| i.ip.as_deref());
    let external = spec.into_iter().flat_map(|s| s.external_ips.iter().flatten()).map(String::as_str);
    let pool = balancer.map(|ip| (ip, true)).chain(external.map(|ip| (ip, false)));
    let pool = pool.filter_map(|(ip, assigned)| Some((ip.parse().ok()?, assigned)));
    let mut all: Vec<(Ipv4Addr, bool)> = cluster.into_iter().map(|ip| (ip, true)).collect();
    for (ip, assigned) in pool.filter(|(ip, _)| BALANCER_ADDRESSES.contains(ip)) {
        if all.iter().all(|(known, _)| *known != ip) {
            all.push((ip, assigned));
        }
    }
    all
}

fn service(service: &Service) -> Known {
    let addresses = addresses(service).into_iter().map(|(address, _)| address).collect();
    let spec = service.spec.clone().unwrap_or_default();
    let cluster = spec.cluster_ip.unwrap_or_default();
    Known {
        addresses,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, created: &str, spec: serde_json::Value, balancer: &[&str]) -> Arc<Service> {
        let ingress: Vec<_> = balancer.iter().map(|ip| serde_json::json!({"ip": ip})).collect();
        let object = serde_json::json!({
            "metadata": {"name": "s", "namespace": namespace, "creationTimestamp": created},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_service_has_no_address_of_others() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let external = |ips: &[&str]| serde_json::json!({"clusterIP": "10.96.0.9", "externalIPs": ips});
        let all = [
            service("shop", old, serde_json::json!({"clusterIP": "10.96.0.7"}), &["172.30.1.1"]),
            // By name the first, by time the last.
            service(
                "aaa",
                new,
                serde_json::json!({"clusterIP": "10.96.0.7", "externalIPs": ["172.30.1.1"]}),
                &[],
            ),
            service(
                "b",
                new,
                external(&[
                    "10.244.1.5",
                    "172.30.0.11",
                    "169.254.7.127",
                    "127.0.0.1",
                    "10.96.0.7",
                    "172.30.1.9",
                ]),
                &["10.244.1.6"],
            ),
            service("c", new, serde_json::json!({"clusterIP": "172.30.0.12"}), &[]),
            service(
                "d",
                old,
                serde_json::json!({"type": "ExternalName", "clusterIP": "10.96.0.7"}),
                &["172.30.1.9"],
            ),
        ];
        let table = table(&all, &[]);
        let of = |namespace: &str| -> Vec<String> {
            let known = &table[&(namespace.to_owned(), "s".to_owned())];
            known.addresses.iter().map(ToString::to_string).collect()
        };
        assert_eq!(of("shop"), ["10.96.0.7", "172.30.1.1"]);
        assert_eq!(of("aaa"), [""; 0]);
        assert_eq!(of("b"), ["10.96.0.9", "172.30.1.9"]);
        assert_eq!(of("c"), [""; 0]);
        assert_eq!(of("d"), [""; 0]);
    }
}
