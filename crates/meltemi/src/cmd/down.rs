// SPDX-License-Identifier: Apache-2.0
//! `meltemi down`: stops the mesh of this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::launch::{self, GROUPS_LIMIT};
use crate::machine::paths::Paths;
use crate::machine::report::{Running, start_time};

/// How long the mesh may take to stop before it is killed: its Pods have their own grace periods inside.
const GRACE: Duration = Duration::from_secs(10);

/// Longest time for a mesh that is being started to be recorded.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// Stop the mesh of this machine; nothing of it remains on the host but its data.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: stop the mesh and forget its objects, certificates and logs\n  meltemi down --purge"
)]
pub struct Args {
    /// Name of the mesh
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Data directory of the mesh
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
    /// Remove the data directory as well
    #[arg(long)]
    purge: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::find(args.name.as_deref(), args.data_dir.as_deref())?;
    stop(&paths, args.purge)?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the mesh when it runs, and removes its data when asked to.
pub fn stop(paths: &Paths, purge: bool) -> anyhow::Result<()> {
    match find(paths)? {
        Some(running) => {
            end(&running)?;
            println!("mesh {:?} is stopped", running.name);
        }
        None => println!("mesh {:?} is not running", paths.name),
    }
    for group in meltemi_runner::cgroups::remove_mesh(&paths.cgroups(), GROUPS_LIMIT)? {
        eprintln!("warning: processes are in the cgroup {}, which stays", group.display());
    }
    if purge {
        remove(paths)?;
    }
    Ok(())
}

/// The mesh of the data directory; one that is just being started is waited for until it is recorded.
fn find(paths: &Paths) -> anyhow::Result<Option<Running>> {
    let begun = Instant::now();
    loop {
        match Running::read(paths)? {
            None if launch::is_locked(paths) && begun.elapsed() < RECORD_LIMIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            found => return Ok(found),
        }
    }
}

/// Ends the supervisor: as the first process of its PID namespace it takes everything with it.
fn end(running: &Running) -> anyhow::Result<()> {
    let pid = Pid::from_raw(running.pid);
    kill(pid, Signal::SIGTERM).with_context(|| format!("stopping process {pid}"))?;
    let begun = Instant::now();
    let mut killed = false;
    while start_time(running.pid) == Some(running.start_time) {
        if begun.elapsed() > GRACE && !killed {
            kill(pid, Signal::SIGKILL).with_context(|| format!("killing process {pid}"))?;
            killed = true;
        }
        if begun.elapsed() > GRACE * 2 {
            bail!("process {pid} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn remove(paths: &Paths) -> anyhow::Result<()> {
    // Only what a mesh made is removed: --data-dir may name a directory that holds other things.
    if !paths.data.exists() {
        return Ok(());
    }
    let names = [
        "bin",
        "cgroups",
        "claims",
        "components",
        "db.sqlite",
        "db.sqlite-shm",
        "db.sqlite-wal",
        "images",
        "images.json",
        "kubeconfig",
        "lock",
        "logs",
        "nodes",
        "pki",
        "running.json",
        "running.new",
    ];
    for name in names {
        let path = paths.data.join(name);
        let removed = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(_) => continue,
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    // Fails where something else is inside, which is then somebody else's.
    if std::fs::remove_dir(&paths.data).is_ok() {
        println!("removed {}", paths.data.display());
        // The folders that only held it were made for it; one that holds another mesh stays.
        for folder in paths.folders() {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    } else {
        println!("removed the mesh's files in {}", paths.data.display());
    }
    Ok(())
}
