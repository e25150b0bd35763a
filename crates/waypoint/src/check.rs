// SPDX-License-Identifier: Apache-2.0
//! Check: a request that could be read in two ways by two programs goes no further.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use meltemi_model::l7::PathNormalization;
use meltemi_policy::http::{
    Normalization, canonical_host, has_overlong, method_is_clean, normalize, readings,
};

use crate::limits::{MAX_HEADERS, MAX_HOST};

/// A request after the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// As it is forwarded first, then other readings.
    pub(crate) paths: Vec<String>,
    /// Host, as received.
    pub(crate) host: String,
    /// Host, as it is forwarded.
    pub(crate) forwarded_host: String,
    /// Its body comes in chunks.
    pub(crate) chunked: bool,
    /// It asks to change to WebSocket.
    pub(crate) websocket: bool,
}

/// Why a request is not looked at further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What it is answered with.
    pub(crate) status: StatusCode,
    /// What is wrong, for the client and the log.
    pub(crate) reason: &'static str,
}

const fn bad(reason: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, reason }
}

/// Checks a request; its path is normalised as the mesh is told to.
pub(crate) fn check<B>(request: &Request<B>, mode: PathNormalization) -> Result<Checked, Refused> {
    if request.method() == Method::CONNECT {
        return Err(Refused { status: StatusCode::METHOD_NOT_ALLOWED, reason: "no CONNECT here" });
    }
    if !method_is_clean(request.method().as_str()) {
        return Err(bad("malformed method"));
    }
    let headers = request.headers();
    if headers.len() > MAX_HEADERS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refused { status, reason: "too many headers" });
    }
    if let Some(scheme) = request.uri().scheme_str()
        && !["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s))
    {
        return Err(bad("unknown scheme"));
    }
    let body = framing(headers)?;
    let host = host(request.uri().authority().map(http::uri::Authority::as_str), headers)?;
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    if !target.is_ascii() {
        return Err(bad("raw bytes in the target that have to be escaped"));
    }
    let path = request.uri().path();
    if has_overlong(path) {
        return Err(bad("overlong UTF-8 in the path"));
    }
    let mode = match mode {
        PathNormalization::None => Normalization::None,
        PathNormalization::Base => Normalization::Base,
        PathNormalization::MergeSlashes => Normalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
    };
    let path = normalize(path, mode).map_err(|_| bad("malformed path"))?;
    let websocket = websocket(request);
    if websocket && body {
        return Err(bad("an upgrade with a body"));
    }
    let forwarded_host = canonical_host(&host).into_owned();
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    Ok(Checked { paths: readings(&path), host, forwarded_host, chunked, websocket })
}

/// Whether there is a body; its end is told once and clearly.
fn framing(headers: &HeaderMap) -> Result<bool, Refused> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (encoding, length) = (encodings.next(), lengths.next());
    if encodings.next().is_some() || lengths.next().is_some() || (encoding.is_some() && length.is_some()) {
        return Err(bad("ambiguous length"));
    }
    if encoding.is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(bad("unknown transfer encoding"));
    }
    let digits = |l: &http::HeaderValue| !l.is_empty() && l.as_bytes().iter().all(u8::is_ascii_digit);
    if length.is_some_and(|l| !digits(l)) {
        return Err(bad("malformed length"));
    }
    Ok(encoding.is_some() || length.is_some_and(|l| l.as_bytes().iter().any(|d| *d != b'0')))
}

/// One host: the authority and every Host header say the same. Without any, backends choose one themselves.
fn host(authority: Option<&str>, headers: &HeaderMap) -> Result<String, Refused> {
    let mut hosts = headers.get_all(HOST).iter();
    let first = hosts.next().map(|h| h.to_str()).transpose().map_err(|_| bad("malformed host"))?;
    if hosts.next().is_some() {
        return Err(bad("several hosts"));
    }
    match (authority, first) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => Err(bad("several hosts")),
        (Some(host), _) | (None, Some(host)) if is_host(host) => Ok(host.to_owned()),
        (None, None) => Err(bad("no host")),
        _ => Err(bad("malformed host")),
    }
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, and perhaps a port. Nothing that some program would take
/// for the end of the host or for the beginning of another.
fn is_host(host: &str) -> bool {
    let ipv6 = host.starts_with('[');
    let split =
        if ipv6 { host.find(']').map(|end| end + 1) } else { Some(host.find(':').unwrap_or(host.len())) };
    let Some((name, port)) = split.map(|at| host.split_at(at)) else { return false };
    let name_fits = if ipv6 {
        name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        !name.is_empty() && !name.starts_with('.') && !name.contains("..") && name.bytes().all(allowed)
    };
    let port_fits = port.is_empty()
        || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()) && is_port(p));
    host.len() <= MAX_HOST && name_fits && port_fits
}

/// A number in its one notation: with a zero before it, policies would not compare equal with it.
fn is_port(port: &str) -> bool {
    (port == "0" || !port.starts_with('0')) && port.parse::<u16>().is_ok()
}

/// Whether the request changes to WebSocket (RFC 6455 §4.2.1). No other protocol is changed to: `Upgrade` is dropped then,
/// and the request goes its usual way.
fn websocket<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let tokens = |name| {
        let values = headers.get_all(name).iter().filter_map(|v: &http::HeaderValue| v.to_str().ok());
        values.flat_map(|v| v.split(',')).map(str::trim)
    };
    let mut asked = tokens(UPGRADE);
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && asked.next().is_some_and(|t| t.eq_ignore_ascii_case("websocket"))
        && asked.next().is_none()
        && tokens(CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_with_two_readings_are_refused() {
        let request = |method: &str, uri: &str, headers: &[(&str, &str)]| {
            let mut builder = Request::builder().method(method).uri(uri);
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            builder.body(()).unwrap()
        };
        let a = ("host", "a");
        let cases = [
            (request("GET", "/a", &[a]), 0),
            (request("GET", "http://a/x", &[a]), 0),
            (request("GET", "http://A/x", &[a]), 0),
            (request("GET", "http://a/x", &[("host", "b")]), 400),
            (request("GET", "http://a:80/x", &[a]), 400),
            (request("GET", "http://u@a/x", &[]), 400),
            (request("GET", "ftp://a/x", &[]), 400),
            (request("GET", "/a", &[a, a]), 400),
            (request("GET", "/a", &[]), 400),
            (request("get", "/a", &[a]), 400),
            (request("GeT", "/a", &[a]), 400),
            (request("POST", "/a", &[a, ("content-length", "5"), ("transfer-encoding", "chunked")]), 400),
            (request("POST", "/a", &[a, ("transfer-encoding", "gzip, chunked")]), 400),
            (request("POST", "/a", &[a, ("content-length", "5"), ("content-length", "5")]), 400),
            (request("POST", "/a", &[a, ("content-length", "5, 5")]), 400),
            (request("GET", "/a%00", &[a]), 400),
            (request("GET", "/caf\u{e9}", &[a]), 400),
            (request("GET", "/a?caf\u{e9}", &[a]), 400),
            (request("GET", "/a/%c0%ae%C0%AE/admin", &[a]), 400),
            (request("GET", "/a/%e0%80%af", &[a]), 400),
            (request("GET", "/a/%f0%80%80%af", &[a]), 400),
            (request("GET", "/a/%c3%a9%e2%82%ac%ff%c0%2e", &[a]), 0),
            (request("OPTIONS", "*", &[a]), 400),
            (request("GET", "a", &[a]), 400),
            (request("CONNECT", "127.0.0.1:15000", &[]), 405),
        ];
        for (request, expected) in cases {
            let seen = check(&request, PathNormalization::Base).err().map_or(0, |r| r.status.as_u16());
            assert_eq!(seen, expected, "{request:?}");
        }
    }

    #[test]
    fn the_path_is_forwarded_as_the_mesh_normalises_it() {
        let request = Request::get("/a/../b//%2fc%5Cd").header("host", "a").body(()).unwrap();
        let cases = [
            (PathNormalization::None, "/a/../b//%2Fc%5Cd"),
            (PathNormalization::Base, "/b//%2Fc%5Cd"),
            (PathNormalization::MergeSlashes, "/b/%2Fc%5Cd"),
            (PathNormalization::DecodeAndMergeSlashes, "/b/c/d"),
        ];
        for (mode, expected) in cases {
            assert_eq!(check(&request, mode).unwrap().paths[0], expected, "{mode:?}");
        }
    }

    #[test]
    fn hosts_are_names_and_addresses_and_nothing_else() {
        for host in ["a", "A.example", "a.example.", "a_b-c", "a:8080", "10.0.0.1:1", "[::1]", "[fd00::1]:80"]
        {
            assert!(is_host(host), "{host}");
        }
        let long = "a".repeat(MAX_HOST + 1);
        for host in [
            "", ".", ":80", "a:", "a:080", "a:00", "a..", "a..b", ".a", "a:b", "a:99999", "a:80:81", "a/b",
            "a b", "a,b", "a;b", "a@b", "a\\b", "a%2eb", "[a]", "[::1", "[::1]a", "::1", "a?b", "é", &long,
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn a_host_is_forwarded_in_one_form() {
        let cases = [
            ("a.example.", "a.example"),
            ("a.example.:8080", "a.example:8080"),
            ("a.example:80", "a.example"),
            ("a.example.:80", "a.example"),
            ("[::1]:80", "[::1]"),
            ("A.example:8080", "A.example:8080"),
        ];
        for (host, expected) in cases {
            let request = Request::get("/").header("host", host).body(()).unwrap();
            let checked = check(&request, PathNormalization::Base).unwrap();
            assert_eq!((&*checked.host, &*checked.forwarded_host), (host, expected));
        }
    }

    #[test]
    fn only_websocket_is_changed_to() {
        let cases = [
            ("websocket", "Upgrade", true),
            ("WebSocket", "keep-alive, Upgrade", true),
            ("h2c", "Upgrade", false),
            ("websocket, h2c", "Upgrade", false),
            ("websocket", "keep-alive", false),
        ];
        for (upgrade, connection, expected) in cases {
            let request = Request::builder().uri("/").header("host", "a");
            let request =
                request.header("upgrade", upgrade).header("connection", connection).body(()).unwrap();
            assert_eq!(
                check(&request, PathNormalization::Base).unwrap().websocket,
                expected,
                "{upgrade}; {connection}"
            );
        }
    }
}
