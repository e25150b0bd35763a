// SPDX-License-Identifier: Apache-2.0
//! Connections to backends are kept: how many there are, and what happens when a backend ends one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use meltemi_waypoint::Limits;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::fixtures::{FREE, NO_ADMIN};
use crate::world::{PATIENCE, World, answer, status, vip, write};

async fn get<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, path: &str, id: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n");
    write(io, request.as_bytes()).await;
    let got = answer(io, &mut Vec::new()).await.expect("an answer");
    (status(&got), String::from_utf8_lossy(&got).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_connections_and_are_judged_one_by_one() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 250;
    let world = Arc::new(World::start(Limits::default()).await);
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let world = world.clone();
        clients.push(tokio::spawn(async move {
            let mut io = world.to_service(NO_ADMIN).await;
            for number in 0..REQUESTS {
                let (path, expected) = if number % 5 == 0 { ("/admin", 403) } else { ("/x", 200) };
                assert_eq!(
                    get(&mut io, path, "shared").await.0,
                    expected,
                    "client {client}, request {number}"
                );
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let opened = world.opened.load(Ordering::SeqCst);
    assert!(opened <= 2 * CLIENTS, "{opened} connections for {CLIENTS} requests at a time");
    assert_eq!(world.seen("shared").len(), CLIENTS * REQUESTS * 4 / 5);
    assert_eq!(world.seen_with("/admin"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_ends_a_kept_connection_costs_no_request_that_may_be_repeated() {
    let world = World::start(Limits::default()).await;
    let mut io = world.to_service(FREE).await;
    for _ in 0..20 {
        assert_eq!(get(&mut io, "/last", "last").await.0, 200);
    }
    assert_eq!(world.seen("last").len(), 20);
    // The backend reads the request and ends the connection: it may have acted on it.
    for _ in 0..10 {
        assert_eq!(get(&mut io, "/x", "before").await.0, 200);
        assert_eq!(get(&mut io, "/only-first", "repeated").await.0, 200);
    }
    assert!(world.seen("repeated").len() <= 20);
    assert_eq!(get(&mut io, "/x", "before").await.0, 200);
    for (id, framing) in [("posted", "content-length: 2\r\n\r\nhi"), ("bare", "content-length: 0\r\n\r\n")] {
        assert_eq!(get(&mut io, "/x", "before").await.0, 200);
        let post = format!("POST /only-first HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n{framing}");
        write(&mut io, post.as_bytes()).await;
        let got = answer(&mut io, &mut Vec::new()).await.expect("an answer");
        assert_eq!(status(&got), 503, "{id}");
        assert_eq!(world.seen(id).len(), 1, "a POST was sent twice: {id}");
    }
    let line = world.line("\"POST /only-first").await;
    assert!(line.contains(" UC "), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_protocol_is_the_backends_and_not_the_clients() {
    let world = World::start(Limits::default()).await;
    for (port, seen) in [(80, "HTTP/1.1"), (81, "HTTP/1.1"), (82, "HTTP/2")] {
        let mut io = world.tunnel(&vip(FREE, port).to_string()).await.unwrap();
        let id = format!("http1-{port}");
        assert_eq!(get(&mut io, "/path?q=1", &id).await.0, 200, "HTTP/1.1 to port {port}");
        let got = world.seen(&id).concat();
        assert!(got.starts_with(&format!("GET /path?q=1 {seen}\r\n")), "HTTP/1.1 to port {port}: {got}");
        assert!(got.contains("host: a\r\n") || got.contains(":authority: a\r\n"), "{got}");
    }
    for (port, seen) in [(80, "HTTP/2"), (81, "HTTP/1.1"), (82, "HTTP/2")] {
        let io = world.tunnel(&vip(FREE, port).to_string()).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
        let driver = tokio::spawn(connection);
        let id = format!("http2-{port}");
        let request =
            http::Request::get("http://a/path?q=1").header("x-request-id", &id).header("te", "trailers");
        let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        let got = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(got.status(), 200, "HTTP/2 to port {port}");
        let got = world.seen(&id).concat();
        assert!(got.starts_with(&format!("GET /path?q=1 {seen}\r\n")), "HTTP/2 to port {port}: {got}");
        assert!(got.contains("host: a\r\n") || got.contains(":authority: a\r\n"), "{got}");
        driver.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_too_many_requests_is_said_to_overflow() {
    let wait = Duration::from_millis(300);
    // The tunnel is served by one of the two workers, which has half of each.
    let limits =
        Limits { upstream_requests: 4, upstream_waiting: 2, upstream_wait: wait, ..Limits::default() };
    let world = World::start(limits).await;
    let mut hanging = Vec::new();
    for number in 0..2 {
        let mut io = world.to_service(FREE).await;
        write(
            &mut io,
            format!("GET /hang HTTP/1.1\r\nhost: a\r\nx-request-id: h{number}\r\n\r\n").as_bytes(),
        )
        .await;
        hanging.push(io);
    }
    let deadline = Instant::now() + PATIENCE;
    while world.seen_with("GET /hang") < 2 {
        assert!(Instant::now() < deadline, "the backend does not get both");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    let mut io = world.to_service(FREE).await;
    assert_eq!(get(&mut io, "/over", "over").await.0, 503);
    assert!(begun.elapsed() >= wait, "it did not wait for its turn");
    assert!(world.line("\"GET /over").await.contains(" UO "));
    // A request that ends leaves its place to the next.
    drop(hanging.pop());
    let deadline = Instant::now() + PATIENCE;
    while get(&mut io, "/after", "after").await.0 != 200 {
        assert!(Instant::now() < deadline, "its place is not given back");
    }
}
