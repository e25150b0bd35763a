// SPDX-License-Identifier: Apache-2.0
//! `kill -9` on each part of a live mesh: traffic and policies go on, what is not proxied is refused, nothing that was
//! acknowledged is lost.

use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, policy, ready};

/// How often the node proxy is killed in a row.
const KILLS: usize = 5;

fn get(pod: &str) -> String {
    format!("kubectl -n mesh exec {pod} -- curl -s -m 20 -H 'X-Marker: fault' http://echo.mesh/")
}

fn only(name: &str) -> serde_json::Value {
    let principal = format!("cluster.local/ns/mesh/sa/{name}");
    json!({"selector": {"matchLabels": {"app": "echo"}}, "rules": [{"from": [{"source": {"principals": [principal]}}]}]})
}

#[test]
fn what_is_killed_fails_closed_and_comes_back() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true)];
    for name in ["a", "b"] {
        objects.extend(client("mesh", name, "node-1"));
    }
    objects.extend(echo("mesh", "node-2"));
    apply(&machine, &objects);
    ready(&machine, "mesh", 3);
    enforce(&machine, "mesh", "only", &only("a"));
    control_plane(&machine);
    node_proxy(&machine);
    api_server(&machine);
}

/// Without the control plane policies hold; back again, it catches up.
fn control_plane(machine: &Machine) {
    assert!(machine.kill("serve control"));
    machine.until(&get("a"), "hello", 0);
    machine.until(&get("b"), "exit code 56", 56);
    // The webhook is away with it: what is applied meanwhile is refused, not accepted unchecked.
    let apply = format!("kubectl apply -f - <<'END'\n{}\nEND", policy("mesh", "only", &only("b")));
    machine.eventually(&apply, "configured");
    machine.eventually(&get("b"), "hello");
    machine.until(&get("a"), "exit code 56", 56);
}

/// However often the node proxy is killed, and without any, at no moment does a request leave in the clear: it waits for the
/// next proxy for some seconds, and is refused when none comes.
fn node_proxy(machine: &Machine) {
    let tap = machine.wiretap();
    // By address: the proxy answers names as well, and without it none is found.
    let address = machine.output("kubectl -n mesh get service echo -o jsonpath={.spec.clusterIP}");
    let dial = get("b").replace("echo.mesh", &address);
    for _ in 0..KILLS {
        machine.kill("serve node");
        let text = machine.output(&dial);
        assert!(text.contains("hello") || text.contains("exit code"), "{text}");
    }
    machine.eventually(&get("b"), "hello");
    let select = |value: &str| {
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"absent": value}}}}});
        format!("kubectl -n istio-system patch daemonset ztunnel -p '{patch}'")
    };
    machine.step(&select("x"), "patched", 0);
    machine.until("kubectl -n istio-system get pods -l app=ztunnel -o name | wc -l", "0", 0);
    machine.eventually(&dial, "exit code");
    let patch = json!([{"op": "remove", "path": "/spec/template/spec/nodeSelector/absent"}]);
    let back = format!("kubectl -n istio-system patch daemonset ztunnel --type=json -p '{patch}'");
    machine.step(&back, "patched", 0);
    machine.eventually(&get("b"), "hello");
    let packets = tap.output();
    let text = b"X-Marker: fault";
    assert!(!packets.windows(text.len()).any(|w| w == text), "a request left in the clear");
}

/// Everything that was acknowledged is there after the restart.
fn api_server(machine: &Machine) {
    let writes = machine.background(
        "bash -c 'for i in $(seq 1 200); do kubectl create configmap kept-$i --from-literal=n=$i; done'",
    );
    writes.shows(b"kept-5 created");
    assert!(machine.kill("serve apiserver"));
    machine.eventually("kubectl get --raw /readyz", "ok");
    machine.eventually("kubectl create configmap after", "created");
    let acknowledged = String::from_utf8(writes.output()).unwrap();
    let text = machine.output("kubectl get configmaps -o name");
    let kept: Vec<&str> = acknowledged.lines().filter_map(|line| line.strip_suffix(" created")).collect();
    assert!(kept.len() >= 5, "{acknowledged}");
    for name in kept {
        assert!(text.lines().any(|line| line == name), "{name} was acknowledged and is lost");
    }
    machine.until(&get("b"), "hello", 0);
    hears_changes(machine);
}

/// Every part of the mesh still acts on what is written: none of them watches from a revision of before the restart.
fn hears_changes(machine: &Machine) {
    enforce(machine, "mesh", "only", &only("a"));
    machine.step(&get("b"), "exit code 56", 56);
    machine.until(&get("a"), "hello", 0);
    apply(machine, &client("mesh", "late", "node-1"));
    ready(machine, "mesh", 4);
    machine.step(&get("late"), "exit code 56", 56);
    machine.step("kubectl create namespace fresh", "created", 0);
    machine.eventually("kubectl -n fresh get serviceaccount default -o name", "serviceaccount/default");
    let deploy = "kubectl -n fresh create deployment d --image=curlimages/curl -- /bin/sleep infinity";
    machine.step(deploy, "created", 0);
    machine.step("kubectl -n fresh rollout status deployment/d --timeout=120s", "successfully rolled out", 0);
    machine.step("kubectl -n mesh delete pod late --timeout=120s", "deleted", 0);
    machine.step("kubectl delete namespace fresh --timeout=120s", "deleted", 0);
}
