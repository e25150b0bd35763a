// SPDX-License-Identifier: Apache-2.0
//! What a layer 7 proxy is told: policies with their targets, routes, listeners, tokens and certificates.
//!
//! The serde form is the wire form (`meltemi.v1`): an unknown field is refused, so that a newer control plane is never
//! half understood.

mod cors;
mod filter;
mod provider;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::authz::Policy;
use crate::names::{NamespacedHostname, NamespacedName};
use crate::pattern::Pattern;

pub use self::cors::{Cors, InvalidCors};
pub use self::filter::{Filter, HeaderChanges, InvalidFilter, PathChange, check_name as check_header_name};
pub use self::provider::{CheckedBody, HeaderMatch, HttpAuthorizer, Provider, ProviderProtocol};

/// What a policy or a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", deny_unknown_fields)]
pub enum Target {
    /// A service: what is addressed to it.
    Service(NamespacedHostname),
    /// A Gateway (or every Gateway of a class that this resource was sent for): all that passes through.
    Gateway(NamespacedName),
    /// Pods of a service: what is forwarded to one of them, whichever other service it was addressed to.
    Backend(NamespacedHostname),
}

impl Target {
    /// Whether this target covers a request that passes `gateway`. `to` is [`Target::Service`] for the service that it is
    /// addressed to, [`Target::Backend`] for one whose Pod it is forwarded to, `None` at a listener. A Gateway covers every
    /// request once: as it is addressed.
    pub fn applies(&self, to: Option<&Self>, gateway: &NamespacedName) -> bool {
        match self {
            Self::Gateway(name) => name == gateway && !matches!(to, Some(Self::Backend(_))),
            Self::Service(_) | Self::Backend(_) => Some(self) == to,
        }
    }
}

/// An authorization policy at a waypoint or gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpPolicy {
    /// The policy.
    pub policy: Policy,
    /// Where it applies; never empty.
    pub targets: Vec<Target>,
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", deny_unknown_fields)]
pub enum PathMatch {
    /// Exactly this path.
    Exact(String),
    /// This path and what is below it, element by element.
    Prefix(String),
    /// A regular expression over the whole path.
    Regex(Pattern),
}

/// How a header or query parameter is matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedMatch {
    /// Name; headers in lower case.
    pub name: String,
    /// Value.
    pub value: ValueMatch,
}

/// How the value of a header or query parameter is matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", deny_unknown_fields)]
pub enum ValueMatch {
    /// Exactly this value.
    Exact(String),
    /// A regular expression over the whole value.
    Regex(Pattern),
}

impl ValueMatch {
    /// Whether a value matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// ANDed conditions of a route rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    /// Path; any when none.
    #[serde(default)]
    pub path: Option<PathMatch>,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<NamedMatch>,
    /// Query parameters.
    #[serde(default)]
    pub query: Vec<NamedMatch>,
    /// Method; any when none.
    #[serde(default)]
    pub method: Option<String>,
}

/// Where requests of a rule go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The service; none when the reference cannot be resolved or is not permitted: its share is answered with 500.
    pub service: Option<NamespacedHostname>,
    /// Port of the service.
    pub port: u16,
    /// Share, relative to the others; 0 gets nothing.
    pub weight: u32,
    /// What is done to the requests of this share, after what the rule does to all.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

/// When a request is sent again (HTTPRoute `rules[].retry`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// How often at most, after the first time.
    pub attempts: u32,
    /// Status codes of an answer after which it is; what failed without an answer is sent again as well.
    #[serde(default)]
    pub codes: Vec<u16>,
    /// Shortest pause before it, in milliseconds; a short one of the proxy's own when none.
    #[serde(default)]
    pub backoff_ms: Option<u64>,
}

/// A rule of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// ORed; none matches everything.
    pub matches: Vec<RouteMatch>,
    /// In order.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where to.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Longest time for the whole request, in milliseconds; none for no bound of its own.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Longest time for each attempt, to the end of its answer, in milliseconds; none for no bound of its own.
    #[serde(default)]
    pub backend_timeout_ms: Option<u64>,
    /// When requests are sent again; only those that no application has got when none.
    #[serde(default)]
    pub retry: Option<Retry>,
}

/// Where a route is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Service or Gateway.
    pub target: Target,
    /// Listener of the Gateway; all when none.
    #[serde(default)]
    pub section: Option<String>,
    /// Port of the Service or listener; all when none.
    #[serde(default)]
    pub port: Option<u16>,
}

/// An HTTPRoute or GRPCRoute, resolved; or a TLSRoute, at listeners of [`Protocol::Tls`] and [`Protocol::TlsPassthrough`] only,
/// with one rule that has nothing but backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name.
    pub name: NamespacedName,
    /// When it was made, RFC 3339: the older of two equal routes wins.
    pub created: String,
    /// Host names, `*.` for a suffix; none for all.
    pub hostnames: Vec<String>,
    /// Where it is attached.
    pub parents: Vec<Parent>,
    /// In order.
    pub rules: Vec<RouteRule>,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP in the clear.
    Http,
    /// HTTP in TLS, terminated here.
    Https,
    /// Any protocol in TLS, terminated here; a route is chosen by the host that the client names.
    Tls,
    /// TLS that a backend terminates; a route is chosen by the host that the client names.
    TlsPassthrough,
    /// HBONE: a waypoint's listener.
    Hbone,
}

/// A listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The Gateway.
    pub gateway: NamespacedName,
    /// Name of the listener.
    pub name: String,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Host name that it is for; any when none.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Certificates, where TLS ends here: the first one that is for the host that a client names, else the first.
    #[serde(default)]
    pub secrets: Vec<NamespacedName>,
}

/// A certificate with its key, for the Gateway that names it only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSecret {
    /// The Secret.
    pub name: NamespacedName,
    /// Chain, PEM.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
}

// By hand: a key must not reach a log.
impl std::fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSecret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a path is normalised before it is judged and forwarded (`meshConfig.pathNormalization.normalization`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathNormalization {
    /// As received.
    None,
    /// RFC 3986 dot segments and unreserved characters, `\` as `/`. Istio's default.
    #[default]
    Base,
    /// Runs of `/` as one, too.
    MergeSlashes,
    /// Escaped slashes and backslashes are decoded first.
    DecodeAndMergeSlashes,
}

/// What is the same for every layer 7 proxy of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How paths are normalised.
    pub path_normalization: PathNormalization,
    /// External authorizers. A policy that names another one denies what it matches.
    pub providers: Vec<Provider>,
}

/// A RequestAuthentication's rules at its targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The RequestAuthentication.
    pub name: NamespacedName,
    /// Where it applies.
    pub targets: Vec<Target>,
    /// Its rules; never empty.
    pub rules: Vec<JwtRule>,
}

/// One issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtRule {
    /// `iss`; any when none.
    pub issuer: Option<Arc<str>>,
    /// `aud`: one of these; any when empty.
    pub audiences: Vec<Arc<str>>,
    /// Keys (a JWK set as JSON); `None` when they could not be fetched: every token of this issuer is refused.
    pub jwks: Option<Arc<str>>,
    /// Where the keys are published, when the policy does not hold them itself: the control plane fetches them.
    pub jwks_uri: Option<Arc<str>>,
    /// Longest time for fetching them, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Headers that carry the token, with what stands before it. Without headers, parameters and cookies:
    /// `Authorization: Bearer` and the parameter `access_token`.
    pub from_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Query parameters that carry the token.
    pub from_params: Vec<Arc<str>>,
    /// Cookies that carry the token.
    pub from_cookies: Vec<Arc<str>>,
    /// The token is passed on to the backend.
    pub forward: bool,
    /// Header that the payload is passed on in, base64url.
    pub payload_header: Option<Arc<str>>,
    /// Claims that are passed on: header and claim.
    pub claim_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Claims that hold several values with spaces between them, beside `scope` and `permission`.
    pub space_delimited_claims: Vec<Arc<str>>,
}
