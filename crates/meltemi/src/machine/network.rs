// SPDX-License-Identifier: Apache-2.0
//! The private network of a mesh: the hub's namespace routes between the nodes' namespaces, and out to nowhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use meltemi_linux::netns::NetNs;
use meltemi_linux::rtnl::{self, Route, Rtnl, VethEnd};

/// How long a new link may take until it passes packets; the kernel needs a second at most where it is not busy.
const CARRIER: Duration = Duration::from_secs(10);
/// Address of the hub on the nodes' side.
const HUB: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Address of the API inside the mesh: the Service `kubernetes`.
pub const API: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// A node: its name, addresses and network namespace.
#[derive(Debug)]
pub struct Node {
    /// `node-1` and so on.
    pub name: String,
    /// Its address, 172.30.0.(10 + i).
    pub address: Ipv4Addr,
    /// Addresses of its Pods, 10.244.i.0/24.
    pub pod_cidr: Ipv4Net,
    /// Its network namespace.
    pub netns: NetNs,
}

/// The hub (the calling process's namespace) and its nodes; gone when the namespaces are.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Node>,
}

/// Interval between two looks at the network: what was taken away is back within this time.
pub const REPAIR_INTERVAL: Duration = Duration::from_secs(1);

impl Network {
    /// Builds the network around the calling process's namespace, which must be empty and its own.
    ///
    /// # Errors
    /// The kernel refuses a step; the message names it.
    pub fn build(nodes: u16) -> io::Result<Self> {
        let nodes = (1..=nodes).map(plan).collect::<io::Result<_>>()?;
        let network = Self { nodes };
        network.restore()?;
        Ok(network)
    }

    /// Makes what is missing of the hub's and the nodes' links, addresses, neighbours and routes: all of it at the start,
    /// later what somebody has taken away. What is as it should be stays untouched.
    ///
    /// # Errors
    /// The kernel refuses a step; the message names it.
    pub fn restore(&self) -> io::Result<()> {
        let mut hub = Rtnl::open()?;
        let lo = hub.link_index("lo")?;
        hub.set_up(lo)?;
        hub.add_address(lo, host(API))?;
        hub.add_address(lo, host(HUB))?;
        enable_forwarding()?;
        for (node, index) in self.nodes.iter().zip(1..) {
            connect(&mut hub, node, index)
                .map_err(|e| io::Error::new(e.kind(), format!("network of {}: {e}", node.name)))?;
        }
        Ok(())
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

fn plan(index: u16) -> io::Result<Node> {
    let small = u8::try_from(index).map_err(|_| io::Error::other("at most 200 nodes"))?;
    let pods = Ipv4Net::new(Ipv4Addr::new(10, 244, small, 0), 24).map_err(io::Error::other)?;
    Ok(Node {
        name: format!("node-{index}"),
        address: Ipv4Addr::new(172, 30, 0, 10 + small),
        pod_cidr: pods,
        netns: NetNs::create()?,
    })
}

/// A point-to-point veth: the hub knows the node's address and its Pods' behind it, the node everything behind the hub.
fn connect(hub: &mut Rtnl, node: &Node, index: u16) -> io::Result<()> {
    let [_, low] = index.to_be_bytes();
    let here = VethEnd { name: node.name.clone(), mac: [0x02, 0x4d, 0, 0, 1, low] };
    let there = VethEnd { name: "eth0".into(), mac: [0x02, 0x4d, 0, 0, 2, low] };
    if hub.link_index(&here.name).is_err() {
        hub.add_veth(&here, &there, &node.netns)?;
    }
    let outer = hub.link_index(&here.name)?;
    hub.set_up(outer)?;
    hub.set_neighbour(outer, IpAddr::V4(node.address), there.mac)?;
    hub.set_route(&Route {
        interface: Some(outer),
        source: Some(HUB.into()),
        ..Route::to(host(node.address))
    })?;
    let behind = Route::to(IpNet::V4(node.pod_cidr));
    let gateway = Some(IpAddr::V4(node.address));
    hub.set_route(&Route {
        interface: Some(outer),
        gateway,
        onlink: true,
        source: Some(HUB.into()),
        ..behind
    })?;

    let mut inner = node.netns.rtnl()?;
    let eth0 = inner.link_index("eth0")?;
    inner.add_address(eth0, host(node.address))?;
    inner.set_up(eth0)?;
    inner.set_neighbour(eth0, IpAddr::V4(HUB), here.mac)?;
    let gateway = Some(IpAddr::V4(HUB));
    let everything = IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).map_err(io::Error::other)?);
    inner.set_route(&Route { interface: Some(eth0), gateway, onlink: true, ..Route::to(everything) })?;
    hub.wait_running(outer, CARRIER)?;
    inner.wait_running(eth0, CARRIER)?;
    node.netns.run(enable_forwarding)
}

fn enable_forwarding() -> io::Result<()> {
    match rtnl::read_sysctl("ipv4/ip_forward")?.as_str() {
        "1" => Ok(()),
        _ => rtnl::write_sysctl("ipv4/ip_forward", "1"),
    }
}

fn host(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::V4(address))
}
