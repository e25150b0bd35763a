// SPDX-License-Identifier: Apache-2.0
//! Pod networking: addresses of the node's range, and a routed point-to-point veth for each Pod. No bridge.
//!
//! A Pod reaches everything through the gateway 169.254.1.1, whose hardware address it is told, so that nothing
//! is ever asked by ARP. The node's side accepts from a Pod's veth only the Pod's own address (strict reverse
//! path filter): no other address can be used from inside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use meltemi_linux::netns::NetNs;
use meltemi_linux::rtnl::{self, Route, RouteKind, Rtnl, VethEnd, write_sysctl};

/// The gateway of every Pod; no interface has it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// How long a new link may take until it passes packets; the kernel needs a second at most where it is not busy.
const CARRIER: Duration = Duration::from_secs(10);
const NODE_SIDE_MAC: [u8; 6] = [0x02, 0x4d, 0xa9, 0xfe, 0x01, 0x01];

/// A Pod's end of the network, as the node keeps it.
#[derive(Debug)]
pub struct Connected {
    /// The Pod's namespace.
    pub netns: NetNs,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Gives the node's Pod addresses out.
#[derive(Debug)]
pub struct Pool {
    range: Ipv4Net,
    used: BTreeMap<Ipv4Addr, String>,
    next: u32,
}

impl Pool {
    /// All of a range is free; its first two and its last address are not given out.
    pub fn new(range: Ipv4Net) -> Self {
        Self { range, used: BTreeMap::new(), next: 0 }
    }

    /// An address for a Pod: the one it wishes if that is free, else the next one round the range.
    pub fn take(&mut self, owner: &str, wish: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let first = u32::from(self.range.network()) + 2;
        let count = u32::from(self.range.broadcast()).checked_sub(first).filter(|c| *c > 0)?;
        let fits = |ip: &Ipv4Addr| (first..first + count).contains(&u32::from(*ip));
        let wish = wish.filter(|ip| fits(ip) && !self.used.contains_key(ip));
        let found = wish.or_else(|| {
            (0..count)
                .map(|i| Ipv4Addr::from(first + (self.next + i) % count))
                .find(|ip| !self.used.contains_key(ip))
        })?;
        if wish.is_none() {
            // An address that has just become free is used again last: others may still believe in its old owner.
            self.next = (u32::from(found) - first + 1) % count;
        }
        self.used.insert(found, owner.to_owned());
        Some(found)
    }

    /// Takes an address back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

/// Prepares the node's namespace (the calling thread's): forwarding and source checks.
///
/// # Errors
/// The kernel refuses a setting; the message names it.
pub fn prepare_node() -> io::Result<()> {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv6/conf/default/accept_ra", "0"),
    ] {
        write_sysctl(name, value)?;
    }
    let mut rtnl = Rtnl::open()?;
    // Pods of an earlier life of this process are gone, their interfaces with them; what is left is in the way.
    for (index, name) in rtnl.links()? {
        if name.starts_with("mp") {
            let _ = rtnl.delete_link(index);
        }
    }
    Ok(())
}

/// Adds an address to the node's loopback interface.
///
/// # Errors
/// The kernel refuses.
pub fn hold_address(address: IpAddr) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let lo = rtnl.link_index("lo")?;
    rtnl.add_address(lo, IpNet::from(address))
}

/// Has connections to addresses of the range that no Pod has refused at once ("no route to host"). Without this they go
/// back to where they came from, round and round, and a client waits for its timeout while the Pod is back long since.
///
/// # Errors
/// The kernel refuses.
pub fn refuse_absent(pods: Ipv4Net) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    rtnl.set_route(&Route { kind: RouteKind::Unreachable, ..Route::to(IpNet::V4(pods)) })
}

/// Puts back what somebody has taken away of the node's addresses (in the calling thread's namespace), the route of its
/// range and the links of its Pods. What is as it should be stays untouched.
///
/// # Errors
/// The kernel refuses; the rest has been tried.
pub fn restore(node: Ipv4Addr, held: &[IpAddr], range: Ipv4Net, pods: &[Connected]) -> io::Result<()> {
    let mut result = refuse_absent(range);
    for address in held {
        result = result.and(hold_address(*address));
    }
    let forwarding = rtnl::read_sysctl("ipv4/ip_forward")?;
    if forwarding != "1" {
        result = result.and(write_sysctl("ipv4/ip_forward", "1"));
    }
    for pod in pods {
        let mut rtnl = Rtnl::open()?;
        result = result.and(match rtnl.link_index(&veth_name(pod.address)) {
            Ok(_) => wire_pod(&pod.netns, pod.address, node),
            Err(_) => connect_pod(&pod.netns, pod.address, node),
        });
    }
    result
}

/// The name of a Pod's interface on the node.
pub fn veth_name(address: Ipv4Addr) -> String {
    let [_, _, c, d] = address.octets();
    format!("mp{c}-{d}")
}

/// Connects a Pod's namespace with the node's (the calling thread's).
///
/// # Errors
/// The kernel refuses a step.
pub fn connect_pod(pod: &NetNs, address: Ipv4Addr, node_address: Ipv4Addr) -> io::Result<()> {
    let here = VethEnd { name: veth_name(address), mac: NODE_SIDE_MAC };
    let there = VethEnd { name: "eth0".into(), mac: pod_mac(address) };
    pod.run(|| {
        write_sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        // A proxy inside speaks with its clients' addresses over the loopback; whose they are is checked outside.
        write_sysctl("ipv4/conf/all/rp_filter", "0")?;
        write_sysctl("ipv4/conf/default/rp_filter", "0")?;
        write_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
        write_sysctl("ipv4/ping_group_range", "0 0")
    })?;
    Rtnl::open()?.add_veth(&here, &there, pod)?;
    wire_pod(pod, address, node_address)
}

/// Addresses, neighbours and routes of both ends of a Pod's link; those that are there stay.
fn wire_pod(pod: &NetNs, address: Ipv4Addr, node_address: Ipv4Addr) -> io::Result<()> {
    let mut node = Rtnl::open()?;
    let pod_mac = pod_mac(address);
    let mut inside = pod.rtnl()?;
    let lo = inside.link_index("lo")?;
    inside.set_up(lo)?;
    let eth0 = inside.link_index("eth0")?;
    inside.add_address(eth0, host(address))?;
    inside.set_up(eth0)?;
    inside.set_neighbour(eth0, GATEWAY.into(), NODE_SIDE_MAC)?;
    let all = IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).map_err(io::Error::other)?);
    let gateway = Some(IpAddr::V4(GATEWAY));
    inside.set_route(&Route { interface: Some(eth0), gateway, onlink: true, ..Route::to(all) })?;
    let veth = node.link_index(&veth_name(address))?;
    node.set_up(veth)?;
    node.set_neighbour(veth, address.into(), pod_mac)?;
    let source = Some(IpAddr::V4(node_address));
    node.set_route(&Route { interface: Some(veth), source, ..Route::to(host(address)) })?;
    node.wait_running(veth, CARRIER)?;
    inside.wait_running(eth0, CARRIER)
}

/// Lets processes of these groups (first and last, as the caller counts them) send ICMP echo requests.
///
/// # Errors
/// The groups are not of the caller's user namespace.
pub fn allow_ping(pod: &NetNs, (first, last): (u32, u32)) -> io::Result<()> {
    pod.run(|| write_sysctl("ipv4/ping_group_range", &format!("{first} {last}")))
}

/// Removes a Pod's interface from the node's namespace (the calling thread's); none is not an error.
///
/// # Errors
/// The kernel refuses.
pub fn disconnect_pod(address: Ipv4Addr) -> io::Result<()> {
    let mut node = Rtnl::open()?;
    match node.link_index(&veth_name(address)) {
        Ok(index) => node.delete_link(index),
        Err(_) => Ok(()),
    }
}

fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x4d, a, b, c, d]
}

fn host(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::V4(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_used_again_last() {
        let mut pool = Pool::new("10.244.1.0/29".parse().unwrap());
        let ip = |last| Ipv4Addr::new(10, 244, 1, last);
        assert_eq!(pool.take("a", None), Some(ip(2)));
        assert_eq!(pool.take("b", Some(ip(4))), Some(ip(4)));
        assert_eq!(pool.take("c", Some(ip(4))), Some(ip(3)));
        assert_eq!(pool.take("d", Some(Ipv4Addr::new(10, 9, 9, 9))), Some(ip(5)));
        pool.give_back(ip(2));
        assert_eq!(pool.take("e", None), Some(ip(6)));
        assert_eq!(pool.take("f", None), Some(ip(2)));
        assert_eq!(pool.take("g", None), None);
    }
}
