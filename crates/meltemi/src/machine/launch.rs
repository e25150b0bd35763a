// SPDX-License-Identifier: Apache-2.0
//! Starts the supervisor in namespaces of its own, from a process that is still single-threaded.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::time::Duration;

use anyhow::{Context, bail};
use meltemi_linux::process::{Child, signal_pidfd};
use meltemi_linux::supervise::{self, Side, World};
use nix::sys::signal::{SigSet, Signal};

use super::id_block::IdBlock;
use super::paths::Paths;
use super::report::{Running, start_time};
use super::supervisor::{self, Handed};

/// How long the cgroups of a mesh are waited for: the last processes leave them a moment after its end.
pub const GROUPS_LIMIT: Duration = Duration::from_secs(5);

/// A supervisor that has been started.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    /// Its progress, one JSON line a step.
    pub progress: Option<File>,
}

/// What a mesh is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes, 1..=16.
    pub nodes: u16,
    /// Port of the API; chosen when none.
    pub port: Option<u16>,
    /// Whether the mesh outlives this process.
    pub detach: bool,
}

/// Starts the supervisor; returns in the launching process only. The supervisor takes the lock over and begins only after
/// it has been recorded: one whose launcher dies before that ends, so that no mesh runs that `down` does not find.
pub fn launch(
    paths: &Paths,
    options: &Options,
    lock: File,
    listener: TcpListener,
) -> anyhow::Result<Launched> {
    links(paths)?;
    let port = listener.local_addr()?.port();
    let ids = IdBlock::take()?;
    let (read, write) = nix::unistd::pipe()?;
    let (recorded, record) = nix::unistd::pipe()?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(paths.logs().join("supervisor.log"))
        .context("opening the supervisor's log")?;
    let world = World { die_with_outside: !options.detach, ..World::for_caller() };
    let entered = supervise::enter(world)
        .context("making private namespaces (`meltemi doctor` says what this machine lacks)")?;
    match entered {
        Side::Outside(child) => {
            drop((write, recorded));
            let running = Running {
                name: paths.name.clone(),
                pid: child.pid(),
                start_time: start_time(child.pid()).context("the supervisor ended at once")?,
                port,
                nodes: options.nodes,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                ready: false,
            };
            running.write(paths)?;
            nix::unistd::write(&record, b"1").context("letting the supervisor begin")?;
            Ok(Launched { child, progress: Some(File::from(read)) })
        }
        Side::Inside => {
            drop((read, record));
            if !matches!(nix::unistd::read(&recorded, &mut [0]), Ok(1)) {
                eprintln!("Error: the launcher ended before it had recorded the mesh");
                std::process::exit(1);
            }
            let (listener, nodes) = (listener.into(), options.nodes);
            let handed = Handed { listener, progress: write, lock, nodes, ids };
            let code = detach_from_terminal(&log)
                .map_err(anyhow::Error::from)
                .and_then(|()| supervisor::run(paths, handed))
                .map_or_else(
                    |error| {
                        eprintln!("Error: {error:#}");
                        1
                    },
                    |()| 0,
                );
            std::process::exit(code);
        }
    }
}

/// Stops a supervisor that this process started.
pub fn kill(launched: &Launched) -> anyhow::Result<()> {
    launched.child.signal(Signal::SIGKILL as i32)?;
    launched.child.wait()?;
    Ok(())
}

/// Waits for Ctrl-C (or SIGTERM), then ends the mesh and removes its cgroups; or waits for the mesh to end by itself.
pub fn wait_until_stopped(launched: Launched, paths: &Paths) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let supervisor = launched.child.as_fd().try_clone_to_owned()?;
    let watched = std::thread::Builder::new().name("supervisor".into()).spawn(move || {
        let exit = launched.child.wait();
        // Wakes the waiting thread, whose signals are blocked.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGTERM);
        exit
    })?;
    let signal = signals.wait()?;
    if watched.is_finished() {
        let exit = watched.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
        bail!("the mesh ended by itself ({exit:?}); its logs say why");
    }
    eprintln!("{signal}: stopping the mesh");
    signal_pidfd(supervisor.as_fd(), Signal::SIGKILL as i32)?;
    watched.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
    meltemi_runner::cgroups::remove_mesh(&paths.cgroups(), GROUPS_LIMIT)?;
    Ok(())
}

/// Takes the lock of a data directory; `None` when a mesh has it, or another process that starts one. Held by the
/// supervisor as long as it lives: two meshes in one directory would spoil each other's data. The lock belongs to the open
/// file, which launcher and supervisor share: it is free when the last of them has closed it.
///
/// # Errors
/// The file cannot be opened or locked.
pub fn try_lock(paths: &Paths) -> anyhow::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(paths.lock())
        .with_context(|| format!("opening {}", paths.lock().display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", paths.lock().display()))
        }
    }
}

/// Whether a mesh, or a process that starts one, holds the lock of a data directory.
pub fn is_locked(paths: &Paths) -> bool {
    let file = File::open(paths.lock());
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// `bin/meltemi` and `bin/istioctl`, for `$PATH`.
fn links(paths: &Paths) -> anyhow::Result<()> {
    let executable = std::env::current_exe()?;
    for name in ["meltemi", "istioctl"] {
        let link = paths.bin().join(name);
        let _ = std::fs::remove_file(&link);
        symlink(&executable, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

fn detach_from_terminal(log: &File) -> nix::Result<()> {
    nix::unistd::setsid()?;
    let null = File::open("/dev/null").map_err(|_| nix::errno::Errno::ENOENT)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(log)?;
    nix::unistd::dup2_stderr(log)?;
    nix::unistd::chdir("/")
}
