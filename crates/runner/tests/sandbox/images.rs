// SPDX-License-Identifier: Apache-2.0
//! Containers of images with a root of their own: a small Debian that the test puts together from the machine's programs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use meltemi_runner::image::loaded::Store;
use meltemi_runner::pod_init::{Bind, ContainerSpec, ImageRoot};
use meltemi_runner::sandbox::{Exec, Sandbox};

use super::{ENV_PATH, OTHER, POD, is_single, make_volume, pod, spec, stdio, user};

/// Where [`make_root`] makes the root of the property test.
pub(super) const ROOT: &str = "/run/image";
const PROGRAMS: [&str; 14] = [
    "sh", "cat", "ls", "stat", "touch", "chown", "id", "mkdir", "rm", "readlink", "grep", "sleep", "env",
    "mount",
];

/// A root with a few programs of the machine, their libraries, and what no machine has.
pub(super) fn make_root(root: &Path) {
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        let found = ["/usr/bin", "/bin"].iter().map(|d| Path::new(d).join(program)).find(|p| p.exists());
        let found = found.unwrap();
        let libraries = Command::new("ldd").arg(&found).output().unwrap().stdout;
        let libraries = String::from_utf8(libraries).unwrap();
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
        files.extend(paths);
        files.insert(found.display().to_string());
    }
    for file in files {
        let target = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
    if !root.join("bin").exists() {
        symlink("usr/bin", root.join("bin")).unwrap();
    }
    for folder in ["etc", "tmp", "srv/data"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n").unwrap();
    fs::write(root.join("etc/mark"), "of the image\n").unwrap();
    // In the place of what is written for every Pod.
    symlink("/run/canary", root.join("etc/resolv.conf")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
}

/// The root of [`ROOT`] for a container.
pub(super) fn root(number: u32) -> ImageRoot {
    ImageRoot { folder: ROOT.into(), copy: format!("/run/copies/{number}/1").into() }
}

fn of_image(folder: &Path, copy: &str, script: &str) -> ContainerSpec {
    let mut spec = spec(&["sh", "-c", script]);
    spec.image = Some(ImageRoot { folder: folder.into(), copy: copy.into() });
    spec.files = vec![
        ("/etc/resolv.conf".into(), "nameserver 10.96.0.10\n".into()),
        ("/etc/hosts".into(), "127.0.0.1 localhost\n".into()),
    ];
    spec
}

fn run_in(sandbox: &Sandbox, spec: &ContainerSpec) -> String {
    let (mut out, stdio) = stdio();
    let child = sandbox.start_container(spec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    output
}

const LOOK: &str = "cat /etc/mark /etc/resolv.conf; ls /usr/share /opt /usr/bin/python3 /work /run/secret 2>&1 | grep -v 'No such'; \
                    echo -- $(stat -c %u:%g /srv/data /etc/mark); echo x > /etc/new && cat /etc/new; rm -r /srv && mkdir /srv && ls /srv; \
                    rm /etc/mark; chown 33:33 /etc/hosts && stat -c %u /etc/hosts; test -c /dev/null && test -d /proc/1 && echo own; \
                    cat /vol/f; mount -t tmpfs none /tmp 2>&1 | grep -c -i permission; grep -c . /proc/mounts > /tmp/m; \
                    grep -E ' (/image|/changes|/work) ' /proc/mounts";

pub(super) fn run() {
    fs::write("/run/canary", "seen").unwrap();
    // In memory, where the ids of a mount can be mapped wherever this runs; and on the machine's disk, where only root can.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let memory = Path::new("/run/made");
    fs::create_dir(memory).unwrap();
    make_root(memory);
    let sandbox = pod(POD);
    if !is_single(&sandbox) {
        chown(memory.join("srv/data"), Some(33), Some(33)).unwrap();
    }
    let mut places = vec![memory.to_owned()];
    // A user namespace may have no right to write there.
    if let Some(disk) = disk.as_ref().ok().filter(|disk| fs::create_dir(disk.path().join("root")).is_ok()) {
        let store = Store::of(&disk.path().join("images.json"));
        let loaded = store.change().unwrap().unpack("small", memory).unwrap();
        places.push(disk.path().join("images").join(&loaded.folder).join("root"));
    }
    make_volume(Path::new("/run/volume"), &sandbox);
    fs::write("/run/volume/f", "in the volume\n").unwrap();
    for (number, place) in places.iter().enumerate() {
        looks(&sandbox, place, &format!("/run/copies/{number}/1"));
    }
    println!("places: {}, copies: {}", places.len(), fs::read_dir("/run/copies").map_or(0, Iterator::count));
    hostile_roots(&sandbox);
}

fn looks(sandbox: &Sandbox, place: &Path, copy: &str) {
    let mut look = of_image(place, copy, LOOK);
    look.binds = vec![Bind { source: "/run/volume".into(), target: "/vol".into(), ..Bind::default() }];
    let before = fs::read_to_string(place.join("etc/mark")).unwrap();
    // What one container changes is not seen by the next one.
    for _ in 0..2 {
        let output = run_in(sandbox, &look);
        let output = output.replace("chown: changing ownership of '/etc/hosts': Invalid argument\n", "");
        let (data, hosts) = if is_single(sandbox) { ("0:0", "") } else { ("33:33", "33\n") };
        let data = if fs::metadata(copy).is_ok() && data_is_roots(place) { "0:0" } else { data };
        let denied = if is_single(sandbox) { output.contains("1\n") } else { true };
        assert!(denied, "{output}");
        let expected =
            format!("of the image\nnameserver 10.96.0.10\n-- {data} 0:0\nx\n{hosts}own\nin the volume\n");
        assert!(output.starts_with(&expected), "{}: {output}", place.display());
    }
    assert_eq!(fs::read_to_string(place.join("etc/mark")).unwrap(), before);
    assert_eq!(fs::read_to_string("/run/canary").unwrap(), "seen");
    let mut sealed =
        of_image(place, copy, "touch /x; mkdir /etc/x; rm /etc/mark; echo y > /vol/g && cat /vol/g");
    sealed.binds = look.binds.clone();
    sealed.read_only_root = true;
    let output = run_in(sandbox, &sealed);
    assert!(output.matches("Read-only file system").count() == 3 && output.ends_with("y\n"), "{output}");
    let mut other = of_image(
        place,
        copy,
        "id -u; cat /etc/mark; touch /tmp/mine && stat -c %u /tmp/mine; touch /etc/x || echo kept out",
    );
    other.rights = user(1337, 4711, &[]);
    let output = run_in(sandbox, &other);
    assert!(output.starts_with("1337\nof the image\n1337\n"), "{output}");
    assert!(is_single(sandbox) || output.ends_with("kept out\n"), "{output}");
    let mut sleeping = of_image(place, copy, "exec sleep 1000");
    sleeping.rights = user(1337, 4711, &[]);
    let rights = sleeping.rights.clone();
    let sleeping = sandbox.start_container(&sleeping, stdio().1).unwrap();
    let exec = Exec {
        argv: ["sh", "-c", "cat /etc/mark; ls -d /usr/share"].map(String::from).into(),
        env: vec![("PATH".into(), ENV_PATH.into())],
        cwd: "/".into(),
        rights,
        group: None,
    };
    let (mut out, stdio) = stdio();
    sandbox.exec(&sleeping, &exec, stdio).unwrap().wait().unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    assert!(output.starts_with("of the image\n") && output.contains("No such file"), "{output}");
    let missing = of_image(place, copy, "true");
    let missing = ContainerSpec { argv: vec!["python3".into()], ..missing };
    let error = sandbox.start_container(&missing, self::stdio().1).unwrap_err().to_string();
    assert!(error.starts_with("exec: \"python3\": executable file not found"), "{error}");
}

/// Whether the data belongs to root already where the image is kept: it was unpacked without the right to give files away.
fn data_is_roots(place: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(place.join("srv/data")).unwrap().uid() == 0
}

/// Roots whose links are in the place of what is made in every container.
fn hostile_roots(sandbox: &Sandbox) {
    fs::create_dir("/run/target").unwrap();
    for (name, why) in [
        ("proc", "/proc of the image is no folder"),
        ("dev", "/dev of the image is no folder"),
        ("etc", "file /etc/resolv.conf: Too many levels of symbolic links"),
        ("usr", "exec: \"sh\": executable file not found"),
    ] {
        let root = Path::new("/run/hostile").join(name);
        fs::create_dir_all(&root).unwrap();
        symlink("/run/target", root.join(name)).unwrap();
        let spec = of_image(&root, &format!("/run/copies/{name}/1"), "true");
        let error = sandbox.start_container(&spec, stdio().1).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
        assert_eq!(fs::read_dir("/run/target").unwrap().count(), 0, "{name}");
    }
    // Its mounts are those of a container that never was.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("overlay /") && !mounts.contains("/run/roots"), "{mounts}");
    let second = pod(OTHER);
    assert!(
        run_in(&second, &of_image(Path::new("/run/made"), "/run/copies/second/1", "cat /etc/mark"))
            .starts_with("of the")
    );
}
