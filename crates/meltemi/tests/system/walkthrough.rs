// SPDX-License-Identifier: Apache-2.0
//! The walkthrough, step by step as `make demo` shows it, with Debian 12's kubectl (1.20) and a current one (1.35).

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// One walk at a time: both forward a local port, and the machine has two cores.
static TURN: Mutex<()> = Mutex::new(());

fn walk(kubectl: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let program = repository.join("target/tools").join(kubectl);
    assert!(program.exists(), "{} is missing: scripts/kubectls.sh brings it", program.display());
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_meltemi"))
        .args(["demo", "--name", "walk", "--kubectl"])
        .arg(&program)
        .arg("--data-dir")
        .arg(data.path().join("data"))
        .current_dir(repository)
        .env("HOME", data.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("Every step held"), "{text}\n{errors}");
    assert!(!data.path().join("data").exists(), "the mesh left its data behind");
}

#[test]
fn with_the_kubectl_of_debian_12() {
    walk("kubectl-1.20");
}

#[test]
fn with_a_current_kubectl() {
    walk("kubectl-1.35");
}
