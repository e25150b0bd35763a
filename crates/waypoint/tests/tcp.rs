// SPDX-License-Identifier: Apache-2.0
//! Connections without HTTP: how they end at the server, and what the log says that policies would have done.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::io::ErrorKind;

use fixtures::{FREE, SERVICES};
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::Target;
use meltemi_model::service::AppProtocol;
use meltemi_tunnel::TunnelIo;
use meltemi_waypoint::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use world::{PATIENCE, World, policy, service, vip, write};

/// A port that declares TCP, with a server that says how its connections end.
const PORT: u16 = 7000;

/// A server's connection: what it got, and how it ended.
type End = (Vec<u8>, Result<(), ErrorKind>);

/// A server that greets, reads to the end, and says how that came.
async fn server() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<End>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, ends) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hello").await;
            let mut got = Vec::new();
            let end = stream.read_to_end(&mut got).await.map(drop).map_err(|e| e.kind());
            let _ = told.send((got, end));
        }
    });
    (address, ends)
}

/// A connection that has been greeted, with half a message sent.
async fn half(world: &World) -> TunnelIo {
    let mut io = world.tunnel(&vip(FREE, PORT).to_string()).await.unwrap();
    tokio::time::timeout(PATIENCE, io.read_exact(&mut [0; 5])).await.unwrap().unwrap();
    write(&mut io, b"half a mess").await;
    io
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_is_no_end_to_the_server() {
    let mut world = World::start(Limits::default()).await;
    let (address, mut ends) = server().await;
    world.add_port(PORT, address, AppProtocol::Tcp);
    world.no_policy("no-gate");
    world.publish();
    let mut next = async || tokio::time::timeout(PATIENCE, ends.recv()).await.unwrap().unwrap();
    // A client that ends has ended.
    let mut io = half(&world).await;
    io.shutdown().await.unwrap();
    assert_eq!(next().await, (b"half a mess".to_vec(), Ok(())));
    // One that breaks off has not.
    drop(half(&world).await);
    assert_eq!(next().await.1, Err(ErrorKind::ConnectionReset), "the client has broken off");
    // Nor has one whose permit is taken back.
    let io = half(&world).await;
    let client = ["cluster.local/ns/default/sa/client"];
    let deny = policy("revoked", Action::Deny, &[(Attribute::SourcePrincipal, &client)]);
    world.policy(Target::Service(service(FREE)), deny);
    world.publish();
    assert_eq!(next().await.1, Err(ErrorKind::ConnectionReset), "the permit was taken back");
    drop(io);
    // Nor one whose Service has moved.
    world.no_policy("revoked");
    world.publish();
    let io = half(&world).await;
    (0..SERVICES).for_each(|number| world.bind(number, None));
    world.publish();
    assert_eq!(next().await.1, Err(ErrorKind::ConnectionReset), "the service has moved");
    drop(io);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policies_on_trial_say_of_a_connection_is_in_the_log() {
    let mut world = World::start(Limits::default()).await;
    let (address, _ends) = server().await;
    world.add_port(PORT, address, AppProtocol::Tcp);
    world.no_policy("no-gate");
    let client = ["cluster.local/ns/default/sa/client"];
    let other = ["cluster.local/ns/default/sa/other"];
    let target = || Target::Service(service(FREE));
    world.policy(target(), policy("seen", Action::Audit, &[(Attribute::SourcePrincipal, &client)]));
    world.policy(target(), policy("unseen", Action::Audit, &[(Attribute::SourcePrincipal, &other)]));
    let mut trial = policy("trial", Action::Deny, &[(Attribute::Path, &["/admin"])]);
    trial.dry_run = true;
    world.policy(target(), trial);
    world.publish();
    // It is carried all the same.
    let mut io = half(&world).await;
    io.shutdown().await.unwrap();
    let line = world.line(&format!("dst.addr={}", vip(FREE, PORT))).await;
    assert!(line.contains("audit policy=default/seen rule=0"), "{line}");
    // A DENY with fields of HTTP would deny a connection without.
    assert!(line.contains("dry_run=deny policy=default/trial rule=0"), "{line}");
    assert!(!line.contains("unseen"), "{line}");
}
