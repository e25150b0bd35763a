// SPDX-License-Identifier: Apache-2.0
//! Names of Services, their endpoints and Pods for the node's DNS.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use meltemi_dns::{Answer, HostPort, Names};
use meltemi_linux::nft::L4;

use crate::lock::lock;
use crate::services::{Endpoint, Known, Table};

/// Names that lead to each other are followed this far.
const MAX_ALIASES: usize = 8;

/// The view that names are answered from.
#[derive(Debug)]
pub(crate) struct View {
    domain: String,
    table: Mutex<Arc<Table>>,
    /// Whether the table has all Services: until the first list has come it has some or none.
    is_whole: AtomicBool,
}

impl View {
    /// Of a cluster domain such as `cluster.local`.
    pub(crate) fn new(domain: &str) -> Self {
        Self { domain: domain.to_owned(), table: Mutex::default(), is_whole: AtomicBool::new(false) }
    }

    pub(crate) fn set(&self, table: Table) {
        *lock(&self.table) = Arc::new(table);
    }

    /// Says that the table has all Services from now on.
    pub(crate) fn set_whole(&self) {
        self.is_whole.store(true, Ordering::Release);
    }

    /// All Services. `None` before they have been read once.
    pub(crate) fn services(&self) -> Option<Arc<Table>> {
        self.is_whole.load(Ordering::Acquire).then(|| lock(&self.table).clone())
    }

    fn find(&self, table: &Table, name: &str, depth: usize) -> Option<Vec<IpAddr>> {
        let inside = name.strip_suffix(&self.domain)?.strip_suffix('.')?;
        let labels: Vec<&str> = inside.split('.').collect();
        match labels.as_slice() {
            [service, namespace, "svc"] => {
                let known = table.get(&((*namespace).to_owned(), (*service).to_owned()))?;
                match &known.external_name {
                    Some(_) if depth >= MAX_ALIASES => None,
                    Some(alias) => self.find(table, alias.trim_end_matches('.'), depth + 1),
                    None => Some(addresses(known)),
                }
            }
            [host, service, namespace, "svc"] => {
                let known = table.get(&((*namespace).to_owned(), (*service).to_owned()))?;
                let named = known.endpoints.iter().filter(|e| shown(known, e.ready));
                let found: Vec<IpAddr> = named
                    .filter(|e| e.hostname.as_deref() == Some(host) || dashed(e.address) == *host)
                    .map(|e| IpAddr::V4(e.address))
                    .collect();
                (!found.is_empty()).then_some(found)
            }
            [address, _, "pod"] => {
                let address: Ipv4Addr = address.replace('-', ".").parse().ok()?;
                Some(vec![IpAddr::V4(address)])
            }
            _ => None,
        }
    }

    /// What a name is beside the addresses of [`View::find`]: a named port (`_http._tcp.web.shop.svc`), or one that only
    /// has names below it.
    fn find_port(&self, table: &Table, name: &str) -> Option<Answer> {
        let inside = name.strip_suffix(&self.domain)?;
        let labels: Vec<&str> = match inside.strip_suffix('.') {
            Some(inside) => inside.split('.').collect(),
            None if inside.is_empty() => Vec::new(),
            None => return None,
        };
        let known = |service: &str, namespace: &str| table.get(&(namespace.to_owned(), service.to_owned()));
        let exists = match labels.as_slice() {
            [port, protocol, service, namespace, "svc"] => {
                let (port, protocol) = (port.strip_prefix('_')?, protocol_of(protocol)?);
                let host = format!("{service}.{namespace}.svc.{}", self.domain);
                let ports = ports(known(service, namespace)?, port, protocol, &host);
                return (!ports.is_empty()).then_some(Answer::Ports(ports));
            }
            [protocol, service, namespace, "svc"] => {
                let (protocol, known) = (protocol_of(protocol)?, known(service, namespace)?);
                known.ports.iter().any(|port| !port.name.is_empty() && port.protocol == protocol)
            }
            [namespace, "svc"] => table.keys().any(|(of, _)| of == namespace),
            ["svc" | "pod"] | [] => true,
            _ => false,
        };
        exists.then(|| Answer::Addresses(Vec::new()))
    }

    /// The name of a Service's cluster address, or of an endpoint of a Service that has none.
    fn find_address(&self, table: &Table, name: &str) -> Option<String> {
        let reversed: Ipv4Addr = name.strip_suffix(".in-addr.arpa")?.parse().ok()?;
        let [a, b, c, d] = reversed.octets();
        let address = Ipv4Addr::new(d, c, b, a);
        table.iter().find_map(|((namespace, service), known)| {
            let host = format!("{service}.{namespace}.svc.{}", self.domain);
            if !known.headless && known.addresses.first() == Some(&address) {
                return Some(host);
            }
            let mut endpoints = known.endpoints.iter().filter(|_| known.headless);
            let endpoint = endpoints.find(|e| e.address == address && shown(known, e.ready))?;
            Some(format!("{}.{host}", label(endpoint)))
        })
    }
}

fn protocol_of(label: &str) -> Option<L4> {
    match label {
        "_tcp" => Some(L4::Tcp),
        "_udp" => Some(L4::Udp),
        _ => None,
    }
}

/// The first label of an endpoint's name.
fn label(endpoint: &Endpoint) -> String {
    endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address))
}

/// Where a named port of a Service is served: at its own address, or at those of its endpoints.
fn ports(known: &Known, name: &str, protocol: L4, host: &str) -> Vec<HostPort> {
    let is_asked = |of: &str, l4: L4| l4 == protocol && of.eq_ignore_ascii_case(name);
    if known.external_name.is_some() || name.is_empty() {
        return Vec::new();
    }
    if !known.headless {
        let asked = known.ports.iter().filter(|port| is_asked(&port.name, port.protocol));
        let addresses = addresses(known);
        let here = |port: u16| HostPort { host: host.to_owned(), port, addresses: addresses.clone() };
        return asked.map(|port| here(port.number)).collect();
    }
    let ready = known.endpoints.iter().filter(|e| shown(known, e.ready));
    let mut all: Vec<HostPort> = ready
        .flat_map(|endpoint| {
            let asked = endpoint.ports.iter().filter(|(of, l4, _)| is_asked(of, *l4));
            asked.map(|(_, _, number)| HostPort {
                host: format!("{}.{host}", label(endpoint)),
                port: *number,
                addresses: vec![IpAddr::V4(endpoint.address)],
            })
        })
        .collect();
    all.dedup();
    all
}

fn shown(known: &Known, ready: bool) -> bool {
    ready || known.publish_not_ready
}

fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

/// The cluster address, or the endpoints of a Service without one.
fn addresses(known: &Known) -> Vec<IpAddr> {
    if !known.headless {
        return known.addresses.first().map(|ip| IpAddr::V4(*ip)).into_iter().collect();
    }
    let ready = known.endpoints.iter().filter(|e| shown(known, e.ready));
    let mut all: Vec<IpAddr> = ready.map(|e| IpAddr::V4(e.address)).collect();
    all.dedup();
    all
}

impl Names for View {
    fn lookup(&self, name: &str) -> Answer {
        let table = lock(&self.table).clone();
        // Nobody outside is asked: there is no way out of the private network.
        let found = self.find(&table, name, 0).map(Answer::Addresses);
        let found = found.or_else(|| self.find_port(&table, name));
        found.or_else(|| self.find_address(&table, name).map(Answer::Name)).unwrap_or(Answer::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Endpoint;

    #[test]
    fn services_endpoints_and_pods_have_names() {
        let endpoint = |last, hostname: Option<&str>, ready| Endpoint {
            address: Ipv4Addr::new(10, 244, 1, last),
            hostname: hostname.map(str::to_owned),
            ready,
            ports: vec![],
        };
        let plain = Known { addresses: vec![Ipv4Addr::new(10, 96, 3, 4)], ..Known::default() };
        let headless = Known {
            headless: true,
            endpoints: vec![
                endpoint(2, Some("db-0"), true),
                endpoint(3, None, true),
                endpoint(4, None, false),
            ],
            ..Known::default()
        };
        let alias = |to: &str| Known { external_name: Some(to.to_owned()), ..Known::default() };
        let view = View::new("cluster.local");
        view.set(
            [
                ("web", plain),
                ("db", headless),
                ("alias", alias("web.default.svc.cluster.local")),
                ("loop", alias("loop.default.svc.cluster.local")),
                ("away", alias("example.com")),
            ]
            .map(|(name, known)| (("default".to_owned(), name.to_owned()), known))
            .into(),
        );
        for (name, expected) in [
            ("web.default.svc.cluster.local", &["10.96.3.4"][..]),
            ("db.default.svc.cluster.local", &["10.244.1.2", "10.244.1.3"]),
            ("db-0.db.default.svc.cluster.local", &["10.244.1.2"]),
            ("10-244-1-3.db.default.svc.cluster.local", &["10.244.1.3"]),
            ("alias.default.svc.cluster.local", &["10.96.3.4"]),
            ("10-244-1-9.default.pod.cluster.local", &["10.244.1.9"]),
        ] {
            let expected = expected.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(view.lookup(name), Answer::Addresses(expected), "{name}");
        }
        for name in [
            "web.other.svc.cluster.local",
            "web.default.svc",
            "example.com",
            "other.svc.cluster.local",
            "xcluster.local",
            "loop.default.svc.cluster.local",
            "away.default.svc.cluster.local",
            "10-244-1-4.db.default.svc.cluster.local",
        ] {
            assert_eq!(view.lookup(name), Answer::NotFound, "{name}");
        }
    }

    #[test]
    fn named_ports_and_addresses_have_records() {
        let port =
            |name: &str, number, protocol| crate::services::Port { name: name.into(), number, protocol };
        let endpoint = |last, hostname: Option<&str>, ready| Endpoint {
            address: Ipv4Addr::new(10, 244, 1, last),
            hostname: hostname.map(str::to_owned),
            ready,
            ports: vec![("grpc".into(), L4::Tcp, 10901)],
        };
        let web = Known {
            addresses: vec![Ipv4Addr::new(10, 96, 3, 4)],
            ports: vec![port("http", 80, L4::Tcp), port("", 81, L4::Tcp), port("dns", 53, L4::Udp)],
            ..Known::default()
        };
        let db = Known {
            headless: true,
            ports: vec![port("grpc", 10901, L4::Tcp)],
            endpoints: vec![
                endpoint(2, Some("db-0"), true),
                endpoint(3, None, true),
                endpoint(4, None, false),
            ],
            ..Known::default()
        };
        let view = View::new("cluster.local");
        let named = |name: &str| ("shop".to_owned(), name.to_owned());
        view.set([(named("db"), db), (named("web"), web)].into());
        let at = |host: &str, port, address: &str| HostPort {
            host: format!("{host}.shop.svc.cluster.local"),
            port,
            addresses: vec![address.parse().unwrap()],
        };
        let nothing = || Answer::Addresses(Vec::new());
        for (name, expected) in [
            ("_http._tcp.web.shop.svc.cluster.local", Answer::Ports(vec![at("web", 80, "10.96.3.4")])),
            ("_dns._udp.web.shop.svc.cluster.local", Answer::Ports(vec![at("web", 53, "10.96.3.4")])),
            (
                "_grpc._tcp.db.shop.svc.cluster.local",
                Answer::Ports(vec![
                    at("db-0.db", 10901, "10.244.1.2"),
                    at("10-244-1-3.db", 10901, "10.244.1.3"),
                ]),
            ),
            ("_http._udp.web.shop.svc.cluster.local", Answer::NotFound),
            ("_._tcp.web.shop.svc.cluster.local", Answer::NotFound),
            ("http._tcp.web.shop.svc.cluster.local", Answer::NotFound),
            ("_tcp.web.shop.svc.cluster.local", nothing()),
            ("_udp.db.shop.svc.cluster.local", Answer::NotFound),
            ("shop.svc.cluster.local", nothing()),
            ("svc.cluster.local", nothing()),
            ("cluster.local", nothing()),
            ("4.3.96.10.in-addr.arpa", Answer::Name("web.shop.svc.cluster.local".into())),
            ("2.1.244.10.in-addr.arpa", Answer::Name("db-0.db.shop.svc.cluster.local".into())),
            ("3.1.244.10.in-addr.arpa", Answer::Name("10-244-1-3.db.shop.svc.cluster.local".into())),
            ("4.1.244.10.in-addr.arpa", Answer::NotFound),
            ("1.3.96.10.in-addr.arpa", Answer::NotFound),
            ("x.in-addr.arpa", Answer::NotFound),
        ] {
            assert_eq!(view.lookup(name), expected, "{name}");
        }
    }
}
