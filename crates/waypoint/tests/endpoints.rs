// SPDX-License-Identifier: Apache-2.0
//! Several endpoints of a service: a request that one has not got goes to another, one that keeps failing is left out for a
//! while, and the one with fewer requests gets the next.

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
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fixtures::{FREE, NO_ADMIN};
use h2::Reason;
use http::StatusCode;
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::service::AppProtocol;
use meltemi_tunnel::{DialError, TunnelIo};
use meltemi_waypoint::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use world::{PATIENCE, World, answer, message_end, policy, status, vip, write};

/// A port that declares HTTP/1.1, with several endpoints.
const MANY: u16 = 9000;
/// A port that declares HTTP/2, with several endpoints.
const MANY_H2: u16 = 9002;
/// A port that declares TCP, with several endpoints.
const MANY_TCP: u16 = 9003;

/// What an endpoint does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Answers with a status.
    Answers(u16),
    /// Ends the connection when it has got one.
    Ends,
    /// Never answers.
    Hangs,
    /// Refuses HTTP/2 streams.
    Refuses,
}

/// An endpoint; it counts the requests that it has got.
struct Endpoint {
    address: SocketAddr,
    got: Arc<AtomicUsize>,
}

impl Endpoint {
    fn got(&self) -> usize {
        self.got.load(Ordering::SeqCst)
    }
}

async fn endpoint(does: Does) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, got) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = got.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, does, count.clone()));
        }
    });
    Endpoint { address, got }
}

async fn serve(mut stream: TcpStream, does: Does, got: Arc<AtomicUsize>) {
    let mut first = [0; 3];
    if stream.peek(&mut first).await.is_ok() && first == *b"PRI" {
        return serve_http2(stream, does, got).await;
    }
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            match message_end(&bytes) {
                Some(end) => break end,
                None if matches!(stream.read_buf(&mut bytes).await, Ok(1..)) => {}
                None => return,
            }
        };
        bytes.drain(..end);
        got.fetch_add(1, Ordering::SeqCst);
        match does {
            Does::Answers(status) => {
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            Does::Hangs => std::future::pending().await,
            Does::Ends | Does::Refuses => return,
        }
    }
}

async fn serve_http2(stream: TcpStream, does: Does, got: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        got.fetch_add(1, Ordering::SeqCst);
        match does {
            Does::Answers(status) => {
                let head = http::Response::builder().status(status).body(()).unwrap();
                let _ = respond.send_response(head, true);
            }
            _ => respond.send_reset(Reason::REFUSED_STREAM),
        }
    }
}

/// An address where nothing listens.
fn closed() -> SocketAddr {
    world::reserve_port()
}

async fn start(endpoints: &[SocketAddr]) -> World {
    let mut world = World::start(Limits::default()).await;
    world.add_endpoints(MANY, endpoints, AppProtocol::Http11);
    world.add_endpoints(MANY_H2, endpoints, AppProtocol::Http2);
    world.add_endpoints(MANY_TCP, endpoints, AppProtocol::Tcp);
    world.publish();
    world
}

async fn to(world: &World, port: u16) -> TunnelIo {
    world.tunnel(&vip(FREE, port).to_string()).await.unwrap()
}

async fn ask(io: &mut TunnelIo, request: &str) -> u16 {
    write(io, request.as_bytes()).await;
    let got = tokio::time::timeout(PATIENCE, answer(io, &mut Vec::new())).await.expect("no answer in time");
    status(&got.expect("it ends without an answer"))
}

const GET: &str = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
/// Without a body, and not to be repeated.
const BARE_POST: &str = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";

/// The value of a counter.
fn counter(world: &World, name: &str) -> u64 {
    let text = world.metrics.encode();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}_total "))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_sent_to_one_endpoint_is_sent_to_another() {
    let good = endpoint(Does::Answers(200)).await;
    let world = start(&[closed(), good.address, closed()]).await;
    let mut io = to(&world, MANY).await;
    for n in 0..60 {
        let request = [GET, POST, BARE_POST][n % 3];
        assert_eq!(ask(&mut io, request).await, 200, "request {n}");
    }
    assert_eq!(good.got(), 60, "each reaches an application once");
    // The closed ones were found out, and left out.
    assert_eq!(counter(&world, "meltemi_upstream_ejections"), 2);
    let retries = counter(&world, "meltemi_upstream_retries");
    assert!((10..=20).contains(&retries), "{retries} retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_cannot_be_opened_to_one_endpoint_is_opened_to_another() {
    let good = endpoint(Does::Answers(200)).await;
    let mut world = start(&[closed(), good.address]).await;
    world.no_policy("no-gate");
    world.publish();
    for n in 0..60 {
        assert_eq!(ask(&mut to(&world, MANY_TCP).await, GET).await, 200, "connection {n}");
    }
    let retries = counter(&world, "meltemi_upstream_retries");
    assert_eq!((good.got(), retries), (60, 5), "after five failures the closed one is left out");
    // Where none can be reached, the client learns of it.
    let mut world = start(&[closed(), closed()]).await;
    world.no_policy("no-gate");
    world.publish();
    let refused = world.tunnel(&vip(FREE, MANY_TCP).to_string()).await;
    assert!(matches!(refused, Err(DialError::Status(StatusCode::SERVICE_UNAVAILABLE))), "{refused:?}");
}

/// Its node accepts the connection of a tunnel and never speaks, as one that has stopped does: the limit of a tunnel's handshake,
/// 10 s, is for peers that have no substitute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_whose_node_is_silent_holds_a_request_up_for_a_second_only() {
    let good = endpoint(Does::Answers(200)).await;
    let silent = SocketAddr::from(([127, 0, 0, 9], 9));
    let _never_accepts = TcpListener::bind((silent.ip(), 15008)).await.unwrap();
    let mut world = start(&[good.address, silent]).await;
    world.no_policy("no-gate");
    world.tunnel_to(silent);
    world.publish();
    let mut asked = 0;
    while counter(&world, "meltemi_upstream_retries") < 2 {
        let begun = tokio::time::Instant::now();
        // Both kinds go by the same endpoints.
        let port = [MANY, MANY_TCP][asked % 2];
        assert_eq!(ask(&mut to(&world, port).await, GET).await, 200);
        assert!(begun.elapsed() < Duration::from_secs(9), "request {asked} has waited for the silent node");
        asked += 1;
        assert!(asked < 200, "the silent one is never drawn");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_application_may_have_got_is_not_sent_again() {
    let ends = endpoint(Does::Ends).await;
    let other = endpoint(Does::Ends).await;
    let world = start(&[ends.address, other.address]).await;
    for request in [GET, POST, BARE_POST] {
        let before = ends.got() + other.got();
        assert_eq!(ask(&mut to(&world, MANY).await, request).await, 503, "{request}");
        assert_eq!(ends.got() + other.got(), before + 1, "{request}");
    }
    assert_eq!(counter(&world, "meltemi_upstream_retries"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_refused_is_sent_to_another_endpoint() {
    let (refuses, good) = (endpoint(Does::Refuses).await, endpoint(Does::Answers(200)).await);
    let world = start(&[refuses.address, good.address]).await;
    let mut io = to(&world, MANY_H2).await;
    for n in 0..40 {
        assert_eq!(ask(&mut io, [GET, BARE_POST][n % 2]).await, 200, "request {n}");
    }
    assert_eq!(good.got(), 40);
    assert!(refuses.got() >= 5, "it was not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_keeps_failing_is_left_out_unless_all_do() {
    let (bad, good) = (endpoint(Does::Answers(503)).await, endpoint(Does::Answers(200)).await);
    let world = start(&[bad.address, good.address]).await;
    let mut io = to(&world, MANY).await;
    // Its answers are the application's: they are passed on.
    let (mut failed, mut asked) = (0, 0);
    while bad.got() < 5 {
        failed += usize::from(ask(&mut io, GET).await == 503);
        asked += 1;
        assert!(asked < 500, "it is never asked");
    }
    assert_eq!(failed, 5);
    for n in 0..100 {
        assert_eq!(ask(&mut io, GET).await, 200, "request {n}");
    }
    assert_eq!(bad.got(), 5);
    // Statuses of an application about its requests are no failures.
    let picky = endpoint(Does::Answers(500)).await;
    let world = start(&[picky.address, bad.address]).await;
    let mut io = to(&world, MANY).await;
    let mut seen = Vec::new();
    for _ in 0..60 {
        seen.push(ask(&mut io, GET).await);
    }
    assert_eq!(seen.iter().filter(|status| **status == 503).count(), 5, "{seen:?}");
    // Where all fail, all are asked.
    let world = start(&[bad.address, closed()]).await;
    let (before, mut io) = (bad.got(), to(&world, MANY).await);
    for _ in 0..60 {
        assert_eq!(ask(&mut io, GET).await, 503);
    }
    assert!(bad.got() > before + 20, "{} of 60 were sent", bad.got() - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_fewer_requests_gets_the_next() {
    let (slow, quick) = (endpoint(Does::Hangs).await, endpoint(Does::Answers(200)).await);
    let world = Arc::new(start(&[slow.address, quick.address]).await);
    // One request at a time, but for those that hang and are held: the slow one is the busier one from its first on.
    let (mut held, mut requests) = (Vec::new(), 0);
    while requests < 200 {
        let (before, mut io) = ((slow.got(), quick.got()), to(&world, MANY).await);
        write(&mut io, GET.as_bytes()).await;
        let arrived = async {
            while (slow.got(), quick.got()) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.unwrap();
        if slow.got() > before.0 {
            held.push(io);
        } else {
            assert!(answer(&mut io, &mut Vec::new()).await.is_some());
        }
        requests += usize::from(!held.is_empty());
    }
    // Both draws fall on the slow one for a quarter of the requests; by chance it would get half.
    assert!(held.len() > 10 && held.len() < 80, "{} of 200 went to the busy one", held.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_endpoint_would_get_is_judged_for_it() {
    let (good, gone) = (endpoint(Does::Answers(200)).await, closed());
    let mut world = World::start(Limits::default()).await;
    world.no_policy("no-admin");
    world.add_endpoints(MANY, &[gone, good.address], AppProtocol::Http11);
    // Only the Pod that is left belongs to a closed Service as well, whose policy denies the path.
    world.leave(gone, NO_ADMIN);
    let admin = [(Attribute::Path, &["/admin"][..])];
    world.close(NO_ADMIN, policy("no-admin", Action::Deny, &admin));
    world.publish();
    for (path, expected) in [("/x", 200), ("/admin", 403)] {
        for _ in 0..10 {
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(ask(&mut to(&world, MANY).await, &request).await, expected, "{path}");
        }
    }
    assert_eq!(good.got(), 10);
}
