// SPDX-License-Identifier: Apache-2.0
//! What `meltemi down --purge` leaves of a mesh that does not run, and of what is beside it.

use std::fs;
use std::process::Command;

#[test]
fn folders_go_with_the_last_mesh_in_them() {
    let home = tempfile::tempdir().unwrap();
    let base = home.path().join("meltemi");
    for name in ["one", "two"] {
        fs::create_dir_all(base.join("meshes").join(name).join("logs")).unwrap();
    }
    let purge = |name: &str| {
        let mut down = Command::new(env!("CARGO_BIN_EXE_meltemi"));
        let done =
            down.args(["down", "--purge", "--name", name]).env("MELTEMI_HOME", &base).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    purge("one");
    assert!(!base.join("meshes/one").exists() && base.join("meshes/two/logs").exists());
    purge("two");
    assert!(!base.exists());
    assert!(home.path().exists());
    // A directory that was named is the user's, and so is what it is in.
    let own = home.path().join("a/meshes/three");
    fs::create_dir_all(own.join("logs")).unwrap();
    fs::write(own.join("notes"), "mine").unwrap();
    let mut down = Command::new(env!("CARGO_BIN_EXE_meltemi"));
    let done = down.args(["down", "--purge", "--name", "three", "--data-dir"]).arg(&own).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(!own.join("logs").exists() && own.join("notes").exists());
}
