// SPDX-License-Identifier: Apache-2.0
//! The first process of a Pod: holds its namespaces, in a root with nothing in it, and reaps its orphans.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;

use meltemi_linux::caps::{self, Restrict};
use meltemi_linux::users::{self, Identity};
use meltemi_linux::{mount, process};

use super::{REPORT_FD, SPEC_FD, named, report};

/// What it says when it waits for its user namespace to get its ids.
pub(crate) const UNMAPPED: u8 = 0;

/// Runs until the runner closes the pipe, or is gone. `user`: it makes the Pod's user namespace and becomes this user of it.
pub(super) fn main(user: Option<OsString>) -> ExitCode {
    process::ignore_children();
    let (Ok(lifeline), Ok(reporting)) = (process::inherited(SPEC_FD), process::inherited(REPORT_FD)) else {
        return ExitCode::from(2);
    };
    let mut lifeline = File::from(lifeline);
    let done = leave_host()
        .and_then(|()| match user {
            Some(user) => make_users(&user, reporting.as_fd(), &mut lifeline),
            None => Ok(()),
        })
        .and_then(|()| caps::restrict(Restrict::Everything).map_err(named("dropping rights")));
    if let Err(error) = done {
        return report(reporting, &error);
    }
    drop(reporting);
    while lifeline.read(&mut [0; 16]).is_ok_and(|n| n > 0) {}
    ExitCode::SUCCESS
}

/// Gives up the host's files. In a Pod whose containers share its processes, this one is in their
/// `/proc`: its root is to lead nowhere.
fn leave_host() -> io::Result<()> {
    // Any folder that is there on every machine.
    let root = Path::new("/proc");
    mount::make_private().map_err(named("private mounts"))?;
    mount::empty(root).map_err(named("empty root"))?;
    mount::pivot_root(root).map_err(named("pivot_root"))
}

/// Makes the Pod's user namespace, last of all: it owns none of the others, so that no right in it is one over them.
fn make_users(user: &OsString, reporting: BorrowedFd<'_>, lifeline: &mut File) -> io::Result<()> {
    let id = user.to_str().and_then(|id| id.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    users::unshare_user().map_err(named("user namespace"))?;
    File::from(reporting.try_clone_to_owned()?).write_all(&[UNMAPPED])?;
    lifeline.read_exact(&mut [0])?;
    let groups = (id != 0).then(Vec::new);
    users::become_user(&Identity { uid: id, gid: id, groups }).map_err(named("user of the Pod"))
}
