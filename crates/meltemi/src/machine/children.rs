// SPDX-License-Identifier: Apache-2.0
//! The processes that the supervisor starts itself (API server, controllers, a runner for each node): restarted when
//! they end, ended in reverse order, and everybody else's orphans reaped.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use meltemi_linux::netns::NetNs;
use meltemi_linux::process::Spawn;
use meltemi_runtime::{DrainWatch, Tasks, drain};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use super::network::Node;
use super::paths::{Paths, RUN_DIR};

/// First pause before a process that ended is started again; doubled each time, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A process that lived this long starts again after the first pause.
const STABLE: Duration = Duration::from_secs(10);

/// A program that the supervisor keeps running.
#[derive(Debug)]
pub struct Program {
    name: String,
    args: Vec<String>,
    netns: Option<NetNs>,
    fds: Vec<(i32, OwnedFd)>,
}

impl Program {
    /// The API server, with the listener that the host's clients connect to as descriptor 3.
    pub fn apiserver(paths: &Paths, nodes: usize, listener: OwnedFd) -> anyhow::Result<Self> {
        let args = ["serve", "apiserver", "--listen-fd", "3", "--nodes", &nodes.to_string(), "--data-dir"];
        Self::new("apiserver", &args, paths).map(|p| Self { fds: vec![(3, listener)], ..p })
    }

    /// The controllers.
    pub fn controllers(paths: &Paths) -> anyhow::Result<Self> {
        Self::new("controllers", &["serve", "controllers", "--data-dir"], paths)
    }

    /// The runner of a node, in the node's network.
    pub fn runner(paths: &Paths, node: &Node, id_block: u32) -> anyhow::Result<Self> {
        let (address, pods) = (node.address.to_string(), node.pod_cidr.to_string());
        let id_block = id_block.to_string();
        let args = [
            "serve",
            "runner",
            "--node",
            &node.name,
            "--address",
            &address,
            "--pod-cidr",
            &pods,
            "--id-block",
            &id_block,
            "--run-dir",
            RUN_DIR,
            "--data-dir",
        ];
        let program = Self::new(&format!("runner-{}", node.name), &args, paths)?;
        Ok(Self { netns: Some(node.netns.try_clone()?), ..program })
    }

    /// `args` ends with `--data-dir`, whose value is added.
    fn new(name: &str, args: &[&str], paths: &Paths) -> anyhow::Result<Self> {
        let data = paths.data.to_str().context("the data directory's path is not UTF-8")?;
        let args = args.iter().map(|a| (*a).to_owned()).chain([data.to_owned()]).collect();
        Ok(Self { name: name.to_owned(), args, netns: None, fds: Vec::new() })
    }

    fn spawn(&self, executable: &Path, log: &File) -> std::io::Result<meltemi_linux::process::Child> {
        let mut spawn = Spawn::new(executable)?;
        for arg in &self.args {
            spawn = spawn.arg(arg)?;
        }
        for name in ["PATH", "RUST_LOG", "RUST_BACKTRACE", "MELTEMI_NODE_GRACE"] {
            if let Some(value) = std::env::var_os(name) {
                spawn = spawn.env(name, value)?;
            }
        }
        if let Some(netns) = &self.netns {
            spawn = spawn.in_netns(netns)?;
        }
        spawn = spawn.fd(0, File::open("/dev/null")?).fd(1, log.try_clone()?).fd(2, log.try_clone()?);
        for (number, fd) in &self.fds {
            spawn = spawn.fd(*number, fd.try_clone()?);
        }
        spawn.spawn()
    }
}

/// The running programs.
#[derive(Debug)]
pub struct Children {
    executable: PathBuf,
    logs: PathBuf,
    tasks: Tasks,
    trigger: drain::DrainTrigger,
    supervisor: meltemi_runtime::tasks::Supervisor,
    known: Arc<Mutex<BTreeSet<i32>>>,
}

impl Children {
    /// None yet; orphans are reaped from now on.
    pub fn new(paths: &Paths) -> anyhow::Result<Self> {
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("supervisor", watch);
        let known = Arc::new(Mutex::new(BTreeSet::new()));
        tasks.spawn("reaper", reap(known.clone(), tasks.drain()));
        let executable = std::env::current_exe()?;
        Ok(Self { executable, logs: paths.logs(), tasks, trigger, supervisor, known })
    }

    /// Starts a program and keeps it running.
    pub fn start(&mut self, program: Program) -> anyhow::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.logs.join(format!("{}.log", program.name)))
            .with_context(|| format!("opening the log of {}", program.name))?;
        let (executable, known, drain) = (self.executable.clone(), self.known.clone(), self.tasks.drain());
        let name = program.name.clone();
        self.tasks.spawn(&name, keep_running(program, executable, log, known, drain));
        Ok(())
    }

    /// Ends every program: SIGTERM, and SIGKILL after the grace.
    pub async fn stop(self, grace: Duration) {
        drop(self.tasks);
        let ended = async {
            let _ = self.supervisor.run().await;
        };
        tokio::join!(self.trigger.start(grace), ended);
    }
}

async fn keep_running(
    program: Program,
    executable: PathBuf,
    log: File,
    known: Arc<Mutex<BTreeSet<i32>>>,
    mut drain: DrainWatch,
) -> std::io::Result<()> {
    let mut pause = MIN_PAUSE;
    loop {
        let begun = tokio::time::Instant::now();
        let child = {
            // Held over the start, so that the reaper never sees a child it does not know.
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let child = program.spawn(&executable, &log)?;
            known.insert(child.pid());
            child
        };
        let mut asked = drain.clone();
        let stopped = tokio::select! {
            exit = child.ended() => {
                tracing::warn!(program = %program.name, exit = ?exit?, "ended; it is started again");
                false
            }
            () = asked.started() => {
                child.signal(Signal::SIGTERM as i32)?;
                tokio::select! {
                    exit = child.ended() => drop(exit?),
                    () = asked.forced() => child.signal(Signal::SIGKILL as i32)?,
                }
                true
            }
        };
        known.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.pid());
        if stopped {
            return Ok(());
        }
        pause = if begun.elapsed() > STABLE { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.started() => return Ok(()),
        }
    }
}

/// Reaps processes whose parents have ended: they become children of the first process of a PID namespace.
async fn reap(known: Arc<Mutex<BTreeSet<i32>>>, mut drain: DrainWatch) -> std::io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            _ = ended.recv() => {}
            () = drain.started() => return Ok(()),
        }
        while let Some(pid) = first_ended() {
            let ours = known.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid.as_raw());
            if ours {
                // Its own task is about to reap it; others may wait behind it.
                tokio::time::sleep(Duration::from_millis(5)).await;
            } else {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
        }
    }
}

/// The first child that has ended and is not reaped yet; it stays so.
fn first_ended() -> Option<nix::unistd::Pid> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Some(pid),
        _ => None,
    }
}
