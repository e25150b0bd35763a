// SPDX-License-Identifier: Apache-2.0
//! Starts that are interrupted, and several at once: no mesh runs that `status`, `down` and the next `up` do not find.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::machine::{KUBECTLS, LIMIT, Machine};

/// Pauses before an `up` is killed: from before its fork to after its record.
const KILLED_AFTER: [u64; 24] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 25, 30, 40, 60, 100];

#[test]
fn an_up_that_is_killed_leaves_no_mesh_that_nobody_finds() {
    let machine = Machine::prepare(KUBECTLS[1], &[]);
    for pause in KILLED_AFTER {
        let mut up = machine.up_command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        up.kill().unwrap();
        up.wait().unwrap();
        // What has begun is found and stopped, and what was not recorded ends by itself.
        machine.down();
        let begun = Instant::now();
        while !machine.processes().is_empty() {
            assert!(begun.elapsed() < LIMIT, "killed after {pause} ms, left: {:?}", machine.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn several_at_once_start_one_mesh() {
    let machine = Machine::prepare(KUBECTLS[1], &[]);
    let all: Vec<_> = (0..3)
        .map(|_| machine.up_command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for up in all {
        let output = up.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("export KUBECONFIG="), "{text}");
        // Whoever did not start it has waited for it.
        machine.step("kubectl get nodes", "Ready", 0);
    }
    let supervisors = machine.processes().iter().filter(|line| line.contains(" up ")).count();
    assert_eq!(supervisors, 1, "{:?}", machine.processes());
}
