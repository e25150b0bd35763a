// SPDX-License-Identifier: Apache-2.0
//! Started processes: signals, waiting and exit codes, all by pidfd, so that a reused process id is never meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// The code as shells and Kubernetes show it: 128 + signal for a killed process.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// A started process; dropping it neither kills nor reaps it.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// A child of this process that another process has started for it.
    ///
    /// # Errors
    /// `/proc` is not mounted, or the process has ended and is reaped.
    pub fn from_pidfd(pidfd: OwnedFd) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|p| p.trim().parse().ok());
        match pid.filter(|pid| *pid > 0) {
            Some(pid) => Ok(Self { pid, pidfd }),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Whether it does something of its own on a signal, or ignores it. The first process of a PID namespace that
    /// does neither is not ended by the signal, as any other process would be.
    pub fn handles(&self, signal: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
        };
        (mask("SigCgt:") | mask("SigIgn:")) & (1 << (signal - 1)) != 0
    }

    /// Its process id, in this process's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal; a process that has ended is not an error.
    ///
    /// # Errors
    /// No right to, or no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        signal_pidfd(self.pidfd.as_fd(), signal)
    }

    /// Waits for its end, blocking the thread.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub fn wait(&self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = wait_pidfd(self.pidfd.as_fd(), false)? {
                return Ok(exit);
            }
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        wait_pidfd(self.pidfd.as_fd(), true)
    }

    /// Waits for its end on tokio; safe to drop and call again.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub async fn ended(&self) -> io::Result<Exit> {
        let fd = crate::sys::watched(self.pidfd.try_clone()?, Interest::READABLE)?;
        loop {
            let mut guard = fd.readable().await?;
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            guard.clear_ready();
        }
    }
}

impl AsFd for Child {
    /// Its pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A pidfd of a process that this one did not start.
///
/// # Errors
/// No such process.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers in, a new descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    crate::sys::check(fd).map(crate::sys::owned)
}

/// Sends a signal through a pidfd; a process that has ended is not an error.
///
/// # Errors
/// No right to, or no such signal.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill in what kill(2) would.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    match crate::sys::check(result) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
        _ => Ok(()),
    }
}

/// Every child that has ended since, reaped: for a PID 1, which also inherits orphans.
///
/// Not to be mixed with [`Child::wait`] on the same children.
pub fn reap_all() -> Vec<(i32, Exit)> {
    let mut ended = Vec::new();
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the status.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return ended;
        }
        if libc::WIFEXITED(status) {
            ended.push((pid, Exit::Code(libc::WEXITSTATUS(status))));
        } else if libc::WIFSIGNALED(status) {
            ended.push((pid, Exit::Signal(libc::WTERMSIG(status))));
        }
    }
}

fn wait_pidfd(pidfd: BorrowedFd<'_>, poll: bool) -> io::Result<Option<Exit>> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).expect("descriptors are not negative");
    let flags = libc::WEXITED | if poll { libc::WNOHANG } else { 0 };
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the answer.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
    match crate::sys::check(result.into()) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(None),
        other => other?,
    };
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves all zero with WNOHANG and nothing to report.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some(Exit::Code(status)),
        _ => Some(Exit::Signal(status)),
    })
}
