// SPDX-License-Identifier: Apache-2.0
//! Filters of a route rule, and which of them can be carried out: the rest is refused by name, never passed over.

use serde::{Deserialize, Serialize};

use super::{Cors, InvalidCors};
use crate::names::NamespacedHostname;

/// Headers that frame a message, name its host or belong to one connection (RFC 9110 §7.6.1, RFC 9112 §6): the proxy
/// writes them itself, so a route that changed them would contradict what is forwarded.
const OF_CONNECTION: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Longest name of a header in a filter, in bytes (Gateway API, `HTTPHeaderName`).
const MAX_NAME: usize = 256;
/// Longest value of a header in a filter, in bytes (Gateway API, `HTTPHeader`).
const MAX_VALUE: usize = 4096;
/// Longest path of a rewrite or redirect, in bytes (Gateway API, `HTTPPathModifier`).
const MAX_PATH: usize = 1024;
/// Headers that one filter sets, adds or removes, each.
const MAX_CHANGES: usize = 16;
/// Longest host name (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderChanges {
    /// Replaced or added.
    #[serde(default)]
    pub set: Vec<(String, String)>,
    /// Added beside what is there.
    #[serde(default)]
    pub add: Vec<(String, String)>,
    /// Removed.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// How a path is rewritten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", deny_unknown_fields)]
pub enum PathChange {
    /// The whole path.
    Full(String),
    /// The prefix that the rule matched.
    Prefix(String),
}

/// What a rule does to a request or answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum Filter {
    /// Headers of the request.
    RequestHeaders {
        /// The changes.
        changes: HeaderChanges,
    },
    /// Headers of the answer.
    ResponseHeaders {
        /// The changes.
        changes: HeaderChanges,
    },
    /// Another host or path for the backend.
    Rewrite {
        /// Host.
        host: Option<String>,
        /// Path.
        path: Option<PathChange>,
    },
    /// An answer that sends the client elsewhere.
    Redirect {
        /// Scheme; unchanged when none.
        scheme: Option<String>,
        /// Host; unchanged when none.
        host: Option<String>,
        /// Port; unchanged when none.
        port: Option<u16>,
        /// Path; unchanged when none.
        path: Option<PathChange>,
        /// Status code, 3xx.
        code: u16,
    },
    /// A copy of some requests for another service; nobody waits for its answer.
    Mirror {
        /// The service.
        service: NamespacedHostname,
        /// Its port.
        port: u16,
        /// Of so many requests...
        denominator: u32,
        /// ...so many are copied.
        numerator: u32,
    },
    /// Which other origins a browser may let read the answers; preflight requests are answered by the proxy.
    Cors {
        /// The rules.
        cors: Cors,
    },
}

/// A filter that cannot be carried out as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFilter {
    /// The scheme of a redirect.
    #[error("scheme {0:?} is neither http nor https")]
    Scheme(String),
    /// The status code of a redirect.
    #[error("status code {0} is no redirection")]
    Status(u16),
    /// More headers than a filter may change.
    #[error("{operation}: {count} headers; a filter changes at most {MAX_CHANGES}")]
    TooManyHeaders {
        /// `set`, `add` or `remove`.
        operation: &'static str,
        /// Their number.
        count: usize,
    },
    /// A header that is changed.
    #[error("{operation} {name:?}: {reason}")]
    Header {
        /// `set`, `add` or `remove`.
        operation: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with its name or value.
        reason: &'static str,
    },
    /// The host name that requests are sent to.
    #[error("hostname {0:?} is no host name")]
    Host(String),
    /// The requests that are copied.
    #[error("{numerator} of {denominator} requests is no share")]
    Share {
        /// So many...
        numerator: u32,
        /// ...of so many.
        denominator: u32,
    },
    /// The rules of CORS.
    #[error(transparent)]
    Cors(#[from] InvalidCors),
    /// The path that requests are sent to.
    #[error("path {path:?}: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl InvalidFilter {
    fn header(operation: &'static str, name: &str, reason: &'static str) -> Self {
        Self::Header { operation, name: name.to_owned(), reason }
    }
}

impl Filter {
    /// Checks that the filter can be carried out as it is written.
    ///
    /// # Errors
    /// Names the header, host or path that is in the way, and why.
    pub fn check(&self) -> Result<(), InvalidFilter> {
        match self {
            Self::RequestHeaders { changes } | Self::ResponseHeaders { changes } => changes.check(),
            Self::Rewrite { host, path } => check_target(host.as_deref(), path.as_ref()),
            Self::Redirect { scheme, host, path, code, .. } => {
                if let Some(scheme) = scheme.as_deref().filter(|s| !matches!(*s, "http" | "https")) {
                    return Err(InvalidFilter::Scheme(scheme.to_owned()));
                }
                if !(300..400).contains(code) {
                    return Err(InvalidFilter::Status(*code));
                }
                check_target(host.as_deref(), path.as_ref())
            }
            Self::Mirror { numerator, denominator, .. } => match numerator <= denominator {
                true if *denominator > 0 => Ok(()),
                _ => Err(InvalidFilter::Share { numerator: *numerator, denominator: *denominator }),
            },
            Self::Cors { cors } => Ok(cors.check()?),
        }
    }
}

impl HeaderChanges {
    fn check(&self) -> Result<(), InvalidFilter> {
        let counts = [("set", self.set.len()), ("add", self.add.len()), ("remove", self.remove.len())];
        if let Some((operation, count)) = counts.into_iter().find(|(_, count)| *count > MAX_CHANGES) {
            return Err(InvalidFilter::TooManyHeaders { operation, count });
        }
        for (verb, pairs) in [("set", &self.set), ("add", &self.add)] {
            let mut seen: Vec<String> = Vec::new();
            for (name, value) in pairs {
                check_name(name).map_err(|reason| InvalidFilter::header(verb, name, reason))?;
                check_value(value).map_err(|reason| InvalidFilter::header(verb, name, reason))?;
                let name = name.to_ascii_lowercase();
                if seen.contains(&name) {
                    return Err(InvalidFilter::header(verb, &name, "the header is there twice"));
                }
                seen.push(name);
            }
        }
        let check_removed =
            |name: &String| check_name(name).map_err(|reason| InvalidFilter::header("remove", name, reason));
        self.remove.iter().try_for_each(check_removed)
    }
}

/// A token (RFC 9110 §5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || special.contains(&b))
}

/// Checks the name of a header that configuration may write.
///
/// # Errors
/// It is no name, or of a header that the proxy writes itself.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if !is_token(name) || name.len() > MAX_NAME {
        return Err("this is no name of a header");
    }
    // Programs that put headers into variables take `content_length` for the same.
    let folded = name.to_ascii_lowercase().replace('_', "-");
    if OF_CONNECTION.contains(&folded.as_str()) {
        return Err("the proxy writes this header itself; a route cannot change it");
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > MAX_VALUE {
        return Err("the value is empty or longer than 4096 bytes");
    }
    if value.bytes().any(|b| matches!(b, b'\r' | b'\n')) {
        return Err("the value has a line break");
    }
    if !value.bytes().all(|b| (b' '..=b'~').contains(&b) || b == b'\t') {
        return Err("the value has a character that is not printable ASCII");
    }
    if value.starts_with([' ', '\t']) || value.ends_with([' ', '\t']) {
        return Err("the value begins or ends with white space");
    }
    Ok(())
}

/// Checks the host and path that requests are rewritten or redirected to.
fn check_target(host: Option<&str>, path: Option<&PathChange>) -> Result<(), InvalidFilter> {
    if let Some(host) = host.filter(|host| !is_host(host)) {
        return Err(InvalidFilter::Host(host.to_owned()));
    }
    let Some(PathChange::Full(path) | PathChange::Prefix(path)) = path else { return Ok(()) };
    check_path(path).map_err(|reason| InvalidFilter::Path { path: path.clone(), reason })
}

/// A host name of letters, digits and hyphens (RFC 1123 §2.1).
pub(super) fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        let fits = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        fits && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.len() <= MAX_HOST && host.split('.').all(is_label)
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > MAX_PATH {
        return Err("it is longer than 1024 bytes");
    }
    if !path.bytes().all(|b| (b'!'..=b'~').contains(&b)) {
        return Err("it has a character that is not printable ASCII");
    }
    if path.contains(['?', '#', '\\', '%', ';']) {
        return Err("it has one of ? # \\ % ; which backends do not all read alike");
    }
    if path.contains("//") || path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("it has an empty segment, or . or .. as one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Filter {
        let changes = HeaderChanges { set: vec![(name.into(), value.into())], ..HeaderChanges::default() };
        Filter::RequestHeaders { changes }
    }

    fn rewrite(host: Option<&str>, path: Option<&str>) -> Filter {
        let path = path.map(|path| PathChange::Full(path.into()));
        Filter::Rewrite { host: host.map(Into::into), path }
    }

    #[test]
    fn what_is_over_a_bound_is_refused_and_what_is_at_it_is_not() {
        let many = |count: usize| (0..count).map(|n| (format!("x-{n}"), "v".to_owned())).collect::<Vec<_>>();
        let names = move |count| many(count).into_iter().map(|(name, _)| name).collect();
        let changes = |changes| Filter::ResponseHeaders { changes };
        let path = |length: usize| rewrite(None, Some(&format!("/{}", "p".repeat(length - 1))));
        type AtLength = Box<dyn Fn(usize) -> Filter>;
        let cases: [(usize, AtLength); 6] = [
            (MAX_NAME, Box::new(|length| set(&"n".repeat(length), "v"))),
            (MAX_VALUE, Box::new(|length| set("x-n", &"v".repeat(length)))),
            (MAX_PATH, Box::new(path)),
            (
                MAX_CHANGES,
                Box::new(move |count| changes(HeaderChanges { set: many(count), ..Default::default() })),
            ),
            (
                MAX_CHANGES,
                Box::new(move |count| changes(HeaderChanges { add: many(count), ..Default::default() })),
            ),
            (
                MAX_CHANGES,
                Box::new(move |count| changes(HeaderChanges { remove: names(count), ..Default::default() })),
            ),
        ];
        for (bound, filter) in cases {
            assert_eq!(filter(bound).check(), Ok(()));
            assert!(filter(bound + 1).check().is_err(), "{bound}: {:?}", filter(bound + 1));
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_named() {
        let remove = |name: &str| {
            let changes = HeaderChanges { remove: vec![name.into()], ..HeaderChanges::default() };
            Filter::ResponseHeaders { changes }
        };
        let twice = HeaderChanges {
            set: vec![("x-user".into(), "a".into()), ("X-User".into(), "b".into())],
            ..HeaderChanges::default()
        };
        let redirect = |scheme: Option<&str>, code| Filter::Redirect {
            scheme: scheme.map(Into::into),
            host: None,
            port: None,
            path: None,
            code,
        };
        for (filter, expected) in [
            (set("x-user", "gateway"), None),
            (set("X-User", "a b\tc"), None),
            (set("x-user", "gate\nway"), Some("set \"x-user\": the value has a line break")),
            (set("x-user", "gateway\n"), Some("set \"x-user\": the value has a line break")),
            (set("x-user", "a\0b"), Some("set \"x-user\": the value has a character")),
            (set("x-user", "g\u{e4}teway"), Some("set \"x-user\": the value has a character")),
            (set("x-user", " a"), Some("set \"x-user\": the value begins or ends with white space")),
            (set("x-user", ""), Some("set \"x-user\": the value is empty")),
            (set("x-user:", "a"), Some("set \"x-user:\": this is no name")),
            (set(":authority", "a"), Some("set \":authority\": this is no name")),
            (set("", "a"), Some("set \"\": this is no name")),
            (set("Host", "a"), Some("set \"Host\": the proxy writes this header itself")),
            (set("content-length", "1"), Some("set \"content-length\": the proxy writes")),
            (set("content_length", "1"), Some("set \"content_length\": the proxy writes")),
            (set("Transfer-Encoding", "chunked"), Some("set \"Transfer-Encoding\": the proxy writes")),
            (set("connection", "close"), Some("set \"connection\": the proxy writes")),
            (remove("host"), Some("remove \"host\": the proxy writes")),
            (remove("content-length:"), Some("remove \"content-length:\": this is no name")),
            (remove("server"), None),
            (Filter::RequestHeaders { changes: twice }, Some("set \"x-user\": the header is there twice")),
            (rewrite(Some("new.example"), Some("/a/b")), None),
            (rewrite(None, Some("/")), None),
            (rewrite(None, Some("")), None),
            (rewrite(Some("a b"), None), Some("hostname \"a b\"")),
            (rewrite(Some("a\nb"), None), Some("hostname \"a\\nb\"")),
            (rewrite(Some("*.example"), None), Some("hostname")),
            (rewrite(None, Some("/a/../b")), Some("path \"/a/../b\"")),
            (rewrite(None, Some("/a?x=1")), Some("path \"/a?x=1\"")),
            (rewrite(None, Some("/a b\nc")), Some("path")),
            (rewrite(None, Some("//host/a")), Some("path")),
            (rewrite(None, Some("/a%2fb")), Some("path")),
            (redirect(Some("https"), 301), None),
            (redirect(Some("ftp"), 301), Some("scheme \"ftp\"")),
            (redirect(None, 200), Some("status code 200")),
        ] {
            let got = filter.check().err().map(|invalid| invalid.to_string());
            let fits = match (&got, expected) {
                (Some(got), Some(expected)) => got.starts_with(expected),
                (None, None) => true,
                _ => false,
            };
            assert!(fits, "{filter:?}: {got:?}, expected {expected:?}");
        }
    }
}
