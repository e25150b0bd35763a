// SPDX-License-Identifier: Apache-2.0
//! The table: what a client writes, what it gets, and what the backend gets.

use crate::fixtures::{
    ANY_UPGRADE, CLIENT, FORWARDED_FOR, FREE, HOSTS, INTERNAL, LITERAL, NO_ADMIN, NO_BAGGAGE, NO_BLOCK,
    NO_CHUNKS, NO_DEBUG, NO_DELETE, NO_HOST_HEADER, NO_HOST_PORT, NO_REMOTE, NO_ROLE, NO_SECRET, NO_TRAILERS,
    NO_UPGRADE, ONLY_CHUNKS, ONLY_LITERAL, OTHER, PUBLIC, TENANT, TOKENS,
};

#[derive(Clone, Copy)]
pub(crate) enum Via {
    /// Through a tunnel, by the service's number.
    Service(u8),
    /// In the clear.
    Gateway,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) via: Via,
    /// `{id}` stands for the row's request id.
    pub(crate) bytes: Vec<String>,
    /// Of the answers, in order.
    pub(crate) statuses: Vec<u16>,
    /// The connection ends after them; otherwise it must be good for another request.
    pub(crate) closes: bool,
    /// Request lines.
    pub(crate) backend: Vec<&'static str>,
    /// The body is broken off, instead.
    pub(crate) broken: bool,
    /// What the backend's requests have and have not.
    pub(crate) has: Vec<&'static str>,
    pub(crate) lacks: Vec<&'static str>,
    /// What the answers have.
    pub(crate) answers: Vec<&'static str>,
}

impl Row {
    fn denied(mut self, status: u16) -> Self {
        self.statuses = vec![status];
        self
    }

    fn passes(mut self, line: &'static str) -> Self {
        (self.statuses, self.backend) = (vec![200], vec![line]);
        self
    }

    fn closes(mut self) -> Self {
        self.closes = true;
        self
    }

    fn has(mut self, what: &[&'static str]) -> Self {
        self.has.extend(what);
        self
    }

    fn lacks(mut self, what: &[&'static str]) -> Self {
        self.lacks.extend(what);
        self
    }

    fn answers(mut self, what: &[&'static str]) -> Self {
        self.answers.extend(what);
        self
    }

    /// More bytes behind it.
    fn then(mut self, more: impl Into<String>) -> Self {
        self.bytes.push(more.into());
        self
    }
}

/// As written, with the request id right behind the request line.
fn raw(name: &'static str, number: u8, line: &str, headers: &str) -> Row {
    let bytes = vec![format!("{line}\r\nx-request-id: {{id}}\r\n{headers}\r\n")];
    Row {
        name,
        via: Via::Service(number),
        bytes,
        statuses: vec![400],
        closes: false,
        backend: Vec::new(),
        broken: false,
        has: Vec::new(),
        lacks: Vec::new(),
        answers: Vec::new(),
    }
}

/// A request whose target is the case.
fn target(name: &'static str, number: u8, target: &str) -> Row {
    raw(name, number, &format!("GET {target} HTTP/1.1"), "host: a\r\n")
}

/// A request whose headers are the case.
fn headers(name: &'static str, number: u8, more: &str) -> Row {
    raw(name, number, "GET /x HTTP/1.1", &format!("host: a\r\n{more}"))
}

fn post(name: &'static str, framing: &str, body: &str) -> Row {
    raw(name, NO_ADMIN, "POST /x HTTP/1.1", &format!("host: a\r\n{framing}")).then(body)
}

fn gateway(name: &'static str, line: &str, headers: &str) -> Row {
    Row { via: Via::Gateway, ..raw(name, FREE, line, headers) }
}

/// A request that must not come to the backend when it hides behind another one.
const HIDDEN: &str = "GET /admin HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n";
/// A request that is a body.
const SMUGGLED: &str = "GET /x HTTP/1.1\r\nhost: a\r\nx-request-id: smuggled\r\n\r\n";
const X: &str = "GET /x HTTP/1.1";

pub(crate) fn all() -> Vec<Row> {
    let parts = [
        paths(),
        targets(),
        hosts(),
        header_rules(),
        header_presence(),
        header_forms(),
        methods(),
        lengths(),
        connections(),
        proxies(),
        routing(),
    ];
    parts.into_iter().flatten().collect()
}

fn paths() -> Vec<Row> {
    vec![
        target("plain", NO_ADMIN, "/x").passes(X),
        target("denied", NO_ADMIN, "/admin").denied(403).answers(&["RBAC: access denied"]),
        target("two slashes", NO_ADMIN, "//admin").denied(403),
        target("escaped slash", NO_ADMIN, "/%2Fadmin").denied(403),
        target("escaped slash and dots", NO_ADMIN, "/x%2f..%2fadmin").denied(403),
        target("escaped letter", NO_ADMIN, "/%61dmin").denied(403),
        target("dots", NO_ADMIN, "/public/../admin").denied(403),
        target("dots out of what is allowed", PUBLIC, "/public/../admin").denied(403),
        target("escaped dots", PUBLIC, "/public/%2e%2e/admin").denied(403),
        target("backslashes", PUBLIC, "/public\\..\\admin").denied(403),
        target("escaped backslashes", PUBLIC, "/public/%5c..%5c../admin").denied(403),
        target("escaped twice stays escaped", PUBLIC, "/public/%252e%252e/admin")
            .passes("GET /public/%252e%252e/admin HTTP/1.1"),
        target("parameter", NO_ADMIN, "/admin;x=1").denied(403),
        target("parameter in dots", PUBLIC, "/public/..;/admin").denied(403),
        target("fragment", NO_ADMIN, "/admin#x").denied(403),
        target("query", NO_ADMIN, "/admin?x=1").denied(403),
        target("empty query", NO_ADMIN, "/admin?").denied(403),
        target("trailing slash", NO_ADMIN, "/admin/").denied(403),
        target("another case is another path", NO_ADMIN, "/ADMIN").passes("GET /ADMIN HTTP/1.1"),
        target("escaped NUL", FREE, "/admin%00").denied(400).closes(),
        target("what is judged is forwarded", FREE, "/a/./b/../%63\\d?q=%2e")
            .passes("GET /a/c/d?q=%2e HTTP/1.1"),
        target("above the root", PUBLIC, "/public/../../../../admin").denied(403),
        target("not UTF-8, escaped", PUBLIC, "/public/%ff").passes("GET /public/%FF HTTP/1.1"),
        target("overlong UTF-8", FREE, "/a/%c0%ae%c0%ae/admin").denied(400).closes(),
        target("raw UTF-8", FREE, "/caf\u{e9}").denied(400).closes(),
        target("raw UTF-8 in the query", FREE, "/x?caf\u{e9}").denied(400).closes(),
        target("one notation of escapes", FREE, "/a%2fb?c%2fd").passes("GET /a%2Fb?c%2fd HTTP/1.1"),
        target("another host before it", NO_ADMIN, "//x/admin").denied(403),
        target("another host before it, by a backslash", NO_ADMIN, "/\\x/admin").denied(403),
        target("escaped reserved character", LITERAL, "/v1/users%3Adelete").denied(403),
        target("escaped letter of another script", LITERAL, "/caf%c3%a9").denied(403),
        target("another notation of what is denied", LITERAL, "/projects/acme%2fsecret/x").denied(403),
        target("two slashes in what is denied", LITERAL, "/projects//acme%2Fsecret/x").denied(403),
        target("parameters in what is denied", LITERAL, "/projects;a/acme%2Fsecret/x").denied(403),
        target("beside what is denied", LITERAL, "/v1/users%3Acreate")
            .passes("GET /v1/users%3Acreate HTTP/1.1"),
        target("literal path", ONLY_LITERAL, "/api;v=1/x").passes("GET /api;v=1/x HTTP/1.1"),
        target("out of a literal path", ONLY_LITERAL, "/api;v=1/..%2fadmin/x").denied(403),
        target("escaped slash that is meant", ONLY_LITERAL, "/p/acme%2Fweb/x")
            .passes("GET /p/acme%2Fweb/x HTTP/1.1"),
        target("out of an escaped slash", ONLY_LITERAL, "/p/acme%2Fweb/..%2f..%2f..%2fadmin").denied(403),
    ]
}

fn targets() -> Vec<Row> {
    vec![
        target("asterisk", FREE, "*").denied(400).closes(),
        raw("asterisk of OPTIONS", PUBLIC, "OPTIONS * HTTP/1.1", "host: a\r\n").denied(400).closes(),
        target("no slash", FREE, "admin").denied(400).closes(),
        target("a host", FREE, "a:80").denied(400).closes(),
        target("absolute", NO_ADMIN, "http://a/x").passes(X),
        target("absolute, denied", NO_ADMIN, "http://a/admin").denied(403),
        target("absolute without path", FREE, "http://a").passes("GET / HTTP/1.1"),
        target("absolute, another host", FREE, "http://b/x").denied(400).closes(),
        target("absolute, mixed scheme", FREE, "htTp://a/x").passes(X),
        target("another scheme", FREE, "ftp://a/x").denied(400).closes(),
        target("user in the authority", FREE, "http://u:p@a/x").denied(400).closes(),
        raw("CONNECT", FREE, "CONNECT 127.0.0.1:15000 HTTP/1.1", "host: 127.0.0.1:15000\r\n")
            .denied(405)
            .closes(),
        raw("CONNECT and bytes", FREE, "CONNECT a:80 HTTP/1.1", "host: a:80\r\n")
            .then(HIDDEN)
            .denied(405)
            .closes(),
        target("space in the target", FREE, "/a b").denied(400).closes(),
        target("control character", FREE, "/a\u{7f}").denied(400).closes(),
        target("tabulator", FREE, "/a\tb").denied(400).closes(),
        raw("too long", FREE, &format!("GET /{} HTTP/1.1", "a".repeat(70_000)), "host: a\r\n")
            .denied(431)
            .closes(),
        raw("no version", FREE, "GET /x", "host: a\r\n").denied(400).closes(),
        raw("another version", FREE, "GET /x HTTP/1.2", "host: a\r\n").denied(400).closes(),
        raw("two spaces", FREE, "GET  /x HTTP/1.1", "host: a\r\n").denied(400).closes(),
    ]
}

fn hosts() -> Vec<Row> {
    let host = |name, host: &str| raw(name, NO_SECRET, X, host);
    vec![
        host("host", "host: a\r\n").passes(X),
        host("case", "host: SECRET.com\r\n").denied(403),
        host("trailing dot", "host: secret.com.\r\n").denied(403),
        host("port", "host: secret.com:8080\r\n").denied(403),
        host("dot and port", "host: secret.com.:8080\r\n").denied(403),
        host("two hosts", "host: a\r\nhost: secret.com\r\n").denied(400).closes(),
        host("the same twice", "host: a\r\nHost: a\r\n").denied(400).closes(),
        host("no host", "").denied(400).closes(),
        host("empty host", "host:\r\n").denied(400).closes(),
        host("two in one", "host: a,secret.com\r\n").denied(400).closes(),
        host("a path in it", "host: a/secret.com\r\n").denied(400).closes(),
        host("a user in it", "host: a@secret.com\r\n").denied(400).closes(),
        host("two ports", "host: a:80:secret.com\r\n").denied(400).closes(),
        host("escaped", "host: secret%2ecom\r\n").denied(400).closes(),
        host("a zero before the port", "host: a:080\r\n").denied(400).closes(),
        host("forwarded in one form", "host: a.example.:80\r\n").passes(X).has(&["host: a.example\r\n"]),
        raw("host by its header", NO_HOST_HEADER, X, "host: secret.com\r\n").denied(403),
        raw("host by its header, case and port", NO_HOST_HEADER, X, "host: SECRET.com:80\r\n").denied(403),
        raw("absolute, without Host", NO_HOST_HEADER, "GET http://secret.com/x HTTP/1.1", "").denied(403),
        raw("another host by its header", NO_HOST_HEADER, X, "host: a\r\n").passes(X),
        raw("denied with its port", NO_HOST_PORT, X, "host: secret.com.:8080\r\n").denied(403),
        raw("denied with another port", NO_HOST_PORT, X, "host: secret.com:8081\r\n").passes(X),
        raw("allowed host", HOSTS, X, "host: OK.com\r\n").passes(X),
        raw("allowed host with a dot", HOSTS, X, "host: ok.com.\r\n").denied(403),
        raw("allowed host with a port", HOSTS, X, "host: ok.com:80\r\n").denied(403),
        raw("allowed host with a dot and a port", HOSTS, X, "host: ok.com.:8443\r\n").denied(403),
        raw("allowed host with its port", HOSTS, X, "host: any.example:39954\r\n").passes(X),
        raw("no host in 1.0", NO_SECRET, "GET /x HTTP/1.0", "").denied(400).closes(),
    ]
}

fn header_rules() -> Vec<Row> {
    let block = |name, more: &str| headers(name, NO_BLOCK, more);
    let tenant = |name, more: &str| headers(name, TENANT, more);
    vec![
        block("other value", "x-block: 0\r\n").passes(X),
        block("denied value", "x-block: 1\r\n").denied(403),
        block("any of two", "x-block: 0\r\nx-block: 1\r\n").denied(403),
        block("any of two, first", "x-block: 1\r\nx-block: 0\r\n").denied(403),
        block("case of the name", "X-BLOCK: 1\r\n").denied(403),
        block("space behind", "x-block:1 \t \r\n").denied(403),
        block("space before", "x-block: \t 1\r\n").denied(403),
        block("not there for the backend either", "connection: x-block\r\nx-block: 1\r\n")
            .passes(X)
            .lacks(&["x-block"]),
        block("as a variable", "x_block: 1\r\n").denied(403),
        block("as a variable, other value", "x_block: 0\r\n").passes(X),
        tenant("as a variable", "x_tenant: a\r\n").denied(403),
        tenant("as a variable too", "x-tenant: a\r\nx_tenant: b\r\n").denied(403),
        tenant("allowed value", "x-tenant: a\r\n").passes(X),
        tenant("all of two", "x-tenant: a\r\nx-tenant: b\r\n").denied(403),
        tenant("all of two, last", "x-tenant: b\r\nx-tenant: a\r\n").denied(403),
        tenant("joined", "x-tenant: a,b\r\n").denied(403),
        tenant("absent", "").denied(403),
        tenant("taken away by connection", "connection: x-tenant\r\nx-tenant: a\r\n").denied(403),
        tenant("taken away in another case", "Connection: close, X-Tenant\r\nx-tenant: a\r\n")
            .denied(403)
            .closes(),
    ]
}

/// Presence is presence, and what this proxy does about a header is what the header says.
fn header_presence() -> Vec<Row> {
    let debug = |name, more: &str| headers(name, NO_DEBUG, more);
    let role = |name, more: &str| headers(name, NO_ROLE, more);
    let websocket = "connection: upgrade\r\nupgrade: websocket\r\n";
    vec![
        debug("present", "x-debug: 1\r\n").denied(403),
        debug("present and empty", "x-debug:\r\n").denied(403),
        debug("present and blank", "x-debug: \t \r\n").denied(403),
        debug("present for some servers", "x_debug:\r\n").denied(403),
        debug("absent", "").passes(X),
        role("without it", "").passes(X),
        role("not that value", "x-role: good\r\n").passes(X),
        role("that value", "x-role: evil\r\n").denied(403),
        role("that value in a list", "x-role: good, evil\r\n").denied(403),
        role("that value in two headers", "x-role: good\r\nx-role: evil\r\n").denied(403),
        headers("upgrade that is acted on", NO_UPGRADE, websocket).denied(403).closes(),
        headers("upgrade that is not acted on", NO_UPGRADE, "connection: upgrade\r\nupgrade: h2c\r\n")
            .passes(X)
            .closes(),
        headers("upgrade to another protocol", ANY_UPGRADE, "connection: upgrade\r\nupgrade: foo\r\n")
            .denied(403)
            .closes(),
        headers("accepted trailers", NO_TRAILERS, "te: gzip, trailers\r\n").denied(403),
        headers("accepted compression", NO_TRAILERS, "te: gzip\r\n").passes(X),
        headers("upgrade without connection", NO_UPGRADE, "upgrade: websocket\r\n").passes(X).closes(),
        raw("chunks", NO_CHUNKS, "POST /x HTTP/1.1", "host: a\r\ntransfer-encoding: chunked\r\n")
            .then("0\r\n\r\n")
            .denied(403),
        raw("no chunks", NO_CHUNKS, "POST /x HTTP/1.1", "host: a\r\ncontent-length: 0\r\n")
            .passes("POST /x HTTP/1.1"),
        // How a body is framed may be another thing at the next hop: Envoy does not see it at all.
        raw(
            "chunks that may be none",
            ONLY_CHUNKS,
            "POST /x HTTP/1.1",
            "host: a\r\ntransfer-encoding: chunked\r\n",
        )
        .then("0\r\n\r\n")
        .denied(403),
        headers("sent and not forwarded", NO_BAGGAGE, "baggage: k=v\r\n").denied(403),
        headers("neither sent nor forwarded", NO_BAGGAGE, "").passes(X),
        headers("forwarded and not sent", FORWARDED_FOR, "").denied(403),
        headers("sent and forwarded otherwise", FORWARDED_FOR, "x-forwarded-for: 1.1.1.1\r\n").passes(X),
        headers("claims under another name", TOKENS, "x_claims: root\r\n")
            .passes(X)
            .lacks(&["x_claims", "root"]),
    ]
}

fn header_forms() -> Vec<Row> {
    let form = |name, more: &str| headers(name, NO_BLOCK, more).denied(400).closes();
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    vec![
        form("space before the colon", "x-block : 1\r\n"),
        form("folded", "x-block:\r\n 1\r\n"),
        form("folded by a tabulator", "a: b\r\n\tx-block: 1\r\n"),
        form("bare line feed", "a: b\nx-block: 0\r\n"),
        form("bare carriage return", "a: b\rx-block: 1\r\n"),
        form("NUL", "a: b\0\r\n"),
        form("control character", "a: b\u{1}\r\n"),
        form("no name", ": b\r\n"),
        form("no colon", "x-block\r\n"),
        form("bracket in the name", "x(block): 1\r\n"),
        form("line feed ends the head", "a: b\r\n\n"),
        headers("too many", FREE, &many).denied(431).closes(),
        headers("too large", FREE, &format!("a: {}\r\n", "b".repeat(62_000))).denied(431).closes(),
        headers("large", FREE, &format!("a: {}\r\n", "b".repeat(50_000))).passes(X),
        headers("not UTF-8 is judged as it is", TENANT, "x-tenant: a\u{e9}\r\n").denied(403),
    ]
}

fn methods() -> Vec<Row> {
    let method = |name, number, method: &str| {
        raw(name, number, &format!("{method} /public/x HTTP/1.1"), "host: a\r\n")
    };
    vec![
        method("lower case", PUBLIC, "get").denied(400).closes(),
        method("mixed case", PUBLIC, "GeT").denied(400).closes(),
        method("lower case of what is denied", NO_DELETE, "delete").denied(400).closes(),
        method("denied", NO_DELETE, "DELETE").denied(403),
        method("no token", FREE, "GE(T").denied(400).closes(),
        method("empty", FREE, "").denied(400).closes(),
        method("unknown", FREE, "PURGE").passes("PURGE /public/x HTTP/1.1"),
        method("not allowed", PUBLIC, "PUT").denied(403),
    ]
}

fn lengths() -> Vec<Row> {
    const POST: &str = "POST /x HTTP/1.1";
    let framed = |name, framing: &str| post(name, framing, HIDDEN).denied(400).closes();
    let broken = |name, body: &str| Row {
        broken: true,
        ..post(name, "transfer-encoding: chunked\r\n", body).denied(400).closes()
    };
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(64 * 1024));
    vec![
        post("length", "content-length: 5\r\n", "hello").passes(POST).has(&["\r\n\r\nhello"]),
        post("chunked", "transfer-encoding: chunked\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n")
            .passes(POST)
            .lacks(&["a=b"]),
        framed("length and chunked", "content-length: 5\r\ntransfer-encoding: chunked\r\n"),
        framed("chunked and length", "transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
        framed("two lengths", "content-length: 5\r\ncontent-length: 50\r\n"),
        framed("the same length twice", "content-length: 5\r\ncontent-length: 5\r\n"),
        framed("list of lengths", "content-length: 5, 5\r\n"),
        framed("sign", "content-length: +5\r\n"),
        framed("negative", "content-length: -5\r\n"),
        framed("hexadecimal", "content-length: 0x5\r\n"),
        framed("over 64 bits", "content-length: 18446744073709551621\r\n"),
        framed("empty length", "content-length:\r\n"),
        framed("identity last", "transfer-encoding: chunked, identity\r\n"),
        framed("unknown encoding", "transfer-encoding: xchunked\r\n"),
        framed("gzip", "transfer-encoding: gzip, chunked\r\n"),
        framed("chunked twice", "transfer-encoding: chunked, chunked\r\n"),
        framed("two encodings", "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n"),
        framed("vertical tabulator", "transfer-encoding: \u{b}chunked\r\n"),
        framed("space in the name", "transfer-encoding : chunked\r\n"),
        raw("chunked in 1.0", FREE, "POST /x HTTP/1.0", "host: a\r\ntransfer-encoding: chunked\r\n")
            .denied(400)
            .closes(),
        broken("long extension", &long),
        broken("size over 64 bits", "ffffffffffffffff1\r\n"),
        broken("bare line feed behind the size", "5\nhello\r\n0\r\n\r\n"),
        broken("size that is none", "hello\r\n"),
        broken("more than its size", "3\r\nhello\r\n0\r\n\r\n"),
    ]
}

fn connections() -> Vec<Row> {
    let again = "GET /x HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n";
    let behind = |row: Row, statuses: &[u16], backend: &[&'static str]| Row {
        statuses: statuses.to_vec(),
        backend: backend.to_vec(),
        ..row
    };
    let websocket = "connection: upgrade\r\nupgrade: websocket\r\n";
    vec![
        behind(
            target("pipelined, each judged", NO_ADMIN, "/x").then(HIDDEN).then(again),
            &[200, 403, 200],
            &[X, X],
        ),
        behind(target("behind a denied one", NO_ADMIN, "/admin").then(again), &[403, 200], &[X]),
        target("behind a refused one", NO_ADMIN, "/%00").then(again).denied(400).closes(),
        raw(
            "denied, its body is no request",
            NO_ADMIN,
            "POST /admin HTTP/1.1",
            &format!("host: a\r\ncontent-length: {}\r\n", SMUGGLED.len()),
        )
        .then(SMUGGLED)
        .denied(403),
        raw("a body without a length", FREE, "POST /x HTTP/1.0", "host: a\r\nconnection: keep-alive\r\n")
            .then(HIDDEN)
            .passes("POST /x HTTP/1.1")
            .closes(),
        raw("1.0 ends", NO_ADMIN, "GET /x HTTP/1.0", "host: a\r\nconnection: keep-alive\r\n")
            .passes(X)
            .closes(),
        raw(
            "denied without a go-ahead",
            NO_ADMIN,
            "POST /admin HTTP/1.1",
            "host: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n",
        )
        .denied(403)
        .closes(),
        raw("upgrade that is not agreed to", NO_ADMIN, X, &format!("host: a\r\n{websocket}"))
            .then(HIDDEN)
            .passes(X)
            .has(&["upgrade: websocket"])
            .closes(),
        raw("denied upgrade", NO_ADMIN, "GET /admin HTTP/1.1", &format!("host: a\r\n{websocket}"))
            .then(again)
            .denied(403)
            .closes(),
        raw("upgrade with a body", NO_ADMIN, X, &format!("host: a\r\n{websocket}content-length: 5\r\n"))
            .then("hello")
            .denied(400)
            .closes(),
        raw(
            "upgrade to HTTP/2",
            NO_ADMIN,
            X,
            "host: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n",
        )
        .then(HIDDEN)
        .passes(X)
        .lacks(&["upgrade", "http2-settings", "h2c"])
        .closes(),
    ]
}

fn proxies() -> Vec<Row> {
    let forged = "x-forwarded-client-cert: By=x\r\nforwarded: for=1.2.3.4\r\nbaggage: k=v\r\nx-envoy-original-path: /admin\r\n\
        x-envoy-decorator-operation: x\r\nx-envoy-internal: true\r\nx-istio-attributes: x\r\nX_Forwarded_Client_Cert: x\r\n\
        proxy-authorization: x\r\nproxy-connection: keep-alive\r\nkeep-alive: 5\r\nte: trailers\r\ntrailer: x\r\n";
    let gone: &[&str] = &[
        "client-cert",
        "client_cert",
        "1.2.3.4",
        "baggage",
        "x-envoy",
        "x-istio",
        "proxy-",
        "keep-alive",
        "trailer",
        "\r\nte:",
    ];
    let edge = "x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\nx-forwarded-host: secret.com\r\nx-forwarded-port: 1\r\n";
    vec![
        headers("what proxies say", FREE, forged).passes(X).lacks(gone),
        gateway("what proxies say, at the edge", X, &format!("host: a\r\n{forged}")).passes(X).lacks(gone),
        headers("judged without it too", INTERNAL, "x-envoy-internal: true\r\n").denied(403),
        gateway("the edge says who is there", X, &format!("host: a\r\n{edge}"))
            .passes(X)
            .has(&["x-forwarded-for: 127.0.0.1\r\n", "x-forwarded-proto: http\r\n"])
            .lacks(&["203.0.113.9", "https", "secret.com", "x-forwarded-port"]),
        headers("a waypoint adds who is there", FREE, "x-forwarded-for: 203.0.113.9\r\n")
            .passes(X)
            .has(&["x-forwarded-for: 203.0.113.9, 127.0.0.1\r\n"]),
        headers("an address that is only said", NO_REMOTE, "x-forwarded-for: 203.0.113.9\r\n").passes(X),
        headers(
            "identity of the tunnel",
            CLIENT,
            "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/other\r\n",
        )
        .passes(X),
        headers(
            "identity that is only said",
            OTHER,
            "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/other\r\n",
        )
        .denied(403),
        headers("claims that are only said", TOKENS, "x-claims: x\r\n").passes(X).lacks(&["x-claims"]),
        headers("method that is only said", NO_DELETE, "x-http-method-override: DELETE\r\n").passes(X),
        headers(
            "connection takes nothing of ours",
            FREE,
            "connection: x-forwarded-for, host, content-length, close\r\n",
        )
        .passes(X)
        .has(&["host: a\r\n", "x-forwarded-for: 127.0.0.1\r\n"])
        .closes(),
        target("a backend of HTTP/1.0", FREE, "/old")
            .passes("GET /old HTTP/1.1")
            .answers(&["HTTP/1.1 200 OK\r\n"]),
        headers("one host", FREE, "").passes(X).has(&["host: a\r\n"]),
    ]
}

fn routing() -> Vec<Row> {
    vec![
        gateway("through the gateway", X, "host: a\r\n").passes(X),
        gateway("its own policy", "GET /gate HTTP/1.1", "host: a\r\n").denied(403),
        gateway("its own policy, another reading", "GET //gate HTTP/1.1", "host: a\r\n").denied(403),
        gateway("listener of another host", "GET /inside HTTP/1.1", "host: inside.example\r\n")
            .passes("GET /inside HTTP/1.1"),
        gateway("no route at that listener", X, "host: INSIDE.example.:80\r\n").denied(404),
        gateway("rewritten after it was judged", "GET /old/../old/x?q HTTP/1.1", "host: a\r\n")
            .passes("GET /admin/x?q HTTP/1.1")
            .has(&["host: new.example\r\n"]),
        gateway("judged before it is rewritten", "GET /old/%2e%2e/gate HTTP/1.1", "host: a\r\n").denied(403),
        gateway("sent elsewhere", "GET /moved/x?q=1 HTTP/1.1", "host: a:99\r\n")
            .denied(301)
            .answers(&["location: https://a/moved/x?q=1\r\n"]),
        gateway("sent elsewhere by a split", "GET /moved/%0d%0aset-cookie:x HTTP/1.1", "host: a\r\n")
            .denied(301)
            .answers(&["location: https://a/moved/%0D%0Aset-cookie:x\r\n"]),
        gateway("expressions", "GET /v12/x?q=7 HTTP/1.1", "host: a\r\nx-kind: b\r\n")
            .passes("GET /v12/x?q=7 HTTP/1.1")
            .has(&["x-route: regex\r\n"]),
        gateway("expressions match the whole", "GET /v12/x?q=7a HTTP/1.1", "host: a\r\nx-kind: b\r\n")
            .passes("GET /v12/x?q=7a HTTP/1.1")
            .lacks(&["x-route"]),
    ]
}

/// A request of an HTTP/2 client.
pub(crate) struct Row2 {
    pub(crate) name: &'static str,
    pub(crate) via: u8,
    pub(crate) method: &'static str,
    pub(crate) uri: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// 0: the stream is reset.
    pub(crate) status: u16,
    pub(crate) backend: &'static str,
    pub(crate) has: Vec<&'static str>,
    pub(crate) lacks: Vec<&'static str>,
}

pub(crate) fn http2() -> Vec<Row2> {
    let row = |name, via, method, uri, headers: &[(&'static str, &str)], status, backend| Row2 {
        name,
        via,
        method,
        uri,
        headers: headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect(),
        status,
        backend,
        has: Vec::new(),
        lacks: Vec::new(),
    };
    let x = "GET /x HTTP/2";
    let crumbs: Vec<(&str, &str)> = vec![("cookie", "a=b"); 3];
    let many: Vec<(&str, &str)> = vec![("cookie", "a=b"); 200];
    let big = "b".repeat(30_000);
    let forged =
        [("x-forwarded-client-cert", "x"), ("x-envoy-internal", "true"), ("forwarded", "for=1.2.3.4")];
    vec![
        row("plain", NO_ADMIN, "GET", "http://a/x", &[], 200, x),
        Row2 {
            has: vec!["te: trailers\r\n"],
            ..row("for gRPC", FREE, "GET", "http://a/x", &[("te", "trailers")], 200, x)
        },
        row("path", NO_ADMIN, "GET", "http://a//admin", &[], 403, ""),
        row("normalised", NO_ADMIN, "GET", "http://a/y/../%78", &[], 200, x),
        row("authority", NO_SECRET, "GET", "http://SECRET.com.:1/x", &[], 403, ""),
        row("host by its header", NO_HOST_HEADER, "GET", "http://secret.com/x", &[], 403, ""),
        row("present and empty", NO_DEBUG, "GET", "http://a/x", &[("x-debug", "")], 403, ""),
        Row2 {
            has: vec![":authority: a.example\r\n"],
            ..row("forwarded in one form", FREE, "GET", "http://a.example.:80/x", &[], 200, x)
        },
        row("host that differs", NO_SECRET, "GET", "http://ok/x", &[("host", "secret.com")], 400, ""),
        row("host that agrees", NO_SECRET, "GET", "http://ok/x", &[("host", "ok")], 200, x),
        row("two hosts", NO_SECRET, "GET", "http://ok/x", &[("host", "ok"), ("host", "secret.com")], 400, ""),
        row("case of the method", PUBLIC, "get", "http://a/public/x", &[], 400, ""),
        row("case of what is denied", NO_DELETE, "DeLeTe", "http://a/x", &[], 400, ""),
        row("duplicates", NO_BLOCK, "GET", "http://a/x", &[("x-block", "0"), ("x-block", "1")], 403, ""),
        row(
            "duplicates, allowed",
            TENANT,
            "GET",
            "http://a/x",
            &[("x-tenant", "a"), ("x-tenant", "b")],
            403,
            "",
        ),
        row("another scheme", FREE, "GET", "ftp://a/x", &[], 400, ""),
        row("tunnel", FREE, "CONNECT", "127.0.0.1:15000", &[], 405, ""),
        row(
            "two lengths",
            FREE,
            "GET",
            "http://a/x",
            &[("content-length", "0"), ("content-length", "0")],
            400,
            "",
        ),
        row("too many crumbs", FREE, "GET", "http://a/x", &many, 431, ""),
        row("too large", FREE, "GET", "http://a/x", &[("a", &big), ("b", &big), ("c", &big)], 431, ""),
        Row2 {
            has: vec!["cookie: a=b; a=b; a=b\r\n"],
            ..row("crumbs", FREE, "GET", "http://a/x", &crumbs, 200, x)
        },
        Row2 {
            has: vec!["x-forwarded-for: 127.0.0.1\r\n"],
            lacks: vec!["client-cert", "x-envoy", "1.2.3.4"],
            ..row("what proxies say", FREE, "GET", "http://a/x", &forged, 200, x)
        },
    ]
}
