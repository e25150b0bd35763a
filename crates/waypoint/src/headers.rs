// SPDX-License-Identifier: Apache-2.0
//! Headers: what belongs to one hop or to proxies goes no further; what proxies say of a client is said by this one.

use std::net::IpAddr;

use http::header::{CONNECTION, COOKIE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers of one hop (RFC 9110 §7.6.1), and those that proxies tell each other: never passed on from outside.
const DROPPED: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
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

/// Whether a name is dropped. Servers that put headers into variables take `_` for `-`: here they are the same too.
fn dropped(name: &str, edge: bool) -> bool {
    let mut folded = [0u8; LONGEST];
    let folded = &mut folded[..name.len().min(LONGEST)];
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        *to = if from == b'_' { b'-' } else { from };
    }
    let begins = |prefix: &str| folded.starts_with(prefix.as_bytes());
    let whole = name.len() <= LONGEST && DROPPED.iter().any(|d| d.as_bytes() == folded);
    whole || FAMILIES.iter().any(|f| begins(f)) || (edge && begins(EDGE))
}

fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes what must not be passed on: the known names, and what `Connection` lists.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    remove(headers, |name| dropped(name, false));
}

/// Makes of a client's headers those that are judged and forwarded. `peer` is its address. At the edge nothing is known of
/// who is before it, so that it says all of `x-forwarded-*` itself; a waypoint's clients are of the mesh, and it adds.
pub(crate) fn own(headers: &mut HeaderMap, version: Version, peer: IpAddr, edge: bool) {
    // Of HTTP/2's only one, that goes from end to end: servers of gRPC refuse calls without it.
    let trailers = version == Version::HTTP_2 && headers.get(TE).is_some_and(|te| te == "trailers");
    strip(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if edge {
        remove(headers, |name| dropped(name, true));
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    } else {
        remove(headers, |name| name.contains('_') && dropped(name, true));
    }
    let mut path: Vec<u8> = joined(headers, &FORWARDED_FOR, b", ");
    if !path.is_empty() {
        path.extend_from_slice(b", ");
    }
    path.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&path) {
        headers.insert(FORWARDED_FOR, value);
    }
    // HTTP/2 may cut a cookie header into crumbs; it is one header (RFC 9113 §8.2.3).
    if headers.get_all(COOKIE).iter().nth(1).is_some()
        && let Ok(value) = HeaderValue::from_bytes(&joined(headers, &COOKIE, b"; "))
    {
        headers.insert(COOKIE, value);
    }
}

/// Bytes that a head takes: an estimate, with what a map needs beside names and values.
pub(crate) fn size(headers: &HeaderMap, target: &Uri) -> usize {
    const ENTRY: usize = 64;
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ENTRY).sum();
    fields + target.path_and_query().map_or(0, |p| p.as_str().len())
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
        own(&mut edge, Version::HTTP_11, peer, true);
        assert_eq!(edge, map(&[("x-forwarded-proto", "http"), ("x-forwarded-for", "10.0.0.1")]));
        let mut inside = map(&client);
        own(&mut inside, Version::HTTP_11, peer, false);
        assert_eq!(inside, map(&[("x-forwarded-for", "1.1.1.1, 10.0.0.1"), ("x-forwarded-proto", "https")]));
    }

    #[test]
    fn the_crumbs_of_a_cookie_are_one_cookie() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2"] {
            headers.append(COOKIE, HeaderValue::from_static(crumb));
        }
        own(&mut headers, Version::HTTP_2, IpAddr::from([10, 0, 0, 1]), false);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
