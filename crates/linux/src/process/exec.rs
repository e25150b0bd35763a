// SPDX-License-Identifier: Apache-2.0
//! Between fork and exec: nothing here allocates, locks or panics in the child.

use std::ffi::{CString, c_char};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::{Child, Spawn, pipe};
use crate::caps;
use crate::sys::{check, owned};

/// Steps of the child, for the error message.
const STEPS: [&str; 9] = [
    "enter the namespaces",
    "start a session",
    "bind to the parent's life",
    "pass the descriptors",
    "close the other descriptors",
    "take the terminal",
    "change the folder",
    "drop the rights",
    "execute",
];

struct Prepared {
    programs: Vec<*const c_char>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    enter: Vec<(RawFd, i32)>,
    fds: Vec<(RawFd, RawFd)>,
    first_closed: RawFd,
    report: RawFd,
}

/// Forks and executes; waits until the child has executed or failed.
pub(super) fn start(spawn: &Spawn) -> io::Result<Child> {
    let (read, write) = pipe()?;
    let floor = spawn.fds.iter().map(|(_, target)| target + 1).max().unwrap_or(0).max(3);
    // All sources out of the way of all targets, so that no dup2 overwrites a source of a later one.
    let moved = spawn.fds.iter().map(|(fd, _)| above(fd, floor)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let report = above(&write, floor)?;
    // Only the child may hold the writing end, or its exec would never be seen as the end of the report.
    drop(write);
    let prepared = Prepared {
        programs: pointers(&spawn.programs),
        args: pointers(&spawn.args),
        env: pointers(&spawn.env),
        cwd: spawn.cwd.as_ref().map_or(std::ptr::null(), |c| c.as_ptr()),
        enter: spawn.enter.iter().map(|(fd, kinds)| (fd.as_raw_fd(), kinds.bits())).collect(),
        fds: moved.iter().zip(&spawn.fds).map(|(fd, (_, target))| (fd.as_raw_fd(), *target)).collect(),
        first_closed: floor,
        report: report.as_raw_fd(),
    };
    let flags = u64::try_from(spawn.fresh.bits()).expect("namespace flags are positive");
    let (pid, pidfd) = match fork(flags)? {
        Some(parent) => parent,
        None => child(spawn, &prepared),
    };
    drop(report);
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
    args.exit_signal = u64::try_from(libc::SIGCHLD).expect("a signal");
    // SAFETY: without CLONE_VM the child has its own copy of the memory; callers only make system calls in it or
    // are single-threaded.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match check(pid)? {
        0 => Ok(None),
        pid => Ok(Some((i32::try_from(pid).expect("process ids fit"), owned(pidfd.into())))),
    }
}

fn child(spawn: &Spawn, prepared: &Prepared) -> ! {
    let (step, errno) = steps(spawn, prepared);
    let mut report = [step, 0, 0, 0, 0];
    report[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: the report's descriptor is open and the buffer is ours; then the child ends without destructors.
    unsafe {
        libc::write(prepared.report, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
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
        for (fd, kinds) in &prepared.enter {
            if libc::setns(*fd, *kinds) < 0 {
                return (0, errno());
            }
        }
        if spawn.session && libc::setsid() < 0 {
            return (1, errno());
        }
        if spawn.die_with_parent && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) < 0 {
            return (2, errno());
        }
        for (source, target) in &prepared.fds {
            if libc::dup2(*source, *target) < 0 {
                return (3, errno());
            }
        }
        let first = u32::try_from(prepared.first_closed).unwrap_or(3);
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            return (4, errno());
        }
        if spawn.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (5, errno());
        }
        if !prepared.cwd.is_null() && libc::chdir(prepared.cwd) < 0 {
            return (6, errno());
        }
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

fn above(fd: &OwnedFd, floor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: an open descriptor in, a new one out.
    let fd = unsafe {
        libc::fcntl(BorrowedFd::as_raw_fd(&std::os::fd::AsFd::as_fd(fd)), libc::F_DUPFD_CLOEXEC, floor)
    };
    check(fd.into()).map(owned)
}
