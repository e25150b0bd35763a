// SPDX-License-Identifier: Apache-2.0
//! Limits of a Pod as a user sees them, and the groups that hold them: none is left when the mesh has ended.

use std::path::PathBuf;

use meltemi_runner::cgroups::{Controller, possible};
use serde_json::json;

use crate::machine::{KUBECTLS, Machine};
use crate::pods;

#[test]
fn a_container_over_its_memory_is_killed_and_no_group_is_left_behind() {
    let machine = Machine::start(KUBECTLS[1]);
    let container = |name: &str, command: &[&str]| {
        json!({"name": name, "image": "curlimages/curl", "command": command,
               "resources": {"limits": {"memory": "64Mi", "cpu": "1", "ephemeral-storage": "1Gi"}}})
    };
    let hungry = container("hungry", &["python3", "-c", "x = bytearray(300 << 20)"]);
    let beside = container("beside", &["sleep", "infinity"]);
    pods::apply(
        &machine,
        &[
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {
            "nodeName": "node-1", "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [hungry, beside]}}),
        ],
    );
    let state = |name: &str, field: &str| {
        format!(
            "kubectl get pod p -o jsonpath='{{.status.containerStatuses[?(@.name==\"{name}\")].state.{field}}}'"
        )
    };
    // Where no group can be made it has it all, and the event says so.
    let held = possible();
    let (reason, code) =
        if held.contains(&Controller::Memory) { ("OOMKilled", "137") } else { ("Completed", "0") };
    machine.eventually(&state("hungry", "terminated.reason"), reason);
    machine.step(&state("hungry", "terminated.exitCode"), code, 0);
    machine.step(&state("beside", "running"), "startedAt", 0);
    let event = "kubectl get events --field-selector reason=NotEnforced -o jsonpath='{.items[*].message}'";
    machine.eventually(event, "resources.limits.ephemeral-storage of container hungry");
    let named = machine.output(event);
    for controller in [Controller::Memory, Controller::Cpu] {
        let limit = format!("resources.limits.{} of container hungry", controller.name());
        assert_eq!(named.contains(&limit), !held.contains(&controller), "{named}");
    }
    let records = std::fs::read_dir(machine.data().join("cgroups")).unwrap();
    let text = records.map(|record| std::fs::read_to_string(record.unwrap().path()).unwrap());
    let groups: Vec<PathBuf> = text.collect::<String>().lines().map(PathBuf::from).collect();
    assert!(held.is_empty() || groups.iter().any(|group| group.exists()), "{groups:?}");
    // Its next life has no use for what one that is killed leaves.
    machine.kill("serve runner");
    // What runs once does not run twice because of us: it has failed, and says how each container ended.
    machine.eventually("kubectl get pod p -o jsonpath='{.status.phase}'", "Failed");
    machine.step(&state("hungry", "terminated.reason"), reason, 0);
    machine.step(&state("beside", "terminated.reason"), "ContainerStatusUnknown", 0);
    machine.step("kubectl get pod p -o jsonpath='{.status.containerStatuses[*].restartCount}'", "0 0", 0);
    machine.until("kubectl wait --for=condition=Ready node --all --timeout=120s", "condition met", 0);
    machine.down();
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}
