// SPDX-License-Identifier: Apache-2.0
//! `meltemi up`: starts a mesh on this machine and says how to use it.

use std::io::{BufRead, BufReader, IsTerminal};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::machine::launch::{self, Launched, Options};
use crate::machine::paths::Paths;
use crate::machine::report::{Progress, Running};

/// The API's port when it is free and nothing else is asked for.
const DEFAULT_PORT: u16 = 6443;

/// Longest time for another process that holds the lock of the data directory to record its mesh, or to end.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for a mesh that another process starts to be ready.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Interval between two looks at it.
const POLL: Duration = Duration::from_millis(50);

/// Bytes that have to be free for the data of a mesh: objects, certificates, logs.
const LEAST_ROOM: u64 = 64 << 20;

/// Start a mesh on this machine: API, controllers, nodes, control plane and proxies, in private namespaces.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi up --detach\n  export KUBECONFIG=$(meltemi kubeconfig)\n  kubectl get nodes"
)]
pub struct Args {
    /// Name of the mesh; several run side by side
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Data directory; else $MELTEMI_HOME, else /var/lib/meltemi as root and $XDG_STATE_HOME/meltemi otherwise
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
    /// Number of nodes, 1 to 16; else that of last time, else 1
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: Option<u16>,
    /// Port of the API on 127.0.0.1; else the one of last time, else 6443 or any free one
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Return when everything is ready, leaving the mesh running
    #[arg(long)]
    detach: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::find(args.name.as_deref(), args.data_dir.as_deref())?;
    paths.create()?;
    let begun = Instant::now();
    let launched = loop {
        if let Some(running) = Running::read(&paths)? {
            return already_running(args, &paths, running);
        }
        // Pods are bound to the nodes of last time.
        let nodes = args.nodes.or(Running::last(&paths)?.map(|last| last.nodes)).unwrap_or(1);
        let options = Options { nodes, port: args.port, detach: args.detach };
        if let Some(launched) = try_start(&paths, &options)? {
            break launched;
        }
        // Another `up` has just begun and records its mesh next, or a mesh is about to end.
        if begun.elapsed() > LOCK_LIMIT {
            bail!("{} is locked by another process, which starts no mesh", paths.lock().display());
        }
        std::thread::sleep(POLL);
    };
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("press Ctrl-C to stop the mesh");
    launch::wait_until_stopped(launched, &paths)?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for a mesh that is there already, or that another `up` starts, to be ready.
fn already_running(args: &Args, paths: &Paths, running: Running) -> anyhow::Result<ExitCode> {
    if args.nodes.is_some_and(|nodes| nodes != running.nodes) {
        bail!(
            "mesh {:?} is already running with {} node(s); stop it with `meltemi down` before changing that",
            running.name,
            running.nodes
        );
    }
    if !running.ready {
        eprintln!("mesh {:?} is being started; waiting for it", running.name);
    }
    let begun = Instant::now();
    let mut current = running;
    while !current.ready {
        std::thread::sleep(POLL);
        current = Running::read(paths)?.with_context(|| {
            format!("mesh {:?}, which another process started, ended; its logs say why", paths.name)
        })?;
        if begun.elapsed() > START_LIMIT {
            bail!("mesh {:?} is not ready after {} s; its logs say why", paths.name, START_LIMIT.as_secs());
        }
    }
    eprintln!("mesh {:?} is already running", current.name);
    println!("export KUBECONFIG={}", paths.kubeconfig().display());
    Ok(ExitCode::SUCCESS)
}

/// Starts a mesh, shows its progress, and returns when it is ready.
pub fn start(paths: &Paths, options: &Options) -> anyhow::Result<Launched> {
    paths.create()?;
    try_start(paths, options)?.with_context(|| {
        format!("another mesh runs on the data in {}; `meltemi status` shows it", paths.data.display())
    })
}

/// As [`start`], in a data directory that is there; `None` when another process has its lock.
fn try_start(paths: &Paths, options: &Options) -> anyhow::Result<Option<Launched>> {
    let begun = Instant::now();
    let Some(lock) = launch::try_lock(paths)? else { return Ok(None) };
    room(&paths.data)?;
    let listener = listen(paths, options.port)?;
    let mut launched = launch::launch(paths, options, lock, listener)?;
    let bar = progress_bar();
    let outcome = follow(&mut launched, &bar);
    bar.finish_and_clear();
    if let Err(error) = outcome {
        let _ = launch::kill(&launched);
        return Err(error.context(format!(
            "mesh {:?} could not be started; its logs are in {}, and `meltemi doctor` looks for what is in the way",
            paths.name,
            paths.logs().display()
        )));
    }
    eprintln!(
        "mesh {:?} is ready in {:.1} s: {} node(s); Pods reach only the mesh, there is no way out of its network",
        paths.name,
        begun.elapsed().as_secs_f32(),
        options.nodes
    );
    println!("export KUBECONFIG={}", paths.kubeconfig().display());
    Ok(Some(launched))
}

/// A full disk is said at once: nothing that is started could write why it ends.
fn room(data: &Path) -> anyhow::Result<()> {
    let disk = nix::sys::statvfs::statvfs(data)
        .with_context(|| format!("asking for the room in {}", data.display()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free < LEAST_ROOM {
        bail!(
            "{}: {} MiB are free on its disk, a mesh needs {}",
            data.display(),
            free >> 20,
            LEAST_ROOM >> 20
        );
    }
    Ok(())
}

fn follow(launched: &mut Launched, bar: &ProgressBar) -> anyhow::Result<()> {
    let pipe = launched.progress.take().context("the progress of a mesh can be followed once")?;
    for line in BufReader::new(pipe).lines() {
        let line = line?;
        match serde_json::from_str(&line).with_context(|| format!("progress line {line:?}"))? {
            Progress::Step { text } if bar.is_hidden() => eprintln!("{text}"),
            Progress::Step { text } => bar.set_message(text),
            Progress::Ready => return Ok(()),
            Progress::Failed { reason } => bail!("{reason}"),
        }
    }
    bail!("the supervisor ended before the mesh was ready")
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Opens the API's port on the host's loopback; the mesh itself lives in another network namespace.
fn listen(paths: &Paths, port: Option<u16>) -> anyhow::Result<TcpListener> {
    if let Some(port) = port {
        return TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("--port {port}"));
    }
    let last = Running::last(paths)?.map(|r| r.port);
    [last, Some(DEFAULT_PORT), Some(0)]
        .into_iter()
        .flatten()
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .context("no free port on 127.0.0.1")
}
