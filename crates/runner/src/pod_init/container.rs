// SPDX-License-Identifier: Apache-2.0
//! From the runner's binary to a container's program: root, mounts, rights, exec.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use meltemi_linux::{caps, mount, process, users};
use nix::sched::CloneFlags;

use super::{
    ContainerSpec, MOUNTS_FD, Order, PARENT_FD, REPORT_FD, SPEC_FD, USERS_FD, UserNamespace, named, report,
    rootfs, search,
};

/// Becomes the program; returns only when it cannot.
pub(super) fn main() -> ExitCode {
    let Ok(reporting) = process::inherited(REPORT_FD) else { return ExitCode::from(2) };
    match read_order().and_then(|order| become_container(&order)) {
        Ok(never) => match never {},
        Err(error) => report(reporting, &error),
    }
}

fn read_order() -> io::Result<Order> {
    let mut text = Vec::new();
    std::fs::File::from(process::inherited(SPEC_FD)?).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn become_container(order: &Order) -> io::Result<Infallible> {
    let spec = &order.spec;
    if !spec.share_processes {
        let parent = process::inherited(PARENT_FD)?;
        process::move_to_new_pid_namespace(parent).map_err(named("PID namespace"))?;
    }
    // Where the container is among the machine's cgroups is not told to it.
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|e| named("cgroup namespace")(e.into()))?;
    let count = spec.binds.len() + usize::from(spec.image.is_some());
    let mounts = (MOUNTS_FD..).take(count).map(process::inherited);
    let mut mounts = mounts.collect::<io::Result<Vec<OwnedFd>>>()?;
    let image = spec.image.is_some().then(|| mounts.remove(0));
    if let Some(name) = &spec.hostname {
        nix::unistd::sethostname(name).map_err(|e| named("hostname")(e.into()))?;
    }
    mount::make_private().map_err(named("private mounts"))?;
    let root = match image {
        None => rootfs::build(spec, order.owner)?,
        Some(image) => rootfs::image::build(spec, image, order.owner)?,
    };
    mount::pivot_root(&root).map_err(named("pivot_root"))?;
    // From here on a path of the container, whatever links it has, leads to nothing of the host.
    if spec.image.is_some() {
        rootfs::image::write_files(spec, order.owner)?;
    }
    rootfs::attach(spec, mounts, order.owner)?;
    if spec.read_only_root {
        rootfs::seal().map_err(named("read-only root"))?;
    }
    become_user(order)?;
    std::env::set_current_dir(&spec.cwd)
        .map_err(named(&format!("working directory {}", spec.cwd.display())))?;
    let program = Program::find(spec)?;
    caps::restrict(spec.rights.restrict(order.users)).map_err(named("dropping rights"))?;
    Err(program.execute())
}

/// Enters the Pod's user namespace and becomes the container's user.
fn become_user(order: &Order) -> io::Result<()> {
    if order.users == UserNamespace::Nodes {
        return Ok(());
    }
    let namespace = process::inherited(USERS_FD)?;
    users::enter_user(&namespace).map_err(named("user namespace"))?;
    let identity = order.spec.rights.identity(order.users);
    if order.users == UserNamespace::Single && (identity.uid, identity.gid) != (0, 0) {
        users::unshare_user().map_err(named("user namespace"))?;
        users::map_self(identity.uid, identity.gid).map_err(named("user mapping"))?;
    }
    let what = format!("user {} group {}", identity.uid, identity.gid);
    users::become_user(&identity).map_err(named(&what))
}

/// What is executed, in the form in which the kernel takes it.
struct Program {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn find(spec: &ContainerSpec) -> io::Result<Self> {
        let path = spec.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
        let name = spec.argv.first().map_or("", String::as_str);
        let candidates = search(name, path);
        if !candidates.iter().any(|c| Path::new(c).is_file()) {
            let why = if name.contains('/') {
                format!("exec: {name:?}: no such file or directory")
            } else {
                format!("exec: {name:?}: executable file not found in $PATH")
            };
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        let text = |s: String| Ok(CString::new(s)?);
        Ok(Self {
            name: name.to_owned(),
            candidates: candidates.into_iter().map(text).collect::<io::Result<_>>()?,
            argv: spec.argv.iter().cloned().map(text).collect::<io::Result<_>>()?,
            env: spec.env.iter().map(|(k, v)| text(format!("{k}={v}"))).collect::<io::Result<_>>()?,
        })
    }

    fn execute(&self) -> io::Error {
        let error = process::exec(&self.candidates, &self.argv, &self.env);
        named(&format!("exec: {:?}", self.name))(error)
    }
}
