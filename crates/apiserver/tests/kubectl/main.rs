// SPDX-License-Identifier: Apache-2.0
//! kubectl is the judge: what people type, against a server in a process of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod bounds;
mod client;
mod custom;
mod decoding;
mod operations;
mod policy;
mod server;
mod suite;
mod webhook;
mod workloads;

/// Not a test: the process that the tests start and kill.
#[test]
#[ignore = "started by the tests as their server"]
fn server_process() {
    server::be_the_server();
}
