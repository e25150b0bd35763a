// SPDX-License-Identifier: Apache-2.0
//! The kinds of `security.istio.io` as their authors write them. A field that is not here is not known, and what is
//! not known is refused.

mod request;
pub mod validate;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use request::{ClaimToHeader, JwtHeader, JwtRule, RequestAuthenticationSpec};

/// Labels that select workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Pairs that a workload must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// What a policy is attached to instead of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Group; empty for core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Must not be set: a policy is attached in its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What a match of an AuthorizationPolicy leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allow what matches.
    #[default]
    Allow,
    /// Deny what matches.
    Deny,
    /// Record what matches.
    Audit,
    /// Ask a provider.
    Custom,
}

/// An extension provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its name in the mesh's configuration.
    #[serde(default)]
    pub name: String,
}

/// `AuthorizationPolicy.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Workloads of the namespace; all of them without selector and targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// One target (older form).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetRef>>,
    /// ORed; none never match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
    /// What a match leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// With CUSTOM: who is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// One rule: ANDed parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// ORed sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<From>>,
    /// ORed operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
    /// ANDed conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Condition>>,
}

/// A member of `from`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// An operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// Values of a field.
pub type Values = Option<Vec<String>>;

/// Who asks; fields are ANDed, their values ORed, and no value of a `not` field may match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Peer identities, `<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principals: Values,
    /// Excluded peer identities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_principals: Values,
    /// Identities of tokens, `<issuer>/<subject>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_principals: Values,
    /// Excluded identities of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_request_principals: Values,
    /// Namespaces of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Values,
    /// Excluded namespaces of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_namespaces: Values,
    /// Addresses of the direct peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_blocks: Values,
    /// Excluded addresses of the direct peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ip_blocks: Values,
    /// Addresses of the original client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip_blocks: Values,
    /// Excluded addresses of the original client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_remote_ip_blocks: Values,
    /// Service accounts, `<namespace>/<name>` or `<name>` of the policy's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Values,
    /// Excluded service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_service_accounts: Values,
    /// Trust domains of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domains: Values,
    /// Excluded trust domains of the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_trust_domains: Values,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Values,
    /// Excluded hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_hosts: Values,
    /// Ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Values,
    /// Excluded ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ports: Values,
    /// Methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Values,
    /// Excluded methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_methods: Values,
    /// Paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Values,
    /// Excluded paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_paths: Values,
}

/// A further condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// What is looked at.
    pub key: String,
    /// One must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Values,
    /// None may match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_values: Values,
}

/// How plaintext is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the level above.
    #[default]
    Unset,
    /// Not asked for; in ambient mode the same as PERMISSIVE.
    Disable,
    /// Plaintext is taken too.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// Settings of mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// How plaintext is taken.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// `PeerAuthentication.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Workloads of the namespace; all of them without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// For every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// For single ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}
