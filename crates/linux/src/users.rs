// SPDX-License-Identifier: Apache-2.0
//! Users and groups: those a process assumes, and which of another namespace's they are in a user namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;

/// The ids that a process runs with, as its own user namespace counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; `None` keeps those there are, where the kernel allows no change (see [`Setgroups`]).
    pub groups: Option<Vec<u32>>,
}

/// A run of ids: `count` ids from `inside` on are those from `outside` on of the parent namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First id in the namespace.
    pub inside: u32,
    /// First id in its parent.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Whether processes of a user namespace may change their supplementary groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setgroups {
    /// They may.
    Allow,
    /// They may not; the kernel demands it where the namespace maps no more than its maker's own group.
    Deny,
}

/// Most extents of a mapping that the kernel takes.
pub const MAX_EXTENTS: usize = 340;

/// Assumes an identity: groups first, since without the user's right to it they cannot be changed.
pub(crate) fn assume(identity: &Identity) -> Result<(), i32> {
    let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM);
    // System calls and not libc's functions: those change the user of every thread of the process and wait for all of
    // them. A child between fork and exec has none of its parent's threads, only copies of their locks.
    // SAFETY: plain integers, and a list with its length.
    unsafe {
        if let Some(groups) = &identity.groups
            && libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
        {
            return Err(failed());
        }
        if libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid) < 0
            || libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid) < 0
        {
            return Err(failed());
        }
    }
    // A change of the user makes a process open to inspection as system settings say: take that back.
    // SAFETY: plain integers.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } < 0 {
        return Err(failed());
    }
    Ok(())
}

/// Assumes an identity in the calling process, which must have one thread.
///
/// # Errors
/// An id is not of this user namespace, or no right to.
pub fn become_user(identity: &Identity) -> io::Result<()> {
    assume(identity).map_err(io::Error::from_raw_os_error)
}

/// Puts the calling process, which must have one thread, into a user namespace without ids yet; see [`map`].
///
/// # Errors
/// The kernel gives no user namespaces.
pub fn unshare_user() -> io::Result<()> {
    Ok(nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?)
}

/// Enters a user namespace with the calling process, which must have one thread; it has all rights there.
///
/// # Errors
/// No right to: it is not a descendant of the caller's.
pub fn enter_user(namespace: impl AsFd) -> io::Result<()> {
    Ok(nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER)?)
}

/// Says which ids a process's new user namespace has, the same for users and groups; only once.
///
/// # Errors
/// The ids are not those of the caller's namespace, or no right to give them away.
pub fn map(process: &str, extents: &[Extent], setgroups: Setgroups) -> io::Result<()> {
    if setgroups == Setgroups::Deny {
        std::fs::write(format!("/proc/{process}/setgroups"), "deny")?;
    }
    map_both(process, extents, extents)
}

/// As [`map`], with other groups than users.
pub(crate) fn map_both(process: &str, users: &[Extent], groups: &[Extent]) -> io::Result<()> {
    for (file, extents) in [("uid_map", users), ("gid_map", groups)] {
        let line = |e: &Extent| format!("{} {} {}\n", e.inside, e.outside, e.count);
        let text: String = extents.iter().map(line).collect();
        std::fs::write(format!("/proc/{process}/{file}"), text)?;
    }
    Ok(())
}

/// Says that the only user and the only group of the calling process's new user namespace are these; outside they are the
/// caller, who must be user and group 0 of the parent namespace.
///
/// # Errors
/// Not in a fresh user namespace.
pub fn map_self(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} 0 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} 0 1"))
}

/// The user namespace of a process.
///
/// # Errors
/// No such process, or no right to look at it.
pub fn namespace_of(pid: i32) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// The ids that are both users and groups of the calling process's user namespace, as `(first, count)`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn available() -> io::Result<Vec<(u32, u32)>> {
    let read =
        |name: &str| Ok::<_, io::Error>(ranges(&std::fs::read_to_string(format!("/proc/self/{name}"))?));
    Ok(common(&read("uid_map")?, &read("gid_map")?))
}

/// First id and count of each line of an id map.
fn ranges(text: &str) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse);
            let (Some(Ok(first)), _, Some(Ok(count))) = (words.next(), words.next(), words.next()) else {
                return None;
            };
            Some((first, count))
        })
        .collect()
}

fn common(users: &[(u32, u32)], groups: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for (first, count) in users {
        for (other, more) in groups {
            let begin = (*first).max(*other);
            let end = first.saturating_add(*count).min(other.saturating_add(*more));
            if begin < end {
                found.push((begin, end - begin));
            }
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_both_maps() {
        let whole = ranges("         0          0 4294967295\n");
        assert_eq!(common(&whole, &whole), [(0, u32::MAX)]);
        let users = ranges("0 1000 1\n1 100000 65536\n");
        let groups = ranges("0 1000 1\n1 100000 1000\n2000 200000 10\n");
        assert_eq!(common(&users, &groups), [(0, 1), (1, 1000), (2000, 10)]);
        assert_eq!(ranges("no numbers\n0 1\n"), []);
    }
}
