// SPDX-License-Identifier: Apache-2.0
//! The requests, whatever they are sent over.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, any, prop_oneof};
use proptest::sample::select;
use proptest::strategy::Strategy;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{http1, http2};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// 403.
    Denied,
    /// Another status, 0 for none, 1 for one that no policy is the reason of.
    Refused(u16),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    http2: bool,
    pub(crate) method: &'static str,
    pub(crate) target: String,
    pub(crate) host: &'static str,
    /// The target names the host, and no header does.
    pub(crate) absolute: bool,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) chunked: bool,
    /// How a client that means harm writes it, by number.
    pub(crate) spelling: Option<u8>,
}

const TARGETS: &[&str] = &[
    "/",
    "/admin",
    "/admin",
    "/admin/keys",
    "/admin/",
    "/ADMIN",
    "/%61dmin",
    "//admin",
    "//x/admin",
    "/\\x/admin",
    "/admin?x=1",
    "/admin;x",
    "/public/x",
    "/public/x",
    "/public/../admin",
    "/public/%2e%2e/admin",
    "/public/..%2fadmin",
    "/a%2Fb",
    "/a%2fb",
    "/a/b",
    "/a%2Fb/x",
    "/caf%C3%A9",
    "/caf%c3%a9",
    "/api;v=1/x",
    "/api;v=1/..%2fadmin",
    "/api/x",
    "/v1/users:delete",
    "/v1/users%3Adelete",
    "/a/x/b",
    "/a/%20/b",
    "/p/x/keys",
    "/p/keys",
    "/p//keys",
    "/p",
    "/public/.%2e/admin",
    "/public/%2e%2e%2fadmin",
    "/public/%252e%252e/admin",
    "/public/..;/admin",
    "/public/..\\admin",
    "/public/./x",
    "/public//x",
    "/./admin",
    "/admin%00",
    "/admin%20",
    "/admin%0a",
    "/admin.",
    "/admin%3f",
    "/admin%23x",
    "/%2fadmin",
    "/%5cadmin",
    "/a%2fb/keys",
    "/x?/../admin",
    "/x?a=/admin",
];
const TAILS: &[&str] = &["/keys", "/b", "/..", "/.", "//", "%2F", ";v=1", "%5C", "?q", "%41", "%zz"];
const HOSTS: &[&str] = &[
    "ok.com",
    "ok.com",
    "OK.com",
    "a.ok.com",
    "A.OK.com",
    "ok.com.",
    "ok.com:80",
    "ok.com:8080",
    "ok.com.:80",
    "secret.com",
    "secret.com:8080",
    "secret.com.:8080",
    "secret.com:08080",
    "SECRET.COM",
    "secret.com:",
    "secret.com..",
    "other",
    "127.0.0.1:81",
    "[::1]:81",
    "ok%2ecom",
];
const HEADERS: &[(&str, &[&str])] = &[
    ("x-a", &["a", "b", "ab", "ba", "", " ", " a ", "a,b", "a, b", "b,a"]),
    ("X-A", &["a", "b", ""]),
    ("x_a", &["a", "b", ""]),
    ("x-b", &["a", "b", "", "b,a"]),
    ("cookie", &["a", "b", "a=b"]),
    ("baggage", &["k=v", "a", ""]),
    ("forwarded", &["a", "for=1.1.1.1"]),
    ("x-forwarded-for", &["1.1.1.1", "1.1.1.1, 2.2.2.2", "a"]),
    ("x-envoy-original-path", &["a", "/admin"]),
    ("te", &["trailers", "gzip"]),
    ("connection", &["close", "keep-alive", "x-a", "upgrade"]),
    ("keep-alive", &["a", "timeout=5"]),
    ("upgrade", &["websocket", "h2c"]),
    ("cookie2", &["a"]),
    ("x-forwarded-host", &["secret.com"]),
    ("x-http-method-override", &["DELETE"]),
    ("x-original-url", &["/admin"]),
];
/// Those of [`HEADERS`] that HTTP/2 does not have.
const HTTP1_ONLY: &[&str] = &["connection", "keep-alive", "upgrade"];

pub(crate) fn request(http2: bool) -> impl Strategy<Value = Request> {
    let tail = prop_oneof![3 => Just(""), 1 => select(TAILS)];
    let target = (select(TARGETS), tail).prop_map(|(target, tail)| format!("{target}{tail}"));
    let header = select(HEADERS).prop_flat_map(|(name, values)| (Just(name), select(values)));
    let websocket = prop_oneof![9 => Just(false), 1 => Just(true)];
    let spelling = proptest::option::weighted(0.3, any::<u8>());
    let line = (select(&["GET", "GET", "POST", "PUT"][..]), target, select(HOSTS));
    (line, vec(header, 0..4), websocket, 0..10u8, spelling).prop_map(
        move |((method, target, host), mut headers, websocket, form, spelling)| {
            if http2 {
                headers.retain(|(name, value)| {
                    !HTTP1_ONLY.contains(name) && (*name != "te" || *value == "trailers")
                });
            } else if websocket {
                headers.extend([("connection", "upgrade"), ("upgrade", "websocket")]);
            }
            let chunked = form == 0 && method != "GET";
            Request { http2, method, target, host, absolute: form == 1, headers, chunked, spelling }
        },
    )
}

impl Request {
    /// Sends it over a new connection.
    pub(crate) async fn send<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> Verdict {
        let sent =
            async { if self.http2 { http2::send(self, io).await } else { http1::send(self, io).await } };
        let status =
            tokio::time::timeout(PATIENCE, sent).await.unwrap_or_else(|_| panic!("no answer to {self:?}"));
        match status {
            Some(200 | 101) => Verdict::Allowed,
            Some(403) => Verdict::Denied,
            other => Verdict::Refused(other.unwrap_or_default()),
        }
    }
}
