// SPDX-License-Identifier: Apache-2.0
//! The plan: which rules, as values.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_linux::nft::{Action, Base, Chain, Family, Hook, Is, Kind, L4, Match, Rule, Table};
use meltemi_linux::rtnl::{MarkRule, Route, RouteKind};

use crate::{
    DNS_PORT, INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, LISTENER_MARK, MARK_MASK, OUTBOUND_PORT,
    PROBE_SOURCE_V4, PROBE_SOURCE_V6, PROXY_MARK, RETURN_MARK, RETURN_RULE_PRIORITY, RETURN_TABLE,
};

/// The names of our tables; whoever lists the rules of a Pod sees whose they are.
pub(crate) const TABLES: [(Family, &str); 4] = [
    (Family::Inet, "istio-ambient-raw"),
    (Family::Inet, "istio-ambient-mangle"),
    (Family::Inet, "istio-ambient-nat"),
    (Family::Inet, "meltemi-proxy-ports"),
];

/// Before connection tracking and before `mangle`, so that a packet's mark is still that of its socket.
const PRIORITY_PORTS: i32 = -310;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_DNAT: i32 = -100;
const DNS_ZONE: u16 = 1;

/// What a Pod may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its DNS queries are answered by the proxy (`ambient.istio.io/dns-capture`).
    pub dns_capture: bool,
    /// What comes in is left alone (`ambient.istio.io/bypass-inbound-capture`): for gateways.
    pub bypass_inbound: bool,
    /// Its IPv6 traffic is captured too.
    pub ipv6: bool,
    /// Health probes come from the node under [`PROBE_SOURCE_V4`] or [`PROBE_SOURCE_V6`], and pass: on Kubernetes. Where
    /// probes are dialled from inside the Pod's namespace, no address of the network is excepted.
    pub node_probes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { dns_capture: true, bypass_inbound: false, ipv6: true, node_probes: true }
    }
}

/// What has to be in a Pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// nf_tables.
    pub tables: Vec<Table>,
    /// Routing rules.
    pub rules: Vec<MarkRule>,
    /// Routes by the loopback interface; [`Route::interface`] is filled in when applied.
    pub routes: Vec<Route>,
}

impl Plan {
    /// The plan for a Pod with these options.
    pub fn for_pod(options: &Options) -> Self {
        let mut nets = vec!["0.0.0.0/0".parse::<IpNet>().expect("a network")];
        if options.ipv6 {
            nets.push("::/0".parse().expect("a network"));
        }
        let rules = nets.iter().map(|net| MarkRule {
            ipv6: net.addr().is_ipv6(),
            priority: RETURN_RULE_PRIORITY,
            mark: RETURN_MARK,
            mask: MARK_MASK,
            table: RETURN_TABLE,
        });
        let routes = nets.iter().map(|net| Route {
            kind: RouteKind::Local,
            table: Some(RETURN_TABLE),
            ..Route::to(*net)
        });
        let mut tables = Vec::new();
        if options.dns_capture {
            tables.push(raw());
        }
        tables.push(mangle());
        tables.push(nat(inbound(options), outbound(options)));
        tables.push(proxy_ports());
        Self { tables, rules: rules.collect(), routes: routes.collect() }
    }

    /// The plan for a Pod that leaves the mesh: no new connection is captured, and those that the proxy carries go on. The
    /// chains of `nat` stay, though empty: without any, the kernel would stop translating the open connections.
    pub fn leaving(options: &Options) -> Self {
        let mut plan = Self::for_pod(options);
        for table in plan.tables.iter_mut().filter(|table| table.name == TABLES[2].1) {
            *table = nat(Vec::new(), Vec::new());
        }
        plan
    }
}

fn table(name: &str, chains: Vec<Chain>) -> Table {
    Table { family: Family::Inet, name: name.to_owned(), chains }
}

fn chain(name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules }
}

fn mark(value: u32, is: Is) -> Match {
    Match::Mark { mask: MARK_MASK, value, is }
}

fn host(address: impl Into<IpAddr>) -> IpNet {
    IpNet::from(address.into())
}

fn tcp() -> Rule {
    Rule::new().when(Match::Protocol(L4::Tcp))
}

/// The beginning of a connection. Where nothing was tracked before, the kernel takes the next packet of an open
/// connection for a new one; only a SYN is one.
fn tcp_opening() -> Rule {
    tcp().when(Match::TcpSyn)
}

fn udp() -> Rule {
    Rule::new().when(Match::Protocol(L4::Udp))
}

/// DNS over UDP is tracked in a zone of its own: the proxy's own queries have the same addresses and ports as
/// the redirected ones.
fn raw() -> Table {
    let zone = Action::SetCtZone(DNS_ZONE);
    let output = vec![
        udp()
            .when(mark(PROXY_MARK, Is::Equal))
            .when(Match::DestinationPort(53, Is::Equal))
            .then(zone.clone()),
        udp()
            .when(Match::SourcePort(DNS_PORT, Is::Equal))
            .when(mark(PROXY_MARK, Is::Equal))
            .then(Action::Accept),
    ];
    let prerouting = vec![
        udp()
            .when(Match::InInterface("lo".to_owned(), Is::Not))
            .when(Match::SourcePort(53, Is::Equal))
            .then(zone),
    ];
    table(
        TABLES[0].1,
        vec![
            chain("output", Kind::Filter, Hook::Output, PRIORITY_RAW, output),
            chain("prerouting", Kind::Filter, Hook::Prerouting, PRIORITY_RAW, prerouting),
        ],
    )
}

/// Connections that the proxy opens under another's address are marked, and so are their answers: the routing
/// rule then delivers them to the proxy, not to the address's owner.
fn mangle() -> Table {
    let prerouting = Rule::new()
        .when(mark(PROXY_MARK, Is::Equal))
        .then(Action::SetCtMark { mask: MARK_MASK, value: RETURN_MARK });
    let output = Rule::new()
        .when(Match::CtMark { mask: MARK_MASK, value: RETURN_MARK, is: Is::Equal })
        .then(Action::MarkFromCt);
    table(
        TABLES[1].1,
        vec![
            chain("prerouting", Kind::Filter, Hook::Prerouting, PRIORITY_MANGLE, vec![prerouting]),
            chain("output", Kind::Route, Hook::Output, PRIORITY_MANGLE, vec![output]),
        ],
    )
}

fn nat(inbound: Vec<Rule>, outbound: Vec<Rule>) -> Table {
    table(
        TABLES[2].1,
        vec![
            chain("prerouting", Kind::Nat, Hook::Prerouting, PRIORITY_DNAT, inbound),
            chain("output", Kind::Nat, Hook::Output, PRIORITY_DNAT, outbound),
        ],
    )
}

/// Whatever else listens on a port of the proxy answers nobody. The packets of an accepted connection carry the mark of the
/// listening socket, and an application cannot set one: that takes `CAP_NET_ADMIN` over the Pod's network. So a port that the
/// application takes while no proxy holds it, or shares with the proxy by `SO_REUSEPORT`, is of no use to it. Resets pass: a
/// port without a listener refuses at once.
fn proxy_ports() -> Table {
    let unmarked = |rule: Rule| {
        let listener = Match::Mark { mask: LISTENER_MARK, value: LISTENER_MARK, is: Is::Not };
        rule.when(listener).when(mark(PROXY_MARK, Is::Not)).then(Action::Drop)
    };
    let ports = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, INBOUND_HBONE_PORT, DNS_PORT];
    let answers = ports
        .iter()
        .map(|port| tcp().when(Match::SourcePort(*port, Is::Equal)).when(Match::NotTcpReset))
        .chain([udp().when(Match::SourcePort(DNS_PORT, Is::Equal))]);
    let output = answers.map(unmarked).collect();
    table(TABLES[3].1, vec![chain("output", Kind::Filter, Hook::Output, PRIORITY_PORTS, output)])
}

fn families(options: &Options) -> &'static [bool] {
    if options.ipv6 { &[false, true] } else { &[false] }
}

/// The source of probes.
fn probe(v6: bool) -> IpNet {
    if v6 { host(PROBE_SOURCE_V6) } else { host(PROBE_SOURCE_V4) }
}

fn not_loopback(rule: Rule, v6: bool) -> Rule {
    let loopback = if v6 { host(std::net::Ipv6Addr::LOCALHOST) } else { host(std::net::Ipv4Addr::LOCALHOST) };
    rule.when(Match::Destination(loopback, Is::Not))
}

/// What comes in: tunnels arrive at their own port, everything else at the plaintext port; probes of the node pass.
fn inbound(options: &Options) -> Vec<Rule> {
    let families = families(options);
    let probes = families.iter().filter(|_| options.node_probes);
    let probes = probes.map(|v6| tcp().when(Match::Source(probe(*v6), Is::Equal)).then(Action::Accept));
    let captured = families.iter().filter(|_| !options.bypass_inbound).map(|v6| {
        not_loopback(tcp_opening(), *v6)
            .when(Match::DestinationPort(INBOUND_HBONE_PORT, Is::Not))
            .when(mark(PROXY_MARK, Is::Not))
            .then(Action::Redirect(INBOUND_PLAINTEXT_PORT))
    });
    probes.chain(captured).collect()
}

/// What goes out: DNS to the DNS port, TCP to the outbound port; the proxy's own packets pass. The answers to a probe are no
/// new connections, so that no rule here has to let them out.
fn outbound(options: &Options) -> Vec<Rule> {
    let families = families(options);
    let foreign = mark(PROXY_MARK, Is::Not);
    let mut rules = Vec::new();
    if options.dns_capture {
        let query = udp().when(Match::OutInterface("lo".to_owned(), Is::Not)).when(foreign.clone());
        rules.push(query.when(Match::DestinationPort(53, Is::Equal)).then(Action::Redirect(DNS_PORT)));
        rules.extend(families.iter().map(|v6| {
            not_loopback(tcp_opening(), *v6)
                .when(Match::DestinationPort(53, Is::Equal))
                .when(foreign.clone())
                .then(Action::Redirect(DNS_PORT))
        }));
    }
    rules.push(tcp().when(mark(RETURN_MARK, Is::Equal)).then(Action::Accept));
    let loopback = Rule::new().when(Match::OutInterface("lo".to_owned(), Is::Equal));
    rules.extend(families.iter().map(|v6| not_loopback(loopback.clone(), *v6).then(Action::Accept)));
    rules.extend(families.iter().map(|v6| {
        not_loopback(tcp_opening(), *v6).when(foreign.clone()).then(Action::Redirect(OUTBOUND_PORT))
    }));
    rules
}
