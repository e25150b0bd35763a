// SPDX-License-Identifier: Apache-2.0
//! Load: many requests share a handful of connections to the backend, and many open connections cost a change nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fixtures::{FREE, NO_ADMIN};
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_tunnel::TunnelIo;
use meltemi_waypoint::Limits;
use world::{World, answer, policy, service, status, write};

const CLIENTS: usize = 8;
const REQUESTS: usize = 20_000;
/// Connections that are open and ask nothing.
const OPEN: usize = 10_000;
/// Requests of one round of the comparison.
const ROUND: usize = 300;

/// Asks once on a connection that goes on.
async fn ask(io: &mut TunnelIo, kept: &mut Vec<u8>) -> u16 {
    write(io, b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    status(&answer(io, kept).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_a_handful_of_connections() {
    let world = Arc::new(World::start(Limits::default()).await);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                let (mut io, mut kept) = (world.to_http(NO_ADMIN).await, Vec::new());
                for n in 0..REQUESTS / CLIENTS {
                    assert_eq!(ask(&mut io, &mut kept).await, 200, "request {n}");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(world.seen_with("GET /x"), REQUESTS);
    let opened = world.opened.load(Ordering::SeqCst);
    assert!(opened <= 2 * CLIENTS, "{opened} connections to the backend for {CLIENTS} clients");
}

/// The time that 99 of 100 requests take at most.
async fn p99(io: &mut TunnelIo) -> Duration {
    let (mut times, mut kept) = (Vec::with_capacity(ROUND), Vec::new());
    for _ in 0..ROUND {
        let begun = Instant::now();
        assert_eq!(ask(io, &mut kept).await, 200);
        times.push(begun.elapsed());
    }
    times.sort();
    times[ROUND * 99 / 100]
}

/// Compared within the same moments, for the machine has other work: what a change costs by each open connection shows in
/// every round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_policy_costs_open_connections_nothing() {
    // However slow the machine is.
    let limits = Limits { idle: Duration::from_secs(3600), ..Limits::default() };
    let world = Arc::new(World::start(limits).await);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let world = world.clone();
        opening.spawn(async move {
            let mut open = Vec::with_capacity(OPEN / 50);
            while open.len() < OPEN / 50 {
                let mut io = world.to_http(FREE).await;
                assert_eq!(ask(&mut io, &mut Vec::new()).await, 200);
                open.push(io);
            }
            open
        });
    }
    let mut open: Vec<TunnelIo> = opening.join_all().await.into_iter().flatten().collect();
    let mut world = Arc::into_inner(world).unwrap();
    let mut io = world.to_http(FREE).await;
    p99(&mut io).await;
    let mut rounds = Vec::new();
    for round in 0..6 {
        let quiet = p99(&mut io).await;
        let asking = tokio::spawn(async move {
            let changing = p99(&mut io).await;
            (io, changing)
        });
        let mut changes = 0;
        while !asking.is_finished() {
            changes += 1;
            let deny = policy("turns", Action::Deny, &[(Attribute::Path, &[&format!("/{round}-{changes}")])]);
            world.policy(Target::Service(service(NO_ADMIN)), deny);
            world.publish();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (back, changing) = asking.await.unwrap();
        io = back;
        rounds.push((quiet, changing, changes));
    }
    // None of them was closed.
    for io in open.iter_mut().step_by(997) {
        assert_eq!(ask(io, &mut Vec::new()).await, 200);
    }
    eprintln!("p99 without changes, with changes, changes: {rounds:?}");
    let best = rounds.iter().map(|(quiet, changing, _)| changing.as_secs_f64() / quiet.as_secs_f64());
    let best = best.fold(f64::INFINITY, f64::min);
    assert!(best < 2.0, "{best}: {rounds:?}");
}
