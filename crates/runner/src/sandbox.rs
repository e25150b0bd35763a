// SPDX-License-Identifier: Apache-2.0
//! A Pod's namespaces and the processes in them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use meltemi_linux::beneath::{self, Links, Make};
use meltemi_linux::mount::{self, Forbid};
use meltemi_linux::netns::NetNs;
use meltemi_linux::process::{Child, Spawn, pipe};
use meltemi_linux::seqpacket;
use meltemi_linux::users as kernel;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;

use crate::cgroups::Group;
use crate::image::folder;
use crate::pod_init::pause::UNMAPPED;
use crate::pod_init::{
    Bind, ContainerSpec, ImageRoot, MOUNTS_FD, Order, PARENT_FD, REPORT_FD, Rights, SPEC_FD, USERS_FD,
    UserNamespace, WORD, search,
};
use crate::users::Users;

const SELF: &str = "/proc/self/exe";
/// The user that the first process of a Pod is where there is more than one: `nobody`.
const PAUSE_USER: &str = "65534";
/// What all containers of a Pod share.
const POD_NAMESPACES: CloneFlags =
    CloneFlags::CLONE_NEWNET.union(CloneFlags::CLONE_NEWUTS).union(CloneFlags::CLONE_NEWIPC);

/// The namespaces of a Pod, held by its first process; dropping this ends every process of the Pod.
#[derive(Debug)]
pub struct Sandbox {
    pause: Child,
    netns: NetNs,
    /// The Pod's ids and its user namespace.
    users: Option<(Users, OwnedFd)>,
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
    /// Those of the container.
    pub rights: Rights,
    /// The container's cgroups. `None` leaves it in this process's.
    pub group: Option<Arc<Group>>,
}

impl Sandbox {
    /// Starts the first process of a Pod. `host_network`: in the node's network namespace; `users`: the ids of its user
    /// namespace, without which it has none of its own.
    ///
    /// # Errors
    /// No right to make namespaces, or the kernel gives none.
    pub fn start(host_network: bool, users: Option<Users>) -> io::Result<Self> {
        let (read, write) = pipe()?;
        let mut lifeline = File::from(write);
        let (report, report_end) = pipe()?;
        let mut fresh = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNS;
        if !host_network {
            fresh |= CloneFlags::CLONE_NEWNET;
        }
        let null = || File::open("/dev/null");
        let mut spawn = Spawn::new(Path::new(SELF))?.arg0("pause")?.arg(WORD)?.arg("pause")?;
        if let Some(users) = &users {
            spawn = spawn.arg(if users.is_single() { "0" } else { PAUSE_USER })?;
        }
        let pause = spawn
            .fd(0, null()?)
            .fd(1, File::options().write(true).open("/dev/null")?)
            .fd(2, File::options().write(true).open("/dev/null")?)
            .fd(SPEC_FD, read)
            .fd(REPORT_FD, report_end)
            .fresh(fresh)
            .session()
            .spawn()?;
        let rest = || {
            let namespace =
                users.as_ref().map(|users| give_ids(users, &pause, &report, &mut lifeline)).transpose()?;
            end_of(report)?;
            let netns = if host_network { NetNs::current()? } else { NetNs::of_pid(pause.pid())? };
            Ok((namespace, netns))
        };
        match rest() {
            Ok((namespace, netns)) => {
                Ok(Self { pause, netns, users: users.zip(namespace), _lifeline: lifeline.into() })
            }
            Err(failure) => {
                let _ = pause.signal(nix::libc::SIGKILL);
                let _ = pause.wait();
                Err(failure)
            }
        }
    }

    /// The Pod's ids; none when it has no user namespace of its own.
    pub fn users(&self) -> Option<&Users> {
        self.users.as_ref().map(|(users, _)| users)
    }

    /// The id, as this process counts them, of a user or group of the Pod.
    pub fn id_outside(&self, inside: u32) -> u32 {
        self.users().map_or(0, |users| users.outside(inside))
    }

    fn namespace(&self) -> UserNamespace {
        match self.users() {
            None => UserNamespace::Nodes,
            Some(users) if users.is_single() => UserNamespace::Single,
            Some(_) => UserNamespace::Range,
        }
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
    /// A mount's source cannot be opened, the root cannot be built or the program cannot be executed.
    pub fn start_container(&self, spec: &ContainerSpec, stdio: Stdio) -> io::Result<Child> {
        self.start_mounted(spec, self.open_mounts(spec)?, stdio, None, None)
    }

    /// Opens what a container's binds show, each as a mount of its own that is in no place yet.
    ///
    /// # Errors
    /// A source does not exist or cannot be shown, or the path below it leads out of it.
    pub fn open_mounts(&self, spec: &ContainerSpec) -> io::Result<Vec<OwnedFd>> {
        let owner = (self.id_outside(0), self.id_outside(0));
        let image = spec.image.iter().map(|image| self.open_image(image));
        let bind = |bind: &Bind| match bind.map_ids {
            true => self.open_mapped(bind),
            false => open_mount(bind, owner),
        };
        image.chain(spec.binds.iter().map(bind)).collect()
    }

    /// A folder that Pods with other blocks of ids have used and will use.
    fn open_mapped(&self, bind: &Bind) -> io::Result<OwnedFd> {
        // On the disk root is this process's.
        let mount = open_mount(bind, (0, 0))?;
        if let Some((_, namespace)) = self.users.as_ref().filter(|(users, _)| !users.is_single()) {
            mount::map_ids(mount.as_fd(), namespace.as_fd()).map_err(|e| {
                let why = "the owners of its files cannot be shown as this Pod's (an idmapped mount, for \
                           which the mesh must be root's)";
                io::Error::new(e.kind(), format!("volume {}: {why}: {e}", bind.source.display()))
            })?;
        }
        Ok(mount)
    }

    /// An image's root with the Pod's owners: its ids are mapped at the mount, where the kernel and the file system can, or
    /// it is copied. No byte is then there twice, however many Pods have blocks of ids of their own.
    fn open_image(&self, image: &ImageRoot) -> io::Result<OwnedFd> {
        let open = |folder: &Path| {
            open_mount(&Bind { source: folder.to_owned(), read_only: true, ..Bind::default() }, (0, 0))
        };
        let Some((users, namespace)) = self.users.as_ref().filter(|(users, _)| !users.is_single()) else {
            return open(&image.folder);
        };
        let mount = open(&image.folder)?;
        if mount::map_ids(mount.as_fd(), namespace.as_fd()).is_ok() {
            return Ok(mount);
        }
        if !image.copy.exists() {
            let failed = |e: io::Error| io::Error::new(e.kind(), format!("copy of the image: {e}"));
            let part = image.copy.with_extension("part");
            let _ = std::fs::remove_dir_all(&part);
            std::fs::create_dir_all(&part).map_err(failed)?;
            folder::copy(&image.folder, &part, &|id| Some(users.outside(id))).map_err(failed)?;
            std::fs::rename(&part, &image.copy).map_err(failed)?;
        }
        open(&image.copy)
    }

    /// As [`Self::start_container`], with what [`Self::open_mounts`] gave, in these cgroups. `None` leaves it in this
    /// process's. `target`: a container whose processes it is among, and with whose first one it ends.
    ///
    /// # Errors
    /// The root cannot be built or the program cannot be executed.
    pub fn start_mounted(
        &self,
        spec: &ContainerSpec,
        mounts: Vec<OwnedFd>,
        stdio: Stdio,
        group: Option<&Group>,
        target: Option<&Child>,
    ) -> io::Result<Child> {
        let mut spec = Cow::Borrowed(spec);
        if target.is_some() {
            spec.to_mut().share_processes = true;
        }
        let (report, report_end) = pipe()?;
        let (from_child, parent) = seqpacket::blocking_pair()?;
        let mut spawn = Spawn::new(Path::new(SELF))?
            .arg(WORD)?
            .arg("container")?
            .fd(SPEC_FD, self.order(&spec)?)
            .fd(REPORT_FD, report_end)
            .fresh(CloneFlags::CLONE_NEWNS);
        spawn = join_groups(spawn, group)?;
        if !spec.share_processes {
            spawn = spawn.fd(PARENT_FD, parent);
        }
        if let Some((_, namespace)) = &self.users {
            spawn = spawn.fd(USERS_FD, namespace.try_clone()?);
        }
        self.give_stdio(&stdio, &spec.rights)?;
        for (number, mount) in (MOUNTS_FD..).zip(mounts) {
            spawn = spawn.fd(number, mount);
        }
        let first = self.join(with_stdio(spawn, stdio), target)?.spawn()?;
        let child = if spec.share_processes { first } else { next_process(first, &from_child, &report)? };
        end_of(report).inspect_err(|_| drop(child.wait()))?;
        Ok(child)
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
            .restrict(exec.rights.restrict(self.namespace()))
            .enter(container.as_fd(), CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP | POD_NAMESPACES)?
            .join_pid_namespace(container.as_fd())?;
        spawn = join_groups(spawn, exec.group.as_deref())?;
        if self.users.is_some() {
            // Last: the rights over the other namespaces are those of this process's own.
            spawn = spawn
                .enter(container.as_fd(), CloneFlags::CLONE_NEWUSER)?
                .become_user(exec.rights.identity(self.namespace()));
        }
        self.give_stdio(&stdio, &exec.rights)?;
        with_stdio(spawn, stdio).spawn()
    }

    /// Gives pipes and terminals to the program's user, who may open them again as `/dev/stdout`.
    fn give_stdio(&self, stdio: &Stdio, rights: &Rights) -> io::Result<()> {
        let (uid, gid) = rights.ids();
        for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            if is_of_one_program(&nix::sys::stat::fstat(fd)?) {
                beneath::chown(fd.as_fd(), self.id_outside(uid), self.id_outside(gid))?;
            }
        }
        Ok(())
    }

    /// A nameless file with the order for a container, read from its beginning.
    fn order(&self, spec: &ContainerSpec) -> io::Result<OwnedFd> {
        use std::io::Seek;
        let owner = (self.id_outside(0), self.id_outside(0));
        let order = Order { spec: spec.clone(), owner, users: self.namespace() };
        let fd = nix::sys::memfd::memfd_create("container", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(fd);
        file.write_all(&serde_json::to_vec(&order)?)?;
        file.rewind()?;
        Ok(file.into())
    }

    fn join(&self, spawn: Spawn, target: Option<&Child>) -> io::Result<Spawn> {
        let processes = target.map_or(self.pause.as_fd(), AsFd::as_fd);
        spawn.join_pid_namespace(processes)?.enter(self.pause.as_fd(), POD_NAMESPACES)
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

/// Maps the ids of a Pod whose first process waits for them; the namespace.
fn give_ids(users: &Users, pause: &Child, report: &OwnedFd, lifeline: &mut File) -> io::Result<OwnedFd> {
    let mut first = [0];
    let mut report = File::from(report.try_clone()?);
    match report.read(&mut first)? {
        1 if first[0] == UNMAPPED => {}
        read => {
            let mut failure = String::from_utf8_lossy(&first[..read]).into_owned();
            report.read_to_string(&mut failure)?;
            return Err(io::Error::other(failure));
        }
    }
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("user mapping: {e}"));
    kernel::map(&pause.pid().to_string(), users.extents(), users.setgroups()).map_err(failed)?;
    lifeline.write_all(b"g")?;
    kernel::namespace_of(pause.pid())
}

/// Whether a descriptor is a pipe or a terminal: others, such as `/dev/null`, are everybody's.
fn is_of_one_program(stat: &nix::libc::stat) -> bool {
    const TERMINALS: std::ops::RangeInclusive<u64> = 136..=143;
    match stat.st_mode & nix::libc::S_IFMT {
        nix::libc::S_IFIFO => true,
        nix::libc::S_IFCHR => TERMINALS.contains(&nix::sys::stat::major(stat.st_rdev)),
        _ => false,
    }
}

fn open_mount(bind: &Bind, owner: (u32, u32)) -> io::Result<OwnedFd> {
    let at = |what: &str, path: &Path| {
        let path = path.display().to_string();
        let what = what.to_owned();
        move |e: io::Error| io::Error::new(e.kind(), format!("{what} {path}: {e}"))
    };
    let source = nix::fcntl::open(&bind.source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let mut source = source.map_err(|e| at("mount source", &bind.source)(e.into()))?;
    if !bind.beneath.as_os_str().is_empty() {
        source =
            beneath::open_or_make(source.as_fd(), &bind.beneath, Links::Refused, Make::Folder, Some(owner))
                .map_err(at("subPath", &bind.beneath))?;
    }
    let forbid = Forbid { write: bind.read_only, devices: true, execute: false };
    mount::detached(source.as_fd(), forbid).map_err(at("mount source", &bind.source))
}

/// Waits for the process that `first` leaves behind as the first of its PID namespace.
fn next_process(first: Child, from_child: &OwnedFd, report: &OwnedFd) -> io::Result<Child> {
    let message = seqpacket::recv(from_child.as_fd(), 1);
    first.wait()?;
    match message?.fds.pop() {
        Some(pidfd) => Child::from_pidfd(pidfd),
        None => Err(end_of(report.try_clone()?)
            .err()
            .unwrap_or_else(|| io::Error::other("the container's process ended before it could say why"))),
    }
}

/// What a container uses counts for its groups from the first step on.
fn join_groups(spawn: Spawn, group: Option<&Group>) -> io::Result<Spawn> {
    let lists = group.map(Group::lists).transpose()?.unwrap_or_default();
    Ok(lists.into_iter().fold(spawn, Spawn::join_group))
}

/// Reads a report to its end: empty when all went well.
fn end_of(report: OwnedFd) -> io::Result<()> {
    let mut failure = String::new();
    File::from(report).read_to_string(&mut failure)?;
    if failure.is_empty() { Ok(()) } else { Err(io::Error::other(failure)) }
}

fn with_stdio(spawn: Spawn, stdio: Stdio) -> Spawn {
    let terminal = stdio.terminal;
    let spawn = spawn.fd(0, stdio.stdin).fd(1, stdio.stdout).fd(2, stdio.stderr);
    if terminal { spawn.terminal() } else { spawn.session() }
}
