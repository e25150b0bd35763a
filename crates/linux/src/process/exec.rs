// SPDX-License-Identifier: Apache-2.0
//! Between fork and exec: nothing here allocates, locks or panics in the child.
//!
//! The child is a copy of a process with secrets in its memory. Nobody in the namespaces that it enters may look at
//! it: it forbids inspection first, and closes what is not the program's before it enters any.

use std::ffi::{CString, c_char};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{Child, Spawn, pipe};
use crate::sys::{check, owned};
use crate::{caps, users};

/// Steps of the child, for the error message.
const STEPS: [&str; 12] = [
    "enter the namespaces",
    "start a session",
    "bind to the parent's life",
    "pass the descriptors",
    "close the other descriptors",
    "take the terminal",
    "change the folder",
    "drop the rights",
    "execute",
    "forbid inspection",
    "change the user",
    "join the cgroup",
];

struct Prepared {
    programs: Vec<*const c_char>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    /// Source and its number in the child, which is marked close-on-exec when it is not the program's.
    moves: Vec<(RawFd, RawFd, i32)>,
    /// Numbers of the namespaces in the child, and what of them is entered.
    enter: Vec<(RawFd, i32)>,
    /// Numbers of the cgroups' lists of processes in the child.
    groups: Vec<RawFd>,
    /// Number of the report in the child.
    report: RawFd,
    /// Numbers in between that nobody is given.
    gaps: Vec<RawFd>,
    /// From this number on everything is closed.
    first_closed: RawFd,
}

/// Forks and executes; waits until the child has executed or failed.
pub(super) fn start(spawn: &Spawn) -> io::Result<Child> {
    let (read, write) = pipe()?;
    let floor = spawn.fds.iter().map(|(_, target)| target + 1).max().unwrap_or(0).max(3);
    let number = |index: usize| RawFd::try_from(index).map(|i| floor + i).map_err(io::Error::other);
    let report = number(spawn.enter.len() + spawn.groups.len())?;
    // All sources out of the way of all targets, so that no dup overwrites a source of a later one.
    let sources =
        spawn.fds.iter().map(|(fd, _)| above(fd, report + 1)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let report_end = above(&write, report + 1)?;
    // Only the child may hold the writing end, or its exec would never be seen as the end of the report.
    drop(write);
    let namespaces =
        spawn.enter.iter().map(|(fd, _)| above(fd, report + 1)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let lists = spawn.groups.iter().map(|fd| above(fd, report + 1)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let mut moves = Vec::with_capacity(sources.len() + namespaces.len() + lists.len() + 1);
    moves.extend(sources.iter().zip(&spawn.fds).map(|(fd, (_, target))| (fd.as_raw_fd(), *target, 0)));
    let mut enter = Vec::with_capacity(namespaces.len());
    for (index, (fd, (_, kinds))) in namespaces.iter().zip(&spawn.enter).enumerate() {
        moves.push((fd.as_raw_fd(), number(index)?, libc::O_CLOEXEC));
        enter.push((number(index)?, kinds.bits()));
    }
    let mut groups = Vec::with_capacity(lists.len());
    for (index, fd) in (namespaces.len()..).zip(&lists) {
        moves.push((fd.as_raw_fd(), number(index)?, libc::O_CLOEXEC));
        groups.push(number(index)?);
    }
    moves.push((report_end.as_raw_fd(), report, libc::O_CLOEXEC));
    let prepared = Prepared {
        programs: pointers(&spawn.programs),
        args: pointers(&spawn.args),
        env: pointers(&spawn.env),
        cwd: spawn.cwd.as_ref().map_or(std::ptr::null(), |c| c.as_ptr()),
        moves,
        enter,
        groups,
        report,
        gaps: (3..floor).filter(|n| spawn.fds.iter().all(|(_, target)| target != n)).collect(),
        first_closed: report + 1,
    };
    let flags = u64::try_from(spawn.fresh.bits()).expect("namespace flags are positive");
    let (pid, pidfd) = match fork(flags)? {
        Some(parent) => parent,
        None => child(spawn, &prepared),
    };
    drop(report_end);
    let process = Child::new(pid, pidfd);
    let mut said = Vec::new();
    std::fs::File::from(read).read_to_end(&mut said)?;
    if let [step, errno @ ..] = said.as_slice()
        && let Ok(errno) = <[u8; 4]>::try_from(errno)
    {
        let _ = process.wait();
        let cause = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
        let step = STEPS.get(usize::from(*step)).copied().unwrap_or("start");
        return Err(io::Error::new(cause.kind(), format!("{step}: {cause}")));
    }
    Ok(process)
}

/// `fork` with new namespaces and a pidfd: `None` in the child.
pub(crate) fn fork(flags: u64) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero clone_args is valid: a plain fork.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | u64::try_from(libc::CLONE_PIDFD).expect("a flag");
    args.pidfd = (&raw mut pidfd) as u64;
    // A sibling ends with the signal that the caller itself ends with, and must not name one.
    let sibling = flags & u64::try_from(libc::CLONE_PARENT).expect("a flag") != 0;
    args.exit_signal = if sibling { 0 } else { u64::try_from(libc::SIGCHLD).expect("a signal") };
    // SAFETY: without CLONE_VM the child has its own copy of the memory; callers only make system calls in it or
    // are single-threaded.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(pid)? {
        0 => Ok(None),
        pid => Ok(Some((i32::try_from(pid).expect("process ids fit"), owned(pidfd.into())))),
    }
}

fn child(spawn: &Spawn, prepared: &Prepared) -> ! {
    // Before the descriptors are in their places the report is not either.
    let (step, errno) = match isolate(prepared) {
        Ok(()) => steps(spawn, prepared),
        Err((step, errno)) => {
            let report = prepared.moves.last().map_or(-1, |(source, _, _)| *source);
            tell(report, step, errno)
        }
    };
    tell(prepared.report, step, errno)
}

fn tell(report: RawFd, step: u8, errno: i32) -> ! {
    let mut message = [step, 0, 0, 0, 0];
    message[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: a descriptor number and a buffer of ours; then the child ends without destructors.
    unsafe {
        libc::write(report, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

/// Forbids inspection and lets go of every descriptor that is not the child's.
fn isolate(prepared: &Prepared) -> Result<(), (u8, i32)> {
    // SAFETY: only system calls on numbers that the parent prepared.
    unsafe {
        if libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 {
            return Err((9, errno()));
        }
        for (source, target, flags) in &prepared.moves {
            if libc::dup3(*source, *target, *flags) < 0 {
                return Err((3, errno()));
            }
        }
        for gap in &prepared.gaps {
            libc::close(*gap);
        }
        let first = u32::try_from(prepared.first_closed).unwrap_or(3);
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) < 0 {
            return Err((4, errno()));
        }
    }
    Ok(())
}

/// Gives the step that failed and its errno.
fn steps(spawn: &Spawn, prepared: &Prepared) -> (u8, i32) {
    // SAFETY: only system calls on descriptors and strings that the parent prepared and that live in our copy.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
        for signal in [libc::SIGPIPE, libc::SIGCHLD, libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            libc::signal(signal, libc::SIG_DFL);
        }
        // First: what the child does from here on counts for the groups, and nobody in the namespaces sees the lists.
        for list in &prepared.groups {
            // 0 stands for the writer.
            if libc::write(*list, b"0".as_ptr().cast(), 1) < 0 {
                return (11, errno());
            }
            libc::close(*list);
        }
        for (fd, kinds) in &prepared.enter {
            if libc::setns(*fd, *kinds) < 0 {
                return (0, errno());
            }
        }
        for (fd, _) in &prepared.enter {
            libc::close(*fd);
        }
        if spawn.session && libc::setsid() < 0 {
            return (1, errno());
        }
        if spawn.die_with_parent && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) < 0 {
            return (2, errno());
        }
        if spawn.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (5, errno());
        }
    }
    if let Some(identity) = &spawn.become_user
        && let Err(errno) = users::assume(identity)
    {
        return (10, errno);
    }
    // As the program's user: it starts in no folder that it may not enter.
    // SAFETY: a NUL-terminated string of our copy.
    if !prepared.cwd.is_null() && unsafe { libc::chdir(prepared.cwd) } < 0 {
        return (6, errno());
    }
    if let Err(errno) = caps::apply(spawn.restrict) {
        return (7, errno);
    }
    (8, execute(prepared))
}

fn execute(prepared: &Prepared) -> i32 {
    let mut failure = libc::ENOENT;
    for program in prepared.programs.iter().filter(|p| !p.is_null()) {
        // SAFETY: NUL-terminated strings in NULL-terminated arrays, prepared by the parent.
        unsafe { libc::execve(*program, prepared.args.as_ptr(), prepared.env.as_ptr()) };
        let errno = errno();
        if errno != libc::ENOENT && errno != libc::ENOTDIR {
            failure = errno;
        }
    }
    failure
}

fn errno() -> i32 {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect()
}

fn above(fd: &impl AsFd, floor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: an open descriptor in, a new one out.
    let fd = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) };
    check(fd.into()).map(owned)
}
