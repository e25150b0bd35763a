// SPDX-License-Identifier: Apache-2.0
//! RequestAuthentication as its author writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TargetRef, Values, WorkloadSelector};

/// `RequestAuthentication.spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// Workloads of the namespace; all of them without selector and targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// One target (older form).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetRef>>,
    /// Whose tokens are taken. A token that none of them accepts makes the request fail; no token is no fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_rules: Option<Vec<JwtRule>>,
}

/// One issuer of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    /// `iss` of its tokens; any with none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud`: one of these; any without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Values,
    /// Where its keys are.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "jwks_uri")]
    pub jwks_uri: Option<String>,
    /// Its keys, a JWK set as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Headers that carry the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_headers: Option<Vec<JwtHeader>>,
    /// Query parameters that carry the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_params: Values,
    /// Cookies that carry the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_cookies: Values,
    /// Header that the payload of a valid token is handed on in, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_payload_to_header: Option<String>,
    /// The token itself is handed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_original_token: Option<bool>,
    /// Claims that are handed on as headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_claim_to_headers: Option<Vec<ClaimToHeader>>,
    /// How long fetching the keys may take, e.g. `5s`; five seconds without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Claims that hold several values with spaces between them, beside `scope` and `permission`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_delimited_claims: Values,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtHeader {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// What stands before the token, e.g. `Bearer `.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// A claim that is handed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimToHeader {
    /// The header.
    #[serde(default)]
    pub header: String,
    /// The claim.
    #[serde(default)]
    pub claim: String,
}
