// SPDX-License-Identifier: Apache-2.0
//! Extension providers of the mesh's configuration that policies of action CUSTOM ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::NamespacedHostname;
use meltemi_model::l7::{
    CheckedBody, HeaderMatch, HttpAuthorizer, Provider, ProviderProtocol, check_header_name,
};
use meltemi_resources::policies::validate::duration_ms;
use serde::Deserialize;

/// Time for an answer when none is said, and at most: Istio's default.
const TIMEOUT_MS: u64 = 600_000;
/// Bytes of a body that are sent to an authorizer at most, since they are held until it has answered.
const MAX_BODY: usize = 1024 * 1024;
/// Status when an authorizer cannot be asked and none is said.
const STATUS_ON_ERROR: u16 = 403;

/// Why a provider can be used by no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProvider {
    /// An entry of the list without a name.
    #[error("an entry has no name")]
    NoName,
    /// Of two with one name nobody knows which is meant.
    #[error("it is there twice")]
    Twice,
    /// A field is unknown, or of another type.
    #[error("{0}")]
    Document(String),
    /// Another kind of provider, e.g. of traces.
    #[error("it is neither envoyExtAuthzHttp nor envoyExtAuthzGrpc")]
    NoAuthorizer,
    /// Not a Service.
    #[error("service {service:?} is no Service of the cluster, as NAME.NAMESPACE.svc.{domain}")]
    Service {
        /// What is written.
        service: String,
        /// The DNS suffix of Services.
        domain: String,
    },
    /// Not a port.
    #[error("port {0} is none")]
    Port(u32),
    /// A field has a value that it cannot have.
    #[error("{field} {value:?}: {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is written.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

impl InvalidProvider {
    fn field(field: &'static str, value: impl ToString, reason: impl ToString) -> Self {
        Self::Field { field, value: value.to_string(), reason: reason.to_string() }
    }
}

/// A provider, or why no policy can use it.
pub type Usable = Result<Provider, InvalidProvider>;

/// An entry of `extensionProviders`; other kinds than authorizers are for other programs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    name: String,
    envoy_ext_authz_http: Option<Http>,
    envoy_ext_authz_grpc: Option<Grpc>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Http {
    service: String,
    port: u32,
    timeout: Option<String>,
    path_prefix: String,
    fail_open: bool,
    status_on_error: String,
    include_headers_in_check: Vec<String>,
    include_request_headers_in_check: Vec<String>,
    include_additional_headers_in_check: BTreeMap<String, String>,
    include_request_body_in_check: Option<Body>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
    /// Routes are chosen after authorization here: nothing is to be cleared.
    clear_route_cache: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Grpc {
    service: String,
    port: u32,
    timeout: Option<String>,
    fail_open: bool,
    status_on_error: String,
    include_request_body_in_check: Option<Body>,
    clear_route_cache: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Body {
    max_request_bytes: usize,
    allow_partial_message: bool,
    pack_as_bytes: bool,
}

/// What both kinds have.
struct Common<'a> {
    service: &'a str,
    port: u32,
    timeout: Option<&'a str>,
    fail_open: bool,
    status_on_error: &'a str,
    body: Option<&'a Body>,
}

/// Reads the providers; `raw` are the entries of the list. `domain` is the DNS suffix of Services.
pub(super) fn read_providers(
    raw: &[serde_yaml_ng::Value],
    domain: &str,
) -> Result<BTreeMap<Arc<str>, Usable>, InvalidProvider> {
    let mut out = BTreeMap::new();
    for entry in raw {
        let name = entry["name"].as_str().filter(|name| !name.is_empty());
        let name: Arc<str> = name.ok_or(InvalidProvider::NoName)?.into();
        let document: Result<Document, _> = serde_yaml_ng::from_value(entry.clone());
        let usable = document
            .map_err(|e| InvalidProvider::Document(e.to_string()))
            .and_then(|document| read_provider(&document, domain));
        // Of two with one name nobody knows which is meant.
        let usable = if out.contains_key(&name) { Err(InvalidProvider::Twice) } else { usable };
        out.insert(name, usable);
    }
    Ok(out)
}

fn read_provider(document: &Document, domain: &str) -> Usable {
    let Document { name, envoy_ext_authz_http, envoy_ext_authz_grpc } = document;
    let (common, protocol) = match (envoy_ext_authz_http, envoy_ext_authz_grpc) {
        (Some(http), None) => {
            let Http { service, port, timeout, fail_open, status_on_error, clear_route_cache: _, .. } = http;
            let common = Common {
                service,
                port: *port,
                timeout: timeout.as_deref(),
                fail_open: *fail_open,
                status_on_error,
                body: http.include_request_body_in_check.as_ref(),
            };
            (common, ProviderProtocol::Http(read_headers(http)?))
        }
        (None, Some(grpc)) => {
            let Grpc { service, port, timeout, fail_open, status_on_error, clear_route_cache: _, .. } = grpc;
            let common = Common {
                service,
                port: *port,
                timeout: timeout.as_deref(),
                fail_open: *fail_open,
                status_on_error,
                body: grpc.include_request_body_in_check.as_ref(),
            };
            (common, ProviderProtocol::Grpc)
        }
        _ => return Err(InvalidProvider::NoAuthorizer),
    };
    let timeout_ms = match common.timeout {
        Some(text) => {
            duration_ms(text).map_err(|e| InvalidProvider::field("timeout", text, e))?.min(TIMEOUT_MS)
        }
        None => TIMEOUT_MS,
    };
    Ok(Provider {
        name: name.as_str().into(),
        service: read_service(common.service, domain)?,
        port: u16::try_from(common.port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or(InvalidProvider::Port(common.port))?,
        timeout_ms,
        fail_open: common.fail_open,
        status_on_error: read_status(common.status_on_error)?,
        body: common.body.map(read_body).transpose()?,
        protocol,
    })
}

fn read_headers(http: &Http) -> Result<HttpAuthorizer, InvalidProvider> {
    let all = |names: &[String]| names.iter().map(|name| HeaderMatch::parse(name)).collect::<Vec<_>>();
    let prefix = http.path_prefix.as_str();
    if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.contains(['?', '#', ' '])) {
        return Err(InvalidProvider::field("pathPrefix", prefix, "is no path"));
    }
    let mut additional = Vec::new();
    for (name, value) in &http.include_additional_headers_in_check {
        check_header_name(name).map_err(|reason| InvalidProvider::field("header", name, reason))?;
        if value.chars().any(char::is_control) {
            return Err(InvalidProvider::field("header", name, "its value has a control character"));
        }
        additional.push((name.to_ascii_lowercase(), value.clone()));
    }
    let mut include = all(&http.include_request_headers_in_check);
    include.extend(all(&http.include_headers_in_check));
    Ok(HttpAuthorizer {
        path_prefix: prefix.trim_end_matches('/').to_owned(),
        include,
        additional,
        to_upstream: all(&http.headers_to_upstream_on_allow),
        on_allow: all(&http.headers_to_downstream_on_allow),
        on_deny: all(&http.headers_to_downstream_on_deny),
    })
}

/// `[<namespace>/]<host>`, of a Service of the cluster.
fn read_service(text: &str, domain: &str) -> Result<NamespacedHostname, InvalidProvider> {
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, text),
    };
    let suffix = format!(".svc.{domain}");
    let parts =
        host.strip_suffix(&suffix).or_else(|| host.strip_suffix(".svc")).and_then(|n| n.split_once('.'));
    match parts {
        Some((name, of)) if !name.is_empty() && !of.contains('.') && namespace.is_none_or(|n| n == of) => {
            Ok(NamespacedHostname::new(of, format!("{name}.{of}{suffix}")))
        }
        _ => Err(InvalidProvider::Service { service: text.to_owned(), domain: domain.to_owned() }),
    }
}

fn read_status(text: &str) -> Result<u16, InvalidProvider> {
    if text.is_empty() {
        return Ok(STATUS_ON_ERROR);
    }
    let status = text.parse().ok().filter(|status| (200..600).contains(status));
    status.ok_or_else(|| InvalidProvider::field("statusOnError", text, "is no status"))
}

fn read_body(body: &Body) -> Result<CheckedBody, InvalidProvider> {
    let Body { max_request_bytes, allow_partial_message, pack_as_bytes } = *body;
    if !(1..=MAX_BODY).contains(&max_request_bytes) {
        let reason = format!("is not between 1 and {MAX_BODY}");
        return Err(InvalidProvider::field("maxRequestBytes", max_request_bytes, reason));
    }
    Ok(CheckedBody {
        max_bytes: max_request_bytes,
        allow_partial: allow_partial_message,
        as_bytes: pack_as_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Usable {
        let entry: serde_yaml_ng::Value = serde_yaml_ng::from_str(&format!("{{name: p, {yaml}}}")).unwrap();
        read_providers(&[entry], "cluster.local").unwrap().remove("p").unwrap()
    }

    #[test]
    fn every_field_arrives() {
        let http = read(
            "envoyExtAuthzHttp: {service: foo/ext-authz.foo.svc.cluster.local, port: 8000, timeout: 1.5s, pathPrefix: /check/, \
             failOpen: true, statusOnError: '503', includeRequestHeadersInCheck: [X-Ext-*, cookie], \
             includeAdditionalHeadersInCheck: {X-From: mesh}, includeRequestBodyInCheck: {maxRequestBytes: 10, \
             allowPartialMessage: true, packAsBytes: true}, headersToUpstreamOnAllow: [authorization], \
             headersToDownstreamOnDeny: [set-cookie], headersToDownstreamOnAllow: ['*-seen'], clearRouteCache: true}",
        );
        let exact = |name: &str| HeaderMatch::Exact(name.to_owned());
        let expected = Provider {
            name: "p".into(),
            service: NamespacedHostname::new("foo", "ext-authz.foo.svc.cluster.local"),
            port: 8000,
            timeout_ms: 1500,
            fail_open: true,
            status_on_error: 503,
            body: Some(CheckedBody { max_bytes: 10, allow_partial: true, as_bytes: true }),
            protocol: ProviderProtocol::Http(HttpAuthorizer {
                path_prefix: "/check".into(),
                include: vec![HeaderMatch::Prefix("x-ext-".into()), exact("cookie")],
                additional: vec![("x-from".into(), "mesh".into())],
                to_upstream: vec![exact("authorization")],
                on_allow: vec![HeaderMatch::Suffix("-seen".into())],
                on_deny: vec![exact("set-cookie")],
            }),
        };
        assert_eq!(http, Ok(expected));
        let grpc = read("envoyExtAuthzGrpc: {service: a.b.svc, port: 9000}").unwrap();
        assert_eq!(
            (grpc.timeout_ms, grpc.fail_open, grpc.status_on_error, grpc.body),
            (600_000, false, 403, None)
        );
        assert_eq!(
            (grpc.service.to_string(), grpc.protocol),
            ("b/a.b.svc.cluster.local".to_owned(), ProviderProtocol::Grpc)
        );
    }

    #[test]
    fn a_provider_that_is_not_understood_can_be_used_by_nobody() {
        let with =
            |field: &str| format!("envoyExtAuthzHttp: {{service: a.b.svc.cluster.local, port: 80, {field}}}");
        for (yaml, expected) in [
            ("opentelemetry: {service: a, port: 1}".to_owned(), "neither envoyExtAuthzHttp"),
            (
                "envoyExtAuthzHttp: {service: auth.example.com, port: 80}".to_owned(),
                "is no Service of the cluster",
            ),
            (
                "envoyExtAuthzHttp: {service: c/a.b.svc.cluster.local, port: 80}".to_owned(),
                "is no Service of the cluster",
            ),
            ("envoyExtAuthzGrpc: {service: a.b.svc.cluster.local}".to_owned(), "port 0 is none"),
            (
                "envoyExtAuthzGrpc: {service: a.b.svc.cluster.local, port: 70000}".to_owned(),
                "port 70000 is none",
            ),
            (with("timeout: soon"), "timeout"),
            (with("statusOnError: '99'"), "is no status"),
            (with("statusOnError: teapot"), "is no status"),
            (with("pathPrefix: check"), "is no path"),
            (with("includeAdditionalHeadersInCheck: {host: x}"), "header \"host\""),
            (with("includeRequestBodyInCheck: {}"), "maxRequestBytes \"0\""),
            (with("includeRequestBodyInCheck: {maxRequestBytes: 9999999999}"), "maxRequestBytes"),
            (with("someNewField: true"), "unknown field"),
        ] {
            let error = read(&yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
        let entry: serde_yaml_ng::Value =
            serde_yaml_ng::from_str("{name: p, envoyExtAuthzGrpc: {service: a.b.svc, port: 1}}").unwrap();
        let twice = read_providers(&[entry.clone(), entry], "cluster.local").unwrap();
        assert_eq!(twice["p"], Err(InvalidProvider::Twice));
    }
}
