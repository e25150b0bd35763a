// SPDX-License-Identifier: Apache-2.0
//! Log: one line for each request, in the field's usual form; for a denial the policy, the rule and the clause.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use http::Version;
use meltemi_runtime::telemetry::Format;
use meltemi_view::Denial;
use meltemi_view::access_log::json_text;

use crate::metrics::ResponseFlag;

/// Bytes of a line as most are.
const USUAL_LINE: usize = 384;
/// Bytes of a path in a line at most.
const MAX_PATH: usize = 1024;
/// Bytes of why something failed at most: it holds values of policies, and of hostile clients.
const MAX_REASON: usize = 1024;
/// Bytes of any other field at most.
const MAX_FIELD: usize = 256;

/// What is known of a request when it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) time: Arc<str>,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) version: &'static str,
    pub(crate) code: u16,
    pub(crate) flags: ResponseFlag,
    pub(crate) details: String,
    pub(crate) failure: String,
    pub(crate) duration_ms: u128,
    pub(crate) user_agent: String,
    pub(crate) request_id: String,
    pub(crate) authority: String,
    pub(crate) upstream: String,
    pub(crate) source: Arc<str>,
}

pub(crate) fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/2",
    }
}

/// `rbac_access_denied_matched_policy[…]`, as tools read it.
pub(crate) fn denial(denial: &Denial) -> String {
    if let Denial::InvalidToken { reason, .. } = denial {
        return format!("jwt_authn_access_denied{{{}}}", reason.to_string().replace(' ', "_"));
    }
    match denial.denying_rule() {
        Some((policy, rule)) => format!(
            "rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{rule}]]",
            policy.namespace, policy.name
        ),
        None => "rbac_access_denied_matched_policy[none]".to_owned(),
    }
}

/// Policy, rule and clause of a denial, and why.
pub(crate) fn reason(denial: &Denial) -> String {
    let policy = denial.policy().map_or_else(|| "none".to_owned(), |policy| policy.to_string());
    let rule = denial.rule().map_or_else(|| "none".to_owned(), |rule| rule.to_string());
    let clause = denial.clause().unwrap_or("none");
    format!("policy={policy} rule={rule} clause={clause}; {denial}")
}

/// Appends a field: printable ASCII without quotes, everything else escaped, cut at a bound. What a client sends is no line of
/// its own and no command to a terminal.
fn field(out: &mut String, text: &str, most: usize) {
    if text.is_empty() {
        return out.push('-');
    }
    // Of nearly every field there is nothing to escape.
    let is_plain = |b: u8| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\'' | b'\\');
    if text.len() <= most && text.bytes().all(is_plain) {
        return out.push_str(text);
    }
    let begin = out.len();
    for c in text.chars() {
        let before = out.len();
        out.extend(c.escape_default());
        if out.len() - begin > most {
            out.truncate(before);
            out.push_str("...");
            break;
        }
    }
}

/// RFC 3339, UTC, in whole seconds.
pub(crate) fn time_text(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

/// The present second, RFC 3339; written once a second on each thread.
pub(crate) fn now() -> Arc<str> {
    thread_local! {
        static LAST: RefCell<(u64, Arc<str>)> = RefCell::default();
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second {
            (*last, *text) = (second, time_text(now).into());
        }
        text.clone()
    })
}

/// What of a text goes into a line of JSON; `null` for nothing.
fn value(text: &str, most: usize) -> String {
    if text.is_empty() {
        return "null".to_owned();
    }
    if text.len() <= most {
        return json_text(text);
    }
    json_text(&format!("{}...", &text[..text.floor_char_boundary(most)]))
}

impl Line {
    pub(crate) fn written(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Json => self.json(),
        }
    }

    /// The keys are those of Istio's JSON form; `source_principal` is the client's identity.
    fn json(&self) -> String {
        let short = |text: &str| value(text, MAX_FIELD);
        let proven = self.source.starts_with("spiffe://");
        let (identity, address) = if proven { (&*self.source, "") } else { ("", &*self.source) };
        format!(
            r#"{{"start_time":{},"method":{},"path":{},"protocol":{},"response_code":{},"response_flags":{},"response_code_details":{},"connection_termination_details":{},"duration":{},"user_agent":{},"request_id":{},"authority":{},"upstream_host":{},"source_principal":{},"downstream_remote_address":{}}}"#,
            short(&self.time),
            short(&self.method),
            value(&self.path, MAX_PATH),
            short(self.version),
            self.code,
            short(self.flags.as_str()),
            short(&self.details),
            value(&self.failure, MAX_REASON),
            self.duration_ms,
            short(&self.user_agent),
            short(&self.request_id),
            short(&self.authority),
            short(&self.upstream),
            short(identity),
            short(address),
        )
    }

    fn text(&self) -> String {
        let (code, duration) = (self.code.to_string(), self.duration_ms.to_string());
        // What stands before each field, and how long it may be.
        let fields: [(&str, &str, usize); 14] = [
            ("[", &self.time, MAX_FIELD),
            ("] \"", &self.method, MAX_FIELD),
            (" ", &self.path, MAX_PATH),
            (" ", self.version, MAX_FIELD),
            ("\" ", &code, MAX_FIELD),
            (" ", self.flags.as_str(), MAX_FIELD),
            (" ", &self.details, MAX_FIELD),
            (" - \"", &self.failure, MAX_REASON),
            ("\" - - ", &duration, MAX_FIELD),
            (" - \"-\" \"", &self.user_agent, MAX_FIELD),
            ("\" \"", &self.request_id, MAX_FIELD),
            ("\" \"", &self.authority, MAX_FIELD),
            ("\" \"", &self.upstream, MAX_FIELD),
            ("\" - - - ", &self.source, MAX_FIELD),
        ];
        let mut out = String::with_capacity(USUAL_LINE);
        for (before, text, most) in fields {
            out.push_str(before);
            field(&mut out, text, most);
        }
        out.push_str(" - -");
        out
    }
}

#[cfg(test)]
mod tests {
    use meltemi_model::NamespacedName;
    use meltemi_policy::{Decision, Explanation, Rule};

    use super::*;

    #[test]
    fn a_hostile_client_writes_no_line_and_no_long_one() {
        let hostile = "\u{1b}[2J\r\n[T] \"GET / HTTP/1.1\" 200 \u{202e}\u{9b}é\\".repeat(10_000);
        let line = Line {
            time: "T".into(),
            method: hostile.clone(),
            path: hostile.clone(),
            details: hostile.clone(),
            failure: hostile.clone(),
            user_agent: hostile.clone(),
            request_id: hostile.clone(),
            authority: hostile.clone(),
            upstream: hostile.clone(),
            source: hostile.clone().into(),
            ..Line::default()
        };
        let text = line.text();
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
        assert!(text.len() < MAX_PATH + MAX_REASON + 8 * MAX_FIELD, "{} bytes", text.len());
        // No quote that the client sent ends a field: those that are not escaped are ours.
        assert_eq!(text.replace("\\\"", "").matches('"').count(), 14);
        let json = line.written(Format::Json);
        assert!(json.bytes().all(|b| (0x20..0x7f).contains(&b)), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read.as_object().unwrap().len(), 15, "no key of the client's");
        assert!(hostile.starts_with(read["path"].as_str().unwrap().strip_suffix("...").unwrap()));
    }

    #[test]
    fn a_line_of_json_has_the_keys_of_istios() {
        let mut line = Line {
            time: "T".into(),
            method: "GET".into(),
            path: "/a?b=\"".into(),
            version: "HTTP/1.1",
            code: 403,
            details: "rbac_access_denied_matched_policy[none]".into(),
            failure: "policy=a/b rule=none clause=none; x".into(),
            authority: "web".into(),
            source: "spiffe://td/ns/a/sa/b".into(),
            ..Line::default()
        };
        let read =
            |line: &Line| serde_json::from_str::<serde_json::Value>(&line.written(Format::Json)).unwrap();
        let proven = read(&line);
        assert_eq!((&proven["response_code"], &proven["path"]), (&403.into(), &"/a?b=\"".into()));
        assert_eq!(proven["source_principal"], "spiffe://td/ns/a/sa/b");
        assert!(proven["downstream_remote_address"].is_null() && proven["user_agent"].is_null());
        line.source = "10.0.0.1:4".into();
        let plain = read(&line);
        assert_eq!(
            (&plain["source_principal"], &plain["downstream_remote_address"]),
            (&serde_json::Value::Null, &"10.0.0.1:4".into())
        );
    }

    #[test]
    fn a_line_of_text_is_in_istios_order() {
        let line = Line {
            time: "T".into(),
            method: "GET".into(),
            path: "/it's?b=\"".into(),
            version: "HTTP/1.1",
            code: 503,
            flags: ResponseFlag::UpstreamOverflow,
            details: "overload".into(),
            failure: "too many".into(),
            duration_ms: 7,
            user_agent: "curl/8".into(),
            authority: "web:80".into(),
            upstream: "10.0.0.2:8080".into(),
            source: "spiffe://td/ns/a/sa/b".into(),
            ..Line::default()
        };
        assert_eq!(
            line.written(Format::Text),
            "[T] \"GET /it\\'s?b=\\\" HTTP/1.1\" 503 UO overload - \"too many\" - - 7 - \"-\" \"curl/8\" \"-\" \"web:80\" \
             \"10.0.0.2:8080\" - - - spiffe://td/ns/a/sa/b - -"
        );
    }

    #[test]
    fn a_second_is_written_once() {
        let (first, second) = (now(), now());
        assert!(first.len() == "2026-01-01T00:00:00Z".len() && first.ends_with('Z'), "{first}");
        // Unless a second has just passed.
        assert!(Arc::ptr_eq(&first, &second) || first != second);
    }

    #[test]
    fn a_denial_names_policy_rule_and_clause() {
        let by = Rule { policy: 0, rule: 1, clause: Some(0) };
        let why = |decision, text: &str| {
            Denial::from(Explanation {
                decision,
                policy: Some(NamespacedName::new("a", "b")),
                rule: Some(1),
                failed: None,
                clause: Some("to(paths=[/admin])".into()),
                text: text.into(),
            })
        };
        let denied = why(Decision::Deny { by: Some(by) }, "explicitly denied by: a/b rule[1]");
        assert_eq!(denial(&denied), "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[1]]");
        assert!(reason(&denied).starts_with("policy=a/b rule=1 clause=to(paths=[/admin]); explicitly"));
        for (decision, is_transient) in [
            (Decision::Deny { by: None }, false),
            (Decision::Ask { by }, false),
            (Decision::Undecided { missing: 0 }, true),
        ] {
            // Whatever its text says.
            let denied = why(decision, "explicitly");
            assert_eq!(denial(&denied), "rbac_access_denied_matched_policy[none]", "{decision:?}");
            assert_eq!(denied.is_transient(), is_transient, "{decision:?}");
        }
    }
}
