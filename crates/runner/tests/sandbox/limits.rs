// SPDX-License-Identifier: Apache-2.0
//! Limits, where this machine gives cgroups to whoever runs the test.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use meltemi_linux::process::Child;
use meltemi_runner::cgroups::{Cgroups, Controller, Group, Limits, remove_mesh};
use meltemi_runner::sandbox::{Exec, Sandbox};

use super::{ENV_PATH, OTHER, POD, pod, spec, stdio};

const HUNGRY: &str = "x = bytearray(300 << 20); print('had it all')";
/// Forks until it cannot; what it has made ends with it.
const BOMB: &str =
    "$n = 0; while (defined(my $p = fork)) { sleep 1000 unless $p; $n++; last if $n > 500 } print \"$n $!\"";
/// Seconds of processor time that it gets in three seconds of asking for them.
const BUSY: &str = "$end = time + 3; 1 while time < $end; printf '%.2f', (times)[0] + (times)[1]";

fn start(sandbox: &Sandbox, group: &Group, argv: &[&str]) -> (fs::File, Child) {
    let (out, stdio) = stdio();
    let spec = spec(argv);
    let mounts = sandbox.open_mounts(&spec).unwrap();
    (out, sandbox.start_mounted(&spec, mounts, stdio, Some(group), None).unwrap())
}

/// Output and exit code of a program in a container of its own.
fn finish((mut out, child): (fs::File, Child)) -> (String, i32) {
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    (output, child.wait().unwrap().code())
}

pub(super) fn run() {
    let mesh = format!("test-{}", std::process::id());
    let records = Path::new("/run/cgroups");
    let record = records.join("node-1");
    let cgroups = Cgroups::open(&mesh, "node-1", &record);
    let groups: Vec<PathBuf> = fs::read_to_string(&record).unwrap().lines().map(PathBuf::from).collect();
    for controller in Controller::ALL {
        if !cgroups.holds(controller) {
            println!("not tried: no {} cgroup can be made here", controller.name());
        }
    }
    let (first, second) = (pod(POD), pod(OTHER));
    let bystander = cgroups.container("second", "bystander", &Limits::default()).unwrap();
    let (_out, beside) = start(&second, &bystander, &["sleep", "1000"]);
    if cgroups.holds(Controller::Memory) {
        memory(&cgroups, &first);
    }
    if cgroups.holds(Controller::Pids) {
        processes(&cgroups, &first);
        membership(&cgroups, &first);
    }
    if cgroups.holds(Controller::Cpu) {
        let limits = Limits { cpu: Some(200), ..Limits::default() };
        let group = cgroups.container("first", "busy", &limits).unwrap();
        let (output, _) = finish(start(&first, &group, &["perl", "-e", BUSY]));
        // A fifth of three seconds, and what a period may give at its edges.
        assert!(output.parse::<f64>().unwrap() < 1.2, "{output}");
    }
    assert!(beside.try_wait().unwrap().is_none() && !bystander.is_oom_killed());
    drop((first, second));
    beside.wait().unwrap();
    cgroups.remove_pod("first");
    let nodes: Vec<PathBuf> =
        groups.iter().map(|group| group.join("node-1")).filter(|n| n.exists()).collect();
    assert!(nodes.iter().all(|node| !node.join("first").exists()));
    // As after the runner's violent end: its next life removes what it finds.
    assert!(!cgroups.holds(Controller::Pids) || nodes.iter().any(|node| node.join("second").exists()));
    drop(Cgroups::open(&mesh, "node-1", &record));
    assert!(nodes.iter().all(|node| node.exists() && !node.join("second").exists()));
    assert_eq!(remove_mesh(records, std::time::Duration::from_secs(60)).unwrap(), [] as [PathBuf; 0]);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

fn memory(cgroups: &Cgroups, sandbox: &Sandbox) {
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let group = cgroups.container("first", "hungry", &limits).unwrap();
    let (output, code) = finish(start(sandbox, &group, &["python3", "-c", HUNGRY]));
    assert_eq!((output.as_str(), code, group.is_oom_killed()), ("", 137, true));
    group.remove();
    // What is started beside the program counts as well.
    let group = cgroups.container("first", "hungry", &limits).unwrap();
    let group = std::sync::Arc::new(group);
    let (_out, container) = start(sandbox, &group, &["sleep", "1000"]);
    assert!(!group.is_oom_killed());
    let exec = Exec {
        argv: ["python3", "-c", HUNGRY].map(String::from).into(),
        env: vec![("PATH".into(), ENV_PATH.into())],
        cwd: "/".into(),
        rights: meltemi_runner::pod_init::Rights::default(),
        group: Some(group.clone()),
    };
    let (mut out, stdio) = stdio();
    let child = sandbox.exec(&container, &exec, stdio).unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    child.wait().unwrap();
    assert!(output.is_empty() && group.is_oom_killed(), "{output}");
    container.signal(nix::libc::SIGKILL).unwrap();
    container.wait().unwrap();
    // Without a limit it has it all.
    let group = cgroups.container("first", "free", &Limits::default()).unwrap();
    let (output, code) = finish(start(sandbox, &group, &["python3", "-c", HUNGRY]));
    assert_eq!((output.trim(), code, group.is_oom_killed()), ("had it all", 0, false));
}

fn processes(cgroups: &Cgroups, sandbox: &Sandbox) {
    let limits = Limits { processes: 64, ..Limits::default() };
    let group = cgroups.container("bomb", "bomb", &limits).unwrap();
    let (output, _) = finish(start(sandbox, &group, &["perl", "-e", BOMB]));
    assert_eq!(output, "63 Resource temporarily unavailable");
    group.remove();
    cgroups.remove_pod("bomb");
}

/// A container is in its group, and is not told which one that is.
fn membership(cgroups: &Cgroups, sandbox: &Sandbox) {
    let group = cgroups.container("first", "shy", &Limits::default()).unwrap();
    let (mut out, child) =
        start(sandbox, &group, &["sh", "-c", "cat /proc/self/cgroup; ls /sys; exec sleep 1000"]);
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    assert!(seen.contains("/node-1/first/shy"), "{seen}");
    child.signal(nix::libc::SIGKILL).unwrap();
    child.wait().unwrap();
    let mut output = String::new();
    out.read_to_string(&mut output).unwrap();
    assert!(!output.contains("meltemi"), "{output}");
    group.remove();
}
