// SPDX-License-Identifier: Apache-2.0
//! External authorizers, which policies of action CUSTOM ask.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::NamespacedHostname;

/// A server that is asked about requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The name that policies use.
    pub name: Arc<str>,
    /// Its Service.
    pub service: NamespacedHostname,
    /// The port of the Service.
    pub port: u16,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
    /// Whether a request passes when the server cannot be asked or gives no verdict.
    pub fail_open: bool,
    /// Status of the answer when it does not pass for that reason.
    pub status_on_error: u16,
    /// The part of the request's body that it gets; `None` for none.
    pub body: Option<CheckedBody>,
    /// How it is asked.
    pub protocol: ProviderProtocol,
}

/// How much of a body an authorizer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckedBody {
    /// Bytes at most.
    pub max_bytes: usize,
    /// A longer body is cut; otherwise its request is refused (413).
    pub allow_partial: bool,
    /// gRPC gets bytes in the place of text.
    pub as_bytes: bool,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "settings", deny_unknown_fields)]
pub enum ProviderProtocol {
    /// By a request like the client's.
    Http(HttpAuthorizer),
    /// By `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
}

/// Headers of a check over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpAuthorizer {
    /// Stands before the path.
    pub path_prefix: String,
    /// Headers of the client that it gets, beside those that it always gets.
    pub include: Vec<HeaderMatch>,
    /// Headers with values of the configuration.
    pub additional: Vec<(String, String)>,
    /// Headers of its answer that replace those of the request.
    pub to_upstream: Vec<HeaderMatch>,
    /// Headers of its answer that the client of an allowed request gets.
    pub on_allow: Vec<HeaderMatch>,
    /// Headers of its answer that the client of a denied request gets; empty for all.
    pub on_deny: Vec<HeaderMatch>,
}

/// Names of headers, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "name", deny_unknown_fields)]
pub enum HeaderMatch {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
}

impl HeaderMatch {
    /// Reads `name`, `prefix*` or `*suffix`.
    pub fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        if let Some(prefix) = text.strip_suffix('*') {
            return Self::Prefix(prefix.to_owned());
        }
        match text.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.to_owned()),
            None => Self::Exact(text),
        }
    }

    /// Whether a name is one of these; `name` in lower case.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_headers_are_matched_without_case() {
        for (pattern, name, expected) in [
            ("X-User", "x-user", true),
            ("X-User", "x-users", false),
            ("X-*", "x-user", true),
            ("X-*", "y-user", false),
            ("*-User", "x-user", true),
            ("*-User", "x-user-id", false),
            ("*", "anything", true),
        ] {
            assert_eq!(HeaderMatch::parse(pattern).matches(name), expected, "{pattern} {name}");
        }
    }
}
