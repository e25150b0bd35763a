// SPDX-License-Identifier: Apache-2.0
//! Starting processes in namespaces, with chosen descriptors and restrictions, and waiting for their end.
//!
//! [`Spawn`] prepares everything before the fork; between fork and exec the child only makes system calls, so it
//! is safe in a process with threads. What goes wrong in the child comes back as the error of [`Spawn::spawn`].

mod child;
pub(crate) mod exec;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sched::CloneFlags;

pub use self::child::{Child, Exit, open_pidfd, reap_all, signal_pidfd};
use crate::caps::Restrict;
use crate::netns::NetNs;
use crate::users::Identity;

/// Lets this process end quietly when whoever reads its output has gone, as programs of the command line do; Rust's
/// default is an error at the next write.
pub fn end_on_broken_pipe() {
    // SAFETY: the default action of a signal; no handler of ours runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A process to start.
#[derive(Debug)]
pub struct Spawn {
    pub(crate) programs: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: Option<CString>,
    pub(crate) fds: Vec<(OwnedFd, i32)>,
    pub(crate) enter: Vec<(OwnedFd, CloneFlags)>,
    pub(crate) groups: Vec<OwnedFd>,
    pub(crate) fresh: CloneFlags,
    pub(crate) join_pid: Option<OwnedFd>,
    pub(crate) session: bool,
    pub(crate) terminal: bool,
    pub(crate) die_with_parent: bool,
    pub(crate) become_user: Option<Identity>,
    pub(crate) restrict: Restrict,
}

impl Spawn {
    /// A process that runs this program with an empty environment, no arguments and no descriptors.
    ///
    /// # Errors
    /// The path contains a NUL byte.
    pub fn new(program: &Path) -> io::Result<Self> {
        let program = cstring(program.as_os_str())?;
        Ok(Self {
            args: vec![program.clone()],
            programs: vec![program],
            env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            enter: Vec::new(),
            groups: Vec::new(),
            fresh: CloneFlags::empty(),
            join_pid: None,
            session: false,
            terminal: false,
            die_with_parent: false,
            become_user: None,
            restrict: Restrict::Nothing,
        })
    }

    /// Instead of one program: the first of these paths that can be executed, looked up in the child's own root.
    ///
    /// # Errors
    /// A path contains a NUL byte, or there is none.
    pub fn candidates<S: AsRef<OsStr>>(mut self, programs: impl IntoIterator<Item = S>) -> io::Result<Self> {
        self.programs = programs.into_iter().map(|p| cstring(p.as_ref())).collect::<io::Result<_>>()?;
        if self.programs.is_empty() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(self)
    }

    /// The name the program sees as its own (`argv[0]`).
    ///
    /// # Errors
    /// It contains a NUL byte.
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        self.args[0] = cstring(name.as_ref())?;
        Ok(self)
    }

    /// Adds an argument.
    ///
    /// # Errors
    /// It contains a NUL byte.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> io::Result<Self> {
        self.args.push(cstring(arg.as_ref())?);
        Ok(self)
    }

    /// Adds a variable to the environment.
    ///
    /// # Errors
    /// It contains a NUL byte.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> io::Result<Self> {
        let mut text = name.as_bytes().to_vec();
        text.push(b'=');
        text.extend_from_slice(value.as_ref().as_bytes());
        self.env.push(CString::new(text)?);
        Ok(self)
    }

    /// The folder the program starts in, in the child's own root.
    ///
    /// # Errors
    /// It contains a NUL byte.
    pub fn cwd(mut self, path: &Path) -> io::Result<Self> {
        self.cwd = Some(cstring(path.as_os_str())?);
        Ok(self)
    }

    /// Gives the child a descriptor under this number. From 3 on, everything that is not given is closed, and closed
    /// before the child enters any namespace: nobody there can see it.
    pub fn fd(mut self, number: i32, fd: impl Into<OwnedFd>) -> Self {
        self.fds.push((fd.into(), number));
        self
    }

    /// Enters existing namespaces: `of` is a namespace or a pidfd, `kinds` which of its namespaces.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn enter(mut self, of: BorrowedFd<'_>, kinds: CloneFlags) -> io::Result<Self> {
        self.enter.push((of.try_clone_to_owned()?, kinds));
        Ok(self)
    }

    /// Joins a cgroup before it enters any namespace; `procs` is the group's `cgroup.procs`, open for writing.
    pub fn join_group(mut self, procs: impl Into<OwnedFd>) -> Self {
        self.groups.push(procs.into());
        self
    }

    /// Starts in this network namespace.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn in_netns(self, netns: &NetNs) -> io::Result<Self> {
        self.enter(netns.as_fd(), CloneFlags::CLONE_NEWNET)
    }

    /// Becomes a member of the PID namespace of the process behind this pidfd.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn join_pid_namespace(mut self, of: BorrowedFd<'_>) -> io::Result<Self> {
        self.join_pid = Some(of.try_clone_to_owned()?);
        Ok(self)
    }

    /// Makes new namespaces of these kinds.
    pub fn fresh(mut self, kinds: CloneFlags) -> Self {
        self.fresh = kinds;
        self
    }

    /// Makes the child the leader of a new session.
    pub fn session(mut self) -> Self {
        self.session = true;
        self
    }

    /// Makes descriptor 0 the controlling terminal of the new session.
    pub fn terminal(mut self) -> Self {
        self.session = true;
        self.terminal = true;
        self
    }

    /// Kills the child when the *thread* that spawned it ends; only for a thread that lives as long as the process.
    pub fn die_with_parent(mut self) -> Self {
        self.die_with_parent = true;
        self
    }

    /// Changes to this user and these groups, which are those of the user namespace that it enters last.
    pub fn become_user(mut self, identity: Identity) -> Self {
        self.become_user = Some(identity);
        self
    }

    /// Takes rights away before the program starts.
    pub fn restrict(mut self, restrict: Restrict) -> Self {
        self.restrict = restrict;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// The fork failed, or a step in the child did; the message names the step.
    pub fn spawn(self) -> io::Result<Child> {
        match self.join_pid.as_ref() {
            None => exec::start(&self),
            Some(of) => crate::netns::on_thread(|| {
                nix::sched::setns(of, CloneFlags::CLONE_NEWPID)?;
                exec::start(&self)
            }),
        }
    }
}

/// A pipe: what is written to the second comes out of the first; both close on exec.
///
/// # Errors
/// No descriptors left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    let result = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) };
    crate::sys::check(result.into())?;
    // SAFETY: both are new and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Forbids other processes without privilege over this one to look at its memory, descriptors and folders in `/proc`, or
/// to trace it; children inherit that until they execute a program.
///
/// # Errors
/// Never on Linux as it is known today.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// Goes on as the first process of a new PID namespace, as a child of this process's parent: a process cannot change its
/// own. The pidfd of the new one is sent to `parent`, a Unix socket, and the calling process ends.
///
/// The caller must have one thread.
///
/// # Errors
/// No right to, or the parent has gone.
pub fn move_to_new_pid_namespace(parent: OwnedFd) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
    let sibling = u64::try_from(libc::CLONE_PARENT).map_err(io::Error::other)?;
    if let Some((_, pidfd)) = exec::fork(sibling)? {
        let sent = crate::seqpacket::send(parent.as_fd(), b"p", &[pidfd.as_fd()]);
        // SAFETY: the process ends without destructors, which the other one runs.
        unsafe { libc::_exit(i32::from(sent.is_err())) }
    }
    Ok(())
}

/// Takes over a descriptor that this process inherited under a known number.
///
/// # Errors
/// There is no such descriptor.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether the number is open, and marks it close-on-exec.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    crate::sys::check(result.into())?;
    // SAFETY: open, and by this function's contract nobody else in this process uses the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ignores ended children: the kernel reaps them at once. For a process that never waits.
pub fn ignore_children() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Replaces this process by the first of the candidates that can be executed.
///
/// Gives the error of the most telling attempt; returns only on failure.
pub fn exec(candidates: &[CString], args: &[CString], env: &[CString]) -> io::Error {
    let mut failure = io::Error::from_raw_os_error(libc::ENOENT);
    for program in candidates {
        let Err(errno) = nix::unistd::execve(program, args, env);
        if errno != nix::errno::Errno::ENOENT && errno != nix::errno::Errno::ENOTDIR {
            failure = errno.into();
        }
    }
    failure
}

pub(crate) fn cstring(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}
