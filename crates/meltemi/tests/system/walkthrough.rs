// SPDX-License-Identifier: Apache-2.0
//! The walkthrough, step by step as `make demo` shows it: with Debian 12's kubectl (1.20), and with a current one (1.35) as
//! an ordinary user.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::unistd::{Gid, Uid, chown, geteuid};

/// One walk at a time: both forward a local port, and the machine has two cores.
static TURN: Mutex<()> = Mutex::new(());

/// Debian's `nobody` and `nogroup`.
const ORDINARY: (u32, u32) = (65534, 65534);

fn walk(kubectl: &str, ordinary: bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let program = repository.join("target/tools").join(kubectl);
    assert!(program.exists(), "{} is missing: scripts/kubectls.sh brings it", program.display());
    // All that it needs in one directory: an ordinary user may not see the repository.
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    std::fs::copy(program, at("kubectl")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_meltemi"), at("meltemi")).unwrap();
    let copied = Command::new("cp").arg("-r").arg(repository.join("samples")).arg(at("samples")).status();
    assert!(copied.unwrap().success());
    let mut demo = Command::new(at("meltemi"));
    if ordinary && geteuid().is_root() {
        chown(home.path(), Some(Uid::from_raw(ORDINARY.0)), Some(Gid::from_raw(ORDINARY.1))).unwrap();
        demo.uid(ORDINARY.0).gid(ORDINARY.1);
    }
    demo.args(["demo", "--name", "walk", "--kubectl"]).arg(at("kubectl")).arg("--data-dir").arg(at("data"));
    let output = demo.current_dir(home.path()).env("HOME", home.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("Every step held"), "{text}\n{errors}");
    assert!(!at("data").exists(), "the mesh left its data behind");
}

#[test]
fn with_the_kubectl_of_debian_12() {
    walk("kubectl-1.20", false);
}

#[test]
fn with_a_current_kubectl_as_an_ordinary_user() {
    walk("kubectl-1.35", true);
}
