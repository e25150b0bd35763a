// SPDX-License-Identifier: Apache-2.0
//! Names of Services, their endpoints and Pods for the node's DNS.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use meltemi_dns::{Answer, Names};

use crate::lock::lock;
use crate::services::{Known, Table};

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
        self.find(&table, name, 0).map_or(Answer::NotFound, Answer::Addresses)
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
            "cluster.local",
            "loop.default.svc.cluster.local",
            "away.default.svc.cluster.local",
            "10-244-1-4.db.default.svc.cluster.local",
        ] {
            assert_eq!(view.lookup(name), Answer::NotFound, "{name}");
        }
    }
}
