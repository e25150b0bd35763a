// SPDX-License-Identifier: Apache-2.0
//! nf_tables by netlink: tables as values, applied whole in one transaction.
//!
//! A [`Table`] is replaced as a whole: packets see the old rules or the new ones, never a mixture, and applying
//! the same value twice changes nothing. Only the expressions that this project's rules need are here.

mod encode;

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::netlink::{Socket, error, is_error};
use crate::netns::NetNs;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// A table with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its chains; a chain that others jump to may come anywhere.
    pub chains: Vec<Chain>,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; a chain without is only jumped to.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain; they are accepted at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: Kind,
    /// At which point of a packet's way.
    pub hook: Hook,
    /// In which order with others at the same point.
    pub priority: i32,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Change addresses of new connections.
    Nat,
    /// Accept, drop, mark.
    Filter,
    /// As filter, and a changed mark is routed anew.
    Route,
}

/// A point of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Just arrived.
    Prerouting,
    /// For this host.
    Input,
    /// For another host.
    Forward,
    /// From this host.
    Output,
    /// About to leave.
    Postrouting,
}

/// If everything matches, everything is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Done in order.
    pub actions: Vec<Action>,
}

/// Equal or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// Must be equal.
    Equal,
    /// Must not be equal.
    Not,
}

/// A layer 4 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet's mark, under a mask.
    Mark {
        /// Bits looked at.
        mask: u32,
        /// Their value.
        value: u32,
        /// Equal or not.
        is: Is,
    },
    /// The connection's mark, under a mask.
    CtMark {
        /// Bits looked at.
        mask: u32,
        /// Their value.
        value: u32,
        /// Equal or not.
        is: Is,
    },
    /// The protocol; has to come before a port.
    Protocol(L4),
    /// The first packet of a TCP connection: SYN alone among SYN, ACK, RST and FIN. Has to come after the protocol.
    TcpSyn,
    /// Any TCP packet but a reset. Has to come after the protocol.
    NotTcpReset,
    /// The source address.
    Source(IpNet, Is),
    /// The destination address.
    Destination(IpNet, Is),
    /// The source port.
    SourcePort(u16, Is),
    /// The destination port.
    DestinationPort(u16, Is),
    /// The name of the interface it came by.
    InInterface(String, Is),
    /// The name of the interface it leaves by.
    OutInterface(String, Is),
    /// The user that owns the socket of this host that sends it. What others send does not match.
    SocketUser(u32),
    /// A new random number below `modulus` is zero: one in `modulus`.
    OneIn(u32),
    /// A hash of the source address, below `modulus`, is this: the same for the same client.
    SourceHash {
        /// Number of values.
        modulus: u32,
        /// The one that matches.
        value: u32,
    },
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Counts it.
    Counter,
    /// Ends this hook's chain: the packet goes on.
    Accept,
    /// Ends the packet.
    Drop,
    /// Back to where the chain was jumped to.
    Return,
    /// On with another chain.
    Jump(String),
    /// Ends the packet and tells the sender: a reset for TCP, ICMP for others.
    Refuse,
    /// To this port of this host.
    Redirect(u16),
    /// To another destination.
    Dnat(SocketAddr),
    /// From another source.
    Snat(IpAddr),
    /// From the address of the interface it leaves by.
    Masquerade,
    /// Sets bits of the connection's mark: those in `mask` become `value`.
    SetCtMark {
        /// Bits changed.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// The packet's mark becomes the connection's.
    MarkFromCt,
    /// The zone in which the connection is tracked.
    SetCtZone(u16),
    /// The connection is not tracked.
    NoTrack,
}

impl Rule {
    /// A rule without conditions or actions.
    pub fn new() -> Self {
        Self::default()
    }

    /// With another condition.
    #[must_use]
    pub fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    /// With another action.
    #[must_use]
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }
}

/// Puts tables in place of those of the same names, and removes others, in one transaction.
///
/// # Errors
/// The kernel refuses: nothing has changed then. The message names the chain and rule.
pub fn replace(netns: &NetNs, tables: &[Table], remove: &[(Family, &str)]) -> io::Result<()> {
    netns.run(|| replace_here(tables, remove))
}

/// [`replace`] in the calling thread's network namespace.
///
/// # Errors
/// As [`replace`].
pub fn replace_here(tables: &[Table], remove: &[(Family, &str)]) -> io::Result<()> {
    let socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let batch = encode::batch(tables, remove);
    socket.send(batch.bytes())?;
    // The kernel has worked through the batch when the send returns; what it complains of is there to be read.
    loop {
        match socket.receive(true) {
            Ok(answers) => {
                for answer in answers.iter().filter(|a| is_error(a)) {
                    error(&answer.body).map_err(|e| {
                        io::Error::new(e.kind(), format!("{}: {e}", batch.describe(answer.seq)))
                    })?;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Whether a table of this name is there.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn table_exists(netns: &NetNs, family: Family, name: &str) -> io::Result<bool> {
    let socket = netns.run(|| Socket::open(libc::NETLINK_NETFILTER))?;
    match socket.request(&encode::get_table(family, name)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The generation of the rules of the calling thread's network namespace: a number that each change of any rule in it
/// changes, whoever makes it.
///
/// # Errors
/// The kernel refuses.
pub fn generation_here() -> io::Result<u32> {
    let socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let answers = socket.request(&encode::get_generation())?;
    // A header of four bytes, then the attribute NFTA_GEN_ID: length, type, number in network order.
    let id = |body: &[u8]| Some(u32::from_be_bytes(body.get(8..12)?.try_into().ok()?));
    answers
        .iter()
        .find(|answer| answer.kind == encode::NEWGEN)
        .and_then(|answer| id(&answer.body))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no generation in the answer of nf_tables"))
}
