// SPDX-License-Identifier: Apache-2.0
//! Classes of addresses and ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use meltemi_model::net::canonical_range;

/// Every way in which an address can be inside of ranges, each with an address that is; the first is the one to show.
pub(crate) fn addresses(ranges: &[IpNet]) -> Vec<(IpAddr, Vec<u32>)> {
    let ranges: Vec<IpNet> = ranges.iter().copied().map(canonical_range).collect();
    // Where membership may change: the first address of each range, and the one after its last.
    let mut starts: BTreeSet<IpAddr> =
        [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].into();
    for range in &ranges {
        starts.insert(range.network());
        starts.extend(after(range.broadcast()));
    }
    // Behind the IPv4 addresses in IPv6 clothes, which are skipped below.
    starts.insert(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 1, 0, 0, 0)));
    let mut classes: BTreeMap<Vec<u32>, IpAddr> = BTreeMap::new();
    for start in starts {
        // An IPv4 address in IPv6 clothes is judged as IPv4: it is no address of its own.
        if start.to_canonical() != start {
            continue;
        }
        let start = better(start, &ranges);
        classes.entry(inside(&ranges, start)).or_insert(start);
    }
    // Addresses that people know read better than the first one of all.
    for known in ["203.0.113.9", "192.0.2.1", "10.0.0.1"] {
        let Ok(known) = known.parse() else { continue };
        if let Some(shown) =
            classes.get_mut(&inside(&ranges, known)).filter(|_| inside(&ranges, known).is_empty())
        {
            *shown = known;
        }
    }
    classes.into_iter().map(|(inside, ip)| (ip, inside)).collect()
}

fn inside(ranges: &[IpNet], ip: IpAddr) -> Vec<u32> {
    (0..).zip(ranges).filter(|(_, r)| r.contains(&ip)).map(|(index, _)| index).collect()
}

/// The address after the first of a range reads better than the range's own; only when it is in the same ranges.
fn better(start: IpAddr, ranges: &[IpNet]) -> IpAddr {
    let Some(next) = after(start) else { return start };
    let same = ranges.iter().all(|r| r.contains(&start) == r.contains(&next));
    if same && next.to_canonical() == next { next } else { start }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// Classes of ports: each that is named, and one that is not (if one is left). `usual` are tried first.
pub(crate) fn ports(named: &[u16], usual: &[u16]) -> Vec<(u16, Vec<u32>)> {
    let places: BTreeMap<u16, u32> = named.iter().copied().zip(0..).collect();
    let other = usual.iter().copied().chain([80, 8080]).chain(1..=u16::MAX).find(|p| !places.contains_key(p));
    let mut all: Vec<(u16, Vec<u32>)> = other.map(|p| (p, Vec::new())).into_iter().collect();
    all.extend(named.iter().zip(0..).map(|(port, index)| (*port, vec![index])));
    // Those that are usual come first.
    all.sort_by_key(|(port, _)| !usual.contains(port));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_inside_of_ranges() {
        let ranges: Vec<IpNet> = ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8"]
            .iter()
            .map(|r| r.parse().unwrap())
            .collect();
        let classes = addresses(&ranges);
        for (ip, inside) in &classes {
            let real: Vec<u32> = (0..).zip(&ranges).filter(|(_, r)| r.contains(ip)).map(|(i, _)| i).collect();
            assert_eq!(*inside, real, "{ip}");
        }
        let mut all: Vec<Vec<u32>> = classes.into_iter().map(|(_, inside)| inside).collect();
        all.sort();
        assert_eq!(all, [vec![], vec![0, 1, 2], vec![0, 2], vec![2], vec![3]]);
    }

    #[test]
    fn all_of_a_family_leaves_none_of_it() {
        let both: Vec<IpNet> =
            ["0.0.0.0/1", "128.0.0.0/1", "::/0"].iter().map(|r| r.parse().unwrap()).collect();
        assert!(addresses(&both).iter().all(|(_, inside)| inside.len() == 1));
    }

    #[test]
    fn a_port_that_is_not_named() {
        assert_eq!(ports(&[80, 8080], &[]), [(1, vec![]), (80, vec![0]), (8080, vec![1])]);
        assert_eq!(ports(&[80], &[9080])[0], (9080, vec![]));
    }
}
