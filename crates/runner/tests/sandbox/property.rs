// SPDX-License-Identifier: Apache-2.0
//! Starts in an order and with mounts that chance chooses, while links are exchanged in the volumes that they use: init
//! containers, containers, and probes and ephemeral containers beside them. Whatever is chosen, none of them sees a file of the machine.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use meltemi_linux::process::Child;
use meltemi_runner::pod_init::{Bind, ContainerSpec, Rights};
use meltemi_runner::sandbox::{Exec, Sandbox, Stdio};

use super::images;
use super::{ENV_PATH, FLIP, POD, make_volume, pod, spec, stdio, user};

const VOLUME: &str = "/run/volume";
const CANARY: &str = "a-file-of-the-machine";
/// Says where it is and what it sees from there, from the root, and through what it was given, and tries to leave a mark.
const LOOK: &str = "pwd -P; ls -A . / /run /given /v /v/x /v/l /given/run /proc/1/root/run 2>/dev/null; \
                    cat ./run/canary /given/canary /given/run/canary /run/canary /v/l/run/canary 2>/dev/null; \
                    touch ./run/mark /given/run/mark /run/machine/mark 2>/dev/null; echo looked";
const ROUNDS: u32 = 40;

/// Numbers that are the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

pub(super) fn run() {
    let seed = std::env::var("SANDBOX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs()
    });
    let mut chance = Chance(seed);
    fs::create_dir("/run/machine").unwrap();
    fs::write("/run/canary", CANARY).unwrap();
    images::make_root(Path::new(images::ROOT));
    let sandbox = pod(POD);
    make_volume(Path::new(VOLUME), &sandbox);
    let mut flip = spec(&["perl", "-e", FLIP]);
    flip.binds = vec![bind("", "/v")];
    let (mut out, stdio) = stdio();
    let flipping = sandbox.start_container(&flip, stdio).unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    let mut looked = [0; 4];
    for round in 0..ROUNDS {
        // As an init container: to its end before the next one starts.
        let init = start(&sandbox, &chosen(&mut chance, round, &["sh", "-c", LOOK]));
        looked[0] += usize::from(init.is_some_and(|started| look_through(started, seed, round)));
        let script = format!("{LOOK}; exec sleep 1000");
        let main = chosen(&mut chance, round, &["sh", "-c", &script]);
        let Some((mut output, container)) = start(&sandbox, &main) else {
            // A refusal takes no time: the next attempt is to meet another state of the folder.
            std::thread::sleep(std::time::Duration::from_millis(3));
            continue;
        };
        for _ in 0..2 {
            let probe = start_probe(&sandbox, &container, &main, &mut chance);
            looked[1] += usize::from(probe.is_some_and(|started| look_through(started, seed, round)));
        }
        // Added while it runs, among its processes or not.
        let added = chosen(&mut chance, round, &["sh", "-c", LOOK]);
        let target = chance.coin().then_some(&container);
        let added = start_beside(&sandbox, &added, target);
        looked[3] += usize::from(added.is_some_and(|started| look_through(started, seed, round)));
        container.signal(nix::libc::SIGKILL).unwrap();
        container.wait().unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        looked[2] += usize::from(is_clean(&text, seed, round));
    }
    // Not every one starts: a link may be where a folder is to be.
    assert!(looked.iter().all(|count| *count > 0), "{looked:?}, seed {seed}");
    assert!(!Path::new("/run/mark").exists() && !Path::new("/run/machine/mark").exists(), "seed {seed}");
    let ended = flipping.try_wait().unwrap();
    assert_eq!(ended, None, "nothing was exchanged any more, seed {seed}");
    println!("init containers, probes, containers, ephemeral ones that looked: {looked:?}, seed {seed}");
}

fn bind(beneath: &str, target: &str) -> Bind {
    Bind { source: VOLUME.into(), beneath: beneath.into(), target: target.into(), ..Bind::default() }
}

/// A container with mounts and a folder to start in that pass through what is exchanged.
fn chosen(chance: &mut Chance, round: u32, argv: &[&str]) -> ContainerSpec {
    let mut spec = spec(argv);
    let deep = format!("x/{round}/deep");
    let inside = format!("/v/x/{round}/at");
    spec.binds = vec![bind("", "/v"), bind(chance.one_of(&["", "x", "l", "x/run", &deep]), "/given")];
    if chance.coin() {
        spec.binds
            .push(bind(chance.one_of(&["", "x"]), chance.one_of(&[&inside, "/v/l/run", "/v/x", "/run/in"])));
    }
    spec.binds.iter_mut().for_each(|bind| bind.read_only = chance.coin());
    spec.cwd = chance.one_of(&["/", "/v/x", "/v/l", "/v/x/run", "/given"]).into();
    spec.share_processes = chance.coin();
    spec.read_only_root = chance.coin();
    if chance.coin() {
        spec.image = Some(images::root(round));
    }
    if chance.coin() {
        spec.rights = user(1337, 4711, &[]);
    }
    spec
}

fn start(sandbox: &Sandbox, spec: &ContainerSpec) -> Option<(fs::File, Child)> {
    let (out, stdio) = stdio();
    Some((out, sandbox.start_container(spec, stdio).ok()?))
}

fn start_beside(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    target: Option<&Child>,
) -> Option<(fs::File, Child)> {
    let (out, stdio) = stdio();
    let mounts = sandbox.open_mounts(spec).ok()?;
    Some((out, sandbox.start_mounted(spec, mounts, stdio, None, target).ok()?))
}

fn start_probe(
    sandbox: &Sandbox,
    container: &Child,
    main: &ContainerSpec,
    chance: &mut Chance,
) -> Option<(fs::File, Child)> {
    let exec = Exec {
        argv: ["sh", "-c", LOOK].map(String::from).into(),
        env: vec![("PATH".into(), ENV_PATH.into())],
        cwd: chance.one_of(&["/", "/v/x", "/v/l", "/v/l/run", "/given"]).into(),
        rights: if chance.coin() { main.rights.clone() } else { Rights::default() },
        group: None,
    };
    let (out, stdio): (fs::File, Stdio) = stdio();
    Some((out, sandbox.exec(container, &exec, stdio).ok()?))
}

/// Reads all that it says; whether it has looked.
fn look_through((mut out, child): (fs::File, Child), seed: u64, round: u32) -> bool {
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    is_clean(&text, seed, round)
}

fn is_clean(text: &str, seed: u64, round: u32) -> bool {
    let seen = text.contains(CANARY)
        || text.lines().any(|line| ["canary", "roots", "user-ids", "machine"].contains(&line));
    if seen {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    assert!(!seen, "the machine's files were seen in round {round}, seed {seed}");
    text.contains("looked")
}
