// SPDX-License-Identifier: Apache-2.0
//! Hostile HTTP against a waypoint and a gateway: raw bytes in; what the client got and what the backend saw.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "parts of the world are other tests'")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/kept.rs"]
mod kept;
#[path = "hostile/places.rs"]
mod places;
#[path = "hostile/rows.rs"]
mod rows;
#[path = "hostile/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fixtures::{
    CLAIMS, CLIENT, FREE, NO_ADMIN, NO_BLOCK, NO_DELETE, NO_SECRET, OTHER, PUBLIC, TENANT, TOKENS,
};
use http::StatusCode;
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_tunnel::{DialError, TunnelIo};
use meltemi_waypoint::Limits;
use rows::{Row, Via};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use world::{PATIENCE, World, answer, policy, service, status, vip, write};

/// Sends a row's bytes, and checks what comes of them.
async fn run<IO: AsyncRead + AsyncWrite + Unpin>(world: &World, mut io: IO, id: &str, row: &Row) {
    let name = row.name;
    let bytes: Vec<u8> = row.bytes.iter().flat_map(|part| part.replace("{id}", id).into_bytes()).collect();
    write(&mut io, &bytes).await;
    let (mut rest, mut statuses, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    while statuses.len() < row.statuses.len() {
        let Some(one) = answer(&mut io, &mut rest).await else { break };
        statuses.push(status(&one));
        answers.extend(one);
    }
    assert_eq!(statuses, row.statuses, "{name}: what the client got");
    if row.closes {
        let more = answer(&mut io, &mut rest).await.map(|a| String::from_utf8_lossy(&a).into_owned());
        assert_eq!(more, None, "{name}: the connection goes on");
    } else {
        // It goes on: the next request is understood as such, and nothing stands between.
        write(&mut io, b"OPTIONS /probe HTTP/1.1\r\nhost: a\r\nx-request-id: probe\r\n\r\n").await;
        assert!(answer(&mut io, &mut rest).await.is_some(), "{name}: the connection has ended");
    }
    let seen = world.seen(id);
    let first: Vec<&str> = seen.iter().map(|r| r.lines().next().unwrap_or_default()).collect();
    if row.broken {
        // Its head was fine and may have gone on; what the backend has of its body has no end.
        assert!(first.len() <= 1 && !seen.concat().contains("\r\n0\r\n"), "{name}: {seen:?}");
    } else {
        assert_eq!(first, row.backend, "{name}: what the backend got");
    }
    let (seen, answers) = (seen.concat(), String::from_utf8_lossy(&answers).into_owned());
    for wanted in &row.has {
        assert!(seen.contains(wanted), "{name}: the backend has no {wanted:?}: {seen}");
    }
    for unwanted in &row.lacks {
        assert!(!seen.contains(unwanted), "{name}: the backend has {unwanted:?}: {seen}");
    }
    for wanted in &row.answers {
        assert!(answers.contains(wanted), "{name}: no {wanted:?} in the answer: {answers}");
    }
    assert!(!answers.contains("x-hop") && !answers.contains("x-envoy-own"), "{name}: {answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_means_to_the_backend_what_it_meant_to_the_policy() {
    let world = Arc::new(World::start(Limits::default()).await);
    let mut failed = 0;
    for (index, row) in rows::all().into_iter().enumerate() {
        let (world, id) = (world.clone(), format!("row-{index}-"));
        let one = async move {
            let one = async {
                match row.via {
                    Via::Service(number) => run(&world, world.to_http(number).await, &id, &row).await,
                    Via::Gateway => run(&world, world.to_gateway().await, &id, &row).await,
                }
            };
            tokio::time::timeout(PATIENCE / 2, one).await.unwrap_or_else(|_| panic!("{}: no end", row.name));
        };
        // Every row is looked at, whatever became of those before it.
        failed += usize::from(tokio::spawn(one).await.is_err());
    }
    assert_eq!(failed, 0, "rows that do not hold");
    let smuggled = world.seen("smuggled");
    assert!(smuggled.is_empty(), "{smuggled:?}");
}

/// On a port that declares nothing, more is refused and nothing else: where a policy needs HTTP, what is not HTTP ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_on_an_undeclared_port_means_what_it_means_on_a_declared_one() {
    // The Gateway's DENY by path holds for every Service of these.
    let world = World::start(Limits { detect: PATIENCE, ..Limits::default() }).await;
    let mut ended = Vec::new();
    for (index, row) in rows::all().into_iter().enumerate() {
        let Via::Service(number) = row.via else { continue };
        let id = format!("undeclared-{index}-");
        let mut io = world.to_service(number).await;
        let parts = row.bytes.iter().flat_map(|part| part.replace("{id}", &id).into_bytes());
        write(&mut io, &parts.collect::<Vec<u8>>()).await;
        let (mut rest, mut statuses) = (Vec::new(), Vec::new());
        while statuses.len() < row.statuses.len() {
            let Some(one) = answer(&mut io, &mut rest).await else { break };
            statuses.push(status(&one));
        }
        if statuses.is_empty() {
            assert_eq!(row.statuses, [400], "{}: it ends without an answer", row.name);
            ended.push(row.name);
        } else {
            assert_eq!(statuses, row.statuses, "{}: what the client got", row.name);
        }
        let seen = world.seen(&id);
        let first: Vec<&str> = seen.iter().map(|r| r.lines().next().unwrap_or_default()).collect();
        assert!(row.broken || first == row.backend, "{}: {seen:?}", row.name);
    }
    assert_eq!(ended, ["no token", "empty"], "what is not HTTP is denied as TCP");
    assert!(world.seen("smuggled").is_empty());
}

/// A socket that is closed with bytes unread is reset, and takes the answers with it that the client has not read yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_behind_a_request_does_not_cost_its_answer() {
    let world = World::start(Limits::default()).await;
    let mut io = world.to_gateway().await;
    let noise = b"noise\0 of a client\n".repeat(5_000);
    write(&mut io, &[b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), noise].concat()).await;
    let mut got = Vec::new();
    let read = tokio::time::timeout(PATIENCE, io.read_to_end(&mut got)).await.unwrap();
    let text = String::from_utf8_lossy(&got);
    assert!(read.is_ok(), "{read:?}: {text}");
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 400 "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_means_to_the_backend_what_it_meant_to_the_policy() {
    let world = World::start(Limits::default()).await;
    for (index, row) in rows::http2().into_iter().enumerate() {
        let (name, id) = (row.name, format!("h2-{index}-"));
        let (mut sender, connection) = h2::client::handshake(world.to_service(row.via).await).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request =
            http::Request::builder().method(row.method).uri(row.uri).header("x-request-id", &id);
        for (name, value) in row.headers {
            request = request.header(name, value);
        }
        let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        let got = tokio::time::timeout(PATIENCE, response).await.unwrap();
        let got = got.map_or(0, |response| response.status().as_u16());
        assert_eq!(got, row.status, "{name}: what the client got");
        let seen = world.seen(&id).concat();
        assert_eq!(seen.lines().next().unwrap_or_default(), row.backend, "{name}: what the backend got");
        for unwanted in row.lacks {
            assert!(!seen.contains(unwanted), "{name}: the backend has {unwanted:?}: {seen}");
        }
        for wanted in row.has {
            assert!(seen.contains(wanted), "{name}: the backend has no {wanted:?}: {seen}");
        }
        driver.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_a_client_is_and_where_it_may_go_is_said_by_its_tunnel() {
    let mut world = World::start(Limits::default()).await;
    // A DENY of the Gateway that needs a request denies every connection that is none.
    let denied = world.tunnel(&vip(FREE, 3306).to_string()).await;
    assert!(matches!(denied, Err(DialError::Status(StatusCode::FORBIDDEN))), "{denied:?}");
    world.no_policy("no-gate");
    world.publish();
    for (to, expected) in [
        ("127.0.0.1:15000", StatusCode::NOT_FOUND),
        ("169.254.169.254:80", StatusCode::NOT_FOUND),
        ("10.96.0.0:99", StatusCode::NOT_FOUND),
        ("10.96.0.200:80", StatusCode::NOT_FOUND),
        ("p0.default.svc.cluster.local:80", StatusCode::BAD_REQUEST),
        ("[::ffff:169.254.169.254]:80", StatusCode::NOT_FOUND),
    ] {
        match world.tunnel(to).await {
            Err(DialError::Status(status)) => assert_eq!(status, expected, "{to}"),
            other => panic!("{to}: {other:?}"),
        }
    }
    // A declared TCP port: judged without HTTP, then bytes.
    let mut tcp = world.tunnel(&vip(CLIENT, 3306).to_string()).await.unwrap();
    write(&mut tcp, b"RAW bytes").await;
    let mut echoed = [0; 9];
    tcp.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"RAW bytes");
    for number in [OTHER, PUBLIC, NO_ADMIN] {
        let denied = world.tunnel(&vip(number, 3306).to_string()).await;
        assert!(matches!(denied, Err(DialError::Status(StatusCode::FORBIDDEN))), "{number}: {denied:?}");
    }
    let line = world.line("dst.service=\"p9.default").await;
    assert!(line.contains("policy=default/other rule=0 clause=to(principals="), "{line}");
}

async fn ask<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, request: &str) -> (u16, String) {
    write(&mut io, request.as_bytes()).await;
    let got = answer(&mut io, &mut Vec::new()).await.expect("an answer");
    (status(&got), String::from_utf8_lossy(&got).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_begins_with_the_backends_consent_and_ends_with_the_permit() {
    let mut world = World::start(Limits::default()).await;
    let upgrade = |path: &str, id: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n");
        format!("{head}sec-websocket-key: k\r\nx-request-id: {id}\r\n\r\n")
    };
    let mut io = world.to_service(NO_ADMIN).await;
    write(&mut io, upgrade("/ws", "ws").as_bytes()).await;
    let mut rest = Vec::new();
    let agreed = answer(&mut io, &mut rest).await.unwrap();
    assert_eq!(status(&agreed), 101);
    let text = String::from_utf8_lossy(&agreed).to_ascii_lowercase();
    assert!(text.contains("\r\nupgrade: websocket") && text.contains("\r\nconnection: upgrade"), "{text}");
    write(&mut io, b"GET /admin HTTP/1.1\n\0frames").await;
    while rest.len() < 27 {
        assert!(io.read_buf(&mut rest).await.unwrap() > 0);
    }
    assert_eq!(rest, b"GET /admin HTTP/1.1\n\0frames");
    // Judged like any other.
    let (denied, _) = ask(world.to_service(NO_ADMIN).await, &upgrade("/admin", "ws-denied")).await;
    assert_eq!((denied, world.seen("ws-denied").len()), (403, 0));
    // What was not asked for is not changed to.
    let (wrong, _) = ask(world.to_service(FREE).await, &upgrade("/other", "ws-other")).await;
    assert_eq!(wrong, 502);
    let plain = "GET /ws HTTP/1.1\r\nhost: a\r\nx-request-id: ws-plain\r\n\r\n";
    assert_eq!(ask(world.to_service(FREE).await, plain).await.0, 502);
    // A change that forbids it ends it.
    let begun = Instant::now();
    let deny = policy("late", Action::Deny, &[(Attribute::Path, &["/ws"])]);
    world.policy(Target::Service(service(NO_ADMIN)), deny);
    world.publish();
    let ended = tokio::time::timeout(PATIENCE, io.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(ended, Err(_) | Ok(0)), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    world.no_policy("late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_a_request_is_as_it_was_and_with_one_it_is_refused() {
    let world = World::start(Limits::default()).await;
    let bearer = "authorization: bEaReR x.y.z\r\n";
    for (number, path, header, expected) in [
        (TOKENS, "/x", "", 200),
        (TOKENS, "/x", "authorization: Basic eDp5\r\n", 200),
        (TOKENS, "/x", bearer, 401),
        (TOKENS, "/x", "authorization: Basic eDp5\r\nauthorization: Bearer x\r\n", 401),
        (TOKENS, "/x?access_token=x", "", 401),
        (TOKENS, "/x?a=b&access%5Ftoken=x", "", 401),
        (CLAIMS, "/x", "", 403),
        (CLAIMS, "/x", bearer, 401),
        // Where no RequestAuthentication applies, a token is the backend's business.
        (FREE, "/x", bearer, 200),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{header}\r\n");
        let (got, text) = ask(world.to_service(number).await, &request).await;
        assert_eq!(got, expected, "service {number} {path} {header:?}: {text}");
    }
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: jwt-line\r\n{bearer}\r\n");
    ask(world.to_service(TOKENS).await, &request).await;
    let line = world.line("jwt-line").await;
    assert!(line.contains("policy=default/jwt-6") && !line.contains("x.y.z"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_denial_is_told_in_one_bounded_line_and_makes_no_series() {
    let world = World::start(Limits::default()).await;
    let long = "a".repeat(20_000);
    for (number, id, request, expected) in [
        (
            NO_ADMIN,
            "log-deny",
            "GET /admin/x HTTP/1.1\r\nhost: a\r\n".to_owned(),
            "policy=default/no-admin rule=0 clause=to(paths=[/admin, /admin/*])",
        ),
        (
            PUBLIC,
            "log-allow",
            "GET /other HTTP/1.1\r\nhost: a\r\n".to_owned(),
            "policy=default/public rule=0 clause=to(methods=[GET] and paths=[/public/*])",
        ),
        (
            NO_BLOCK,
            "log-long",
            format!("GET /{long} HTTP/1.1\r\nhost: a\r\nuser-agent: \u{9b}31m\"{long}\r\nx-block: 1\r\n"),
            "policy=default/no-block rule=0",
        ),
        (
            NO_DELETE,
            "log-method",
            "DELETE / HTTP/1.1\r\nhost: a\r\n".to_owned(),
            "policy=default/no-delete rule=0",
        ),
        (
            NO_SECRET,
            "log-host",
            "GET / HTTP/1.1\r\nhost: secret.com\r\n".to_owned(),
            "policy=default/no-secret rule=0",
        ),
        (TENANT, "log-header", "GET / HTTP/1.1\r\nhost: a\r\n".to_owned(), "policy=default/tenant rule=0"),
        (OTHER, "log-who", "GET / HTTP/1.1\r\nhost: a\r\n".to_owned(), "policy=default/other rule=0"),
    ] {
        let (got, _) =
            ask(world.to_service(number).await, &format!("{request}x-request-id: {id}\r\n\r\n")).await;
        assert_eq!(got, 403, "{id}");
        let line = world.line(id).await;
        assert!(line.contains(expected), "{line}");
        assert!(line.len() < 4096 && line.bytes().all(|b| (0x20..0x7f).contains(&b)), "{line}");
    }
    // Bytes that are no request are told as well.
    ask(world.to_service(FREE).await, "GET /\u{1} HTTP/1.1\r\n\r\n").await;
    let line = world.line("DPE malformed_request").await;
    assert!(line.contains(" 400 ") && line.contains("spiffe://cluster.local/ns/default/sa/client"), "{line}");
    let series = |text: String| text.lines().filter(|l| l.starts_with("istio_requests_total{")).count();
    let before = series(world.metrics.encode());
    for n in 0..300 {
        let method = if n % 2 == 0 { "GET".to_owned() } else { format!("M{n}") };
        let request =
            format!("{method} /public/{n} HTTP/1.1\r\nhost: h{n}\r\nuser-agent: u{n}\r\nx-{n}: {n}\r\n\r\n");
        ask(world.to_service(PUBLIC).await, &request).await;
    }
    let text = world.metrics.encode();
    // Allowed and denied, of one client to one service.
    assert!(series(text.clone()) <= before + 2, "{text}");
    assert!(
        !text.contains("M1\"")
            && !text.contains("h1\"")
            && text.contains("meltemi_malformed_requests_total 1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_not_waited_for() {
    let limits = Limits {
        head: Duration::from_millis(500),
        idle: Duration::from_secs(2),
        body: Duration::from_millis(500),
        stall: Duration::from_secs(1),
        ..Limits::default()
    };
    let world = World::start(limits).await;
    let within = |begun: Instant, least: u64, what: &str| {
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(10), "{what}: {took:?}");
    };
    let silent = async {
        let (begun, mut io) = (Instant::now(), world.to_gateway().await);
        assert!(answer(&mut io, &mut Vec::new()).await.is_none());
        within(begun, 450, "nothing at all");
        let (begun, mut io) = (Instant::now(), world.to_http(FREE).await);
        assert!(answer(&mut io, &mut Vec::new()).await.is_none());
        within(begun, 1900, "nothing at all, of the mesh");
    };
    let drops = async {
        let (begun, mut io) = (Instant::now(), world.to_gateway().await);
        write(&mut io, b"GET / HTTP/1.1\r\nhost: a\r\n").await;
        let drip = async {
            let (mut read, mut send) = tokio::io::split(io);
            let slow = async {
                for _ in 0..200 {
                    write(&mut send, b"x: y\r\n").await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = slow => panic!("a head may take ten seconds"),
                got = async { answer(&mut read, &mut Vec::new()).await } => assert!(got.is_none()),
            }
        };
        drip.await;
        within(begun, 450, "a head drop by drop");
    };
    let body = async {
        let (begun, io) = (Instant::now(), world.to_service(FREE).await);
        let (got, _) = ask(io, "POST /hang HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
        assert_eq!(got, 408);
        within(begun, 450, "half a body");
    };
    let kept = async {
        let mut io = world.to_service(FREE).await;
        for _ in 0..3 {
            let (got, _) = ask(&mut io, "GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(got, 200);
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
        assert!(answer(&mut io, &mut Vec::new()).await.is_none(), "idle for two seconds");
    };
    let unread = async {
        let (begun, mut io) = (Instant::now(), world.to_gateway().await);
        write(&mut io, b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        // What was under way comes, then the end.
        let mut more = vec![0; 1 << 20];
        let drained = async { while let Ok(1..) = io.read(&mut more).await {} };
        tokio::time::timeout(PATIENCE, drained).await.expect("an answer that nobody takes ends");
        within(begun, 1000, "an answer that nobody takes");
    };
    tokio::join!(silent, drops, body, kept, unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_requests_hold_a_bounded_memory() {
    let world = World::start(Limits { heads: 100, ..Limits::default() }).await;
    let mut held = Vec::new();
    let large = format!("GET /hang HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "x".repeat(40_000));
    for n in 1..=2 {
        let mut io = world.to_service(FREE).await;
        write(&mut io, large.as_bytes()).await;
        let reached = async {
            while world.seen_with("GET /hang") < n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();
        held.push(io);
    }
    assert_eq!(ask(world.to_service(FREE).await, &large).await.0, 503);
    // A small one has room, and so has a large one after others have gone.
    let small = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(ask(world.to_service(FREE).await, small).await.0, 200);
    drop(held);
    let again = async {
        while ask(world.to_service(FREE).await, &large.replace("/hang", "/x")).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_breaks_off_when_it_is_no_longer_allowed() {
    let mut world = World::start(Limits::default()).await;
    let mut io = world.to_service(FREE).await;
    write(&mut io, b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut more = vec![0; 1 << 16];
    for _ in 0..100 {
        assert!(io.read(&mut more).await.unwrap() > 0);
    }
    let deny = policy("late", Action::Deny, &[(Attribute::Path, &["/endless"])]);
    world.policy(Target::Service(service(FREE)), deny);
    let begun = Instant::now();
    world.publish();
    let mut last = Vec::new();
    let rest = async {
        while let Ok(n @ 1..) = io.read(&mut more).await {
            last = more[n.saturating_sub(5)..n].to_vec();
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_ne!(last, b"0\r\n\r\n", "what is broken off looks whole");
    let (got, _) = ask(world.to_service(FREE).await, "GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(got, 403);
}

/// The connection ends, whatever else comes before.
async fn ends(mut io: TunnelIo, what: &str) {
    let mut more = vec![0; 1 << 16];
    let drained = async { while let Ok(1..) = io.read(&mut more).await {} };
    tokio::time::timeout(PATIENCE, drained)
        .await
        .unwrap_or_else(|_| panic!("{what}: the connection goes on"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_own_connection_and_nobody_elses() {
    let world = World::start(Limits { stall: Duration::from_secs(1), ..Limits::default() }).await;
    let mut other = world.to_http(FREE).await;
    for (what, reason, flood) in frames::floods() {
        let (mut read, mut send) = tokio::io::split(world.to_service(FREE).await);
        let sending = async {
            let _ = send.write_all(&frames::preface()).await;
            for part in flood {
                if send.write_all(&part).await.is_err() {
                    return;
                }
            }
        };
        let ended = async {
            let mut got = Vec::new();
            while let Ok(1..) = read.read_buf(&mut got).await {}
            frames::goaway(&got)
        };
        let both = async { tokio::join!(sending, ended).1 };
        let got = tokio::time::timeout(PATIENCE, both).await;
        let got = got.unwrap_or_else(|_| panic!("{what}: the connection goes on"));
        assert_eq!(got, Some(reason), "{what}: the reason of GOAWAY");
        assert_eq!(world.seen_with("GET /hang"), 0, "{what}: the backend was reached");
        let (got, _) = ask(&mut other, "GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(got, 200, "{what}: another connection");
    }
    let line = world.line("HTTP/2\" 400 DPE malformed_request").await;
    assert!(line.len() < 4096, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_given_up_when_they_have_reached_the_backend_are_counted() {
    let world = World::start(Limits::default()).await;
    let (mut read, mut send) = tokio::io::split(world.to_service(FREE).await);
    write(&mut send, &frames::preface()).await;
    let resetting = async {
        for n in 0..1000 {
            let stream = n * 2 + 1;
            write(&mut send, &frames::get("/hang", stream)).await;
            while world.seen_with("GET /hang") <= n as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            write(&mut send, &frames::reset(stream)).await;
        }
    };
    let ended = async { while let Ok(1..) = read.read(&mut [0; 4096]).await {} };
    let first = async {
        tokio::select! {
            () = resetting => panic!("a thousand were let through"),
            () = ended => {}
        }
    };
    tokio::time::timeout(PATIENCE, first).await.unwrap();
    let seen = world.seen_with("GET /hang");
    assert!((200..=210).contains(&seen), "{seen} reached the backend");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_answer_that_nobody_takes_ends_its_connection() {
    let world = World::start(Limits { stall: Duration::from_secs(1), ..Limits::default() }).await;
    let mut io = world.to_service(FREE).await;
    write(&mut io, &frames::preface()).await;
    write(&mut io, &frames::get("/endless", 1)).await;
    // The window is never opened again, and everything else is read.
    ends(io, "a window of nothing").await;
}

/// The client reads everything else: only this answer has no window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_answer_that_nobody_takes_ends_when_it_is_no_longer_allowed() {
    let mut world = World::start(Limits::default()).await;
    let mut io = world.to_service(FREE).await;
    write(&mut io, &[frames::preface(), frames::windows(10), frames::get("/endless", 1)].concat()).await;
    let mut got = Vec::new();
    let filled = async {
        while frames::data(&got) < 10 {
            assert!(io.read_buf(&mut got).await.unwrap() > 0);
        }
    };
    tokio::time::timeout(PATIENCE, filled).await.unwrap();
    let deny = policy("late", Action::Deny, &[(Attribute::Path, &["/endless"])]);
    world.policy(Target::Service(service(FREE)), deny);
    world.publish();
    let begun = Instant::now();
    ends(io, "an answer without a window, when it is forbidden").await;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_answer_that_nobody_takes_is_held_to_a_bound() {
    let world = World::start(Limits::default()).await;
    // A gateway would ask the backend by HTTP/1.1.
    let mut io = world.to_service(FREE).await;
    let none = frames::windows(0);
    write(&mut io, &[frames::preface(), none, frames::get("/endless/counted", 1)].concat()).await;
    let sent = || backend::SENT.load(Ordering::SeqCst);
    let held = async {
        let mut last = 0;
        while sent() == 0 || sent() != last {
            last = sent();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        last
    };
    let held = tokio::time::timeout(PATIENCE, held).await.expect("the backend is waited for");
    assert!(held <= 300 * 1024, "{held} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_no_backend_takes_do_not_hold_up_others_of_their_connection() {
    let world = World::start(Limits::default()).await;
    let (sender, connection) = h2::client::handshake(world.to_gateway().await).await.unwrap();
    let driver = tokio::spawn(connection);
    let bytes = bytes::Bytes::from(vec![b'x'; 4 << 20]);
    let begin = async |path: &str| {
        let request = http::Request::post(format!("http://a{path}")).body(()).unwrap();
        sender.clone().ready().await.unwrap().send_request(request, false).unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..10 {
        let (response, mut body) = begin("/hang").await;
        body.send_data(bytes.clone(), true).unwrap();
        held.push((response, body));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_response, mut body) = begin("/hang").await;
    body.reserve_capacity(10_000);
    let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
    let room = tokio::time::timeout(PATIENCE / 2, room).await.expect("others go on");
    assert_eq!(room.unwrap().unwrap(), 10_000);
    driver.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masses_of_what_is_allowed_are_not_at_the_cost_of_others() {
    let world = World::start(Limits::default()).await;
    let mut other = world.to_http(FREE).await;
    for flood in frames::lasting() {
        let name = flood.name;
        let (mut read, mut send) = tokio::io::split(world.to_gateway().await);
        let attack = tokio::spawn(async move {
            let sending = async {
                let _ = send.write_all(&[frames::preface(), flood.first].concat()).await;
                let (begun, mut n) = (Instant::now(), 0);
                while begun.elapsed() < Duration::from_millis(300) {
                    let mut part = Vec::new();
                    while part.len() < 16_000 {
                        part.extend((flood.then)(n));
                        n += 1;
                    }
                    match tokio::time::timeout(Duration::from_millis(300), send.write_all(&part)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return,
                        // It is held up itself.
                        Err(_) => return,
                    }
                }
            };
            let reading = async {
                let mut more = vec![0; 1 << 16];
                while let Ok(1..) = read.read(&mut more).await {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = sending => {}
                () = reading => unreachable!("it never ends"),
            }
        });
        let mut worst = Duration::ZERO;
        while !attack.is_finished() {
            let begun = Instant::now();
            let (got, _) = ask(&mut other, "GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(got, 200, "{name}: another");
            worst = worst.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        attack.await.unwrap();
        assert!(worst < Duration::from_secs(20), "{name}: another waited {worst:?}");
    }
}
