// SPDX-License-Identifier: Apache-2.0
//! Connections that are open while something changes: enrolment resets none, a policy ends exactly those that it forbids,
//! within a second, at both layers.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::machine::{Background, KUBECTLS, LIMIT, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, policy, ready};

/// Longest from an acknowledged policy to the end of what it forbids. The proxy takes a second at most, which its own
/// tests measure; kubectl, the API server and the runner, which report the end, take what a busy machine leaves them.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// A request whose answer goes on for a minute.
fn slow(machine: &Machine, namespace: &str, pod: &str) -> Background {
    let open =
        machine.background(&format!("kubectl -n {namespace} exec {pod} -- curl -sN http://echo.mesh/slow"));
    open.shows(b"tick");
    open
}

fn goes_on(open: &mut Background) {
    let (before, begun) = (open.output().len(), Instant::now());
    while open.output().len() <= before {
        assert!(open.ended().is_none() && begun.elapsed() < LIMIT, "an allowed connection was ended");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ends(who: &str, open: &mut Background, code: i32) {
    let begun = Instant::now();
    let ended = open.ends_within(ENDS_WITHIN);
    assert_eq!(ended, Some(code), "{who}: {:?} after the policy", begun.elapsed());
}

fn principal(name: &str) -> String {
    format!("cluster.local/ns/mesh/sa/{name}")
}

#[test]
fn only_what_a_policy_forbids_is_closed() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", false), namespace("outside", false)];
    for name in ["a", "b"] {
        objects.extend(client("mesh", name, "node-1"));
    }
    objects.extend(echo("mesh", "node-2"));
    objects.extend(client("outside", "x", "node-2"));
    apply(&machine, &objects);
    ready(&machine, "mesh", 0);
    ready(&machine, "outside", 0);

    let mut before = slow(&machine, "mesh", "a");
    machine.step("kubectl label namespace mesh istio.io/dataplane-mode=ambient", "labeled", 0);
    ready(&machine, "mesh", 3);
    goes_on(&mut before);
    layer4(&machine, &mut before);
    layer7(&machine);
}

/// `before` is older than the enrolment: no proxy carries it, and as plaintext the policies hold for it.
fn layer4(machine: &Machine, before: &mut Background) {
    let (mut a, mut b, mut x) =
        (slow(machine, "mesh", "a"), slow(machine, "mesh", "b"), slow(machine, "outside", "x"));
    enforce(
        machine,
        "mesh",
        "no-b",
        &json!({"selector": {"matchLabels": {"app": "echo"}}, "action": "DENY",
                "rules": [{"from": [{"source": {"principals": [principal("b")]}}]}]}),
    );
    ends("b, denied by name", &mut b, 56);
    goes_on(before);
    goes_on(&mut a);
    goes_on(&mut x);
    enforce(
        machine,
        "mesh",
        "only-a",
        &json!({"selector": {"matchLabels": {"app": "echo"}},
                "rules": [{"from": [{"source": {"principals": [principal("a")]}}]}]}),
    );
    ends("x, which has no identity", &mut x, 56);
    ends("a, in the clear since before the enrolment", before, 56);
    goes_on(&mut a);
    // One that says no more than another: its status says so.
    let again = json!({"selector": {"matchLabels": {"app": "echo"}},
                       "rules": [{"from": [{"source": {"principals": [principal("a")]}}]}]});
    apply(machine, &[policy("mesh", "so-a", &again)]);
    let suspicious =
        "kubectl -n mesh wait --for=condition=meltemi.dev/Suspicious authorizationpolicy/so-a --timeout=120s";
    machine.step(suspicious, "condition met", 0);
    machine.step("kubectl -n mesh delete authorizationpolicy --all", "deleted", 0);
    goes_on(&mut a);
}

fn layer7(machine: &Machine) {
    machine.step(
        "meltemi waypoint apply -n mesh --enroll-namespace --wait",
        "waypoint mesh/waypoint applied",
        0,
    );
    // The waypoint is used as soon as the clients' node has learnt of it.
    machine.eventually(
        "for i in 1 2 3; do kubectl -n mesh exec a -- curl -sD - -o /dev/null http://echo.mesh/; done; \
         kubectl -n mesh logs -l gateway.networking.k8s.io/gateway-name=waypoint --tail=-1",
        "sa/a",
    );
    let (mut a, mut b) = (slow(machine, "mesh", "a"), slow(machine, "mesh", "b"));
    enforce(
        machine,
        "mesh",
        "read-only",
        &json!({"targetRefs": [{"kind": "Service", "group": "", "name": "echo"}],
                "rules": [{"from": [{"source": {"principals": [principal("a")]}}], "to": [{"operation": {"methods": ["GET"]}}]}]}),
    );
    // The answer has begun, so that it can only be cut off: a reset, as at layer 4.
    ends("b, whose GET is forbidden now", &mut b, 56);
    goes_on(&mut a);
    machine.step("kubectl -n mesh exec a -- curl -s -X DELETE http://echo.mesh/", "RBAC: access denied", 0);
    machine.step("kubectl -n mesh exec b -- curl -s http://echo.mesh/", "RBAC: access denied", 0);
    // Around the waypoint, straight to the Pod: as in Istio open, until the Service's label closes it.
    let ip = machine.output("kubectl -n mesh get pod echo -o jsonpath={.status.podIP}");
    let around = format!("kubectl -n mesh exec b -- curl -s -m 5 http://{ip}:8080/");
    machine.until(&around, "hello", 0);
    machine.step("kubectl -n mesh label service echo meltemi.dev/waypoint-bypass=deny", "labeled", 0);
    machine.eventually(&format!("{around}; true"), "command terminated with exit code 56");
    machine.until("kubectl -n mesh exec a -- curl -s http://echo.mesh/", "hello", 0);
    // On trial a policy only says what it would do.
    let mut trial = policy(
        "mesh",
        "trial",
        &json!({"targetRefs": [{"kind": "Service", "group": "", "name": "echo"}], "action": "DENY", "rules": [{}]}),
    );
    trial["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    apply(machine, &[trial]);
    machine.eventually(
        "kubectl -n mesh exec a -- curl -s http://echo.mesh/; \
         kubectl -n mesh logs -l gateway.networking.k8s.io/gateway-name=waypoint --tail=1",
        "dry_run=deny policy=mesh/trial rule=0",
    );
    machine.step("kubectl -n mesh exec a -- curl -s http://echo.mesh/", "hello", 0);
}
