// SPDX-License-Identifier: Apache-2.0
//! A gateway that ends TLS: certificates by host, rotation, and requests for another listener than the client's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/certified.rs"]
mod certified;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::time::{Duration, Instant};

use certified::{Made, connect, made};
use meltemi_model::l7::{Backend, Filter, PathMatch, RouteMatch, RouteRule};
use meltemi_waypoint::Limits;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use world::{PATIENCE, World, answer, status, write};

/// Waits until a handshake that trusts this certificate succeeds.
async fn until_shown(port: u16, host: &str, trusted: &Made) -> TlsStream<TcpStream> {
    let begun = Instant::now();
    loop {
        match connect(port, host, trusted).await {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, host: &str, path: &str) -> String {
    write(stream, format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
    String::from_utf8(answer(stream, &mut Vec::new()).await.unwrap()).unwrap()
}

fn code(answer: &str) -> u16 {
    status(answer.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_shows_the_certificate_of_the_host_and_takes_its_requests_only() {
    let port = world::reserve_port().port();
    let mut world = World::start(Limits::default()).await;
    let (a, b, spare) = (made(&["a.example"]), made(&["b.example"]), made(&["spare.example"]));
    for (name, certificate) in [("a", &a), ("b", &b), ("spare", &spare)] {
        world.secret(name, certificate.pem.clone(), certificate.key.clone());
    }
    world.secure_listener("secure-a", port, Some("a.example"), &["spare", "a"]);
    world.secure_listener("secure-b", port, Some("b.example"), &["b"]);
    let redirect = Filter::Redirect { scheme: None, host: None, port: None, path: None, code: 301 };
    let moved = PathMatch::Prefix("/moved".into());
    world.route_of_gateway(
        "secure-moved",
        RouteRule {
            matches: vec![RouteMatch { path: Some(moved), ..RouteMatch::default() }],
            filters: vec![redirect],
            ..RouteRule::default()
        },
    );
    let rule = RouteRule {
        backends: vec![Backend {
            service: Some(world::service(0)),
            port: 80,
            weight: 1,
            filters: Vec::new(),
        }],
        ..RouteRule::default()
    };
    world.route_of_gateway("secure", rule);
    world.publish();
    let mut client = until_shown(port, "a.example", &a).await;
    assert_eq!(code(&ask(&mut client, "a.example", "/secured").await), 200);
    assert_eq!(world.seen_with("x-forwarded-proto: https"), 1);
    assert_eq!(world.seen_with("GET /secured HTTP/1.1"), 1);
    // Another listener's host: the client may be no client of that one.
    assert_eq!(code(&ask(&mut client, "b.example", "/secured").await), 421);
    assert_eq!(code(&ask(&mut client, "c.example", "/secured").await), 404);
    let text = ask(&mut client, "a.example", "/moved").await;
    assert!(text.contains(&format!("location: https://a.example:{port}/moved")), "{text}");
    let mut other = until_shown(port, "b.example", &b).await;
    assert_eq!(code(&ask(&mut other, "b.example", "/secured").await), 200);
    // Nobody is shown a certificate that is not for what he asks for.
    assert!(connect(port, "c.example", &a).await.is_err());
    // In the clear nothing is taken.
    let mut clear = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    write(&mut clear, b"GET /secured HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(!answer(&mut clear, &mut Vec::new()).await.is_some_and(|text| text.starts_with(b"HTTP/")));
    // A new certificate is shown to who comes now, and ends nothing that is open.
    let newer = made(&["a.example"]);
    world.secret("a", newer.pem.clone(), newer.key.clone());
    world.publish();
    let mut late = until_shown(port, "a.example", &newer).await;
    for client in [&mut client, &mut late] {
        assert_eq!(code(&ask(client, "a.example", "/secured").await), 200);
    }
}

/// Whether the gateway closes a connection within a time.
async fn is_closed(stream: &mut TcpStream, limit: Duration) -> bool {
    let mut byte = [0; 1];
    let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
    tokio::time::timeout(limit, read).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_shake_hands_takes_his_part_only() {
    const HANDSHAKES: usize = 64;
    let port = world::reserve_port().port();
    let mut world = World::start(Limits { head: Duration::from_secs(3), ..Limits::default() }).await;
    let a = made(&["a.example"]);
    world.secret("a", a.pem.clone(), a.key.clone());
    world.secure_listener("secure-a", port, None, &["a"]);
    world.publish();
    until_shown(port, "a.example", &a).await;
    let from = |last: u8| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES + 8 {
        silent.push(from(2).await);
    }
    // What is over is closed unread; who is not silent and comes from elsewhere is served.
    let mut closed = 0;
    for stream in &mut silent {
        closed += usize::from(is_closed(stream, Duration::from_millis(20)).await);
    }
    assert!((1..=8).contains(&closed), "{closed}");
    until_shown(port, "a.example", &a).await;
    // When their time is over, they may try again.
    let begun = Instant::now();
    for stream in &mut silent {
        assert!(is_closed(stream, PATIENCE).await, "{:?}", begun.elapsed());
    }
    let mut again = from(2).await;
    assert!(!is_closed(&mut again, Duration::from_millis(200)).await, "it is waited for");
}
