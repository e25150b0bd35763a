// SPDX-License-Identifier: Apache-2.0
//! Tables into the kernel's messages (`linux/netfilter/nf_tables.h`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Action, Base, Chain, Family, Hook, Is, Kind, L4, Match, Rule, Table};
use crate::netlink::{Buffer, F_ACK, F_APPEND, F_CREATE};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const GETTABLE: u16 = NEWTABLE | 1;
const DELTABLE: u16 = NEWTABLE | 2;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
pub(super) const NEWGEN: u16 = NEWTABLE | 15;
const GETGEN: u16 = NEWTABLE | 16;
const REG: u32 = 1;
/// A second register, 16 bytes on.
const REG_PORT: u32 = 2;
const VERDICT_REG: u32 = 0;

/// A transaction, and what each of its messages is about.
pub(super) struct Batch {
    buffer: Buffer,
    about: Vec<String>,
}

impl Batch {
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_bytes()
    }

    pub(super) fn describe(&self, seq: u32) -> &str {
        let index = usize::try_from(seq).unwrap_or(0).saturating_sub(1);
        self.about.get(index).map_or("nf_tables", String::as_str)
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, about: String, fill: impl FnOnce(&mut Buffer)) {
        self.buffer.begin(kind, flags, &[family, 0, 0, 0]);
        fill(&mut self.buffer);
        self.buffer.end();
        self.about.push(about);
    }

    fn border(&mut self, kind: u16) {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.buffer.begin(kind, 0, &[0, 0, high, low]);
        self.buffer.end();
        self.about.push("nf_tables batch".to_owned());
    }
}

pub(super) fn batch(tables: &[Table], remove: &[(Family, &str)]) -> Batch {
    let mut batch = Batch { buffer: Buffer::default(), about: Vec::new() };
    batch.border(BATCH_BEGIN);
    for (family, name) in tables.iter().map(|t| (t.family, t.name.as_str())).chain(remove.iter().copied()) {
        // Deleting what is not there is an error; after an "add" it is there.
        for (kind, flags) in [(NEWTABLE, F_CREATE), (DELTABLE, 0)] {
            batch.message(kind, flags, number(family), format!("table {name}"), |b| b.text(1, name));
        }
    }
    for table in tables {
        let (family, name) = (number(table.family), table.name.as_str());
        batch.message(NEWTABLE, F_CREATE, family, format!("table {name}"), |b| b.text(1, name));
        for chain in &table.chains {
            let about = format!("table {name} chain {}", chain.name);
            batch.message(NEWCHAIN, F_CREATE, family, about, |b| new_chain(b, name, chain));
        }
        for chain in &table.chains {
            for (index, rule) in chain.rules.iter().enumerate() {
                let about = format!("table {name} chain {} rule {}", chain.name, index + 1);
                batch.message(NEWRULE, F_CREATE | F_APPEND, family, about, |b| {
                    b.text(1, name);
                    b.text(2, &chain.name);
                    b.nest(4, |b| expressions(b, table.family, rule));
                });
            }
        }
    }
    batch.border(BATCH_END);
    batch
}

pub(super) fn get_table(family: Family, name: &str) -> Buffer {
    let mut buffer = Buffer::default();
    buffer.begin(GETTABLE, F_ACK, &[number(family), 0, 0, 0]);
    buffer.text(1, name);
    buffer.end();
    buffer
}

/// Asks for the generation of a namespace's rules.
pub(super) fn get_generation() -> Buffer {
    let mut buffer = Buffer::default();
    buffer.begin(GETGEN, F_ACK, &[0, 0, 0, 0]);
    buffer.end();
    buffer
}

fn number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

fn new_chain(b: &mut Buffer, table: &str, chain: &Chain) {
    b.text(1, table);
    b.text(3, &chain.name);
    let Some(Base { kind, hook, priority }) = chain.base else { return };
    b.nest(4, |b| {
        b.be32(
            1,
            match hook {
                Hook::Prerouting => 0,
                Hook::Input => 1,
                Hook::Forward => 2,
                Hook::Output => 3,
                Hook::Postrouting => 4,
            },
        );
        b.attr(2, &priority.to_be_bytes());
    });
    b.text(
        7,
        match kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
            Kind::Route => "route",
        },
    );
}

fn expressions(b: &mut Buffer, family: Family, rule: &Rule) {
    for condition in &rule.matches {
        matching(b, family, condition);
    }
    let protocol = rule.matches.iter().find_map(|m| match m {
        Match::Protocol(l4) => Some(*l4),
        _ => None,
    });
    for action in &rule.actions {
        doing(b, family, protocol, action);
    }
}

fn expression(b: &mut Buffer, name: &str, fill: impl FnOnce(&mut Buffer)) {
    b.nest(1, |b| {
        b.text(1, name);
        b.nest(2, fill);
    });
}

fn value(b: &mut Buffer, kind: u16, bytes: &[u8]) {
    b.nest(kind, |b| b.attr(1, bytes));
}

fn load_meta(b: &mut Buffer, key: u32) {
    expression(b, "meta", |b| {
        b.be32(1, REG);
        b.be32(2, key);
    });
}

fn load_ct(b: &mut Buffer, key: u32) {
    expression(b, "ct", |b| {
        b.be32(1, REG);
        b.be32(2, key);
    });
}

fn load_payload(b: &mut Buffer, base: u32, offset: u32, length: u32) {
    expression(b, "payload", |b| {
        b.be32(1, REG);
        b.be32(2, base);
        b.be32(3, offset);
        b.be32(4, length);
    });
}

fn compare(b: &mut Buffer, is: Is, bytes: &[u8]) {
    expression(b, "cmp", |b| {
        b.be32(1, REG);
        b.be32(2, if is == Is::Equal { 0 } else { 1 });
        value(b, 3, bytes);
    });
}

fn bitwise(b: &mut Buffer, and: &[u8], xor: &[u8]) {
    expression(b, "bitwise", |b| {
        b.be32(1, REG);
        b.be32(2, REG);
        b.be32(3, u32::try_from(and.len()).expect("a register is small"));
        value(b, 4, and);
        value(b, 5, xor);
    });
}

fn immediate(b: &mut Buffer, register: u32, bytes: &[u8]) {
    expression(b, "immediate", |b| {
        b.be32(1, register);
        value(b, 2, bytes);
    });
}

fn verdict(b: &mut Buffer, code: i32, chain: Option<&str>) {
    expression(b, "immediate", |b| {
        b.be32(1, VERDICT_REG);
        b.nest(2, |b| {
            b.nest(2, |b| {
                b.attr(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    b.text(2, chain);
                }
            });
        });
    });
}

fn matching(b: &mut Buffer, family: Family, condition: &Match) {
    let masked = |b: &mut Buffer, mask: u32, value: u32, is| {
        bitwise(b, &mask.to_ne_bytes(), &[0; 4]);
        compare(b, is, &value.to_ne_bytes());
    };
    match condition {
        Match::Mark { mask, value, is } => {
            load_meta(b, 3);
            masked(b, *mask, *value, *is);
        }
        Match::CtMark { mask, value, is } => {
            load_ct(b, 3);
            masked(b, *mask, *value, *is);
        }
        Match::Protocol(l4) => {
            load_meta(b, 16);
            compare(b, Is::Equal, &[if *l4 == L4::Tcp { 6 } else { 17 }]);
        }
        Match::TcpSyn => {
            load_payload(b, 2, 13, 1);
            bitwise(b, &[0x17], &[0]);
            compare(b, Is::Equal, &[0x02]);
        }
        Match::NotTcpReset => {
            load_payload(b, 2, 13, 1);
            bitwise(b, &[0x04], &[0]);
            compare(b, Is::Equal, &[0]);
        }
        Match::Source(net, is) => address(b, family, *net, *is, true),
        Match::Destination(net, is) => address(b, family, *net, *is, false),
        Match::SourcePort(port, is) => at_port(b, 0, *port, *is),
        Match::DestinationPort(port, is) => at_port(b, 2, *port, *is),
        Match::InInterface(name, is) => interface(b, 6, name, *is),
        Match::OutInterface(name, is) => interface(b, 7, name, *is),
        Match::SocketUser(user) => {
            load_meta(b, 10);
            compare(b, Is::Equal, &user.to_ne_bytes());
        }
        Match::OneIn(modulus) => {
            expression(b, "numgen", |b| {
                b.be32(1, REG);
                b.be32(2, (*modulus).max(1));
                b.be32(3, 1);
            });
            compare(b, Is::Equal, &0u32.to_ne_bytes());
        }
        Match::SourceHash { modulus, value } => {
            let (offset, length) = if family == Family::Ip6 { (8, 16) } else { (12, 4) };
            load_payload(b, 1, offset, length);
            expression(b, "hash", |b| {
                b.be32(1, REG);
                b.be32(2, REG);
                b.be32(3, length);
                b.be32(4, (*modulus).max(1));
                b.be32(5, 1);
                b.be32(7, 0);
            });
            compare(b, Is::Equal, &value.to_ne_bytes());
        }
    }
}

fn at_port(b: &mut Buffer, offset: u32, port: u16, is: Is) {
    load_payload(b, 2, offset, 2);
    compare(b, is, &port.to_be_bytes());
}

fn interface(b: &mut Buffer, key: u32, name: &str, is: Is) {
    load_meta(b, key);
    let (mut bytes, length) = ([0; 16], name.len().min(15));
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    compare(b, is, &bytes);
}

fn address(b: &mut Buffer, family: Family, net: IpNet, is: Is, source: bool) {
    if family == Family::Inet {
        load_meta(b, 15);
        compare(b, Is::Equal, &[if net.addr().is_ipv4() { 2 } else { 10 }]);
    }
    let (bytes, mask) = (octets(net.network()), octets(net.netmask()));
    let length = u32::try_from(bytes.len()).expect("an address is small");
    let offset = match (net.addr().is_ipv4(), source) {
        (true, true) => 12,
        (true, false) => 16,
        (false, true) => 8,
        (false, false) => 24,
    };
    load_payload(b, 1, offset, length);
    if net.prefix_len() != net.max_prefix_len() {
        bitwise(b, &mask, &vec![0; bytes.len()]);
    }
    compare(b, is, &bytes);
}

fn doing(b: &mut Buffer, family: Family, protocol: Option<L4>, action: &Action) {
    match action {
        Action::Counter => expression(b, "counter", |_| {}),
        Action::Accept => verdict(b, 1, None),
        Action::Drop => verdict(b, 0, None),
        Action::Return => verdict(b, -5, None),
        Action::Jump(chain) => verdict(b, -3, Some(chain)),
        Action::Refuse => refuse(b, family, protocol),
        Action::Redirect(port) => {
            immediate(b, REG, &port.to_be_bytes());
            expression(b, "redir", |b| {
                b.be32(1, REG);
                b.be32(3, 2);
            });
        }
        Action::Dnat(to) => dnat(b, *to),
        Action::Snat(to) => {
            immediate(b, REG, &octets(*to));
            expression(b, "nat", |b| {
                b.be32(1, 0);
                b.be32(2, if to.is_ipv4() { 2 } else { 10 });
                b.be32(3, REG);
            });
        }
        Action::Masquerade => expression(b, "masq", |_| {}),
        Action::SetCtMark { mask, value } => {
            load_ct(b, 3);
            bitwise(b, &(!mask).to_ne_bytes(), &value.to_ne_bytes());
            expression(b, "ct", |b| {
                b.be32(2, 3);
                b.be32(4, REG);
            });
        }
        Action::MarkFromCt => {
            load_ct(b, 3);
            expression(b, "meta", |b| {
                b.be32(2, 3);
                b.be32(3, REG);
            });
        }
        Action::SetCtZone(zone) => {
            immediate(b, REG, &zone.to_ne_bytes());
            expression(b, "ct", |b| {
                b.be32(2, 17);
                b.be32(4, REG);
            });
        }
        Action::NoTrack => expression(b, "notrack", |_| {}),
    }
}

fn refuse(b: &mut Buffer, family: Family, protocol: Option<L4>) {
    // TCP reset; else "port unreachable": of the family, or the abstract one that fits both.
    let (kind, code) = match (protocol, family) {
        (Some(L4::Tcp), _) => (1, 0),
        (_, Family::Ip) => (0, 3),
        (_, Family::Ip6) => (0, 4),
        (_, Family::Inet) => (2, 1),
    };
    expression(b, "reject", |b| {
        b.be32(1, kind);
        b.attr(2, &[code]);
    });
}

fn dnat(b: &mut Buffer, to: SocketAddr) {
    immediate(b, REG, &octets(to.ip()));
    immediate(b, REG_PORT, &to.port().to_be_bytes());
    expression(b, "nat", |b| {
        b.be32(1, 1);
        b.be32(2, if to.is_ipv4() { 2 } else { 10 });
        b.be32(3, REG);
        b.be32(5, REG_PORT);
    });
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
