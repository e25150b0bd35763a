// SPDX-License-Identifier: Apache-2.0
//! Authorization policies as parsed, validated values.
//!
//! One shape serves both layers. A policy is an OR over rules; a rule is an AND over clauses; a clause is an
//! OR over matches; a match is an AND over predicates; a predicate is "one of the values matches and none of
//! the not-values does". `istio.security.Authorization` has the same shape (groups, rules, matches), and the
//! `from`, `to` and `when` parts of an AuthorizationPolicy rule become one clause each.
//!
//! Empty parts: no rules → never matches; a rule without clauses → matches everything; a clause without
//! matches → true; a match without predicates → true.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::names::NamespacedName;

/// Where a policy applies (`istio.security.Scope`, extended by the attachments of a waypoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// The whole mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads (or, at a waypoint, the targets) that name it.
    WorkloadSelector,
}

/// What a match leads to (`AuthorizationPolicy.spec.action`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Allow what matches; what no ALLOW policy matches is denied.
    Allow,
    /// Deny what matches.
    Deny,
    /// Only record what matches.
    Audit,
    /// Ask the named extension provider about what matches.
    Custom {
        /// `spec.provider.name`.
        provider: Arc<str>,
    },
}

/// A policy as it was read or received. `meltemi_policy::ValidPolicy` is one that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Namespace and name: its key, and its name in every verdict.
    pub name: NamespacedName,
    /// Where it applies.
    pub scope: Scope,
    /// What a match leads to.
    pub action: Action,
    /// Only reported, never enforced (`istio.io/dry-run`).
    pub dry_run: bool,
    /// ORed.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Whether it never decides: an AUDIT policy or a dry run.
    pub fn only_reports(&self) -> bool {
        self.dry_run || self.action == Action::Audit
    }
}

/// ANDed clauses; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// ANDed.
    pub clauses: Vec<Clause>,
}

/// Which part of a rule a clause was written in: what an explanation points at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClauseOrigin {
    /// `from`.
    From,
    /// `to`.
    To,
    /// `when`, by index.
    When(u16),
    /// Received on the wire, where the origin is not told.
    #[default]
    Unknown,
}

/// ORed matches; none is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clause {
    /// Where it was written.
    pub origin: ClauseOrigin,
    /// ORed.
    pub matches: Vec<Match>,
}

/// ANDed predicates; none is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// ANDed; at most one for each attribute.
    pub predicates: Vec<Predicate>,
}

impl Match {
    /// A match that nothing fulfils: a principal that is the empty text and is not.
    pub fn never() -> Self {
        let empty = || vec![ValueMatch::String(StringMatch::Exact("".into()))];
        Self {
            predicates: vec![Predicate {
                attribute: Attribute::SourcePrincipal,
                values: empty(),
                not_values: empty(),
            }],
        }
    }
}

/// One attribute: some value matches (when there are values) and no not-value does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    /// What is looked at.
    pub attribute: Attribute,
    /// ORed; empty means no positive condition.
    pub values: Vec<ValueMatch>,
    /// None may match.
    pub not_values: Vec<ValueMatch>,
}

/// What a predicate looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Attribute {
    /// The peer's principal, `<td>/ns/<ns>/sa/<sa>`.
    SourcePrincipal,
    /// The peer's namespace, from its identity.
    SourceNamespace,
    /// The peer's service account, whatever its trust domain.
    SourceServiceAccount,
    /// The peer's trust domain.
    SourceTrustDomain,
    /// Address of the direct peer.
    SourceIp,
    /// Address of the original client (`remoteIpBlocks`, `remote.ip`). Layer 7.
    RemoteIp,
    /// `<iss>/<sub>` of the verified token. Layer 7. A value is split at its last `/`, and both parts must match.
    RequestPrincipal,
    /// Address the connection was made to.
    DestinationIp,
    /// Port: the workload's at a node proxy, the Service's at a waypoint.
    DestinationPort,
    /// Server name of TLS. Layer 7.
    ConnectionSni,
    /// Host of the request, compared without case. Layer 7.
    Host,
    /// Method of the request, compared with case. Layer 7.
    Method,
    /// Normalised path of the request, without query. Layer 7. Of several readings an ALLOW needs all to match and a DENY
    /// any; a value that itself holds what is read in several ways is compared with the path as forwarded.
    Path,
    /// A header, by lower-case name. Layer 7. Of several values an ALLOW needs all to match and a DENY any; a DENY also
    /// looks at the elements of a list (`0, 1`). White space around a value does not count.
    Header(Arc<str>),
    /// `aud` of the verified token. Layer 7.
    RequestAuthAudiences,
    /// `azp` of the verified token. Layer 7.
    RequestAuthPresenter,
    /// A claim of the verified token, by its path. Layer 7. A list holds a value when one of its elements is it.
    RequestAuthClaim(Arc<[Arc<str>]>),
    /// A key that no proxy of ours can evaluate (`experimental.envoy.filters.…`): an ALLOW never matches by
    /// it, a DENY always does.
    Unsupported(Arc<str>),
}

impl Attribute {
    /// Whether only a proxy that parses HTTP (or verifies tokens, or reads SNI) can evaluate it.
    pub fn needs_l7(&self) -> bool {
        !matches!(
            self,
            Self::SourcePrincipal
                | Self::SourceNamespace
                | Self::SourceServiceAccount
                | Self::SourceTrustDomain
                | Self::SourceIp
                | Self::DestinationIp
                | Self::DestinationPort
        )
    }
}

/// The field or the `when` key that it is written as.
impl std::fmt::Display for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SourcePrincipal => "principals",
            Self::SourceNamespace => "namespaces",
            Self::SourceServiceAccount => "serviceAccounts",
            Self::SourceTrustDomain => "trustDomains",
            Self::SourceIp => "ipBlocks",
            Self::RemoteIp => "remoteIpBlocks",
            Self::RequestPrincipal => "requestPrincipals",
            Self::DestinationIp => "destination.ip",
            Self::DestinationPort => "ports",
            Self::ConnectionSni => "connection.sni",
            Self::Host => "hosts",
            Self::Method => "methods",
            Self::Path => "paths",
            Self::Header(name) => return write!(f, "request.headers[{name}]"),
            Self::RequestAuthAudiences => "request.auth.audiences",
            Self::RequestAuthPresenter => "request.auth.presenter",
            Self::RequestAuthClaim(path) => {
                f.write_str("request.auth.claims")?;
                return path.iter().try_for_each(|name| write!(f, "[{name}]"));
            }
            Self::Unsupported(key) => key,
        })
    }
}

/// One value of a predicate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ValueMatch {
    /// A text in one of the four forms.
    String(StringMatch),
    /// An address range; a bare address is a /32 or /128.
    Cidr(IpNet),
    /// A port.
    Port(u16),
    /// A service account of a namespace, whatever the trust domain.
    ServiceAccount {
        /// Namespace, exact.
        namespace: Arc<str>,
        /// Service account, exact.
        name: Arc<str>,
    },
    /// A path template (`{*}`, `{**}`).
    PathTemplate(PathTemplate),
}

/// The four forms of a text match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StringMatch {
    /// `abc`
    Exact(Arc<str>),
    /// `abc*`
    Prefix(Arc<str>),
    /// `*abc`
    Suffix(Arc<str>),
    /// `*`: present and not empty.
    Presence,
}

impl StringMatch {
    /// Reads the form as it is written in a policy.
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            Self::Presence
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else {
            Self::Exact(text.into())
        }
    }

    /// Whether `value` matches; compared byte by byte.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == &**text,
            Self::Prefix(text) => value.starts_with(&**text),
            Self::Suffix(text) => value.ends_with(&**text),
            Self::Presence => !value.is_empty(),
        }
    }
}

impl std::fmt::Display for StringMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

impl ValueMatch {
    /// The text that it compares with, without the `*` of its form; none when it is no text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(StringMatch::Exact(t) | StringMatch::Prefix(t) | StringMatch::Suffix(t)) => Some(t),
            Self::PathTemplate(template) => Some(&template.0),
            _ => None,
        }
    }
}

impl std::fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::String(text) => text.fmt(f),
            Self::Cidr(range) => range.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::ServiceAccount { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::PathTemplate(template) => f.write_str(&template.0),
        }
    }
}

/// A path template, e.g. `/store/{**}/cart`: `{*}` is one segment, `{**}` any number of characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PathTemplate(pub Arc<str>);

/// A bare address as the range that holds only it.
pub fn host_range(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}
