// SPDX-License-Identifier: Apache-2.0
//! Becoming the first process of a world of its own: PID 1 with private namespaces, as root or in a user namespace.
//!
//! The caller must be single-threaded (before any runtime starts). What PID 1 starts ends with it.

use std::io;
use std::path::Path;

use nix::sched::CloneFlags;

use crate::process::{Child, exec};
use crate::{mount, rtnl};

/// On which side of the border the caller is now.
#[derive(Debug)]
pub enum Side {
    /// Where it was; the first process of the new world is this child.
    Outside(Child),
    /// PID 1 of the new world: own user (if asked), network, mount, PID, UTS and IPC namespaces, own `/proc`,
    /// private mounts, loopback up.
    Inside,
}

/// How the new world is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// In a user namespace whose only user is the caller, as root. Needed when the caller is not root.
    pub user_namespace: bool,
    /// PID 1 is killed when the process outside ends, however it ends.
    pub die_with_outside: bool,
}

impl World {
    /// What fits the caller: a user namespace exactly when it is not root.
    pub fn for_caller() -> Self {
        Self { user_namespace: !nix::unistd::geteuid().is_root(), die_with_outside: true }
    }
}

/// Forks the first process of a new world; returns on both sides.
///
/// # Errors
/// The caller has several threads, or the kernel refuses (the message says what): for instance user namespaces
/// are switched off. An error *inside* ends the child with code 125 after the message on standard error.
pub fn enter(world: World) -> io::Result<Side> {
    if threads()? != 1 {
        return Err(io::Error::other("a process with several threads cannot enter a world of its own"));
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if world.user_namespace {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let flags = u64::try_from(flags.bits()).expect("namespace flags are positive");
    if let Some((pid, pidfd)) = exec::fork(flags)? {
        return Ok(Side::Outside(Child::new(pid, pidfd)));
    }
    if let Err(error) = settle(world, uid.as_raw(), gid.as_raw()) {
        eprintln!("error: cannot make private namespaces: {error}");
        std::process::exit(125);
    }
    Ok(Side::Inside)
}

fn settle(world: World, uid: u32, gid: u32) -> io::Result<()> {
    let named = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    if world.die_with_outside {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    if world.user_namespace {
        map_only(uid, gid).map_err(named("user mapping"))?;
    }
    mount::make_private().map_err(named("private mounts"))?;
    mount::proc(Path::new("/proc")).map_err(named("mount /proc"))?;
    let mut rtnl = rtnl::Rtnl::open().map_err(named("routing socket"))?;
    let lo = rtnl.link_index("lo")?;
    rtnl.set_up(lo).map_err(named("loopback"))
}

/// Maps user and group 0 of the calling process's new user namespace to these outside ones, and nothing else.
///
/// # Errors
/// Not in a fresh user namespace.
pub fn map_only(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// How many threads this process has.
fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Takes over a listening TCP socket that this process inherited under a known number.
///
/// # Errors
/// There is no such descriptor, or it is not a socket.
pub fn inherited_listener(number: i32) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::from(crate::process::inherited(number)?);
    listener.local_addr()?;
    Ok(listener)
}
