// SPDX-License-Identifier: Apache-2.0
//! Runs each case of a test in namespaces of its own, as an ordinary user would ([`run`]: a user namespace in every case,
//! root or not), or in all ways that the caller can ([`run_in_all`]). For tests without libtest's harness, since a new user namespace needs a process with one thread.

use meltemi_linux::supervise::{self, Side, SubIds, World};

/// What it is about, and what is done.
pub type Case = (&'static str, fn());

/// Runs the cases, one after the other; with an argument only those whose name holds it. `prepare` runs first inside of
/// each.
///
/// # Panics
/// When a case panics or ends otherwise than well; the message names it.
pub fn run(cases: &[Case], prepare: fn()) {
    run_in(&[ORDINARY], cases, prepare);
}

/// A user namespace with one user, as an ordinary user has it.
const ORDINARY: (&str, World) =
    ("one user", World { user_namespace: true, ids: None, die_with_outside: true });
/// Ids that root gives away like those of a line of `/etc/subuid`.
const IDS: SubIds = SubIds { users: (100_000, 65_536), groups: (100_000, 65_536) };

/// As [`run`]; as root also in a user namespace with many users, and in none.
///
/// # Panics
/// As [`run`].
pub fn run_in_all(cases: &[Case], prepare: fn()) {
    if !nix::unistd::geteuid().is_root() {
        return run(cases, prepare);
    }
    let many = World { ids: Some(IDS), ..ORDINARY.1 };
    let none = World { user_namespace: false, ..ORDINARY.1 };
    run_in(&[ORDINARY, ("many users", many), ("root", none)], cases, prepare);
}

fn run_in(worlds: &[(&str, World)], cases: &[Case], prepare: fn()) {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    for ((name, case), (what, world)) in cases.iter().flat_map(|c| worlds.iter().map(move |w| (c, w))) {
        let name = format!("{name} ({what})");
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        match supervise::enter(*world).expect("namespaces can be made") {
            Side::Outside(child) => {
                let exit = child.wait().expect("the case's process is ours");
                assert!(exit.success(), "{name}: {exit:?}");
                println!("ok: {name}");
            }
            Side::Inside => {
                prepare();
                case();
                std::process::exit(0);
            }
        }
    }
}
