// SPDX-License-Identifier: Apache-2.0
//! Traffic capture as a pure plan and its application to a network namespace.
//!
//! [`Plan::for_pod`] says which rules a Pod's network namespace gets; [`apply`] puts them there. The rules match
//! the first packet of a connection only: connections that are open when a Pod is enrolled go on. They do not
//! depend on a proxy being there: without one, a captured connection finds no listener and is refused. Nor can the
//! application be that listener: what it sends from a port of the proxy is dropped.

mod apply;
mod plan;

pub use apply::{Error, apply, is_applied, remove};
pub use plan::{Options, Plan};

/// Outbound TCP is redirected to this port of the Pod's namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound plaintext TCP is redirected to this port.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Inbound tunnels arrive here and are not redirected.
pub const INBOUND_HBONE_PORT: u16 = 15008;
/// DNS is redirected to this port.
pub const DNS_PORT: u16 = 15053;
/// The mark of the node proxy's own packets, under [`MARK_MASK`].
pub const PROXY_MARK: u32 = 0x539;
/// The mark of connections that the node proxy opened under a Pod's own address, under [`MARK_MASK`].
pub const RETURN_MARK: u32 = 0x111;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;
/// The mark of sockets on which the node proxy listens, under itself. Not [`PROXY_MARK`]: what that one marks is routed a
/// second time, packet by packet. Istio's ztunnel marks its listeners with [`PROXY_MARK`], and is accepted as well.
pub const LISTENER_MARK: u32 = 0x1000;
/// The routing table that brings answers for such connections back to the proxy.
pub const RETURN_TABLE: u32 = 100;
/// The order of the routing rule that leads there.
pub const RETURN_RULE_PRIORITY: u32 = 32764;
/// Where health probes come from, IPv4: an address that only the node holds.
pub const PROBE_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 7, 127);
/// Where health probes come from, IPv6.
pub const PROBE_SOURCE_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);
