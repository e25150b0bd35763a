// SPDX-License-Identifier: Apache-2.0
//! Cross-origin resource sharing (CORS, <https://fetch.spec.whatwg.org/#http-cors-protocol>): which origins a browser may
//! let read the answers of a route. It protects users of browsers; it is no authorization.

use serde::{Deserialize, Serialize};

use super::filter::{is_host, is_token};

/// Longest list of origins, methods or headers (Gateway API, `HTTPCORSFilter`).
const MAX_ITEMS: usize = 64;
/// Longest origin, in bytes (Gateway API, `CORSOrigin`).
const MAX_ORIGIN: usize = 253;
/// Everything.
const ANY: &str = "*";

/// Why a CORS filter cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCors {
    /// A list that is longer than the API permits.
    #[error("{field} has more than {MAX_ITEMS} items")]
    TooLong {
        /// Field of the filter.
        field: &'static str,
    },
    /// An origin that is none.
    #[error("allowOrigins {0:?} is neither * nor <scheme>://<host>, optionally with a port")]
    Origin(String),
    /// A method or header that is none.
    #[error("{field} {value:?} is no name")]
    Name {
        /// Field of the filter.
        field: &'static str,
        /// What it has.
        value: String,
    },
}

/// A CORS filter (HTTPRoute `filters[].cors`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins that may read answers: `*`, or `<scheme>://<host>[:<port>]` whose host may be `*` or begin with `*.`.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Methods; `*` for all.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Headers of requests; `*` for all.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Headers of answers that scripts may read; `*` for all.
    #[serde(default)]
    pub exposed: Vec<String>,
    /// Whether requests may carry credentials (cookies, `Authorization`).
    #[serde(default)]
    pub credentials: bool,
    /// How long browsers keep the answer to a preflight request, in seconds.
    pub max_age: u32,
}

impl Cors {
    /// Checks that the filter can be carried out as it is written.
    ///
    /// # Errors
    /// Names the field and the value that is in the way.
    pub fn check(&self) -> Result<(), InvalidCors> {
        for (field, list) in [
            ("allowOrigins", &self.origins),
            ("allowMethods", &self.methods),
            ("allowHeaders", &self.headers),
            ("exposeHeaders", &self.exposed),
        ] {
            if list.len() > MAX_ITEMS {
                return Err(InvalidCors::TooLong { field });
            }
        }
        if let Some(bad) =
            self.origins.iter().find(|origin| *origin != ANY && Origin::pattern(origin).is_none())
        {
            return Err(InvalidCors::Origin(bad.clone()));
        }
        for (field, list) in [
            ("allowMethods", &self.methods),
            ("allowHeaders", &self.headers),
            ("exposeHeaders", &self.exposed),
        ] {
            if let Some(bad) = list.iter().find(|item| !is_token(item)) {
                return Err(InvalidCors::Name { field, value: bad.clone() });
            }
        }
        Ok(())
    }

    /// Whether the origin of a request is among those that may read answers.
    pub fn allows(&self, origin: &str) -> bool {
        if self.origins.iter().any(|allowed| allowed == ANY) {
            return true;
        }
        let Some(origin) = Origin::of_request(origin) else { return false };
        self.origins
            .iter()
            .filter_map(|allowed| Origin::pattern(allowed))
            .any(|allowed| allowed.covers(&origin))
    }
}

/// Scheme, host and port of a web page (RFC 6454).
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Reads an origin of a filter: its host may be `*`, or begin with `*.`.
    fn pattern(text: &str) -> Option<Self> {
        let origin = Self::split(text)?;
        let fixed = origin.host.strip_prefix("*.").unwrap_or(&origin.host);
        (fixed == ANY || is_host(fixed)).then_some(origin)
    }

    /// Reads the `Origin` of a request; none when it is none that a filter could name (`null`, other schemes).
    fn of_request(text: &str) -> Option<Self> {
        Self::split(text).filter(|origin| is_host(&origin.host))
    }

    fn split(text: &str) -> Option<Self> {
        if text.len() > MAX_ORIGIN {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (host, port) = match rest.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (rest, default_port),
        };
        Some(Self { scheme, host: host.to_ascii_lowercase(), port })
    }

    /// Whether this origin of a filter stands for one of a request. `*.` is at least one more label, and any number.
    fn covers(&self, other: &Self) -> bool {
        let host = match self.host.strip_prefix('*') {
            Some(suffix) => other.host.len() > suffix.len() && other.host.ends_with(suffix),
            None => other.host == self.host,
        };
        host && self.scheme == other.scheme && self.port == other.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(origins: &[&str]) -> Cors {
        Cors { origins: origins.iter().map(|o| (*o).to_owned()).collect(), ..Cors::default() }
    }

    #[test]
    fn origins_match_by_scheme_host_and_port() {
        for (allowed, origin, expected) in [
            ("*", "https://any.example", true),
            ("*", "null", true),
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "HTTPS://A.example", true),
            ("https://a.example", "https://a.example:443", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://a.example.evil.example", false),
            ("https://a.example:8443", "https://a.example:8443", true),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://a.b.example", true),
            ("https://*.example", "https://example", false),
            ("https://*.example", "https://evilexample", false),
            ("https://*.example", "https://evil/.example", false),
            ("https://*.example", "https://x@a.example", false),
            ("https://*", "https://anything.example", true),
            ("https://*", "http://anything.example", false),
            ("https://*:8443", "https://anything.example:8443", true),
            ("https://a.example", "null", false),
            ("https://a.example", "https://a.example/", false),
            ("https://a.example", "https://a.example https://b.example", false),
        ] {
            assert_eq!(allowing(&[allowed]).allows(origin), expected, "{allowed} {origin}");
        }
        assert!(!allowing(&[]).allows("https://a.example"), "nothing is allowed that is not named");
    }

    #[test]
    fn what_cannot_be_carried_out_is_named() {
        let with = |change: fn(&mut Cors)| {
            let mut cors = allowing(&["https://a.example"]);
            change(&mut cors);
            cors.check().err().map(|why| why.to_string())
        };
        let bad = |origin: &'static str| allowing(&[origin]).check().err().map(|why| why.to_string());
        for origin in
            ["", "a.example", "ftp://a.example", "https://", "https://a.*.example", "https://a.example/x"]
        {
            assert!(bad(origin).is_some_and(|why| why.contains("allowOrigins")), "{origin:?}");
        }
        for origin in ["*", "https://*", "https://*.a.example", "http://a.example:8080"] {
            assert_eq!(bad(origin), None, "{origin:?}");
        }
        assert_eq!(with(|_| ()), None);
        assert!(with(|c| c.methods = vec!["GE T".into()]).is_some_and(|why| why.contains("allowMethods")));
        assert!(with(|c| c.headers = vec!["a\nb".into()]).is_some_and(|why| why.contains("allowHeaders")));
        assert!(with(|c| c.exposed = vec![String::new()]).is_some_and(|why| why.contains("exposeHeaders")));
        assert!(with(|c| c.headers = vec!["a".into(); 65]).is_some_and(|why| why.contains("more than 64")));
    }
}
