// SPDX-License-Identifier: Apache-2.0
//! Addresses and the fixed ports of the mesh.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// Ports that clients and Istio's tools rely on (`reference/ambient.md` §3.1).
pub mod ports {
    /// Captured outbound TCP, in each enrolled Pod.
    pub const OUTBOUND: u16 = 15001;
    /// Captured inbound plaintext, in each enrolled Pod.
    pub const INBOUND_PLAINTEXT: u16 = 15006;
    /// HBONE: mutual TLS with HTTP/2 CONNECT.
    pub const HBONE: u16 = 15008;
    /// The DNS proxy in each enrolled Pod.
    pub const DNS: u16 = 15053;
    /// Admin endpoint of a proxy, loopback only.
    pub const ADMIN: u16 = 15000;
    /// Prometheus metrics of a proxy.
    pub const STATS: u16 = 15020;
    /// Readiness of a proxy.
    pub const READY: u16 = 15021;
    /// xDS and CA of the control plane, over TLS.
    pub const XDS: u16 = 15012;
    /// The control plane's admission webhook.
    pub const WEBHOOK: u16 = 15017;
    /// The control plane's metrics and debug endpoint.
    pub const MONITORING: u16 = 15014;
}

/// A range without host bits; one of IPv4-mapped IPv6 addresses (RFC 4291 §2.5.5.2) as the IPv4 addresses that it means.
pub fn canonical_range(range: IpNet) -> IpNet {
    if let IpNet::V6(six) = range
        && let Some(four) = six.addr().to_ipv4_mapped()
        && let Some(length) = six.prefix_len().checked_sub(96)
        && let Ok(four) = Ipv4Net::new(four, length)
    {
        return IpNet::V4(four.trunc());
    }
    range.trunc()
}

/// An address on a network; the empty network is the only one of a single-network mesh
/// (`istio.workload.NetworkAddress`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name, often empty.
    pub network: Arc<str>,
    /// The address.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// An address of the given network.
    pub fn new(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip }
    }

    /// An address of the unnamed network.
    pub fn local(ip: IpAddr) -> Self {
        Self { network: "".into(), ip }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl fmt::Debug for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an application speaks on a port (`istio.workload.AppProtocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Not declared: sniffed where it matters.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Plain TCP.
    Tcp,
    /// TLS, passed through.
    Tls,
}

/// One port of a service, or of a workload for a service (`istio.workload.Port`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMapping {
    /// Port of the service, 1..=65535.
    pub service_port: u16,
    /// Port of the workload; 0 means that each workload says it (named ports).
    pub target_port: u16,
    /// Declared protocol.
    pub app_protocol: AppProtocol,
}

/// Loopback, link-local and unspecified addresses are nobody else's: where one of them stands for
/// a destination, a proxy would be led to itself or to its node.
pub fn is_routable(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_for_addresses_of_ones_own() {
        for (ip, routable) in [
            ("10.244.1.2", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.7.127", false),
            ("224.0.0.1", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_routable(ip.parse().unwrap()), routable, "{ip}");
        }
    }
}
