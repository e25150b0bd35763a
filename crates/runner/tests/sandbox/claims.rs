// SPDX-License-Identifier: Apache-2.0
//! A folder that outlives its Pods: the next one, with a block of ids of its own, finds the files of its users as they were.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use meltemi_runner::pod_init::Bind;
use meltemi_runner::sandbox::Sandbox;

use super::{OTHER, POD, is_single, pod, spec, stdio, user};

const FOLDER: &str = "/run/claim";

fn run_in(sandbox: &Sandbox, beneath: &str, script: &str) -> String {
    let mut spec = spec(&["sh", "-c", script]);
    spec.rights = user(33, 33, &[7]);
    let (source, target) = (FOLDER.into(), "/data".into());
    spec.binds = vec![Bind { source, beneath: beneath.into(), target, map_ids: true, ..Bind::default() }];
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(&spec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    output
}

pub(super) fn run() {
    fs::create_dir(FOLDER).unwrap();
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o777)).unwrap();
    let first = pod(POD);
    let wrote = run_in(
        &first,
        "",
        "mkdir /data/db && chmod 700 /data/db && echo rows > /data/db/table && stat -c %u:%g /data/db",
    );
    assert_eq!(wrote, "33:33\n");
    let second = pod(OTHER);
    assert!(is_single(&first) || first.id_outside(33) != second.id_outside(33));
    let read = run_in(
        &second,
        "",
        "stat -c %u:%g /data/db; cat /data/db/table; echo more >> /data/db/table; ls -A /data",
    );
    assert_eq!(read, "33:33\nrows\ndb\n");
    // Both at once, and a folder of it that is made for the mount belongs to root of the Pod.
    assert_eq!(run_in(&first, "", "cat /data/db/table"), "rows\nmore\n");
    let made = run_in(&first, "sub/folder", "stat -c %u:%g /data; touch /data/x || echo kept out");
    let kept_out = if is_single(&first) { "33:33\n" } else { "0:0\n" };
    assert!(made.starts_with(kept_out) || is_single(&first), "{made}");
    assert!(is_single(&first) || made.ends_with("kept out\n"), "{made}");
    // On the disk there are the ids of the inside, which are nobody's of any Pod.
    let on_disk = fs::metadata(Path::new(FOLDER).join("db/table")).unwrap();
    assert_eq!(on_disk.uid(), if is_single(&first) { 0 } else { 33 });
}
