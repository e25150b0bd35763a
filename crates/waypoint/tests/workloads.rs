// SPDX-License-Identifier: Apache-2.0
//! Traffic to Pods themselves (`istio.io/waypoint-for: workload`): the waypoint of a Pod carries what is addressed to the Pod,
//! by the Gateway's policies and those of closed Services, and nothing that is addressed to another.

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

use fixtures::{FREE, NO_ADMIN};
use http::StatusCode;
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_tunnel::{DialError, TunnelIo};
use meltemi_waypoint::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{OWN_ADDRESS, PATIENCE, World, answer, gateway_name, policy, status, write};

/// Asks once; `None` when the connection has ended.
async fn ask(io: &mut TunnelIo, path: &str) -> Option<u16> {
    write(io, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
    Some(status(&answer(io, &mut Vec::new()).await?))
}

async fn refusal(world: &World, to: SocketAddr) -> Option<StatusCode> {
    match world.tunnel(&to.to_string()).await {
        Ok(_) => None,
        Err(DialError::Status(status)) => Some(status),
        Err(other) => panic!("{to}: {other}"),
    }
}

async fn ends(io: &mut TunnelIo, what: &str) {
    let ended = async { while let Ok(1..) = io.read(&mut [0; 1024]).await {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{what}: it goes on"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_waypoint_of_a_pod_carries_what_is_addressed_to_it() {
    let mut world = World::start(Limits::default()).await;
    // It denies paths, hence everything that has none.
    world.no_policy("no-gate");
    let pod = world.pod();
    assert_eq!(refusal(&world, pod).await, Some(StatusCode::NOT_FOUND), "a Pod without a waypoint");
    for (namespace, host) in [("default", "other.default.svc.cluster.local"), ("infra", OWN_ADDRESS)] {
        world.bind_pod(Some((namespace, host)));
        world.publish();
        assert_eq!(refusal(&world, pod).await, Some(StatusCode::NOT_FOUND), "{namespace}/{host}");
    }
    world.bind_pod(Some(("default", OWN_ADDRESS)));
    world.publish();
    let mut io = world.tunnel(&pod.to_string()).await.unwrap();
    assert_eq!(ask(&mut io, "/x").await, Some(200));
    // The Service of the same Pod is as it was.
    assert_eq!(ask(&mut world.to_service(FREE).await, "/x").await, Some(200));
    // What was opened before ends when the Pod has another waypoint, or another address.
    let leaves = |world: &mut World| world.bind_pod(None);
    for leave in [leaves, World::move_pod] {
        world.bind_pod(Some(("default", OWN_ADDRESS)));
        world.publish();
        let mut kept = world.tunnel(&pod.to_string()).await.unwrap();
        assert_eq!(ask(&mut kept, "/x").await, Some(200));
        let mut raw = world.tunnel(&pod.to_string()).await.unwrap();
        raw.write_all(b"RAW").await.unwrap();
        raw.read_exact(&mut [0; 3]).await.unwrap();
        let mut under_way = world.tunnel(&pod.to_string()).await.unwrap();
        write(&mut under_way, b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(under_way.read(&mut [0; 1024]).await.unwrap() > 0);
        let before = world.seen_with("GET /late");
        leave(&mut world);
        world.publish();
        ends(&mut under_way, "an answer").await;
        ends(&mut raw, "bytes").await;
        assert!(matches!(ask(&mut kept, "/late").await, None | Some(503)));
        assert_eq!(world.seen_with("GET /late"), before, "the Pod has got it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policies_of_the_gateway_and_of_closed_services_judge_it() {
    let mut world = World::start(Limits::default()).await;
    // It denies paths, hence everything that has none.
    world.no_policy("no-gate");
    world.bind_pod(Some(("default", OWN_ADDRESS)));
    world.publish();
    let pod = world.pod();
    let admin = async |world: &World| {
        let mut io = world.tunnel(&pod.to_string()).await.unwrap();
        ask(&mut io, "/admin").await.unwrap()
    };
    // A policy of a Service is for what is addressed to the Service.
    assert_eq!(ask(&mut world.to_service(NO_ADMIN).await, "/admin").await, Some(403));
    assert_eq!(admin(&world).await, 200);
    // One of the Gateway is for all that passes it, requests and bytes.
    let no_admin = |name| policy(name, Action::Deny, &[(Attribute::Path, &["/admin"])]);
    world.policy(Target::Gateway(gateway_name()), no_admin("gateway-admin"));
    world.publish();
    assert_eq!(admin(&world).await, 403);
    let mut raw = world.tunnel(&pod.to_string()).await.unwrap();
    let _ = raw.write_all(b"RAW").await;
    assert!(matches!(raw.read(&mut [0; 3]).await, Ok(0) | Err(_)), "without a path it is denied as well");
    world.no_policy("gateway-admin");
    // So is one of a Service whose Pods take everything from the waypoint only.
    world.close(FREE, no_admin("closed-admin"));
    world.publish();
    assert_eq!(admin(&world).await, 403);
    let mut io = world.tunnel(&pod.to_string()).await.unwrap();
    assert_eq!(ask(&mut io, "/x").await, Some(200));
}
