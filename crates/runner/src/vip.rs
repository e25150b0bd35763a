// SPDX-License-Identifier: Apache-2.0
//! Addresses of Services for whoever is not enrolled: rules in the node's namespace that lead to a ready endpoint.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use meltemi_linux::nft::{Action, Base, Chain, Family, Hook, Is, Kind, L4, Match, Rule, Table as Rules};

use crate::services::{Known, Port, Table};

const NAME: &str = "meltemi-services";
const DNAT: i32 = -100;
const SNAT: i32 = 100;
const FILTER: i32 = 0;
/// The port of a proxy's admin endpoint.
const ADMIN_PORT: u16 = meltemi_model::net::ports::ADMIN;
/// The mark of the runner's own connections to it, under itself.
pub(crate) const ADMIN_MARK: u32 = 0x2000;

/// The rules for a view of the Services. Pure.
///
/// `held`: addresses that exist as such (the API, DNS) and are left alone.
pub(crate) fn rules(table: &Table, pods: Ipv4Net, service_range: Ipv4Net, held: &[Ipv4Addr]) -> Rules {
    let mut dispatch = Vec::new();
    let mut refused = Vec::new();
    let mut chains = Vec::new();
    let mut hairpins = Vec::new();
    for (index, (known, port, address)) in all(table, held).enumerate() {
        let condition = at(address, port);
        let targets = known.targets(port);
        if targets.is_empty() {
            refused.push(condition.then(Action::Refuse));
            continue;
        }
        let name = format!("s{index}");
        dispatch.push(condition.then(Action::Jump(name.clone())));
        chains.push(Chain { name, base: None, rules: balance(&targets, known.sticky) });
        hairpins.extend(
            targets.iter().map(SocketAddr::ip).filter(|ip| matches!(ip, IpAddr::V4(v4) if pods.contains(v4))),
        );
    }
    hairpins.sort();
    hairpins.dedup();
    refused.extend(no_service(service_range, held));
    let postrouting = hairpins
        .into_iter()
        .map(|ip| {
            let net = IpNet::from(ip);
            Rule::new()
                .when(Match::Source(net, Is::Equal))
                .when(Match::Destination(net, Is::Equal))
                .then(Action::Masquerade)
        })
        .collect();
    let base = |kind, hook, priority| Some(Base { kind, hook, priority });
    chains.push(Chain { name: "services".into(), base: None, rules: dispatch });
    chains.push(Chain { name: "refused".into(), base: None, rules: refused });
    let jump = |to: &str| vec![Rule::new().then(Action::Jump(to.into()))];
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        chains.push(Chain { name: name.into(), base: base(Kind::Nat, hook, DNAT), rules: jump("services") });
    }
    let local = [vec![admin_only()], jump("refused")].concat();
    for (name, hook, rules) in [("forward", Hook::Forward, jump("refused")), ("local", Hook::Output, local)] {
        chains.push(Chain { name: name.into(), base: base(Kind::Filter, hook, FILTER), rules });
    }
    chains.push(Chain {
        name: "postrouting".into(),
        base: base(Kind::Nat, Hook::Postrouting, SNAT),
        rules: postrouting,
    });
    Rules { family: Family::Ip, name: NAME.into(), chains }
}

/// What reaches no Service: said at once, instead of wandering through the network.
fn no_service(range: Ipv4Net, held: &[Ipv4Addr]) -> [Rule; 2] {
    let to_range = Rule::new().when(Match::Destination(IpNet::V4(range), Is::Equal));
    let to_range = held.iter().fold(to_range, |rule, ip| rule.when(Match::Destination(host(*ip), Is::Not)));
    [to_range.clone().when(Match::Protocol(L4::Tcp)).then(Action::Refuse), to_range.then(Action::Refuse)]
}

/// The admin endpoint of the node proxy is for the runner, which forwards ports and marks what it dials; other processes on
/// the node's network cannot set a mark. `/config_dump` shows the whole mesh, and `/logging` changes the proxy.
fn admin_only() -> Rule {
    Rule::new()
        .when(Match::Destination(loopback(), Is::Equal))
        .when(Match::Protocol(L4::Tcp))
        .when(Match::DestinationPort(ADMIN_PORT, Is::Equal))
        .when(Match::Mark { mask: ADMIN_MARK, value: ADMIN_MARK, is: Is::Not })
        .then(Action::Refuse)
}

/// 127.0.0.0/8
fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

/// Every Service's ports at every address that stands for it.
fn all<'a>(table: &'a Table, held: &'a [Ipv4Addr]) -> impl Iterator<Item = (&'a Known, &'a Port, Ipv4Addr)> {
    table.values().flat_map(move |known| {
        known
            .addresses
            .iter()
            .filter(|a| !held.contains(a))
            .flat_map(move |a| known.ports.iter().map(move |p| (known, p, *a)))
    })
}

fn host(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::V4(address))
}

fn at(address: Ipv4Addr, port: &Port) -> Rule {
    Rule::new()
        .when(Match::Destination(host(address), Is::Equal))
        .when(Match::Protocol(port.protocol))
        .when(Match::DestinationPort(port.number, Is::Equal))
}

/// One of the targets, each as likely: the first of n with 1/n, the next of those left with 1/(n-1), …
fn balance(targets: &[SocketAddr], sticky: bool) -> Vec<Rule> {
    let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    (0..count)
        .zip(targets)
        .map(|(i, target)| {
            let rule = Rule::new();
            let rule = match (i + 1 == count, sticky) {
                (true, _) => rule,
                (false, true) => rule.when(Match::SourceHash { modulus: count, value: i }),
                (false, false) => rule.when(Match::OneIn(count - i)),
            };
            rule.then(Action::Dnat(*target))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Endpoint;

    fn known(last: u8, ready: &[u8]) -> Known {
        let port = Port { name: "http".into(), number: 80, protocol: L4::Tcp };
        let endpoint = |ip: &u8| Endpoint {
            address: Ipv4Addr::new(10, 244, 1, *ip),
            hostname: None,
            ready: *ip < 100,
            ports: vec![("http".into(), L4::Tcp, 9080)],
        };
        Known {
            addresses: vec![Ipv4Addr::new(10, 96, 0, last)],
            ports: vec![port],
            endpoints: ready.iter().map(endpoint).collect(),
            ..Known::default()
        }
    }

    fn chain<'a>(rules: &'a Rules, name: &str) -> &'a Chain {
        rules.chains.iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn a_service_leads_to_its_ready_endpoints_or_is_refused() {
        let held = [Ipv4Addr::new(10, 96, 0, 1)];
        let table: Table = [("api", 1, &[9][..]), ("full", 5, &[2, 3, 100]), ("none", 6, &[100])]
            .map(|(name, ip, ready)| (("default".to_owned(), name.to_owned()), known(ip, ready)))
            .into();
        let rules = rules(&table, "10.244.1.0/24".parse().unwrap(), "10.96.0.0/16".parse().unwrap(), &held);
        assert_eq!(chain(&rules, "services").rules.len(), 1);
        let balanced = &chain(&rules, "s0").rules;
        assert_eq!(balanced.len(), 2);
        assert_eq!(balanced[0].matches, [Match::OneIn(2)]);
        assert_eq!(balanced[1].actions, [Action::Dnat("10.244.1.3:9080".parse().unwrap())]);
        let refused = &chain(&rules, "refused").rules;
        assert_eq!(refused.len(), 3);
        assert!(refused[0].matches.contains(&Match::Destination("10.96.0.6/32".parse().unwrap(), Is::Equal)));
        assert_eq!(chain(&rules, "postrouting").rules.len(), 2);
    }
}
