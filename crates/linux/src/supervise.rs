// SPDX-License-Identifier: Apache-2.0
//! Becoming the first process of a world of its own: PID 1 with private namespaces, as root or in a user namespace.
//!
//! The caller must be single-threaded (before any runtime starts). What PID 1 starts ends with it.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;

use crate::process::{Child, exec, pipe};
use crate::users::{self, Extent};
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
    /// Further ids of the user namespace, from 1 on.
    pub ids: Option<SubIds>,
    /// PID 1 is killed when the process outside ends, however it ends.
    pub die_with_outside: bool,
}

/// Ids that somebody may give to processes in user namespaces: first and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubIds {
    /// Users.
    pub users: (u32, u32),
    /// Groups.
    pub groups: (u32, u32),
}

/// Why a user has no further ids to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIds {
    /// `newuidmap` and `newgidmap` are not in `$PATH`.
    Programs,
    /// `/etc/subuid` or `/etc/subgid` has no range of the user.
    Ranges,
}

impl SubIds {
    /// What `/etc/subuid` and `/etc/subgid` say of the calling user, if the programs are there that give them.
    ///
    /// # Errors
    /// What is missing.
    pub fn of_caller() -> Result<Self, NoIds> {
        let uid = nix::unistd::geteuid();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let find = |file: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            largest(&text, name.as_deref(), uid.as_raw())
        };
        let path = std::env::var_os("PATH").ok_or(NoIds::Programs)?;
        let installed = |program| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
        if !installed(NEWUIDMAP) || !installed(NEWGIDMAP) {
            return Err(NoIds::Programs);
        }
        let (users, groups) = (find("/etc/subuid"), find("/etc/subgid"));
        users.zip(groups).map(|(users, groups)| Self { users, groups }).ok_or(NoIds::Ranges)
    }
}

/// Gives ids of `/etc/subuid` to a process's user namespace; part of Debian's `uidmap`.
const NEWUIDMAP: &str = "newuidmap";
/// The same for groups.
const NEWGIDMAP: &str = "newgidmap";

/// The largest range that a file such as `/etc/subuid` has for a user.
fn largest(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        (Some(owner) == name || owner == uid).then_some(range)
    });
    ranges.max_by_key(|(_, count)| *count)
}

impl World {
    /// What fits the caller: a user namespace exactly when it is not root.
    pub fn for_caller() -> Self {
        let user_namespace = !nix::unistd::geteuid().is_root();
        let ids = if user_namespace { SubIds::of_caller().ok() } else { None };
        Self { user_namespace, ids, die_with_outside: true }
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
    let (read, write) = pipe()?;
    if let Some((pid, pidfd)) = exec::fork(flags)? {
        drop(read);
        if let Some(ids) = world.ids.filter(|_| world.user_namespace)
            && give(pid, uid.as_raw(), gid.as_raw(), ids).is_ok()
        {
            std::fs::File::from(write).write_all(b"m")?;
        }
        return Ok(Side::Outside(Child::new(pid, pidfd)));
    }
    drop(write);
    let mapped = world.ids.is_some() && std::fs::File::from(read).read(&mut [0]).is_ok_and(|n| n == 1);
    if let Err(error) = settle(world, mapped, uid.as_raw(), gid.as_raw()) {
        eprintln!("error: cannot make private namespaces: {error}");
        std::process::exit(125);
    }
    Ok(Side::Inside)
}

/// Gives a process's new user namespace the caller's id as 0 and further ones from 1 on.
fn give(pid: i32, uid: u32, gid: u32, ids: SubIds) -> io::Result<()> {
    let extents = |own: u32, (first, count): (u32, u32)| {
        [Extent { inside: 0, outside: own, count: 1 }, Extent { inside: 1, outside: first, count }]
    };
    let (users, groups) = (extents(uid, ids.users), extents(gid, ids.groups));
    if nix::unistd::geteuid().is_root() {
        return users::map_both(&pid.to_string(), &users, &groups);
    }
    for (program, extents) in [(NEWUIDMAP, users), (NEWGIDMAP, groups)] {
        let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(numbers).stdin(Stdio::null());
        if !command.status()?.success() {
            return Err(io::Error::other(format!("{program} failed")));
        }
    }
    Ok(())
}

fn settle(world: World, mapped: bool, uid: u32, gid: u32) -> io::Result<()> {
    let named = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    if world.die_with_outside {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    if world.user_namespace && !mapped {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_counts() {
        let text = "ann:100000:65536\nbob:165536:65536\n1000:300000:70000\nann:400000:10\nann:x:y\nann\n";
        assert_eq!(largest(text, Some("ann"), 1000), Some((300_000, 70_000)));
        assert_eq!(largest(text, Some("ann"), 1001), Some((100_000, 65_536)));
        assert_eq!(largest(text, None, 1002), None);
    }
}
