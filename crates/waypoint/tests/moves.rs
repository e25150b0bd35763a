// SPDX-License-Identifier: Apache-2.0
//! A Service that moves to another waypoint, and Pods that belong to several Services: no connection that was opened
//! before, and no other Service's address, is a way around the policies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::collections::BTreeMap;

use fixtures::{FREE, NO_ADMIN, PUBLIC, TENANT};
use http::StatusCode;
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Filter, PathChange};
use meltemi_tunnel::{DialError, TunnelIo};
use meltemi_waypoint::Limits;
use proptest::collection::vec;
use proptest::sample::select;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::AsyncReadExt;
use world::{OWN_ADDRESS, PATIENCE, World, answer, policy, status, vip, write};

/// What becomes of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// It is served by this proxy.
    Here,
    /// Another waypoint's name, or one that does not exist.
    Other,
    /// A waypoint of the same name in another namespace.
    OtherNamespace,
    /// The waypoint does not admit it (any more): `allowedRoutes`, a label of the namespace, `waypoint-for`.
    Refused,
    /// It has no waypoint.
    Unbound,
    /// It is deleted.
    Deleted,
}

const AWAY: [Move; 5] = [Move::Other, Move::OtherNamespace, Move::Refused, Move::Unbound, Move::Deleted];

fn make(world: &mut World, number: u8, to: Move) {
    match to {
        Move::Here => world.bind(number, Some(("default", OWN_ADDRESS))),
        Move::Other => world.bind(number, Some(("default", "wp2.default.svc.cluster.local"))),
        Move::OtherNamespace => world.bind(number, Some(("infra", "waypoint.infra.svc.cluster.local"))),
        Move::Refused => world.bind(number, Some(("default", "not-attached.waypoint.default.invalid"))),
        Move::Unbound => world.bind(number, None),
        Move::Deleted => world.delete(number),
    }
    world.publish();
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

/// Asks once; `None` when the connection has ended.
async fn ask(io: &mut TunnelIo, path: &str) -> Option<(u16, String)> {
    write(io, get(path).as_bytes()).await;
    let got = answer(io, &mut Vec::new()).await?;
    Some((status(&got), String::from_utf8_lossy(&got).into_owned()))
}

async fn ends(io: &mut TunnelIo, what: &str) {
    let mut more = vec![0; 1 << 16];
    let drained = async { while let Ok(1..) = io.read(&mut more).await {} };
    tokio::time::timeout(PATIENCE, drained).await.unwrap_or_else(|_| panic!("{what}: it goes on"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_open_at_a_waypoint_that_a_service_has_left() {
    for to in AWAY {
        let mut world = World::start(Limits::default()).await;
        world.no_policy("no-gate");
        world.publish();
        let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        let mut kept = world.to_service(NO_ADMIN).await;
        assert_eq!(ask(&mut kept, "/x").await.unwrap().0, 200, "{to:?}");
        // Half a head, which is whole only after the move.
        let mut half = world.to_service(NO_ADMIN).await;
        write(&mut half, b"GET /admin HTTP/1.1\r\nhost: a\r\nx-request-id: half\r\n").await;
        let mut websocket = world.to_service(NO_ADMIN).await;
        write(&mut websocket, upgrade.as_bytes()).await;
        assert_eq!(status(&answer(&mut websocket, &mut Vec::new()).await.unwrap()), 101, "{to:?}");
        let mut stream = world.to_service(NO_ADMIN).await;
        write(&mut stream, get("/endless").as_bytes()).await;
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0, "{to:?}");
        let mut open = world.to_service(NO_ADMIN).await;
        write(&mut open, get("/hang").as_bytes()).await;
        let mut tcp = world.tunnel(&vip(FREE, 3306).to_string()).await.unwrap();
        write(&mut tcp, b"RAW").await;
        tcp.read_exact(&mut [0; 3]).await.unwrap();
        let h2 = h2::client::handshake(world.to_service(NO_ADMIN).await).await.unwrap();
        let (mut requests, driver) = (h2.0, tokio::spawn(h2.1));
        let request = |path: &str| http::Request::get(format!("http://a{path}")).body(()).unwrap();
        let response = requests.send_request(request("/x"), true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), 200, "{to:?}");
        let reached = async {
            while world.seen_with("GET /hang") == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();

        make(&mut world, FREE, to);
        make(&mut world, NO_ADMIN, to);
        for (name, io) in [("websocket", &mut websocket), ("stream", &mut stream), ("tcp", &mut tcp)] {
            ends(io, &format!("{to:?}: {name}")).await;
        }
        ends(&mut open, &format!("{to:?}: a request under way")).await;
        ends(&mut kept, &format!("{to:?}: a connection without a request")).await;
        // The head that was under way is answered, and the connection ends with it.
        write(&mut half, b"\r\n").await;
        let mut rest = Vec::new();
        let got = answer(&mut half, &mut rest).await.unwrap();
        let text = String::from_utf8_lossy(&got).to_ascii_lowercase();
        assert!(
            text.starts_with("http/1.1 503 ") && text.contains("\r\nconnection: close\r\n"),
            "{to:?}: {text}"
        );
        assert!(text.contains("no longer the waypoint of the service"), "{to:?}: {text}");
        assert!(answer(&mut half, &mut rest).await.is_none(), "{to:?}: the connection goes on");
        let line = world.line("half").await;
        assert!(line.contains("default/waypoint is no longer the waypoint of default/p1.default"), "{line}");
        // HTTP/2 is told to go (GOAWAY), or was already closed.
        let went = async {
            while let Ok(()) = std::future::poll_fn(|cx| requests.poll_ready(cx)).await {
                let Ok((response, _)) = requests.send_request(request("/admin"), true) else { break };
                match response.await {
                    Ok(response) => assert_eq!(response.status(), 503, "{to:?}"),
                    Err(_) => break,
                }
            }
        };
        tokio::time::timeout(PATIENCE, went).await.unwrap_or_else(|_| panic!("{to:?}: HTTP/2 goes on"));
        driver.abort();
        let refused = world.tunnel(&vip(NO_ADMIN, 80).to_string()).await;
        assert!(matches!(refused, Err(DialError::Status(StatusCode::NOT_FOUND))), "{to:?}: {refused:?}");
        assert_eq!(world.seen_with("GET /admin"), 0, "{to:?}");
        // It comes back.
        make(&mut world, NO_ADMIN, Move::Here);
        let mut again = world.to_service(NO_ADMIN).await;
        assert_eq!(ask(&mut again, "/x").await.unwrap().0, 200, "{to:?}");
    }
}

const SERVICES: [u8; 4] = [FREE, NO_ADMIN, PUBLIC, TENANT];
const PATHS: [&str; 4] = ["/x", "/admin", "/public/x", "/admin/x"];

/// A step of the random test.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A Service goes somewhere.
    Goes(u8, Move),
    /// A client asks a Service for a path on the connection that it has kept, or on a new one.
    Asks(u8, &'static str),
}

#[test]
fn whatever_moves_the_verdict_is_that_of_the_services_policies() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let anywhere = [Move::Here, Move::Here, Move::Here].into_iter().chain(AWAY).collect::<Vec<_>>();
    let goes = (select(&SERVICES[..]), select(anywhere)).prop_map(|(number, to)| Step::Goes(number, to));
    let asks =
        (select(&SERVICES[..]), select(&PATHS[..])).prop_map(|(number, path)| Step::Asks(number, path));
    let steps = vec(proptest::prop_oneof![1 => goes, 2 => asks], 1..40);
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        runtime.block_on(async {
            let mut world = World::start(Limits::default()).await;
            let mut places: BTreeMap<u8, Move> = SERVICES.map(|s| (s, Move::Here)).into();
            let mut connections: BTreeMap<u8, TunnelIo> = BTreeMap::new();
            for step in &steps {
                let (number, path) = match *step {
                    Step::Goes(number, to) => {
                        make(&mut world, number, to);
                        places.insert(number, to);
                        continue;
                    }
                    Step::Asks(number, path) => (number, path),
                };
                let here = places[&number] == Move::Here;
                let mut got = None;
                if let Some(io) = connections.get_mut(&number) {
                    got = ask(io, path).await.map(|(status, _)| status);
                }
                if got.is_none() || got == Some(503) {
                    connections.remove(&number);
                    if let Ok(mut io) = world.tunnel(&vip(number, 80).to_string()).await {
                        got = ask(&mut io, path).await.map(|(status, _)| status);
                        connections.insert(number, io);
                    }
                }
                let allowed = match number {
                    FREE => true,
                    NO_ADMIN => !path.starts_with("/admin"),
                    PUBLIC => path.starts_with("/public/"),
                    _ => false,
                };
                let expected = if allowed { 200 } else { 403 };
                if here {
                    assert_eq!(got, Some(expected), "{number} {path} in {steps:?}");
                } else {
                    assert!(matches!(got, None | Some(503)), "{number} {path}: {got:?} in {steps:?}");
                }
            }
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_closed_service_are_judged_by_its_policies_whatever_was_addressed() {
    let mut world = World::start(Limits::default()).await;
    world.no_policy("no-gate");
    world.no_policy("no-admin");
    // Before it is closed, another Service of the same Pods is a way to them.
    world.publish();
    let mut other = world.to_service(FREE).await;
    assert_eq!(ask(&mut other, "/admin").await.unwrap().0, 200);
    let mut stream = world.to_service(FREE).await;
    write(&mut stream, get("/endless").as_bytes()).await;
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    let admin = [(Attribute::Path, &["/admin", "/admin/*"][..])];
    world.close(NO_ADMIN, policy("no-admin", Action::Deny, &admin));
    let rewrite = |to: &str| Filter::Rewrite { host: None, path: Some(PathChange::Prefix(to.into())) };
    // A route of another Service leads to it, and another one changes the path first.
    world.route_of_service("plain", PUBLIC, NO_ADMIN, Vec::new());
    world.route_of_service("rewriting", TENANT, NO_ADMIN, vec![rewrite("/admin")]);
    world.no_policy("public");
    world.no_policy("tenant");
    world.publish();
    // What was open when it was closed cannot be judged any more.
    ends(&mut stream, "a stream to another Service of the same Pods").await;
    for (number, path, expected) in [
        (NO_ADMIN, "/admin", 403),
        (NO_ADMIN, "/x", 200),
        (FREE, "/admin", 403),
        (FREE, "/admin/x", 403),
        (FREE, "/x", 200),
        (PUBLIC, "/admin", 403),
        (PUBLIC, "/x", 200),
        (TENANT, "/x", 403),
    ] {
        let before = world.seen_with("/admin");
        let got = ask(&mut world.to_service(number).await, path).await.unwrap().0;
        assert_eq!(got, expected, "service {number} {path}");
        assert_eq!(world.seen_with("/admin"), before, "service {number} {path}");
    }
    // The connection of before, too.
    assert_eq!(ask(&mut other, "/admin").await.unwrap().0, 403);
    let line = world.line("/admin/x").await;
    assert!(line.contains("policy=default/no-admin"), "{line}");
    // A connection without requests has none of what the policy asks for, so that it is denied.
    let denied = world.tunnel(&vip(FREE, 3306).to_string()).await;
    assert!(matches!(denied, Err(DialError::Status(StatusCode::FORBIDDEN))), "{denied:?}");
    // Its author opens it again.
    world.no_policy("no-admin");
    world.publish();
    assert_eq!(ask(&mut other, "/admin").await.unwrap().0, 200);
}
