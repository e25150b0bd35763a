// SPDX-License-Identifier: Apache-2.0
//! `meltemi image load`, `list` and `remove` at the command line, without a mesh.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn image(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meltemi"));
    command.arg("image").args(args).arg("--data-dir").arg(data);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_root_is_loaded_listed_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let (data, root) = (home.path().join("data"), home.path().join("root"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/tool"), "#!/bin/sh\n").unwrap();
    let run = |args: &[&str]| {
        let output = image(&data, args).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    };
    let path = root.to_str().unwrap();
    let (code, said) = run(&["load", "acme/tool:1", path]);
    assert!(code == 0 && said.contains("it has no command"), "{said}");
    // `--` begins the command, so that the data directory stands before it.
    let mut command = Command::new(env!("CARGO_BIN_EXE_meltemi"));
    command.args(["image", "load", "--data-dir"]).arg(&data);
    let output = command.args(["acme/tool:1", path, "--", "/bin/tool", "a b"]).output().unwrap();
    assert!(text(&output).contains("it runs: /bin/tool 'a b'"), "{}", text(&output));
    let folders = || fs::read_dir(data.join("images")).map_or(0, Iterator::count);
    assert_eq!(folders(), 1, "the root before is gone");
    let (_, said) = run(&["list"]);
    assert!(said.contains("acme/tool:1   its own   /bin/tool 'a b'"), "{said}");
    let refused = [
        (vec!["load", "acme/*", path], "takes one reference"),
        (vec!["load", "a b", path], "without blanks"),
        (vec!["load", "x", "/no/such"], "No such file"),
        (vec!["load", "x", data.to_str().unwrap()], "the keys of the mesh"),
        (vec!["load", "x", home.path().to_str().unwrap()], "the keys of the mesh"),
        (vec!["remove", "x"], "is not in the table"),
    ];
    for (args, why) in refused {
        let (code, said) = run(&args);
        assert!(code != 0 && said.contains(why), "{args:?}: {said}");
        assert_eq!(folders(), 1, "{args:?}");
    }
    assert_eq!(run(&["remove", "acme/tool:1"]).0, 0);
    assert_eq!(folders(), 0);
    assert_eq!(run(&["list"]).1.lines().count(), 1);
}

#[test]
fn a_load_that_is_killed_leaves_nothing_that_counts() {
    let home = tempfile::tempdir().unwrap();
    let (data, root) = (home.path().join("data"), home.path().join("root"));
    fs::create_dir_all(root.join("a")).unwrap();
    // Long to copy, though it takes no place.
    for number in 0..64 {
        fs::File::create(root.join("a").join(number.to_string())).unwrap().set_len(32 << 20).unwrap();
    }
    let mut loading = image(&data, &["load", "acme/big:1", root.to_str().unwrap()]).spawn().unwrap();
    let begun = Instant::now();
    let copied = || {
        let roots = fs::read_dir(data.join("images")).into_iter().flatten().flatten();
        roots.flat_map(|r| fs::read_dir(r.path().join("root/a")).into_iter().flatten()).count()
    };
    while copied() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120) && loading.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    loading.kill().unwrap();
    loading.wait().unwrap();
    assert!(copied() > 0 && copied() < 64, "it was too quick to be killed");
    let listed = image(&data, &["list"]).output().unwrap();
    assert!(!text(&listed).contains("acme/big"), "{}", text(&listed));
    let added = image(&data, &["add", "acme/other:1"]).args(["--", "/bin/true"]).output().unwrap();
    assert!(added.status.success(), "{}", text(&added));
    assert_eq!(fs::read_dir(data.join("images")).unwrap().count(), 0);
}
