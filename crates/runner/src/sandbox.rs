// SPDX-License-Identifier: Apache-2.0
//! A Pod's namespaces and the processes in them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use meltemi_linux::caps::Restrict;
use meltemi_linux::netns::NetNs;
use meltemi_linux::process::{Child, Spawn, pipe};
use nix::sched::CloneFlags;

use crate::pod_init::{ContainerSpec, REPORT_FD, SPEC_FD, WORD, rights, search};

const SELF: &str = "/proc/self/exe";

/// The namespaces of a Pod, held by its first process; dropping this ends every process of the Pod.
#[derive(Debug)]
pub struct Sandbox {
    pause: Child,
    netns: NetNs,
    _lifeline: OwnedFd,
}

/// Standard descriptors of a new process.
#[derive(Debug)]
pub struct Stdio {
    /// What it reads.
    pub stdin: OwnedFd,
    /// What it writes.
    pub stdout: OwnedFd,
    /// What it complains.
    pub stderr: OwnedFd,
    /// They are a terminal.
    pub terminal: bool,
}

/// A program to run in a container that runs already.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub cwd: std::path::PathBuf,
    /// It has the network administrator's rights, as the container has.
    pub network_admin: bool,
}

impl Sandbox {
    /// Starts the first process of a Pod; `host_network`: in the node's network namespace.
    ///
    /// # Errors
    /// No right to make namespaces.
    pub fn start(host_network: bool) -> io::Result<Self> {
        let (read, write) = pipe()?;
        let mut fresh = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        if !host_network {
            fresh |= CloneFlags::CLONE_NEWNET;
        }
        let null = || File::open("/dev/null");
        let pause = Spawn::new(Path::new(SELF))?
            .arg0("pause")?
            .arg(WORD)?
            .arg("pause")?
            .fd(0, null()?)
            .fd(1, File::options().write(true).open("/dev/null")?)
            .fd(2, File::options().write(true).open("/dev/null")?)
            .fd(SPEC_FD, read)
            .fresh(fresh)
            .session()
            .restrict(Restrict::Everything)
            .spawn()?;
        let netns = if host_network { NetNs::current()? } else { NetNs::of_pid(pause.pid())? };
        Ok(Self { pause, netns, _lifeline: write })
    }

    /// Process id of its first process.
    pub fn pid(&self) -> i32 {
        self.pause.pid()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Starts a container; returns when its program runs, or with the reason why it does not.
    ///
    /// # Errors
    /// The root cannot be built or the program cannot be executed.
    pub fn start_container(&self, spec: &ContainerSpec, stdio: Stdio) -> io::Result<Child> {
        let spec_file = spec_file(spec)?;
        let (report, report_end) = pipe()?;
        let spawn = Spawn::new(Path::new(SELF))?
            .arg(WORD)?
            .arg("container")?
            .fd(SPEC_FD, spec_file)
            .fd(REPORT_FD, report_end)
            .fresh(CloneFlags::CLONE_NEWNS);
        let child = self.join(with_stdio(spawn, stdio), CloneFlags::empty())?.spawn()?;
        let mut failure = String::new();
        File::from(report).read_to_string(&mut failure)?;
        if failure.is_empty() {
            return Ok(child);
        }
        let _ = child.wait();
        Err(io::Error::other(failure))
    }

    /// Starts a program in a running container, with the rights the container has.
    ///
    /// # Errors
    /// The container has ended, or there is no such program in it.
    pub fn exec(&self, container: &Child, exec: &Exec, stdio: Stdio) -> io::Result<Child> {
        let program = exec.argv.first().map_or("", String::as_str);
        let path = exec.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
        let mut spawn = Spawn::new(Path::new(program))?.candidates(search(program, path))?;
        for arg in exec.argv.iter().skip(1) {
            spawn = spawn.arg(arg)?;
        }
        for (name, value) in &exec.env {
            spawn = spawn.env(name, value)?;
        }
        spawn = spawn
            .cwd(&exec.cwd)?
            .restrict(rights(exec.network_admin))
            .enter(container.as_fd(), CloneFlags::CLONE_NEWNS)?;
        self.join(with_stdio(spawn, stdio), CloneFlags::empty())?.spawn()
    }

    fn join(&self, spawn: Spawn, more: CloneFlags) -> io::Result<Spawn> {
        let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | more;
        spawn.join_pid_namespace(self.pause.as_fd())?.enter(self.pause.as_fd(), kinds)
    }

    /// Ends every process of the Pod; returns when none is left. Their parents reap them.
    pub fn end(&self) {
        let _ = self.pause.signal(nix::libc::SIGKILL);
    }

    /// Waits for the end of the Pod's first process.
    pub async fn ended(&self) {
        let _ = self.pause.ended().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
        let _ = self.pause.try_wait();
    }
}

fn with_stdio(spawn: Spawn, stdio: Stdio) -> Spawn {
    let terminal = stdio.terminal;
    let spawn = spawn.fd(0, stdio.stdin).fd(1, stdio.stdout).fd(2, stdio.stderr);
    if terminal { spawn.terminal() } else { spawn.session() }
}

/// A nameless file with the spec, read from its beginning.
fn spec_file(spec: &ContainerSpec) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let fd = nix::sys::memfd::memfd_create("container", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(&serde_json::to_vec(spec)?)?;
    file.rewind()?;
    Ok(file.into())
}
