// SPDX-License-Identifier: Apache-2.0
//! Interfaces, addresses, neighbours, routes and rules of a network namespace, by rtnetlink; and its sysctls.
//!
//! A [`Rtnl`] belongs to the namespace of the thread that opened it; [`crate::netns::NetNs::rtnl`] opens one in another.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::netlink::{Buffer, F_ACK, F_CREATE, F_EXCL, F_REPLACE, F_ROOT_MATCH, Socket};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNEIGH: u16 = 28;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const NEXT_HOP_ONLINK: u32 = 4;
const TABLE_MAIN: u32 = 254;

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethEnd {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// What kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// To a neighbour or a gateway.
    Unicast,
    /// Delivered to this host.
    Local,
    /// Refused with "host unreachable".
    Unreachable,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// What kind.
    pub kind: RouteKind,
    /// By which interface (its index).
    pub interface: Option<u32>,
    /// By which gateway.
    pub gateway: Option<IpAddr>,
    /// The gateway is reachable by the interface although no route says so.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Table; the main one if not given.
    pub table: Option<u32>,
}

impl Route {
    /// A plain route to this destination in the main table.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            interface: None,
            gateway: None,
            onlink: false,
            source: None,
            table: None,
        }
    }
}

/// A policy-routing rule: packets with a mark are looked up in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// For IPv6.
    pub ipv6: bool,
    /// Order among rules.
    pub priority: u32,
    /// The mark.
    pub mark: u32,
    /// Its mask.
    pub mask: u32,
    /// The table.
    pub table: u32,
}

/// A routing socket of one network namespace.
#[derive(Debug)]
pub struct Rtnl(Socket);

impl Rtnl {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(libc::NETLINK_ROUTE)?))
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// No such interface.
    pub fn link_index(&mut self, name: &str) -> io::Result<u32> {
        let mut b = Buffer::default();
        b.begin(GETLINK, F_ACK, &ifinfo(0, 0, 0));
        b.text(libc::IFLA_IFNAME, name);
        b.end();
        self.link_field(&b, 4)
    }

    /// Waits until an interface passes packets. The kernel notices the carrier of a new veth end in a work item of its own,
    /// up to a second after both ends were switched on, and until then drops what is sent there without an error: a
    /// connection's first packet is lost, and sent again only a second later.
    ///
    /// # Errors
    /// No such interface; `TimedOut` when it does not run after `limit`.
    pub fn wait_running(&mut self, index: u32, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let mut b = Buffer::default();
            b.begin(GETLINK, F_ACK, &ifinfo(index, 0, 0));
            b.end();
            if self.link_field(&b, 8)? & IFF_RUNNING != 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the interface has no carrier"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A number of the answer's `ifinfomsg`, by its offset (rtnetlink(7)).
    fn link_field(&mut self, request: &Buffer, offset: usize) -> io::Result<u32> {
        let answers = self.0.request(request)?;
        let body = answers.iter().find(|a| a.kind == NEWLINK).map(|a| a.body.as_slice());
        let field = body.and_then(|b| b.get(offset..offset + 4)).and_then(|b| <[u8; 4]>::try_from(b).ok());
        field.map(u32::from_ne_bytes).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Makes a veth pair: `here` in this namespace, `there` in another.
    ///
    /// # Errors
    /// A name is taken, or no right over either namespace.
    pub fn add_veth(&mut self, here: &VethEnd, there: &VethEnd, other: &impl AsFd) -> io::Result<()> {
        let mut b = Buffer::default();
        b.begin(NEWLINK, F_ACK | F_CREATE | F_EXCL, &ifinfo(0, 0, 0));
        b.text(libc::IFLA_IFNAME, &here.name);
        b.attr(libc::IFLA_ADDRESS, &here.mac);
        b.nest(libc::IFLA_LINKINFO, |b| {
            b.text(1, "veth");
            b.nest(2, |b| {
                b.nest(1, |b| {
                    b.raw(&ifinfo(0, 0, 0));
                    b.text(libc::IFLA_IFNAME, &there.name);
                    b.attr(libc::IFLA_ADDRESS, &there.mac);
                    let fd = u32::try_from(other.as_fd().as_raw_fd()).expect("descriptors are not negative");
                    b.ne32(libc::IFLA_NET_NS_FD, fd);
                });
            });
        });
        self.send(b)
    }

    /// Removes an interface (and the other end of its pair).
    ///
    /// # Errors
    /// No such interface.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut b = Buffer::default();
        b.begin(DELLINK, F_ACK, &ifinfo(index, 0, 0));
        self.send(b)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// No such interface.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut b = Buffer::default();
        b.begin(NEWLINK, F_ACK, &ifinfo(index, IFF_UP, IFF_UP));
        self.send(b)
    }

    /// Gives an interface an address; one that is there already is kept.
    ///
    /// # Errors
    /// No such interface.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut b = Buffer::default();
        let mut header = vec![family(address.addr()), address.prefix_len(), 0, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        b.begin(NEWADDR, F_ACK | F_CREATE | F_REPLACE, &header);
        let bytes = octets(address.addr());
        b.attr(libc::IFA_LOCAL, &bytes);
        b.attr(libc::IFA_ADDRESS, &bytes);
        if address.addr().is_ipv6() {
            b.ne32(libc::IFA_FLAGS, libc::IFA_F_NODAD);
        }
        self.send(b)
    }

    /// A neighbour's hardware address, for ever.
    ///
    /// # Errors
    /// No such interface.
    pub fn set_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut b = Buffer::default();
        let mut header = vec![family(address), 0, 0, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        header.extend_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        header.extend_from_slice(&[0, 0]);
        b.begin(NEWNEIGH, F_ACK | F_CREATE | F_REPLACE, &header);
        b.attr(libc::NDA_DST, &octets(address));
        b.attr(libc::NDA_LLADDR, &mac);
        self.send(b)
    }

    /// Adds a route, taking the place of one to the same destination.
    ///
    /// # Errors
    /// The gateway cannot be reached, or no such interface.
    pub fn set_route(&mut self, route: &Route) -> io::Result<()> {
        self.route(NEWROUTE, F_ACK | F_CREATE | F_REPLACE, route)
    }

    /// Removes a route; one that is not there is not an error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        ignore(self.route(DELROUTE, F_ACK, route), &[libc::ESRCH, libc::ENOENT, libc::ENODEV])
    }

    fn route(&mut self, message: u16, flags: u16, route: &Route) -> io::Result<()> {
        let (kind, scope) = match (route.kind, route.gateway) {
            (RouteKind::Local, _) => (libc::RTN_LOCAL, libc::RT_SCOPE_HOST),
            (RouteKind::Unreachable, _) => (libc::RTN_UNREACHABLE, libc::RT_SCOPE_UNIVERSE),
            (RouteKind::Unicast, Some(_)) => (libc::RTN_UNICAST, libc::RT_SCOPE_UNIVERSE),
            (RouteKind::Unicast, None) => (libc::RTN_UNICAST, libc::RT_SCOPE_LINK),
        };
        let table = route.table.unwrap_or(TABLE_MAIN);
        let small = u8::try_from(table).unwrap_or(0);
        let target = route.destination;
        let mut header =
            vec![family(target.addr()), target.prefix_len(), 0, 0, small, libc::RTPROT_STATIC, scope, kind];
        let flag = if route.onlink { NEXT_HOP_ONLINK } else { 0 };
        header.extend_from_slice(&flag.to_ne_bytes());
        let mut b = Buffer::default();
        b.begin(message, flags, &header);
        b.attr(libc::RTA_DST, &octets(target.network()));
        b.ne32(libc::RTA_TABLE, table);
        if let Some(index) = route.interface {
            b.ne32(libc::RTA_OIF, index);
        }
        if let Some(gateway) = route.gateway {
            b.attr(libc::RTA_GATEWAY, &octets(gateway));
        }
        if let Some(source) = route.source {
            b.attr(libc::RTA_PREFSRC, &octets(source));
        }
        self.send(b)
    }

    /// Adds a rule; one that is there already is kept.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_rule(&mut self, rule: MarkRule) -> io::Result<()> {
        ignore(self.rule(NEWRULE, F_ACK | F_CREATE | F_EXCL, rule), &[libc::EEXIST])
    }

    /// Removes a rule; one that is not there is not an error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_rule(&mut self, rule: MarkRule) -> io::Result<()> {
        ignore(self.rule(DELRULE, F_ACK, rule), &[libc::ENOENT])
    }

    fn rule(&mut self, message: u16, flags: u16, rule: MarkRule) -> io::Result<()> {
        let family = if rule.ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        let family = u8::try_from(family).expect("a family is a byte");
        let small = u8::try_from(rule.table).unwrap_or(0);
        // family, dst_len, src_len, tos, table, two reserved bytes, action FR_ACT_TO_TBL, flags.
        let header = [family, 0, 0, 0, small, 0, 0, 1, 0, 0, 0, 0];
        let mut b = Buffer::default();
        b.begin(message, flags, &header);
        b.ne32(6, rule.priority);
        b.ne32(10, rule.mark);
        b.ne32(16, rule.mask);
        b.ne32(15, rule.table);
        self.send(b)
    }

    /// The names of all interfaces with their indices.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn links(&mut self) -> io::Result<Vec<(u32, String)>> {
        let mut b = Buffer::default();
        b.begin(GETLINK, F_ROOT_MATCH, &ifinfo(0, 0, 0));
        b.end();
        let answers = self.0.request(&b)?;
        Ok(answers.iter().filter(|a| a.kind == NEWLINK).filter_map(|a| link_of(&a.body)).collect())
    }

    fn send(&mut self, mut b: Buffer) -> io::Result<()> {
        b.end();
        self.0.request(&b).map(drop)
    }
}

/// Where `/proc` is: in a container `/proc/sys` is read-only, and one that may change it has the node's at another place.
const PROC: [&str; 2] = ["/proc", "/host/proc"];

/// Writes a network sysctl (`ipv4/ip_forward`) of the calling thread's namespace. What is there already is not written.
///
/// # Errors
/// No such sysctl, or `/proc/sys` is read-only and the node's is not there either.
pub fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    if read_sysctl(name).is_ok_and(|now| now == value) {
        return Ok(());
    }
    let write = |proc: &str| {
        let path = format!("{proc}/sys/net/{name}");
        std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
    };
    match write(PROC[0]) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => write(PROC[1]).map_err(|_| error),
        other => other,
    }
}

/// Reads a network sysctl of the calling thread's namespace, without the line's end.
///
/// # Errors
/// No such sysctl.
pub fn read_sysctl(name: &str) -> io::Result<String> {
    let path = format!("{}/sys/net/{name}", PROC[0]);
    let text =
        std::fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
    Ok(text.trim_end().to_owned())
}

fn link_of(body: &[u8]) -> Option<(u32, String)> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let mut rest = body.get(16..)?;
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if u16::from_ne_bytes([head[2], head[3]]) == libc::IFLA_IFNAME {
            let name = rest.get(4..length)?.split(|b| *b == 0).next()?;
            return Some((index, String::from_utf8_lossy(name).into_owned()));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("a family is a byte")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ignore(result: io::Result<()>, harmless: &[i32]) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error().is_some_and(|n| harmless.contains(&n)) => Ok(()),
        other => other,
    }
}
