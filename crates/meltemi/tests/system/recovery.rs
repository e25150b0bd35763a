// SPDX-License-Identifier: Apache-2.0
//! Nothing is deaf after a fault: each process is killed and stopped in turn, and after each of these faults everything that
//! users do works again within seconds, as after a partition between the nodes.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::machine::{KUBECTLS, LIMIT, Machine};
use crate::pods::{apply, client, echo, namespace, policy, ready};

/// Each process of the mesh, by what its command line has. The first one of those that are there for each node.
const PROCESSES: [&str; 5] =
    ["serve apiserver", "serve controllers", "serve runner", "serve control", "serve node"];

/// Time from the end of a fault until everything works.
const RECOVERY: Duration = Duration::from_secs(5);
/// How long a process stays stopped: longer than a node may be silent in this mesh ([`GRACE`]).
const PAUSE: Duration = Duration::from_secs(12);
/// Seconds that a node may be silent here, instead of 40. `MELTEMI_TEST_PAUSE=60` stops each process for a minute and leaves
/// the grace as it is.
const GRACE: &str = "8";

/// A fault that is not of one process; returns when it is over.
type Inflict = fn(&Machine);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// `kill -9`; the process is started again by what keeps it running.
    Kill,
    /// SIGSTOP, and SIGCONT after the pause.
    Pause,
}

/// How much slower than an idle machine of two cores this one may be: other builds may run beside the test.
fn patience() -> u32 {
    std::env::var("MELTEMI_TEST_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(12)
}

fn pause() -> Option<Duration> {
    let seconds = std::env::var("MELTEMI_TEST_PAUSE").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// In `mesh`, which is enrolled: clients `a` and `b` on node-1, `echo` on node-2.
fn world() -> Machine {
    let grace = [("MELTEMI_NODE_GRACE", GRACE)];
    let machine = Machine::start_with(KUBECTLS[1], if pause().is_some() { &[] } else { &grace });
    populate(&machine);
    machine
}

fn populate(machine: &Machine) {
    let mut objects = vec![namespace("mesh", true)];
    for name in ["a", "b"] {
        objects.extend(client("mesh", name, "node-1"));
    }
    objects.extend(echo("mesh", "node-2"));
    apply(machine, &objects);
    ready(machine, "mesh", 3);
}

#[test]
fn everything_works_again_within_seconds_of_any_fault() {
    let machine = world();
    let mut turn = 0;
    works(&machine, turn);
    for fault in [Fault::Kill, Fault::Pause] {
        for process in PROCESSES {
            turn += 1;
            inflict(&machine, process, fault);
            let back = Instant::now();
            works(&machine, turn);
            let took = back.elapsed();
            eprintln!("{fault:?} {process}: everything works after {took:?}");
            assert!(took < RECOVERY * patience(), "{fault:?} {process}: {took:?}");
        }
    }
    let others: [(&str, Inflict); 2] = [("partition", partition), ("sleep of the machine", sleep)];
    for (what, inflict) in others {
        turn += 1;
        inflict(&machine);
        let back = Instant::now();
        works(&machine, turn);
        let took = back.elapsed();
        eprintln!("{what}: everything works after {took:?}");
        assert!(took < RECOVERY * patience(), "{what}: {took:?}");
    }
}

/// Returns when the fault is over.
fn inflict(machine: &Machine, process: &str, fault: Fault) {
    match fault {
        Fault::Kill => {
            let (before, begun) = (machine.pid(process), Instant::now());
            assert!(machine.kill(process), "{process} does not run");
            while machine.pid(process).is_none_or(|pid| Some(pid) == before) {
                assert!(begun.elapsed() < LIMIT, "{process} is not started again");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Fault::Pause => {
            assert!(machine.signal(process, Signal::SIGSTOP), "{process} does not run");
            std::thread::sleep(pause().unwrap_or(PAUSE));
            assert!(machine.signal(process, Signal::SIGCONT), "{process} has ended");
        }
    }
}

/// Stops all processes of the mesh for a while, as a machine does that sleeps.
fn sleep(machine: &Machine) {
    machine.signal_all(Signal::SIGSTOP);
    std::thread::sleep(pause().unwrap_or(PAUSE));
    machine.signal_all(Signal::SIGCONT);
}

/// Drops everything to and from node-2 in the hub for a while.
fn partition(machine: &Machine) {
    let rules = "add table inet cut; \
        add chain inet cut forward { type filter hook forward priority 0; }; \
        add chain inet cut input { type filter hook input priority 0; }; \
        add rule inet cut forward iifname node-2 drop; add rule inet cut forward oifname node-2 drop; \
        add rule inet cut input iifname node-2 drop";
    let said = machine.in_hub(&format!("nft \"{rules}\""));
    assert!(said.is_empty(), "{said}");
    std::thread::sleep(pause().unwrap_or(PAUSE));
    let said = machine.in_hub("nft delete table inet cut");
    assert!(said.is_empty(), "{said}");
}

/// What users do, all at the same time; fails when one of it does not work within a long time.
fn works(machine: &Machine, turn: usize) {
    std::thread::scope(|scope| {
        for task in [policies, deployments, pods, namespaces] {
            scope.spawn(move || task(machine, turn));
        }
    });
}

fn write(machine: &Machine, object: &Value) {
    machine.until(&format!("kubectl apply -f - <<'END'\n{object}\nEND"), "", 0);
}

/// A policy that lets the other client in than the one before is enforced; the Service is reached, and not by everybody.
fn policies(machine: &Machine, turn: usize) {
    let (allowed, denied) = if turn.is_multiple_of(2) { ("a", "b") } else { ("b", "a") };
    let principal = format!("cluster.local/ns/mesh/sa/{allowed}");
    let only = json!({"selector": {"matchLabels": {"app": "echo"}},
                      "rules": [{"from": [{"source": {"principals": [principal]}}]}]});
    write(machine, &policy("mesh", "only", &only));
    machine.until(
        "kubectl -n mesh wait --for=condition=meltemi.dev/Enforced authorizationpolicy/only --timeout=5s",
        "condition met",
        0,
    );
    let get = |pod: &str| format!("kubectl -n mesh exec {pod} -- curl -s -m 5 http://echo.mesh/");
    machine.until(&get(allowed), "hello", 0);
    machine.until(&get(denied), "exit code 56", 56);
}

fn deployments(machine: &Machine, turn: usize) {
    let name = format!("deployment-{turn}");
    let labels = json!({"app": name});
    let container =
        json!({"name": "main", "image": "curlimages/curl", "command": ["/bin/sleep", "infinity"]});
    write(
        machine,
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "mesh"},
                "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}}}),
    );
    machine.until(
        &format!("kubectl -n mesh rollout status deployment {name} --timeout=5s"),
        "successfully rolled out",
        0,
    );
    machine.until(
        &format!("kubectl -n mesh delete deployment {name} --ignore-not-found --wait=false"),
        "",
        0,
    );
}

fn pods(machine: &Machine, turn: usize) {
    let name = format!("pod-{turn}");
    let [_, pod] =
        client("mesh", &name, if turn.is_multiple_of(2) { "node-1" } else { "node-2" }).try_into().unwrap();
    let mut pod: Value = pod;
    pod["spec"]["serviceAccountName"] = json!("default");
    write(machine, &pod);
    machine.until(
        &format!("kubectl -n mesh wait --for=condition=Ready pod {name} --timeout=5s"),
        "condition met",
        0,
    );
    machine.until(&format!("kubectl -n mesh delete pod {name} --ignore-not-found --timeout=5s"), "", 0);
}

fn namespaces(machine: &Machine, turn: usize) {
    let name = format!("namespace-{turn}");
    write(machine, &namespace(&name, false));
    machine.until(
        &format!("kubectl -n {name} get serviceaccount default -o name"),
        "serviceaccount/default",
        0,
    );
    machine.until(&format!("kubectl delete namespace {name} --ignore-not-found --timeout=5s"), "", 0);
}

/// Bytes of the disk that fills up: more than a mesh asks for at its start.
const DISK: u64 = 192 << 20;

/// The disk of the data is full for a while: nothing is acknowledged that is not kept, and all works again as soon as there
/// is room.
#[test]
fn a_full_disk_is_no_end() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: a disk of its own for the data needs root");
        return;
    }
    let mut machine = Machine::prepare(KUBECTLS[1], &[]);
    machine.on_small_disk(DISK);
    machine.up(&["--nodes", "2"]);
    populate(&machine);
    works(&machine, 0);
    let filler = machine.data().join("filler");
    let full = machine.output(&format!("head -c {DISK} /dev/zero > {}", filler.display()));
    assert!(full.contains("No space left"), "{full}");
    let big = machine.file("big");
    std::fs::write(&big, "x".repeat(256 << 10)).unwrap();
    let refused = (0..30).map(|i| {
        let from = format!("--from-file={}", big.display());
        machine.output(&format!("kubectl -n mesh create configmap big-{i} {from}"))
    });
    let (kept, refused): (Vec<String>, Vec<String>) = refused.partition(|said| said.contains("created"));
    assert!(!refused.is_empty(), "nothing was refused on a full disk");
    std::fs::remove_file(&filler).unwrap();
    let back = Instant::now();
    works(&machine, 1);
    let took = back.elapsed();
    assert!(took < RECOVERY * patience(), "full disk: {took:?}");
    let names = machine.output("kubectl -n mesh get configmaps -o name | grep -c big-");
    assert_eq!(names.trim(), kept.len().to_string(), "kept and acknowledged differ: {kept:?}");
}

/// The node proxies are replaced under load: every new connection is served, before, between and after them.
#[test]
fn no_connection_is_lost_while_node_proxies_are_replaced() {
    let machine = world();
    let once = "curl -s -m 60 -o /dev/null -w '%{http_code} ' http://echo.mesh/ || echo lost-$?";
    machine.until(&format!("kubectl -n mesh exec a -- sh -c \"{once}\""), "200", 0);
    let load = machine.background(&format!(
        "kubectl -n mesh exec a -- sh -c \"while [ ! -e /tmp/stop ]; do {once}; done; echo finished\""
    ));
    load.shows(b"200 200");
    for _ in 0..2 {
        machine.step("kubectl -n istio-system rollout restart daemonset ztunnel", "restarted", 0);
        machine.until(
            "kubectl -n istio-system rollout status daemonset ztunnel --timeout=10s",
            "successfully rolled out",
            0,
        );
        // The old proxies are really gone.
        machine.until("kubectl -n istio-system get pods -l app=ztunnel -o name | wc -l", "2", 0);
    }
    // How many are asked meanwhile depends on the machine: there are some of before, between and after.
    load.shows("200 ".repeat(21).as_bytes());
    machine.step("kubectl -n mesh exec a -- touch /tmp/stop", "", 0);
    load.shows(b"finished");
    let output = String::from_utf8(load.output()).unwrap();
    assert!(!output.contains("lost"), "{output}");
}

/// `meltemi status` is well only while every part is in step, and names the one that is not.
fn status_tells_the_truth(machine: &Machine) {
    machine.until("meltemi status", "watches follow", 0);
    for (process, says) in [
        ("serve control", "control plane                            no"),
        ("serve controllers", "has not reported for"),
    ] {
        assert!(machine.signal(process, Signal::SIGSTOP));
        machine.until("meltemi status", says, 1);
        assert!(machine.signal(process, Signal::SIGCONT));
        machine.until("meltemi status", "watches follow", 0);
    }
}

/// Status, addresses and routes that somebody else takes away are put back.
#[test]
fn what_another_changes_is_put_back() {
    let machine = world();
    status_tells_the_truth(&machine);
    let get = "kubectl -n mesh exec a -- curl -s -m 5 http://echo.mesh/";
    machine.until(get, "hello", 0);
    let ready =
        r#"kubectl -n mesh get pod echo -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'"#;
    let unready = r#"kubectl -n mesh patch pod echo --subresource=status -p '{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}'"#;
    machine.step(unready, "patched", 0);
    machine.until(ready, "True", 0);
    machine.until(get, "hello", 0);
    for change in [
        "ip link set node-2 down",
        "ip link set node-1 down; ip link set node-1 up",
        "ip route flush 172.30.0.12",
        "ip address delete 10.96.0.1/32 dev lo",
        "ip link delete node-1",
        "sysctl -qw net.ipv4.ip_forward=0",
    ] {
        let said = machine.in_hub(change);
        assert!(said.is_empty(), "{change}: {said}");
        machine.until(get, "hello", 0);
        machine.until("kubectl -n mesh exec b -- curl -sk https://10.96.0.1/readyz", "ok", 0);
    }
    for change in
        ["nft flush ruleset", "ip address delete 10.96.0.10/32 dev lo", "sysctl -qw net.ipv4.ip_forward=0"]
    {
        let said = machine.on_node(change);
        assert!(said.is_empty(), "{change}: {said}");
        machine.until("kubectl -n mesh exec b -- curl -sk https://kubernetes.default/readyz", "ok", 0);
        machine.until(get, "hello", 0);
    }
}
