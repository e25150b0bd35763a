// SPDX-License-Identifier: Apache-2.0
//! The golden rule: whatever bytes come in, a request that reaches the backend means there what it meant to the policy.
//!
//! Requests are put together from pieces that were ways around proxies; what the backend gets is read by a reader of the
//! test's own, which knows nothing of the proxy's, in every way that a backend might.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_waypoint::Limits;
use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncReadExt;
use world::{World, write};

/// Pieces of a request target.
const TARGET: &[&str] = &[
    "/",
    "/",
    "/",
    "admin",
    "admin",
    "ADMIN",
    "%61dmin",
    "adm%69n",
    "x",
    "..",
    ".",
    "%2e",
    "%2E%2e",
    "%252e",
    "\\",
    "%5c",
    "%2f",
    "%2F",
    ";",
    ";a=b",
    "?",
    "#",
    "%",
    "%0",
    "%00",
    "%0a",
    "*",
    "http://a",
    "http://b/",
    "@",
    ":80",
    " ",
    "\t",
    "\u{e9}",
    "%c0%af",
];
/// Lines of a head, with their ends; the host comes from among them too.
const LINES: &[&str] = &[
    "Host: b\r\n",
    "host : a\r\n",
    "host:\ta \r\n",
    "host: a:80\r\n",
    "host: A.\r\n",
    "x-block: 1\r\n",
    "X-Block:1\r\n",
    "x-block: 0\r\n",
    "x-block\r\n",
    " x-block: 1\r\n",
    "\tfold\r\n",
    "a: b\nx-block: 1\r\n",
    "a: b\r\r\n",
    "a: \0\r\n",
    "a: b\rx: y\r\n",
    "x_block: 1\r\n",
    "connection: x-block\r\n",
    "connection: close\r\n",
    "connection: host\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding:\u{b}chunked\r\n",
    "transfer-encoding: chunked, chunked\r\n",
    "content-length: 5\r\n",
    "content-length: 50\r\n",
    "content-length: 0\r\n",
    "Content-Length: +5\r\n",
    "content-length: 5, 5\r\n",
    "content-length:\r\n",
    "expect: 100-continue\r\n",
    "upgrade: websocket\r\nconnection: upgrade\r\n",
    "upgrade: h2c\r\n",
    "x-envoy-internal: true\r\n",
    "\n",
    "x-forwarded-for: 1.1.1.1\r\n",
];
/// What comes behind a head.
const TAIL: &[&str] = &[
    "",
    "hello",
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x=\"\n\"\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "0\r\nx-block: 1\r\n\r\n",
    "GET /admin HTTP/1.1\r\nhost: a\r\n\r\n",
    "0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /x HTTP/1.1\r\nhost: a\r\nx-block: 1\r\n\r\n",
    "\r\nGET /x HTTP/1.1\r\nhost: a\r\n\r\n",
];

/// One of the pieces, and in most cases the plain one.
fn mostly(plain: &'static str, pieces: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    (proptest::bool::weighted(0.9), select(pieces))
        .prop_map(move |(usual, piece)| if usual { plain } else { piece })
}

fn request() -> impl Strategy<Value = String> {
    let method = mostly("GET", &["POST", "get", "OPTIONS", "CONNECT", "G\tET", ""]);
    let version = mostly("HTTP/1.1", &["HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/2.0", ""]);
    let target = (mostly("/", &["", "//", "http://a/"]), vec(select(TARGET), 0..6))
        .prop_map(|(root, t)| root.to_owned() + &t.concat());
    let lines = vec(select(LINES), 0..3).prop_map(|lines| lines.concat());
    let (host, end) = (mostly("host: a\r\n", &[""]), mostly("\r\n", &["\n", ""]));
    (method, target, version, host, lines, end, select(TAIL)).prop_map(
        |(method, target, version, host, lines, end, tail)| {
            format!("{method} {target} {version}\r\n{host}{lines}{end}{tail}")
        },
    )
}

/// Every path that a backend might read in a target: decoded never, once or twice, with or without parameters, slashes and
/// backslashes; dots resolved after it.
fn readings(target: &str) -> Vec<String> {
    let decode = |text: &str| {
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let resolve = |text: &str, parameters: bool| {
        let mut out: Vec<&str> = Vec::new();
        for segment in text.split(['/', '\\']) {
            match if parameters { segment } else { segment.split(';').next().unwrap_or_default() } {
                "" | "." => {}
                ".." => drop(out.pop()),
                other => out.push(other),
            }
        }
        format!("/{}", out.join("/"))
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let once = decode(path);
    let slashes_only = path.replace("%2f", "/").replace("%2F", "/").replace("%5c", "/").replace("%5C", "/");
    let mut all = Vec::new();
    for text in [path, &once, &slashes_only] {
        all.extend([resolve(text, true), resolve(text, false)]);
    }
    all
}

/// What the backend got, a character for each byte, read strictly; an error says what two programs would disagree about.
fn read(bytes: &str) -> Result<(), String> {
    let (head, body) = bytes.split_once("\r\n\r\n").ok_or("no end of the head")?;
    let length = body.chars().count();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    if head.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err("a line end of another kind".into());
    }
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("request line {line:?}")) };
    if !method.bytes().all(|b| b.is_ascii_uppercase()) || !target.starts_with('/') || target.contains('#') {
        return Err(format!("request line {line:?}"));
    }
    if let Some(denied) = readings(target).iter().find(|r| *r == "/admin" || r.starts_with("/admin/")) {
        return Err(format!("{target} may be read as {denied}"));
    }
    let mut fields: Vec<(String, &str)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(format!("header name {name:?}"));
        }
        fields.push((name.to_ascii_lowercase().replace('_', "-"), value.trim()));
    }
    let all = |wanted: &str| fields.iter().filter(|(n, _)| n == wanted).map(|(_, v)| *v).collect::<Vec<_>>();
    if all("host").len() != 1 || !["a", "A", "b"].contains(&all("host")[0]) {
        return Err(format!("hosts {:?}", all("host")));
    }
    if all("x-block").contains(&"1") || all("x-envoy-internal").len() + all("transfer-encoding").len() > 1 {
        return Err("a header that is denied, of a proxy, or twice".into());
    }
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) if body.is_empty() => Ok(()),
        // Less than announced came of a client that broke off.
        ([announced], [])
            if announced.bytes().all(|b| b.is_ascii_digit())
                && announced.parse().is_ok_and(|announced| length <= announced) =>
        {
            Ok(())
        }
        ([], ["chunked"]) => Ok(()),
        other => Err(format!("framing {other:?} of a body of {length} bytes")),
    }
}

#[test]
fn what_reaches_the_backend_means_what_was_judged() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let limits =
        Limits { head: Duration::from_millis(20), idle: Duration::from_millis(40), ..Limits::default() };
    // A port that declares HTTP, and one that declares nothing, whose policy needs HTTP.
    let ports = std::sync::Mutex::new([81, 80].into_iter().cycle());
    let mut world = runtime.block_on(World::start(Limits { body: Duration::from_millis(20), ..limits }));
    // Beside its own policy: no header `x-block: 1`.
    let header = Attribute::Header("x-block".into());
    let block = world::policy("golden", Action::Deny, &[(header, &["1"])]);
    world.policy(Target::Service(world::service(fixtures::NO_ADMIN)), block);
    world.publish();
    let default = Config::default();
    let config = Config { cases: default.cases.max(1500), failure_persistence: None, ..default };
    let reached = AtomicUsize::new(0);
    let outcome = TestRunner::new(config).run(&vec(request(), 1..4), |requests| {
        let (bytes, port) = (requests.concat(), ports.lock().unwrap().next().unwrap());
        let seen = runtime.block_on(async {
            let mut io = world.tunnel(&world::vip(fixtures::NO_ADMIN, port).to_string()).await.unwrap();
            write(&mut io, bytes.as_bytes()).await;
            let mut got = Vec::new();
            let read = tokio::time::timeout(world::PATIENCE, io.read_to_end(&mut got)).await;
            assert!(read.is_ok(), "the connection goes on");
            std::mem::take(&mut *world.seen.lock().unwrap())
        });
        reached.fetch_add(seen.len(), Ordering::Relaxed);
        for one in seen.iter().filter(|one| !one.is_empty()) {
            let judged =
                read(one).map_err(|why| format!("{why}\nsent: {bytes:?}\nreached the backend: {one:?}"));
            judged.map_err(proptest::test_runner::TestCaseError::fail)?;
        }
        Ok(())
    });
    outcome.unwrap();
    let reached = reached.load(Ordering::Relaxed);
    assert!(reached > 300, "only {reached} requests reached the backend: nothing was tested");
}
