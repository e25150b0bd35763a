// SPDX-License-Identifier: Apache-2.0
//! Check: a request that could be read in two ways by two programs goes no further.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Version};
use meltemi_model::l7::PathNormalization;
use meltemi_policy::http::{Normalization, method_is_clean, normalize, readings};

/// A request after the checks.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    /// As it is forwarded first, then other readings.
    pub(crate) paths: Vec<String>,
    /// Host, as received.
    pub(crate) host: String,
}

/// Headers that belong to one hop, or to proxies: never passed on from outside.
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
    "baggage",
    "forwarded",
    "x-envoy-original-path",
    "x-envoy-decorator-operation",
    "x-envoy-internal",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-istio-source",
    "x-istio-attributes",
    "x-forwarded-network",
];

/// Checks a request; its path is normalised as the mesh is told to.
pub(crate) fn check<B>(request: &Request<B>, mode: PathNormalization) -> Result<Checked, StatusCode> {
    let bad = StatusCode::BAD_REQUEST;
    if request.method() == Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !method_is_clean(request.method().as_str()) {
        return Err(bad);
    }
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(bad);
    }
    let host = host(request.uri().authority().map(http::uri::Authority::as_str), headers, request.version())?;
    let mode = match mode {
        PathNormalization::None => Normalization::None,
        PathNormalization::Base => Normalization::Base,
        PathNormalization::MergeSlashes => Normalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
    };
    let path = normalize(request.uri().path(), mode).map_err(|_| bad)?;
    Ok(Checked { paths: readings(&path), host })
}

/// One host: the authority and every Host header say the same.
fn host(authority: Option<&str>, headers: &HeaderMap, version: Version) -> Result<String, StatusCode> {
    let bad = StatusCode::BAD_REQUEST;
    let mut hosts = headers.get_all(HOST).iter();
    let first = hosts.next().map(|h| h.to_str()).transpose().map_err(|_| bad)?;
    if hosts.next().is_some() {
        return Err(bad);
    }
    match (authority, first) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => Err(bad),
        (Some(authority), _) if !authority.contains('@') => Ok(authority.to_owned()),
        (None, Some(host)) if !host.is_empty() => Ok(host.to_owned()),
        (None, None) if version == Version::HTTP_10 => Ok(String::new()),
        _ => Err(bad),
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
    for name in DROPPED {
        headers.remove(*name);
    }
    debug_assert!(![TE, TRAILER, UPGRADE].iter().any(|name| headers.contains_key(name)));
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
        let cases = [
            (request("GET", "/a", &[("host", "a")]), 0),
            (request("GET", "http://a/x", &[("host", "a")]), 0),
            (request("GET", "http://a/x", &[("host", "b")]), 400),
            (request("GET", "/a", &[("host", "a"), ("host", "a")]), 400),
            (request("GET", "/a", &[]), 400),
            (request("get", "/a", &[("host", "a")]), 400),
            (request("GeT", "/a", &[("host", "a")]), 400),
            (
                request(
                    "POST",
                    "/a",
                    &[("host", "a"), ("content-length", "5"), ("transfer-encoding", "chunked")],
                ),
                400,
            ),
            (request("GET", "/a%00", &[("host", "a")]), 400),
            (request("OPTIONS", "*", &[("host", "a")]), 400),
            (request("CONNECT", "127.0.0.1:15000", &[]), 405),
        ];
        for (request, expected) in cases {
            let seen = check(&request, PathNormalization::Base).err().map_or(0, |s| s.as_u16());
            assert_eq!(seen, expected, "{request:?}");
        }
    }

    #[test]
    fn the_path_is_forwarded_as_the_mesh_normalises_it() {
        let request = Request::get("/a/../b//%2fc%5Cd").header("host", "a").body(()).unwrap();
        let cases = [
            (PathNormalization::None, "/a/../b//%2fc%5Cd"),
            (PathNormalization::Base, "/b//%2fc%5Cd"),
            (PathNormalization::MergeSlashes, "/b/%2fc%5Cd"),
            (PathNormalization::DecodeAndMergeSlashes, "/b/c/d"),
        ];
        for (mode, expected) in cases {
            assert_eq!(check(&request, mode).unwrap().paths[0], expected, "{mode:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_hop_or_a_proxy_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-secret, upgrade"),
            ("x-secret", "1"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("x-forwarded-client-cert", "forged"),
            ("x-envoy-original-path", "/admin"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
