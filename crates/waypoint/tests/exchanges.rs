// SPDX-License-Identifier: Apache-2.0
//! Request and answer at their edges: timeouts of routes, `Expect: 100-continue`, answers before the body, and filters
//! that cannot be carried out.

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
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Filter, HeaderChanges, PathChange, Target};
use meltemi_waypoint::Limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use world::{PATIENCE, World, answer, policy, service, status, write};

/// Everything that comes until the connection ends.
async fn rest<IO: AsyncRead + Unpin + ?Sized>(io: &mut IO) -> String {
    let mut bytes = Vec::new();
    let read = async { while let Ok(1..) = io.read_buf(&mut bytes).await {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the connection goes on");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until a text has come.
async fn until<IO: AsyncRead + Unpin>(io: &mut IO, wanted: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&bytes).contains(wanted) {
            assert!(matches!(io.read_buf(&mut bytes).await, Ok(1..)), "it ends before {wanted:?}");
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_holds_to_the_end_of_the_answer() {
    let mut world = World::start(Limits::default()).await;
    world.limited_route("short", FREE, 700);
    world.publish();
    let ask = |path: &str, id: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n");
    // No head in time.
    let mut late = world.to_service(FREE).await;
    write(&mut late, ask("/hang", "late").as_bytes()).await;
    assert_eq!(status(&answer(&mut late, &mut Vec::new()).await.unwrap()), 504);
    // A head in time, and a stream that would go on for ever.
    let (begun, mut stream) = (Instant::now(), world.to_service(FREE).await);
    write(&mut stream, ask("/trickle", "cut").as_bytes()).await;
    let text = rest(&mut stream).await;
    assert!(begun.elapsed() >= Duration::from_millis(690), "{:?}", begun.elapsed());
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("event"), "{text}");
    assert!(!text.ends_with("0\r\n\r\n"), "what is broken off looks whole: {text}");
    let line = world.line("UT response_timeout").await;
    assert!(line.contains("cut") && line.contains(" 200 "), "{line}");
    // HTTP/2: the stream is reset.
    let (mut requests, connection) = h2::client::handshake(world.to_service(FREE).await).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::get("http://a/endless").body(()).unwrap();
    let mut body = requests.send_request(request, true).unwrap().0.await.unwrap().into_body();
    let ended = async {
        loop {
            match body.data().await {
                Some(Ok(data)) => body.flow_control().release_capacity(data.len()).unwrap(),
                other => return other.map(|o| o.is_err()),
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap(), Some(true));
    driver.abort();
    // Without a timeout nothing ends it.
    let mut free = world.to_service(NO_ADMIN).await;
    write(&mut free, ask("/trickle", "free").as_bytes()).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert!(free.read(&mut [0; 1024]).await.unwrap() > 0);
    }
}

/// Sends a head that asks for `100 Continue`.
async fn expecting<IO: AsyncWrite + Unpin>(io: &mut IO, path: &str, length: usize) {
    let head =
        format!("PUT {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
    write(io, head.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backend_says_whether_it_wants_a_body() {
    let world = World::start(Limits::default()).await;
    // It refuses by the head: no 100, nothing of the body, and the connection ends, since the client may send it.
    let mut io = world.to_service(FREE).await;
    expecting(&mut io, "/refuse", 20_000_000).await;
    let text = rest(&mut io).await;
    assert!(text.starts_with("HTTP/1.1 401") && text.ends_with("no"), "{text}");
    assert!(text.contains("connection: close"), "{text}");
    // It asks for it.
    let mut io = world.to_service(FREE).await;
    expecting(&mut io, "/continue", 5).await;
    let text = until(&mut io, "\r\n\r\n").await;
    assert_eq!(text, "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut io, b"hello").await;
    assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
    assert!(world.seen_with("PUT /continue") == 2 && world.seen_with("\r\n\r\nhello") == 1);
    assert!(world.seen_with("expect: 100-continue") >= 2, "the expectation is forwarded");
    // It says nothing: after some time the body is asked for in its place.
    let mut io = world.to_service(FREE).await;
    expecting(&mut io, "/x", 5).await;
    let text = until(&mut io, "\r\n\r\n").await;
    assert_eq!(text, "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut io, b"hello").await;
    assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
    // Who is denied is not asked for a body.
    let mut io = world.to_service(NO_ADMIN).await;
    expecting(&mut io, "/admin", 5).await;
    assert!(rest(&mut io).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_the_body_reaches_the_client() {
    let world = World::start(Limits::default()).await;
    let body = vec![b'x'; 3_000_000];
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    for (what, number, path, expected) in [
        ("denied", NO_ADMIN, "/admin", "HTTP/1.1 403"),
        ("refused by the backend", FREE, "/refuse", "HTTP/1.1 401"),
    ] {
        for _ in 0..5 {
            let io = world.to_service(number).await;
            let (mut read, mut send) = tokio::io::split(io);
            // A client that sends everything before it reads.
            let sending = async {
                let _ = send.write_all(head(path).as_bytes()).await;
                for part in body.chunks(64 * 1024) {
                    if send.write_all(part).await.is_err() {
                        return;
                    }
                }
            };
            let (text, ()) = tokio::join!(rest(&mut read), sending);
            assert!(text.starts_with(expected), "{what}: {text:?}");
        }
    }
    // At a listener the client is a kernel that discards what it has not read after a reset.
    for _ in 0..5 {
        let mut io = world.to_gateway().await;
        let sent = async {
            write(&mut io, head("/gate").as_bytes()).await;
            for part in body.chunks(64 * 1024) {
                write(&mut io, part).await;
            }
        };
        tokio::time::timeout(PATIENCE, sent).await.unwrap();
        let text = rest(&mut io).await;
        assert!(text.starts_with("HTTP/1.1 403"), "{text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_cannot_be_carried_out_is_never_passed_over() {
    let mut world = World::start(Limits::default()).await;
    world.no_policy("public");
    world.no_policy("tenant");
    let pairs = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let set = |name: &str, value: &str| Filter::RequestHeaders {
        changes: HeaderChanges { set: pairs(name, value), ..HeaderChanges::default() },
    };
    let response = |name: &str, value: &str| Filter::ResponseHeaders {
        changes: HeaderChanges { set: pairs(name, value), ..HeaderChanges::default() },
    };
    let remove = |name: &str| Filter::RequestHeaders {
        changes: HeaderChanges { remove: vec![name.into()], ..HeaderChanges::default() },
    };
    let rewrite = |host: Option<&str>, path: Option<&str>| Filter::Rewrite {
        host: host.map(Into::into),
        path: path.map(|path| PathChange::Full(path.into())),
    };
    for filter in [
        set("x-user", "gate\nway"),
        set("x-user", "gateway\n"),
        set("x user", "gateway"),
        set("x-user", "g\0"),
        set("content-length", "1"),
        set("transfer-encoding", "chunked"),
        set("host", "other.example"),
        set("connection", "close"),
        remove("host"),
        response("x-frame-options", "DE\nNY"),
        response("content-length", "1"),
        response("transfer-encoding", "gzip"),
        rewrite(Some("a b"), None),
        rewrite(None, Some("/a/../b?x=1")),
    ] {
        world.route_of_service("bad", FREE, FREE, vec![filter.clone()]);
        world.publish();
        let mut io = world.to_service(FREE).await;
        let before = world.seen_with("x-user");
        let request = "GET / HTTP/1.1\r\nhost: a\r\nx-user: forged\r\n\r\n";
        write(&mut io, request.as_bytes()).await;
        let got = status(&answer(&mut io, &mut Vec::new()).await.unwrap());
        assert_eq!((got, world.seen_with("x-user")), (500, before), "{filter:?}");
    }
    // One that can be is carried out, and the client's own value does not pass.
    world.route_of_service("bad", FREE, FREE, vec![set("X-User", "gateway")]);
    world.publish();
    let mut io = world.to_service(FREE).await;
    write(&mut io, b"GET / HTTP/1.1\r\nhost: a\r\nx-user: forged\r\n\r\n").await;
    assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 200);
    assert!(world.seen_with("x-user: gateway") == 1 && world.seen_with("forged") == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_ends_says_so_before_it_closes_anything() {
    let limits = Limits { drain: Duration::from_secs(3), ..Limits::default() };
    let mut world = World::start(limits).await;
    let get = "GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut kept = vec![world.to_service(FREE).await, world.to_service(FREE).await];
    for io in &mut kept {
        write(io, get.as_bytes()).await;
        assert_eq!(status(&answer(io, &mut Vec::new()).await.unwrap()), 200);
    }
    let mut edge = world.to_gateway().await;
    write(&mut edge, get.as_bytes()).await;
    assert_eq!(status(&answer(&mut edge, &mut Vec::new()).await.unwrap()), 200);
    world.drain().await;
    // Who asks is answered, and told to go.
    let said = async |io: &mut (dyn AsyncReadWrite + Unpin)| {
        write(io, get.as_bytes()).await;
        let text = rest(io).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close"), "{text}");
    };
    said(&mut kept[0]).await;
    said(&mut edge).await;
    // Who does not know of it yet still gets in.
    said(&mut world.to_service(FREE).await).await;
    said(&mut world.to_gateway().await).await;
    // Who asks nothing is closed later.
    assert_eq!(rest(&mut kept[1]).await, "");
}

/// A request that is under way, a WebSocket and bytes outlive the beginning of a drain, and a policy that comes in it is in
/// force at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_goes_on_during_a_drain_and_is_judged() {
    let limits = Limits { drain: Duration::from_secs(3), ..Limits::default() };
    let mut world = World::start(limits).await;
    let mut endless = world.to_service(FREE).await;
    write(&mut endless, b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut websocket = world.to_service(FREE).await;
    write(
        &mut websocket,
        b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer(&mut websocket, &mut Vec::new()).await.unwrap()), 101);
    let mut kept = world.to_service(FREE).await;
    write(&mut kept, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&answer(&mut kept, &mut Vec::new()).await.unwrap()), 200);
    let mut idle = world.to_service(FREE).await;
    world.drain().await;
    // Longer than idle connections are kept.
    assert_eq!(rest(&mut idle).await, "");
    for _ in 0..3 {
        assert!(endless.read(&mut [0; 1024]).await.unwrap() > 0);
        write(&mut websocket, b"abc").await;
        websocket.read_exact(&mut [0; 3]).await.unwrap();
    }
    let nothing = policy("nothing", Action::Allow, &[(Attribute::Path, &["/none"])]);
    world.policy(Target::Service(service(FREE)), nothing);
    world.publish();
    for io in [&mut endless, &mut websocket] {
        let ended = async { while let Ok(1..) = io.read(&mut [0; 1024]).await {} };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
    }
}

/// A client of HTTP/2 that has not read yet that it is to go may send on, and learns which streams nobody has looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_on_still_reads_the_goodbye_of_http2() {
    let mut world = World::start(Limits::default()).await;
    let mut edge = world.to_gateway().await;
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    write(&mut edge, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    write(&mut edge, settings).await;
    edge.read_exact(&mut [0; 9]).await.unwrap();
    world.drain().await;
    // A PING that has to be answered comes before the last GOAWAY (RFC 9113 §6.8).
    let (ping, mut came) = (b"\x08\x06\x00\x00\x00", Vec::new());
    let at = loop {
        if let Some(at) = came.windows(5).position(|w| w == ping)
            && came.len() >= at + 15
        {
            break at;
        }
        let read = tokio::time::timeout(PATIENCE, edge.read_buf(&mut came)).await;
        assert!(read.unwrap().unwrap() > 0, "no PING in {came:?}");
    };
    let mut pong = came.drain(..at + 15).skip(at - 2).collect::<Vec<u8>>();
    pong[4] = 1;
    write(&mut edge, &pong).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        edge.write_all(settings).await.expect("what is sent on is taken");
    }
    edge.shutdown().await.unwrap();
    let read = async { while let Ok(1..) = edge.read_buf(&mut came).await {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the connection goes on");
    assert!(came.windows(5).any(|w| w == b"\x08\x07\x00\x00\x00"), "the last GOAWAY is lost: {came:?}");
}

/// A proxy with nothing open does not wait for the deadline of its drain, whatever it has served before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_with_the_last_of_what_is_open() {
    let mut world = World::start(Limits::default()).await;
    let get = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut edge = world.to_gateway().await;
    let mut mesh = world.to_service(FREE).await;
    write(&mut edge, get).await;
    assert_eq!(status(&answer(&mut edge, &mut Vec::new()).await.unwrap()), 200);
    write(&mut mesh, get).await;
    assert_eq!(status(&answer(&mut mesh, &mut Vec::new()).await.unwrap()), 200);
    let begun = Instant::now();
    world.drain().await;
    write(&mut edge, get).await;
    assert!(rest(&mut edge).await.starts_with("HTTP/1.1 200"));
    drop((edge, mesh));
    world.ended().await;
    assert!(begun.elapsed() < PATIENCE, "it was ended by its deadline");
}

/// A connection of either kind.
trait AsyncReadWrite: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> AsyncReadWrite for T {}
