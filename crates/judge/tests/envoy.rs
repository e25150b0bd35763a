// SPDX-License-Identifier: Apache-2.0
//! Random policies and requests, through a waypoint of ours in this process and through Envoy with the filters that Istio's
//! control plane generates for the same policies: whatever Envoy denies, ours denies.
//!
//! The policies and their filters are test data (`scripts/istio-rbac.sh` makes them anew, and others); requests are made
//! here. `PROPTEST_CASES` says how many requests each group of policies gets by each version of HTTP. Without Envoy
//! (`scripts/envoy.sh` brings it) the test says so and passes.
//!
//! Left out: `remote.ip`, which is the direct peer's address here (the policy's status says so), CUSTOM and AUDIT.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "../../waypoint/tests/hostile/backend.rs"]
mod backend;
#[path = "../../waypoint/tests/hostile/fixtures.rs"]
mod fixtures;
#[path = "envoy/http1.rs"]
mod http1;
#[path = "envoy/http2.rs"]
mod http2;
#[path = "envoy/policies.rs"]
mod policies;
#[path = "envoy/requests.rs"]
mod requests;
#[path = "../../waypoint/tests/hostile/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use meltemi_judge::Envoy;
use meltemi_model::l7::Target;
use meltemi_waypoint::Limits;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use requests::{Request, Verdict};
use serde_json::Value;
use world::World;

/// The policies, and Istio's filters for each group by its name.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
/// Another folder for them.
const OTHER_DATA: &str = "JUDGE_DATA";

/// Requests of each version of HTTP that a group of policies gets.
const REQUESTS: u32 = 25;

/// What the client calls.
const PORT: u16 = 81;

/// Who the client is, by its certificate.
const CLIENT: &str = "cluster.local/ns/default/sa/client";

#[derive(Debug, Default)]
struct Tally {
    denied_by_envoy: usize,
    allowed_by_both: usize,
    stricter: usize,
    /// Envoy denies, ours allows.
    weaker: Vec<String>,
}

impl Tally {
    fn add(&mut self, policy: &str, request: &Request, envoy: Verdict, ours: Verdict) {
        match (envoy, ours) {
            (Verdict::Denied, Verdict::Allowed) => self.weaker.push(format!("{policy}\n  {request:?}")),
            (Verdict::Denied, _) => self.denied_by_envoy += 1,
            (Verdict::Allowed, Verdict::Allowed) => self.allowed_by_both += 1,
            (Verdict::Allowed, _) => self.stricter += 1,
            (Verdict::Refused(_), _) => {}
        }
    }
}

fn data(name: &str) -> PathBuf {
    Path::new(&std::env::var_os(OTHER_DATA).unwrap_or(DATA.into())).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(data(name)).unwrap()
}

/// Says that the test is skipped past the test runner, which keeps to itself what a test that passes prints.
fn say_skipped() {
    let text = "\nSKIPPED: the comparison with Envoy; there is none (ENVOY, or scripts/envoy.sh)\n";
    let _ = std::io::stderr().write_all(text.as_bytes());
}

async fn run() -> Option<Tally> {
    let Some(program) = meltemi_judge::program() else {
        say_skipped();
        return None;
    };
    let filters: BTreeMap<String, Vec<Value>> = serde_json::from_str(&read("filters.json")).unwrap();
    let groups = policies::read(&read("policies.yaml"));
    let missing: Vec<&str> =
        groups.iter().map(|group| &*group.name).filter(|n| !filters.contains_key(*n)).collect();
    assert!(missing.is_empty() && filters.len() == groups.len(), "scripts/istio-rbac.sh: {missing:?}");
    let lists: Vec<Vec<Value>> = groups.iter().map(|group| filters[&group.name].clone()).collect();
    let envoy = Envoy::start(program, &lists, CLIENT).await.unwrap();
    let mut world = World::start(Limits::default()).await;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let requests = match Config::default().cases {
        256 => REQUESTS,
        cases => cases,
    };
    let mut tally = Tally::default();
    let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 40_000);
    let SocketAddr::V4(to) = world::vip(fixtures::FREE, PORT) else { panic!("an address of IPv4") };
    for (number, group) in groups.iter().enumerate() {
        for policy in &group.policies {
            world.policy(Target::Service(world::service(fixtures::FREE)), policy.clone());
        }
        world.publish();
        for http2 in [false, true] {
            for _ in 0..requests {
                let request = requests::request(http2).new_tree(&mut runner).unwrap().current();
                let theirs = request.send(envoy.connect(number, from, to).await.unwrap()).await;
                let ours = request.send(world.to_http(fixtures::FREE).await).await;
                tally.add(&group.text, &request, theirs, ours);
            }
        }
        for policy in &group.policies {
            world.no_policy(&policy.name.name);
        }
    }
    Some(tally)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_envoy_denies_by_istios_filters_is_denied_here() {
    let Some(tally) = run().await else { return };
    let Tally { denied_by_envoy, allowed_by_both, stricter, weaker } = tally;
    println!("denied by Envoy {denied_by_envoy}, allowed by both {allowed_by_both}, stricter {stricter}");
    assert!(weaker.is_empty(), "{} requests that Envoy denies pass:\n{}", weaker.len(), weaker.join("\n"));
    // What is never allowed, or never denied, is not tested.
    assert!(denied_by_envoy > 300 && allowed_by_both > 300, "{denied_by_envoy} {allowed_by_both}");
    assert!(
        stricter < allowed_by_both,
        "{stricter} of what Envoy allows is denied, {allowed_by_both} is not"
    );
}

/// Writes the policies of the test data; `scripts/istio-rbac.sh` then has Istio's filters made for them.
#[test]
#[ignore = "writes test data"]
fn write_policies() {
    std::fs::write(data("policies.yaml"), policies::generate()).unwrap();
}
