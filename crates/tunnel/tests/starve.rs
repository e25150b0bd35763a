// SPDX-License-Identifier: Apache-2.0
//! Streams that nobody reads: what they hold is bounded, and others on the same tunnel go on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]

#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use meltemi_tunnel::TunnelIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{LARGE, World};

async fn goes_on(io: &mut TunnelIo, what: &str) {
    let echo = async {
        io.write_all(b"echo").await?;
        io.read_exact(&mut [0; 4]).await
    };
    let echoed = tokio::time::timeout(Duration::from_secs(20), echo).await;
    echoed.unwrap_or_else(|_| panic!("{what}: another starves")).unwrap_or_else(|e| panic!("{what}: {e}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_do_not_hold_up_others() {
    let world = World::start().await;
    let mut other = world.to(9).await;
    goes_on(&mut other, "at first").await;
    let mut unread = Vec::new();
    for _ in 0..90 {
        unread.push(world.to(1).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    goes_on(&mut other, "90 answers that nobody takes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_nobody_takes_do_not_hold_up_others() {
    let world = World::start().await;
    let mut other = world.to(9).await;
    for _ in 0..90 {
        let mut io = world.to(3).await;
        tokio::spawn(async move { while io.write_all(&LARGE).await.is_ok() {} });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    goes_on(&mut other, "90 requests that nobody takes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crumbs_that_nobody_takes_do_not_end_the_tunnel_of_others() {
    let world = World::start().await;
    let mut other = world.to(9).await;
    let _unread = [world.to(2).await, world.to(2).await];
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        goes_on(&mut other, "answers byte by byte").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_unread_gives_its_room_back() {
    let world = World::start().await;
    let mut other = world.to(9).await;
    // In all more than a tunnel has room for.
    for _ in 0..300 {
        let mut unread = world.to(1).await;
        unread.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    goes_on(&mut other, "300 answers that were dropped").await;
}
