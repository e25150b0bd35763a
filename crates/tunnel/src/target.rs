// SPDX-License-Identifier: Apache-2.0
//! What a CONNECT asks for: an address or a name, with a port, written in exactly one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest authority, in bytes: a DNS name and a port.
const LONGEST: usize = 253 + 6;

/// The destination of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address; an IPv4 address that is mapped into IPv6 is the IPv4 address.
    Address(SocketAddr),
    /// A host name in lower case, and a port.
    Name(String, u16),
}

/// Why a text is no target. Whatever another reader might take for another destination is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Longer than any name with a port.
    #[error("the authority is too long")]
    TooLong,
    /// No `:` that a port follows.
    #[error("the authority has no port")]
    NoPort,
    /// Not a decimal number of 1 to 65535, without sign or leading zero.
    #[error("the authority's port is not a port")]
    Port,
    /// Neither an address nor a host name: user information, a zone, an address in another notation.
    #[error("the authority's host is neither an address nor a name")]
    Host,
}

impl Target {
    /// Reads an authority (RFC 9113 §8.5: host and port, nothing else).
    ///
    /// # Errors
    /// See [`InvalidTarget`].
    pub fn parse(authority: &str) -> Result<Self, InvalidTarget> {
        if authority.len() > LONGEST {
            return Err(InvalidTarget::TooLong);
        }
        let (host, port) = authority.rsplit_once(':').ok_or(InvalidTarget::NoPort)?;
        let canonical = !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse::<u16>().ok().filter(|_| canonical).ok_or(InvalidTarget::Port)?;
        let address = |ip: IpAddr| Ok(Self::Address(SocketAddr::new(ip.to_canonical(), port)));
        if let Some(inside) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip: Ipv6Addr = inside.parse().map_err(|_| InvalidTarget::Host)?;
            return address(ip.into());
        }
        match host.parse::<Ipv4Addr>() {
            Ok(ip) => address(ip.into()),
            Err(_) if is_name(host) => Ok(Self::Name(host.to_ascii_lowercase(), port)),
            Err(_) => Err(InvalidTarget::Host),
        }
    }
}

/// A DNS name whose last label is no number: readers of addresses take `1.2.3`, `0x7f.1` and `2130706433` for addresses.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let number = |label: &str| label.as_bytes().first().is_some_and(u8::is_ascii_digit);
    host.split('.').all(label) && !host.rsplit('.').next().is_some_and(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_in_one_way() {
        use InvalidTarget::{Host, NoPort, Port, TooLong};
        let label = "a".repeat(61);
        let name = format!("{label}.{label}.{label}.{label}.abcde");
        let longest = format!("{name}:65535");
        let longer = format!("{name}b:65535");
        assert_eq!(longest.len(), LONGEST);
        for (authority, expected) in [
            ("10.0.0.2:9080", Ok("10.0.0.2:9080")),
            ("[fd00::2]:9080", Ok("[fd00::2]:9080")),
            ("[FD00:0::2]:9080", Ok("[fd00::2]:9080")),
            ("[::ffff:10.0.0.2]:9080", Ok("10.0.0.2:9080")),
            ("Web.Shop.svc.cluster.local:80", Ok("web.shop.svc.cluster.local:80")),
            ("localhost:1", Ok("localhost:1")),
            ("", Err(NoPort)),
            ("10.0.0.2", Err(NoPort)),
            ("web", Err(NoPort)),
            ("10.0.0.2:", Err(Port)),
            ("10.0.0.2:0", Err(Port)),
            ("10.0.0.2:080", Err(Port)),
            ("10.0.0.2:+80", Err(Port)),
            ("10.0.0.2:-1", Err(Port)),
            ("10.0.0.2:65536", Err(Port)),
            ("10.0.0.2:http", Err(Port)),
            ("10.0.0.2:80 ", Err(Port)),
            ("10.0.0.2:٨", Err(Port)),
            ("fd00::2", Err(Host)),
            ("fd00::2:80", Err(Host)),
            ("[fd00::2]", Err(Port)),
            ("[fd00::2%eth0]:80", Err(Host)),
            ("[fe80::1%3]:80", Err(Host)),
            ("[10.0.0.2]:80", Err(Host)),
            ("[[fd00::2]]:80", Err(Host)),
            ("x@10.0.0.2:80", Err(Host)),
            ("10.0.0.2:80@web:80", Err(Host)),
            ("http://10.0.0.2:80", Err(Host)),
            ("10.0.0.2/x:80", Err(Host)),
            ("10.0.0.02:80", Err(Host)),
            ("10.0.2:80", Err(Host)),
            ("0x0a.0.0.2:80", Err(Host)),
            ("0x0a000002:80", Err(Host)),
            ("167772162:80", Err(Host)),
            ("10.0.0.2.:80", Err(Host)),
            ("web.:80", Err(Host)),
            (".web:80", Err(Host)),
            ("we b:80", Err(Host)),
            ("we%62:80", Err(Host)),
            ("wéb:80", Err(Host)),
            (":80", Err(Host)),
            (&longest, Ok(&longest)),
            (&longer, Err(TooLong)),
        ] {
            let got = Target::parse(authority).map(|target| match target {
                Target::Address(address) => address.to_string(),
                Target::Name(name, port) => format!("{name}:{port}"),
            });
            assert_eq!(got.as_deref().map_err(|e| *e), expected, "{authority:?}");
        }
    }
}
