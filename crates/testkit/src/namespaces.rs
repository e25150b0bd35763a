// SPDX-License-Identifier: Apache-2.0
//! Runs each case of a test in namespaces of its own, as an ordinary user would: a user namespace in every case, root or
//! not. For tests without libtest's harness, since a new user namespace needs a process with one thread.

use meltemi_linux::supervise::{self, Side, World};

/// What it is about, and what is done.
pub type Case = (&'static str, fn());

/// Runs the cases, one after the other; with an argument only those whose name holds it. `prepare` runs first inside of
/// each.
///
/// # Panics
/// When a case panics or ends otherwise than well; the message names it.
pub fn run(cases: &[Case], prepare: fn()) {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    for (name, case) in cases {
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let world = World { user_namespace: true, die_with_outside: true };
        match supervise::enter(world).expect("namespaces can be made") {
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
