// SPDX-License-Identifier: Apache-2.0
//! What the rules of a route do: copies of requests, further attempts, CORS, filters of single backends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::time::{Duration, Instant};

use fixtures::{FREE, NO_ADMIN};
use meltemi_model::l7::{Backend, Cors, Filter, HeaderChanges, Retry, RouteRule};
use meltemi_model::service::AppProtocol;
use meltemi_waypoint::Limits;
use tokio::net::TcpListener;
use world::{PATIENCE, World, answer, service, status, write};

/// A GET without a body.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

fn put(path: &str, length: usize) -> String {
    format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length))
}

/// Sends one request on a connection of its own.
async fn ask(world: &World, number: u8, request: &str) -> String {
    let mut io = world.to_http(number).await;
    write(&mut io, request.as_bytes()).await;
    String::from_utf8(answer(&mut io, &mut Vec::new()).await.unwrap()).unwrap()
}

fn code(answer: &str) -> u16 {
    status(answer.as_bytes())
}

/// Waits until the backend has got so many requests with a text.
async fn seen(world: &World, text: &str, times: usize) {
    let begun = Instant::now();
    while world.seen_with(text) < times {
        assert!(begun.elapsed() < PATIENCE, "{text:?}: {} of {times}", world.seen_with(text));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn mirror(numerator: u32, denominator: u32) -> Filter {
    Filter::Mirror { service: service(NO_ADMIN), port: 81, denominator, numerator }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_whole_and_nobody_waits_for_them() {
    let mut world = World::start(Limits::default()).await;
    world.rule(
        "mirror",
        FREE,
        RouteRule { filters: vec![mirror(1, 1), mirror(1, 1)], ..RouteRule::default() },
    );
    world.rule("never", NO_ADMIN, RouteRule { filters: vec![mirror(0, 100)], ..RouteRule::default() });
    world.publish();
    assert_eq!(code(&ask(&world, FREE, &get("/copied")).await), 200);
    seen(&world, "GET /copied", 3).await;
    // Bodies, too; longer ones than what a connection holds at a time.
    assert_eq!(code(&ask(&world, FREE, &put("/long", 200_000)).await), 200);
    seen(&world, &format!("\r\n\r\n{}", "x".repeat(200_000)), 3).await;
    assert_eq!(code(&ask(&world, NO_ADMIN, &get("/single")).await), 200);
    assert_eq!(world.seen_with("GET /single"), 1);
    // One that goes nowhere holds up nothing.
    let gone = Filter::Mirror { service: service(250), port: 81, denominator: 1, numerator: 1 };
    world.rule("mirror", FREE, RouteRule { filters: vec![gone], ..RouteRule::default() });
    world.publish();
    assert_eq!(code(&ask(&world, FREE, &get("/alone")).await), 200);
    assert_eq!(world.seen_with("GET /alone"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_are_not_answered_are_few_and_end() {
    let limits = Limits { copies: 2, copy: Duration::from_secs(2), ..Limits::default() };
    let mut world = World::start(limits).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.add_endpoints(83, &[silent.local_addr().unwrap()], AppProtocol::Http11);
    let nowhere = Filter::Mirror { service: service(NO_ADMIN), port: 83, denominator: 1, numerator: 1 };
    world.rule("mirror", FREE, RouteRule { filters: vec![nowhere], ..RouteRule::default() });
    world.publish();
    let mut io = world.to_http(FREE).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        write(&mut io, get("/flood").as_bytes()).await;
        assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
    }
    for _ in 0..2 {
        held.push(tokio::time::timeout(PATIENCE, silent.accept()).await.unwrap().unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), silent.accept()).await.is_err(), "a third copy");
    // When their time is over, others have a place.
    let begun = Instant::now();
    loop {
        write(&mut io, get("/flood").as_bytes()).await;
        assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
        if tokio::time::timeout(Duration::from_millis(100), silent.accept()).await.is_ok() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn about_the_share_that_is_asked_for_is_copied() {
    let mut world = World::start(Limits::default()).await;
    world.rule("mirror", FREE, RouteRule { filters: vec![mirror(1, 4)], ..RouteRule::default() });
    world.publish();
    let mut io = world.to_http(FREE).await;
    for _ in 0..400 {
        write(&mut io, get("/share").as_bytes()).await;
        assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
    }
    seen(&world, "GET /share", 450).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    // 100 are expected; five times the standard deviation of 8.7 either way.
    let copies = world.seen_with("GET /share") - 400;
    assert!((56..=144).contains(&copies), "{copies}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_sent_again_as_often_as_its_rule_says() {
    let mut world = World::start(Limits::default()).await;
    let retry = Retry { attempts: 2, codes: vec![503], backoff_ms: Some(1) };
    world.rule("again", FREE, RouteRule { retry: Some(retry), ..RouteRule::default() });
    let other = Retry { attempts: 2, codes: vec![500], backoff_ms: None };
    world.rule("other", NO_ADMIN, RouteRule { retry: Some(other), ..RouteRule::default() });
    world.publish();
    for (number, request, path, expected, attempts) in [
        (FREE, get("/fails/2/a"), "/fails/2/a", 200, 3),
        (FREE, get("/fails/3/b"), "/fails/3/b", 503, 3),
        (FREE, put("/fails/2/c", 5), "/fails/2/c", 200, 3),
        // Too long to be kept.
        (FREE, put("/fails/2/d", 100_000), "/fails/2/d", 503, 1),
        // The connection breaks off before the answer.
        (FREE, put("/breaks/1/e", 5), "/breaks/1/e", 200, 2),
        // Not a code of the rule.
        (NO_ADMIN, get("/fails/1/f"), "/fails/1/f", 503, 1),
    ] {
        let answered = ask(&world, number, &request).await;
        assert_eq!((code(&answered), world.seen_with(path)), (expected, attempts), "{path}");
    }
    assert_eq!(world.seen_with("/fails/2/c HTTP/1.1"), 3);
    assert!(world.seen_with("\r\n\r\nxxxxx") >= 5, "each attempt has the whole body");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_has_a_time_of_its_own() {
    let mut world = World::start(Limits::default()).await;
    let retry = Some(Retry { attempts: 1, codes: Vec::new(), backoff_ms: None });
    let limited = RouteRule { backend_timeout_ms: Some(400), ..RouteRule::default() };
    world.rule("again", FREE, RouteRule { retry: retry.clone(), ..limited.clone() });
    world.rule("once", NO_ADMIN, limited);
    world.publish();
    assert_eq!(code(&ask(&world, FREE, &get("/hangs/1/a")).await), 200);
    assert_eq!(world.seen_with("/hangs/1/a"), 2);
    assert_eq!(code(&ask(&world, FREE, &get("/hangs/2/b")).await), 504);
    assert_eq!(world.seen_with("/hangs/2/b"), 2);
    assert_eq!(code(&ask(&world, NO_ADMIN, &get("/hangs/1/c")).await), 504);
    assert_eq!(world.seen_with("/hangs/1/c"), 1);
    // The time of the whole request is over before that of the second attempt.
    let both = RouteRule {
        timeout_ms: Some(600),
        backend_timeout_ms: Some(400),
        retry: Some(Retry { attempts: 5, codes: Vec::new(), backoff_ms: None }),
        ..RouteRule::default()
    };
    world.rule("again", FREE, both);
    world.publish();
    assert_eq!(code(&ask(&world, FREE, &get("/hangs/9/d")).await), 504);
    assert!(world.seen_with("/hangs/9/d") <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_is_answered_and_an_answer_says_who_may_read_it() {
    let mut world = World::start(Limits::default()).await;
    let cors = Cors {
        origins: vec!["https://*.shop.example".into()],
        methods: vec!["PUT".into()],
        headers: vec!["x-a".into()],
        max_age: 60,
        ..Cors::default()
    };
    for (name, number) in [("cors", FREE), ("guarded", NO_ADMIN)] {
        let filters = vec![Filter::Cors { cors: cors.clone() }];
        world.rule(name, number, RouteRule { filters, ..RouteRule::default() });
    }
    world.publish();
    let from = |method: &str, path: &str, origin: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\n\r\n"
        )
    };
    let good = "https://a.shop.example";
    let said = ask(&world, FREE, &from("OPTIONS", "/pre", good)).await;
    assert_eq!(code(&said), 204, "{said}");
    for line in [&*format!("access-control-allow-origin: {good}"), "access-control-allow-methods: PUT"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let said = ask(&world, FREE, &from("OPTIONS", "/pre", "https://shop.example.evil")).await;
    assert!(code(&said) == 204 && !said.contains("access-control"), "{said}");
    assert_eq!(world.seen_with("/pre"), 0, "the backend is not asked");
    let said = ask(&world, FREE, &from("GET", "/x", good)).await;
    assert!(said.contains(&format!("access-control-allow-origin: {good}")), "{said}");
    let said = ask(&world, FREE, &from("GET", "/x", "https://b.example")).await;
    assert!(code(&said) == 200 && !said.contains("access-control"), "{said}");
    // CORS permits nothing.
    let said = ask(&world, NO_ADMIN, &from("OPTIONS", "/admin", good)).await;
    assert_eq!(code(&said), 403, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_backend_asks_for_comes_after_what_its_rule_asks_for() {
    let mut world = World::start(Limits::default()).await;
    let set = |name: &str, value: &str| HeaderChanges {
        set: vec![(name.into(), value.into())],
        ..HeaderChanges::default()
    };
    let of_backend = vec![
        Filter::RequestHeaders { changes: set("x-who", "backend") },
        Filter::ResponseHeaders { changes: set("x-answer", "backend") },
    ];
    let rule = RouteRule {
        filters: vec![Filter::RequestHeaders { changes: set("x-who", "rule") }],
        backends: vec![Backend { service: Some(service(FREE)), port: 80, weight: 1, filters: of_backend }],
        ..RouteRule::default()
    };
    world.rule("shares", FREE, rule);
    world.publish();
    let said = ask(&world, FREE, &get("/who")).await;
    assert!(said.contains("x-answer: backend"), "{said}");
    assert_eq!((world.seen_with("x-who: backend"), world.seen_with("x-who: rule")), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_speaks_with_a_gateway_is_not_what_an_application_has_to_speak() {
    let world = World::start(Limits::default()).await;
    let (mut requests, connection) = h2::client::handshake(world.to_gateway().await).await.unwrap();
    let driver = tokio::spawn(connection);
    for (path, kind) in [("/browser", "text/plain"), ("/grpc", "application/grpc")] {
        let request = http::Request::post(format!("http://a{path}")).header("content-type", kind);
        let response = requests.send_request(request.body(()).unwrap(), true).unwrap().0;
        assert_eq!(tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200, "{path}");
    }
    driver.abort();
    assert_eq!((world.seen_with("POST /browser HTTP/1.1"), world.seen_with("POST /grpc HTTP/2")), (1, 1));
}
