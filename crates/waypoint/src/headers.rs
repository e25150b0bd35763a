// SPDX-License-Identifier: Apache-2.0
//! Headers: what belongs to one hop or to proxies goes no further; what proxies say of a client is said by this one.

use std::net::IpAddr;

use http::header::{CONNECTION, COOKIE, TE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use meltemi_policy::http::HOP_HEADERS;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Further headers of one hop, and those that only a proxy may write: never passed on from outside.
const WITHHELD: &[&str] = &[
    "http2-settings",
    "trailer",
    "proxy-authenticate",
    "proxy-authorization",
    "x-forwarded-client-cert",
    "x-forwarded-network",
    "baggage",
    "forwarded",
];
/// Whole families of them.
const FAMILIES: &[&str] = &["x-envoy-", "x-istio-"];
/// What a proxy at the edge says, and nobody outside.
const EDGE: &str = "x-forwarded-";
/// Bytes of a header name that is compared: no listed one is longer, and families are known by their beginning.
const LONGEST: usize = 32;

/// Whether a name is one of those listed. Servers that put headers into variables take `_` for `-`: here they are the
/// same too.
fn is_listed(name: &str, list: &[&str], families: &[&str]) -> bool {
    let mut folded = [0u8; LONGEST];
    let folded = &mut folded[..name.len().min(LONGEST)];
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        *to = fold(from);
    }
    let whole = name.len() <= LONGEST && list.iter().any(|listed| listed.as_bytes() == folded);
    whole || families.iter().any(|prefix| folded.starts_with(prefix.as_bytes()))
}

fn fold(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

/// Whether some servers take two names for one and the same.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// The elements of a header that is a list.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes headers out of a map.
fn take(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) -> HeaderMap {
    let mut taken = HeaderMap::new();
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        for value in headers.get_all(&name) {
            taken.append(name.clone(), value.clone());
        }
        headers.remove(name);
    }
    taken
}

/// Removes what must not be passed on: the known names, and what `Connection` lists. Returns those of the known names that
/// this proxy itself does nothing about.
pub(crate) fn strip(headers: &mut HeaderMap) -> HeaderMap {
    let listed: Vec<HeaderName> = tokens(headers, CONNECTION).filter_map(|name| name.parse().ok()).collect();
    for name in listed {
        headers.remove(name);
    }
    take(headers, |name| is_listed(name, &HOP_HEADERS, &[]));
    take(headers, |name| is_listed(name, WITHHELD, FAMILIES))
}

/// How the headers that are forwarded differ from those that the client sent. Policies judge both: a server behind sees the
/// one, and the policy's author may mean the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// What the client sent and is not forwarded, or not so.
    pub(crate) withheld: HeaderMap,
    /// What is forwarded and the client did not send.
    pub(crate) added: Vec<HeaderName>,
}

/// Sanitizes a client's headers before authorization and forwarding. `peer` is the client's address. A gateway replaces
/// `x-forwarded-*`, since nothing before it is trusted; a waypoint's clients are of the mesh, and it appends. `edge`: at a
/// gateway, the scheme that the client speaks.
pub(crate) fn own(
    headers: &mut HeaderMap,
    version: Version,
    peer: IpAddr,
    edge: Option<&'static str>,
) -> Changes {
    let trailers = tokens(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    let changing = tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocols: Vec<HeaderValue> = headers.get_all(UPGRADE).iter().filter(|_| changing).cloned().collect();
    let mut changes = Changes { withheld: strip(headers), added: Vec::new() };
    if !protocols.is_empty() {
        changes.withheld.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    for protocol in protocols {
        changes.withheld.append(UPGRADE, protocol);
    }
    if trailers {
        // `te: trailers` is the only TE value that HTTP/2 allows; gRPC servers reject calls without it.
        let to = if version == Version::HTTP_2 { &mut *headers } else { &mut changes.withheld };
        to.insert(TE, HeaderValue::from_static("trailers"));
    }
    let of_edge = |name: &str| is_listed(name, &[], &[EDGE]);
    let forged = take(headers, |name| of_edge(name) && (edge.is_some() || name.contains('_')));
    changes.withheld.extend(forged);
    if let Some(scheme) = edge {
        changes.put(headers, FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    let mut path: Vec<u8> = joined(headers, &FORWARDED_FOR, b", ");
    if !path.is_empty() {
        path.extend_from_slice(b", ");
    }
    path.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&path) {
        changes.put(headers, FORWARDED_FOR, value);
    }
    // HTTP/2 may cut a cookie header into crumbs; it is one header (RFC 9113 §8.2.3).
    if headers.get_all(COOKIE).iter().nth(1).is_some()
        && let Ok(value) = HeaderValue::from_bytes(&joined(headers, &COOKIE, b"; "))
    {
        headers.insert(COOKIE, value);
    }
    changes
}

impl Changes {
    /// Forwards a header with a value of this proxy's.
    fn put(&mut self, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
        for sent in headers.get_all(&name) {
            self.withheld.append(name.clone(), sent.clone());
        }
        if !self.withheld.contains_key(&name) {
            self.added.push(name.clone());
        }
        headers.insert(name, value);
    }
}

/// Bytes that headers take: an estimate, with what a map needs beside names and values.
pub(crate) fn size(headers: &HeaderMap) -> usize {
    const ENTRY: usize = 64;
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY).sum()
}

fn joined(headers: &HeaderMap, name: &HeaderName, with: &[u8]) -> Vec<u8> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.join(with)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_belongs_to_a_hop_or_a_proxy_is_not_passed_on() {
        let mut headers = map(&[
            ("connection", "x-secret, upgrade"),
            ("x-secret", "1"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("x-forwarded-client-cert", "forged"),
            ("x_forwarded_client_cert", "forged"),
            ("x-envoy-original-path", "/admin"),
            ("x-envoy-a-name-that-is-longer-than-what-is-compared", "1"),
            ("x-istio-attributes", "1"),
            ("te_", "kept: another name"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "te_"]);
    }

    #[test]
    fn the_edge_says_where_a_client_is_and_a_waypoint_adds_to_it() {
        let client =
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x_forwarded_for", "2.2.2.2")];
        let peer = IpAddr::from([10, 0, 0, 1]);
        let mut edge = map(&client);
        edge.insert("x-forwarded-host", HeaderValue::from_static("forged"));
        own(&mut edge, Version::HTTP_11, peer, Some("http"));
        assert_eq!(edge, map(&[("x-forwarded-proto", "http"), ("x-forwarded-for", "10.0.0.1")]));
        let mut inside = map(&client);
        own(&mut inside, Version::HTTP_11, peer, None);
        assert_eq!(inside, map(&[("x-forwarded-for", "1.1.1.1, 10.0.0.1"), ("x-forwarded-proto", "https")]));
    }

    #[test]
    fn what_the_client_sent_and_what_is_forwarded_are_both_known() {
        let peer = IpAddr::from([10, 0, 0, 1]);
        let sent = [
            ("baggage", "k=v"),
            ("connection", "close"),
            ("te", "gzip, Trailers"),
            ("x-forwarded-for", "1.1.1.1"),
        ];
        // Version, edge; withheld, added.
        let cases = [
            (
                Version::HTTP_11,
                false,
                &["baggage: k=v", "te: trailers", "x-forwarded-for: 1.1.1.1"][..],
                &[][..],
            ),
            (Version::HTTP_2, false, &["baggage: k=v", "x-forwarded-for: 1.1.1.1"], &[]),
            (
                Version::HTTP_11,
                true,
                &["baggage: k=v", "te: trailers", "x-forwarded-for: 1.1.1.1"],
                &["x-forwarded-proto"],
            ),
        ];
        for (version, edge, withheld, added) in cases {
            let changes = own(&mut map(&sent), version, peer, edge.then_some("http"));
            let pairs = changes.withheld.iter();
            let mut seen: Vec<String> =
                pairs.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            seen.sort();
            let names: Vec<&str> = changes.added.iter().map(HeaderName::as_str).collect();
            let expected: Vec<String> = withheld.iter().map(ToString::to_string).collect();
            assert_eq!((seen, names), (expected, added.to_vec()));
        }
        let nothing = own(&mut map(&[]), Version::HTTP_11, peer, None);
        assert_eq!(nothing.added, ["x-forwarded-for"]);
    }

    #[test]
    fn the_crumbs_of_a_cookie_are_one_cookie() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2"] {
            headers.append(COOKIE, HeaderValue::from_static(crumb));
        }
        own(&mut headers, Version::HTTP_2, IpAddr::from([10, 0, 0, 1]), None);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
