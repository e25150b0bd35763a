// SPDX-License-Identifier: Apache-2.0
//! Addresses that keys are fetched from: never those that mean this machine or its cloud, unless a setting names them. Who may
//! write a RequestAuthentication could otherwise make the control plane ask what only it may ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Which addresses may be fetched from.
#[derive(Clone, Debug, Default)]
pub struct Permitted(Vec<IpNet>);

/// Metadata and platform services outside of the link-local ranges: Alibaba, Oracle, Azure.
const PLATFORM: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// The same of IPv6: AWS, Google.
const PLATFORM_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
];

impl Permitted {
    /// All usual addresses, and these.
    pub fn beside(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether keys may be fetched from an address.
    pub(super) fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address)) || is_usual(address)
    }
}

fn is_usual(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_usual_v4(v4),
        IpAddr::V6(v6) => {
            let local = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast();
            let link_local = (v6.segments()[0] & 0xffc0) == 0xfe80;
            let inside = embedded_v4(v6).is_none_or(is_usual_v4);
            !local && !link_local && inside && !PLATFORM_V6.contains(&v6)
        }
    }
}

fn is_usual_v4(v4: Ipv4Addr) -> bool {
    let first = v4.octets()[0];
    let local = v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
    // 0.0.0.0/8 is this host, 240.0.0.0/4 nobody.
    !local && first != 0 && first < 240 && !PLATFORM.contains(&v4)
}

/// The IPv4 address that a gateway would make of an IPv6 address (NAT64, 6to4, and the old compatible form).
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_this_machine_or_its_cloud_is_not_fetched_from() {
        let usual = Permitted::default();
        for (address, permitted) in [
            ("10.96.0.10", true),
            ("192.168.1.1", true),
            ("203.0.113.7", true),
            ("2001:db8::1", true),
            ("fd12::1", true),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("169.254.169.254", false),
            ("169.254.1.1", false),
            ("100.100.100.200", false),
            ("168.63.129.16", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("ff02::1", false),
            ("fd00:ec2::254", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:10.0.0.1", true),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("::127.0.0.1", false),
        ] {
            assert_eq!(usual.permits(address.parse().unwrap()), permitted, "{address}");
        }
        let named = Permitted::beside(vec!["127.0.0.0/8".parse().unwrap()]);
        assert!(
            named.permits("127.0.0.1".parse().unwrap()) && named.permits("::ffff:127.0.0.1".parse().unwrap())
        );
        assert!(!named.permits("::1".parse().unwrap()) && named.permits("10.0.0.1".parse().unwrap()));
    }
}
