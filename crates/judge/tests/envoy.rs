// SPDX-License-Identifier: Apache-2.0
//! Random policies and requests, through a waypoint of ours in this process and through Envoy with the filters that Istio's
//! control plane generates for the same policies: whatever Envoy denies, ours denies.
//!
//! The policies and their filters are test data (`scripts/istio-rbac.sh` makes them anew); requests are made here.
//! `PROPTEST_CASES` says how many requests each policy gets by each version of HTTP. Without Envoy (`scripts/envoy.sh`
//! brings it) the test says so and passes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "../../waypoint/tests/hostile/backend.rs"]
mod backend;
#[path = "../../waypoint/tests/hostile/fixtures.rs"]
mod fixtures;
#[path = "envoy/policies.rs"]
mod policies;
#[path = "envoy/requests.rs"]
mod requests;
#[path = "../../waypoint/tests/hostile/world.rs"]
mod world;

use std::collections::BTreeMap;

use meltemi_judge::Envoy;
use meltemi_model::l7::Target;
use meltemi_waypoint::Limits;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use requests::{Request, Verdict};
use serde_json::Value;
use world::World;

/// The policies, and Istio's filters for each by its name.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// Requests of each version of HTTP that a policy gets.
const REQUESTS: u32 = 25;

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

fn data(name: &str) -> String {
    std::fs::read_to_string(format!("{DATA}/{name}")).unwrap()
}

async fn run() -> Option<Tally> {
    let Some(program) = meltemi_judge::program() else {
        eprintln!("skipped: there is no Envoy (ENVOY, or scripts/envoy.sh)");
        return None;
    };
    let filters: BTreeMap<String, Vec<Value>> = serde_json::from_str(&data("filters.json")).unwrap();
    let policies = policies::read(&data("policies.yaml"));
    let missing: Vec<&str> =
        policies.iter().map(|p| &*p.name).filter(|n| !filters.contains_key(*n)).collect();
    assert!(missing.is_empty() && filters.len() == policies.len(), "scripts/istio-rbac.sh: {missing:?}");
    let lists: Vec<Vec<Value>> = policies.iter().map(|p| filters[&p.name].clone()).collect();
    let envoy = Envoy::start(program, &lists, CLIENT).await.unwrap();
    let mut world = World::start(Limits::default()).await;
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let requests = match Config::default().cases {
        256 => REQUESTS,
        cases => cases,
    };
    let mut tally = Tally::default();
    for (number, policy) in policies.iter().enumerate() {
        let target = Target::Service(world::service(fixtures::FREE));
        world.policy(target, policy.policy.clone());
        world.publish();
        for http2 in [false, true] {
            for _ in 0..requests {
                let request = requests::request(http2).new_tree(&mut runner).unwrap().current();
                let theirs = request.send(envoy.connect(number).await.unwrap()).await;
                let ours = request.send(world.to_http(fixtures::FREE).await).await;
                tally.add(&policy.text, &request, theirs, ours);
            }
        }
        world.no_policy(&policy.name);
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
    std::fs::write(format!("{DATA}/policies.yaml"), policies::generate()).unwrap();
}
