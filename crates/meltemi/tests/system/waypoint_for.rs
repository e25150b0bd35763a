// SPDX-License-Identifier: Apache-2.0
//! `istio.io/waypoint-for`: which of the traffic to a Service, to its Pods through a headless Service, and to the address of a
//! Pod passes the waypoint and is judged there.

use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, ready};

#[test]
fn a_waypoint_takes_the_traffic_that_it_is_for() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(echo("mesh", "node-2"));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "each", "namespace": "mesh"},
        "spec": {"clusterIP": "None", "selector": {"app": "echo"}, "ports": [{"name": "http", "port": 8080}]}
    }));
    apply(&machine, &objects);
    ready(&machine, "mesh", 2);
    machine.step("meltemi waypoint apply -n mesh --enroll-namespace --wait", "applied", 0);
    let gate = json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}],
                      "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/gate"]}}]}]});
    enforce(&machine, "mesh", "gate", &gate);
    let address = machine.output("kubectl -n mesh get pod echo -o jsonpath='{.status.podIP}'");
    let pod = format!("{}:8080", address.trim());
    let ask = |path: &str| {
        let curl = format!("curl -s -m 5 -o /dev/null -w '%{{http_code}} ' http://$h{path}");
        let each = format!("for h in echo.mesh each.mesh:8080 {pod}; do {curl}; done");
        format!("kubectl -n mesh exec a -- sh -c \"{}\"", each.replace('$', "\\$"))
    };
    for (takes, judged) in [
        ("service", "403 200 200"),
        ("workload", "200 403 403"),
        ("all", "403 403 403"),
        ("none", "200 200 200"),
        ("all", "403 403 403"),
    ] {
        let label =
            format!("kubectl -n mesh label gateway waypoint istio.io/waypoint-for={takes} --overwrite");
        machine.step(&label, "", 0);
        machine.eventually(&ask("/gate"), judged);
        machine.eventually(&ask("/"), "200 200 200");
    }
    // Nobody is there to judge it: it goes nowhere else.
    machine.step("kubectl -n mesh scale deployment waypoint --replicas=0", "scaled", 0);
    machine.eventually(&format!("{}; true", ask("/")), "000 000 000");
}
