// SPDX-License-Identifier: Apache-2.0
//! The requests: raw bytes of HTTP/1.1, frames of HTTP/2.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, prop_oneof};
use proptest::sample::select;
use proptest::strategy::Strategy;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// 403.
    Denied,
    /// Another status, or 0 for none.
    Refused(u16),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    http2: bool,
    method: &'static str,
    target: String,
    host: &'static str,
    /// The target names the host, and no header does.
    absolute: bool,
    headers: Vec<(&'static str, &'static str)>,
    chunked: bool,
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
    "other",
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
];
/// Headers of [`HEADERS`] that HTTP/2 does not have.
const HTTP1_ONLY: &[&str] = &["connection", "keep-alive", "upgrade"];

pub(crate) fn request(http2: bool) -> impl Strategy<Value = Request> {
    let tail = prop_oneof![3 => Just(""), 1 => select(TAILS)];
    let target = (select(TARGETS), tail).prop_map(|(target, tail)| format!("{target}{tail}"));
    let header = select(HEADERS).prop_flat_map(|(name, values)| (Just(name), select(values)));
    let websocket = prop_oneof![9 => Just(false), 1 => Just(true)];
    (select(&["GET", "GET", "POST", "PUT"][..]), target, select(HOSTS), vec(header, 0..4), websocket, 0..10u8)
        .prop_map(move |(method, target, host, mut headers, websocket, form)| {
            if http2 {
                headers.retain(|(name, value)| {
                    !HTTP1_ONLY.contains(name) && (*name != "te" || *value == "trailers")
                });
            } else if websocket {
                headers.extend([("connection", "upgrade"), ("upgrade", "websocket")]);
            }
            // To two of them Envoy itself answers 403, whatever the policies say.
            let mut upgrades = 0;
            headers.retain(|(name, _)| {
                upgrades += usize::from(*name == "upgrade");
                *name != "upgrade" || upgrades < 2
            });
            let chunked = form == 0 && method != "GET";
            Request { http2, method, target, host, absolute: form == 1, headers, chunked }
        })
}

impl Request {
    /// Sends it over a new connection.
    pub(crate) async fn send<IO>(&self, io: IO) -> Verdict
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let sent = async { if self.http2 { self.send_http2(io).await } else { self.send_http1(io).await } };
        let status =
            tokio::time::timeout(PATIENCE, sent).await.unwrap_or_else(|_| panic!("no answer to {self:?}"));
        match status {
            Some(200 | 101) => Verdict::Allowed,
            Some(403) => Verdict::Denied,
            other => Verdict::Refused(other.unwrap_or_default()),
        }
    }

    async fn send_http1<IO: AsyncRead + AsyncWrite + Unpin>(&self, mut io: IO) -> Option<u16> {
        let Self { method, target, host, .. } = self;
        let mut text = if self.absolute {
            format!("{method} http://{host}{target} HTTP/1.1\r\n")
        } else {
            format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n")
        };
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += match (self.chunked, *method) {
            (true, _) => "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            (false, "GET") => "\r\n",
            (false, _) => "content-length: 0\r\n\r\n",
        };
        // A proxy may answer before it has taken everything.
        let _ = io.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        while !answer.contains(&b'\n') && io.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
        String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
    }

    async fn send_http2<IO>(&self, io: IO) -> Option<u16>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = h2::client::handshake(io).await.ok()?;
        let driver = tokio::spawn(connection);
        let uri = http::Uri::try_from(format!("http://{}{}", self.host, self.target)).ok()?;
        let mut request = http::Request::builder().method(self.method).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let (response, _) = sender.send_request(request.body(()).ok()?, true).ok()?;
        let status = response.await.ok().map(|response| response.status().as_u16());
        driver.abort();
        status
    }
}
