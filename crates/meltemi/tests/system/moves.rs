// SPDX-License-Identifier: Apache-2.0
//! A Service moves between waypoints while clients keep connections to it: no request that its policy denies gets through,
//! and nothing stays open at the waypoint that it has left.

use std::time::Duration;

use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods::{apply, client, echo, enforce, namespace, ready};

/// Asks for what is denied, twenty times a second, on one connection as long as it lasts; says every change of the answer.
const PROBE: &str = r#"
import http.client, time
connection, last = None, None
while True:
    try:
        connection = connection or http.client.HTTPConnection("echo.mesh", 80, timeout=5)
        connection.request("GET", "/admin")
        answer = connection.getresponse()
        answer.read()
        said = "LEAK" if answer.status == 200 else str(answer.status)
    except Exception as error:
        said, connection = type(error).__name__, None
    if said != last:
        print(said, flush=True)
    last = said
    time.sleep(0.05)
"#;
/// Longest from a move to the end of what was open; the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_service_takes_its_policies_along_and_leaves_nothing_open() {
    let machine = Machine::start(KUBECTLS[1]);
    let mut objects = vec![namespace("mesh", true)];
    objects.extend(client("mesh", "a", "node-1"));
    objects.extend(echo("mesh", "node-2"));
    apply(&machine, &objects);
    ready(&machine, "mesh", 2);
    for name in ["wp1", "wp2"] {
        machine.step(&format!("meltemi waypoint apply -n mesh --name {name} --wait"), "applied", 0);
    }
    let home = "kubectl -n mesh label service echo istio.io/use-waypoint=wp1 --overwrite && \
                kubectl -n mesh label gateway wp1 istio.io/waypoint-for=service --overwrite && \
                kubectl -n mesh patch gateway wp1 --type=json -p \
                '[{\"op\":\"replace\",\"path\":\"/spec/listeners/0/allowedRoutes\",\"value\":{\"namespaces\":{\"from\":\"Same\"}}}]'";
    let denied = "kubectl -n mesh exec a -- curl -s -m 5 http://echo.mesh/admin";
    machine.step(home, "", 0);
    enforce(
        &machine,
        "mesh",
        "no-admin",
        &json!({"targetRefs": [{"kind": "Service", "group": "", "name": "echo"}], "action": "DENY",
                "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]}),
    );
    machine.eventually(&format!("{denied}; true"), "RBAC: access denied");
    let mut probe = machine.background(&format!("kubectl -n mesh exec a -- python3 -u -c '{PROBE}'"));
    probe.shows(b"403");
    for (what, trigger) in [
        ("another waypoint", "kubectl -n mesh label service echo istio.io/use-waypoint=wp2 --overwrite"),
        ("no such waypoint", "kubectl -n mesh label service echo istio.io/use-waypoint=nowhere --overwrite"),
        (
            "a waypoint for other traffic",
            "kubectl -n mesh label gateway wp1 istio.io/waypoint-for=workload --overwrite",
        ),
        (
            "a waypoint that admits nobody",
            "kubectl -n mesh patch gateway wp1 --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/listeners/0/allowedRoutes\",\
             \"value\":{\"namespaces\":{\"from\":\"Selector\",\"selector\":{\"matchLabels\":{\"team\":\"other\"}}}}}]'",
        ),
    ] {
        let mut open = machine.background("kubectl -n mesh exec a -- curl -sN http://echo.mesh/slow");
        open.shows(b"tick");
        machine.step(trigger, "", 0);
        assert!(open.ends_within(SOON).is_some(), "{what}: a stream goes on at the waypoint of before");
        if what == "another waypoint" {
            machine.eventually(&format!("{denied}; true"), "RBAC: access denied");
            machine.step(
                "kubectl -n mesh wait --for=condition=meltemi.dev/Enforced authorizationpolicy/no-admin --timeout=30s",
                "condition met",
                0,
            );
        }
        machine.step(home, "", 0);
        machine.eventually("kubectl -n mesh exec a -- curl -s -m 5 http://echo.mesh/; true", "hello");
    }
    let said = String::from_utf8_lossy(&probe.output()).into_owned();
    assert!(probe.ended().is_none() && said.contains("403") && !said.contains("LEAK"), "{said}");
}
