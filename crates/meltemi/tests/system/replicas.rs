// SPDX-License-Identifier: Apache-2.0
//! A waypoint with two replicas: when one of them stops answering, the other one takes what is new.

use nix::sys::signal::Signal;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, namespace, ready};

/// A client that waited for the stopped replica would need more than ten seconds.
const PATIENCE: &str = "8";
/// Requests; each draws one of two replicas.
const REQUESTS: usize = 12;

#[test]
fn a_replica_that_stops_answering_costs_no_request() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(echo("mesh", "node-2"));
    apply(&machine, &objects);
    ready(&machine, "mesh", 2);
    machine.step("meltemi waypoint apply -n mesh --enroll-namespace --wait", "applied", 0);
    machine.step("kubectl -n mesh scale deployment waypoint --replicas=2", "scaled", 0);
    machine.step(
        "kubectl -n mesh rollout status deployment waypoint --timeout=120s",
        "successfully rolled out",
        0,
    );
    let get = format!("kubectl -n mesh exec a -- curl -s -m {PATIENCE} http://echo.mesh/");
    // Both replicas have been used before: their tunnels are open, and one of them goes silent.
    for _ in 0..REQUESTS {
        machine.until(&get, "hello", 0);
    }
    assert!(machine.signal("serve waypoint", Signal::SIGSTOP));
    let answers: Vec<_> = (0..REQUESTS).map(|_| machine.run(&get)).collect();
    assert!(machine.signal("serve waypoint", Signal::SIGCONT));
    for (text, code) in answers {
        assert!(code == Some(0) && text.contains("hello"), "exit {code:?}: {text}");
    }
}
