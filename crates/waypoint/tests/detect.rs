// SPDX-License-Identifier: Apache-2.0
//! Ports that declare no protocol: the client's first bytes decide, and nothing that they say is a way around a policy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fixtures::{CLIENT, FREE, NO_ADMIN, OTHER, PUBLIC, TENANT, TOKENS};
use http::{HeaderMap, HeaderValue, Request, Response};
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_model::service::AppProtocol;
use meltemi_tunnel::TunnelIo;
use meltemi_waypoint::Limits;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use world::{PATIENCE, World, answer, policy, service, status, vip, write};

/// A port that declares nothing, whose server sends [`GREETING`] first, then what it gets.
const GREETS: u16 = 3307;
/// A port that declares nothing, whose server sends what it gets.
const ECHOES: u16 = 5432;
/// A port that declares nothing, whose server says how many bytes it got when its client has ended.
const COUNTS: u16 = 9000;
/// A port of gRPC.
const CALLS: u16 = 9001;
const GREETING: &[u8] = b"greeting 5.7\n";
/// What PostgreSQL's clients begin with.
const SSL_REQUEST: &[u8] = b"\x00\x00\x00\x08\x04\xd2\x16\x2f";

async fn listen(serve: fn(TcpStream) -> tokio::task::JoinHandle<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream);
        }
    });
    address
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

fn echoes(stream: TcpStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(echo(stream))
}

fn greets(mut stream: TcpStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let _ = stream.write_all(GREETING).await;
        echo(stream).await;
    })
}

fn counts(mut stream: TcpStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut got = Vec::new();
        if stream.read_to_end(&mut got).await.is_ok() {
            let _ = stream.write_all(format!("{} bytes", got.len()).as_bytes()).await;
        }
    })
}

/// Answers with a message and trailers, as gRPC does.
fn calls(stream: TcpStream) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\x02ok"), false).unwrap();
            let status =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("7"))]);
            send.send_trailers(status).unwrap();
        }
    })
}

/// A world without the Gateway's DENY by path, which denies everything that is not HTTP.
async fn start(limits: Limits) -> World {
    let mut world = World::start(limits).await;
    world.no_policy("no-gate");
    world.add_port(GREETS, listen(greets).await, AppProtocol::Unknown);
    world.add_port(ECHOES, listen(echoes).await, AppProtocol::Unknown);
    world.add_port(COUNTS, listen(counts).await, AppProtocol::Unknown);
    world.add_port(CALLS, listen(calls).await, AppProtocol::Grpc);
    world.publish();
    world
}

async fn to(world: &World, number: u8, port: u16) -> TunnelIo {
    world.tunnel(&vip(number, port).to_string()).await.unwrap()
}

/// Reads so many bytes.
async fn read(io: &mut TunnelIo, length: usize) -> Vec<u8> {
    let mut got = vec![0; length];
    let read = tokio::time::timeout(PATIENCE, io.read_exact(&mut got)).await;
    read.expect("nothing comes").expect("it ends");
    got
}

/// Everything that comes until the connection ends, in whatever way.
async fn rest(io: &mut TunnelIo) -> Vec<u8> {
    let mut got = Vec::new();
    let read = async { while let Ok(1..) = io.read_buf(&mut got).await {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the connection goes on");
    got
}

/// Limits by which the tests that are not about silence cannot mistake a slow machine for it.
fn patient() -> Limits {
    Limits { detect: PATIENCE, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_speak_first_and_a_client_may_speak_anything() {
    let world = start(Limits { detect: Duration::from_millis(100), ..Limits::default() }).await;
    let mut io = to(&world, FREE, GREETS).await;
    assert_eq!(read(&mut io, GREETING.len()).await, GREETING);
    // After that HTTP is bytes like any other.
    write(&mut io, b"GET /x HTTP/1.1\r\n\r\n").await;
    assert_eq!(read(&mut io, 19).await, b"GET /x HTTP/1.1\r\n\r\n");
    // Half of a request line, and nothing more.
    let mut io = to(&world, FREE, ECHOES).await;
    write(&mut io, b"GET").await;
    assert_eq!(read(&mut io, 3).await, b"GET");
    write(&mut io, b" / HTTP/1.1\r\n").await;
    assert_eq!(read(&mut io, 13).await, b" / HTTP/1.1\r\n");
    let mut io = to(&world, CLIENT, ECHOES).await;
    write(&mut io, SSL_REQUEST).await;
    assert_eq!(read(&mut io, SSL_REQUEST.len()).await, SSL_REQUEST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_ended_is_still_answered() {
    let world = start(patient()).await;
    for said in [&b""[..], b"POS", b"\0\0\0", b"EHLO a\r\nQUIT\r\n"] {
        let mut io = to(&world, FREE, COUNTS).await;
        write(&mut io, said).await;
        io.shutdown().await.unwrap();
        let got = String::from_utf8_lossy(&rest(&mut io).await).into_owned();
        assert_eq!(got, format!("{} bytes", said.len()), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_is_http_byte_by_byte() {
    let world = start(patient()).await;
    for path in ["/x", "/admin"] {
        let mut io = world.to_service(NO_ADMIN).await;
        for byte in format!("REPORT {path} HTTP/1.1\r\nhost: a\r\n\r\n").bytes() {
            write(&mut io, &[byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let got = status(&answer(&mut io, &mut Vec::new()).await.unwrap());
        assert_eq!(got, if path == "/x" { 200 } else { 403 }, "{path}");
    }
    // HTTP/2's preface in parts: it is answered with SETTINGS.
    let mut io = world.to_service(NO_ADMIN).await;
    for part in meltemi_testkit::h2::preface().chunks(5) {
        write(&mut io, part).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(read(&mut io, 9).await[3], meltemi_testkit::h2::kind::SETTINGS);
}

/// Browsers and connection pools open connections ahead of their requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_opens_ahead_of_its_request_speaks_http_all_the_same() {
    let detect = Duration::from_millis(50);
    let world = start(Limits { detect, ..Limits::default() }).await;
    for (number, path, wanted) in
        [(FREE, "/x", 200), (NO_ADMIN, "/x", 200), (NO_ADMIN, "/admin", 403), (PUBLIC, "/secret", 403)]
    {
        let mut io = world.to_service(number).await;
        tokio::time::sleep(4 * detect).await;
        for _ in 0..2 {
            write(&mut io, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
            let got = status(&answer(&mut io, &mut Vec::new()).await.unwrap());
            assert_eq!(got, wanted, "service {number}, {path}");
        }
        assert!(world.lines_with("judged as TCP").is_empty());
    }
}

/// Whether it is HTTP, told in another way than the proxy does.
fn is_http(bytes: &[u8]) -> bool {
    let text: String = bytes.iter().map(|&b| char::from(b)).collect();
    let line = text.trim_start_matches([' ', '\r', '\n']).split(['\r', '\n']).next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let known = ["GET", "POST"].contains(&words.first().copied().unwrap_or_default()) && line.contains(' ');
    let [method, target, version] = words[..] else { return known };
    let is_line = !method.contains(['/', '\0', '\u{16}']) && !target.contains(|c: char| c.is_ascii_control());
    known || is_line && version.starts_with("HTTP/")
}

#[test]
fn however_first_bytes_are_cut_they_arrive_unchanged_or_are_http() {
    const PIECES: &[&str] = &[
        "GET",
        "POST",
        "PRI",
        "*",
        "FOO",
        " ",
        " ",
        "/",
        "/x",
        "HTTP/1.1",
        "HTTP/1.1",
        "HTTP",
        "HTTP/2.0",
        "\r\n",
        "\r\n",
        "\n",
        "\0",
        "SIP/2.0",
        "host: a\r\n\r\n",
        "PING",
        "EHLO",
        "\u{16}\u{3}\u{1}",
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(start(patient()));
    // A request line, or a few pieces in its place or before it.
    let noise = || vec(select(PIECES), 1..6).prop_map(|pieces| pieces.concat());
    let line = (
        select(&["GET", "POST", "PRI", "FOO"][..]),
        select(&[" ", "  ", " /", "\r\n"][..]),
        select(&["/", "*", "/x"][..]),
    )
        .prop_map(|(method, gap, target)| format!("{method}{gap}{target} HTTP/1.1\r\nhost: a\r\n\r\n"));
    let behind = (noise(), line.clone()).prop_map(|(noise, line)| noise + &line);
    let bytes = proptest::prop_oneof![noise(), line, behind].prop_map(String::into_bytes);
    let config = Config { cases: 600, failure_persistence: None, ..Config::default() };
    let seen = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let outcome = TestRunner::new(config).run(&(bytes, vec(any::<u8>(), 1..6)), |(bytes, cuts)| {
        let got = runtime.block_on(async {
            let mut io = to(&world, FREE, ECHOES).await;
            let mut left = &bytes[..];
            for cut in cuts {
                let (part, behind) = left.split_at(usize::from(cut) % (left.len() + 1));
                write(&mut io, part).await;
                tokio::task::yield_now().await;
                left = behind;
            }
            write(&mut io, left).await;
            let _ = io.shutdown().await;
            rest(&mut io).await
        });
        let http = is_http(&bytes);
        seen[usize::from(http)].fetch_add(1, Ordering::Relaxed);
        proptest::prop_assert_eq!(got == bytes, !http, "it got {:?}", String::from_utf8_lossy(&got));
        Ok(())
    });
    outcome.unwrap();
    let [tcp, http] = seen.map(AtomicUsize::into_inner);
    assert!(http > 50 && tcp > 50, "{http} of HTTP, {tcp} of TCP");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_http_is_denied_by_the_policy_that_needs_it() {
    let (detect, head) = (Duration::from_millis(300), Duration::from_secs(1));
    let world = start(Limits { detect, head, ..Limits::default() }).await;
    let opened = |world: &World| world.opened.load(Ordering::SeqCst);
    let before = opened(&world);
    for (number, named) in [
        (NO_ADMIN, "policy=default/no-admin rule=0 clause=to(paths=[/admin, /admin/*])"),
        (PUBLIC, "policy=default/public rule=0 clause=to(methods=[GET] and paths=[/public/*])"),
        (TENANT, "policy=default/tenant rule=0"),
        (TOKENS, "policy=default/jwt-6 rule=none clause=none; RequestAuthentication default/jwt-6"),
        (OTHER, "policy=default/other rule=0 clause=to(principals="),
    ] {
        let marker = format!("dst.service=\"p{number}.default");
        for (said, why) in [
            (&b""[..], "the client says nothing"),
            (SSL_REQUEST, "the client's first bytes are not HTTP"),
            (b"GET", "the client's first bytes are not HTTP"),
            (b"\x01GET /public/x HTTP/1.1\r\nhost: a\r\nx-tenant: a\r\n\r\n", "first bytes are not HTTP"),
        ] {
            for port in [80, GREETS] {
                let mut io = to(&world, number, port).await;
                write(&mut io, said).await;
                let got = rest(&mut io).await;
                assert!(got.is_empty(), "service {number}, {said:?}: {:?}", String::from_utf8_lossy(&got));
            }
            // A connection ends before its line is written.
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let mut lines = world.lines_with(&marker);
            while !lines.iter().any(|line| line.contains(why)) {
                assert!(tokio::time::Instant::now() < deadline, "{why}: {lines:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
                lines = world.lines_with(&marker);
            }
            assert!(lines.iter().all(|line| line.contains(named)), "{named}: {lines:?}");
        }
    }
    assert_eq!(opened(&world), before, "a backend was reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_as_tcp_ends_when_a_policy_needs_http() {
    let mut world = start(patient()).await;
    let open = async |world: &World| {
        let mut io = to(world, FREE, ECHOES).await;
        write(&mut io, SSL_REQUEST).await;
        assert_eq!(read(&mut io, SSL_REQUEST.len()).await, SSL_REQUEST);
        io
    };
    let mut io = open(&world).await;
    let others =
        policy("others", Action::Deny, &[(Attribute::SourcePrincipal, &["cluster.local/ns/x/sa/x"])]);
    world.policy(Target::Service(service(FREE)), others);
    world.publish();
    // Somebody else is denied: that is nothing to this one.
    write(&mut io, b"more").await;
    assert_eq!(read(&mut io, 4).await, b"more");
    let late = policy("late", Action::Deny, &[(Attribute::Path, &["/admin"])]);
    world.policy(Target::Service(service(FREE)), late);
    world.publish();
    assert!(rest(&mut io).await.is_empty());
    let line = world.line("default/late").await;
    assert!(line.contains("first bytes are not HTTP"), "{line}");
    world.no_policy("late");
    world.publish();
    let mut io = open(&world).await;
    world.jwt(FREE);
    world.publish();
    assert!(rest(&mut io).await.is_empty());
    world.line("default/jwt-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_as_tcp_ends_when_its_service_gets_another_waypoint() {
    let mut world = start(patient()).await;
    let mut io = to(&world, FREE, ECHOES).await;
    write(&mut io, SSL_REQUEST).await;
    assert_eq!(read(&mut io, SSL_REQUEST.len()).await, SSL_REQUEST);
    // Another one's label changes.
    world.bind(NO_ADMIN, Some(("infra", "waypoint.infra.svc.cluster.local")));
    world.publish();
    write(&mut io, b"more").await;
    assert_eq!(read(&mut io, 4).await, b"more");
    world.bind(FREE, Some(("infra", "waypoint.infra.svc.cluster.local")));
    world.publish();
    assert!(rest(&mut io).await.is_empty());
    let line = world.line("no longer the waypoint of default/p0.default").await;
    assert!(line.contains("dst.service=\"p0.default"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_makes_its_port_http() {
    let mut world = start(patient()).await;
    world.route_of_service("routed", FREE, FREE, Vec::new());
    world.publish();
    let mut io = world.to_service(FREE).await;
    write(&mut io, SSL_REQUEST).await;
    let got = rest(&mut io).await;
    assert!(got.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&got));
    let (mut io, get) = (world.to_service(FREE).await, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    write(&mut io, get).await;
    assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_keeps_its_trailers() {
    let world = start(patient()).await;
    let (mut requests, connection) = h2::client::handshake(to(&world, FREE, CALLS).await).await.unwrap();
    let driver = tokio::spawn(connection);
    let request =
        Request::post("http://a/s/m").header("content-type", "application/grpc").header("te", "trailers");
    let (response, mut send) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    send.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
    let call = async {
        let mut body = response.await.unwrap().into_body();
        let mut message = Vec::new();
        while let Some(data) = body.data().await {
            message.extend_from_slice(&data.unwrap());
        }
        (message, body.trailers().await.unwrap().unwrap())
    };
    let (message, trailers) = tokio::time::timeout(PATIENCE, call).await.unwrap();
    assert_eq!(
        (message.as_slice(), &trailers["grpc-status"]),
        (&b"\0\0\0\0\x02ok"[..], &HeaderValue::from_static("7"))
    );
    driver.abort();
}
