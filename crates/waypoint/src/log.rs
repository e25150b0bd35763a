// SPDX-License-Identifier: Apache-2.0
//! Log: one line for each request, in the field's usual form; for a denial the policy, the rule and the clause.

use http::Version;
use meltemi_view::judge::Denied;

/// What is known of a request when it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) time: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) version: String,
    pub(crate) code: u16,
    pub(crate) flags: &'static str,
    pub(crate) details: String,
    pub(crate) failure: String,
    pub(crate) duration_ms: u128,
    pub(crate) user_agent: String,
    pub(crate) request_id: String,
    pub(crate) authority: String,
    pub(crate) upstream: String,
    pub(crate) source: String,
}

pub(crate) fn version(version: Version) -> String {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/2",
    }
    .to_owned()
}

/// `rbac_access_denied_matched_policy[…]`, as tools read it.
pub(crate) fn denial(denied: &Denied) -> String {
    match (&denied.policy, denied.rule) {
        (Some(policy), Some(rule)) if denied.text.starts_with("explicitly") => format!(
            "rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{rule}]]",
            policy.namespace, policy.name
        ),
        _ => "rbac_access_denied_matched_policy[none]".to_owned(),
    }
}

impl Line {
    pub(crate) fn text(&self) -> String {
        let or = |text: &str| if text.is_empty() { "-".to_owned() } else { text.escape_debug().to_string() };
        format!(
            "[{}] \"{} {} {}\" {} {} {} - \"{}\" - - {} - \"-\" \"{}\" \"{}\" \"{}\" \"{}\" - - - {} - -",
            self.time,
            or(&self.method),
            or(&self.path),
            self.version,
            self.code,
            or(self.flags),
            or(&self.details),
            or(&self.failure),
            self.duration_ms,
            or(&self.user_agent),
            or(&self.request_id),
            or(&self.authority),
            or(&self.upstream),
            or(&self.source),
        )
    }
}
