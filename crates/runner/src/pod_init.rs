// SPDX-License-Identifier: Apache-2.0
//! The hidden words of the binary: what runs as the first process of a Pod, and between fork and a container's program.
//!
//! Both start with one thread in fresh namespaces and need the whole of Rust between fork and exec, so the runner
//! executes its own binary again: `meltemi pod-init pause` and `meltemi pod-init container`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use meltemi_linux::caps::{Capabilities, Restrict};
use meltemi_linux::process;
use meltemi_linux::users::Identity;
use serde::{Deserialize, Serialize};

mod container;
pub(crate) mod pause;
mod rootfs;

/// The first argument that means this module.
pub const WORD: &str = "pod-init";
/// Descriptor of a container's spec, or of the pipe whose end ends the Pod.
pub(crate) const SPEC_FD: i32 = 3;
/// Descriptor on which a failure is reported; it closes when the program runs.
pub(crate) const REPORT_FD: i32 = 4;
/// Descriptor of the socket over which the container's process is handed to the runner.
pub(crate) const PARENT_FD: i32 = 5;
/// Descriptor of the Pod's user namespace.
pub(crate) const USERS_FD: i32 = 6;
/// Descriptor of the first of the container's mounts: the image's root if it has one, then the others in the order of
/// [`ContainerSpec::binds`].
pub(crate) const MOUNTS_FD: i32 = 7;
/// Most folders of `PATH` that a program is looked for in: each costs time between fork and exec.
pub(crate) const MAX_PATH_FOLDERS: usize = 256;

/// Who a program runs as, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rights {
    /// The node's root without any capability: of the mesh's own Pods that have no user namespace.
    Nothing,
    /// The node's root with the capabilities of a network administrator.
    NetworkAdmin,
    /// A user of the Pod's user namespace.
    User {
        /// User.
        uid: u32,
        /// Primary group.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
        /// What root may do in the Pod's user namespace, as [`Capabilities::bits`]; other users never have any.
        capabilities: u64,
    },
}

impl Default for Rights {
    /// Root of the Pod with what Kubernetes gives by default.
    fn default() -> Self {
        let capabilities = Capabilities::CONTAINER.bits();
        Self::User { uid: 0, gid: 0, groups: Vec::new(), capabilities }
    }
}

impl Rights {
    /// User and primary group inside of the Pod.
    pub(crate) fn ids(&self) -> (u32, u32) {
        match self {
            Self::User { uid, gid, .. } => (*uid, *gid),
            Self::Nothing | Self::NetworkAdmin => (0, 0),
        }
    }

    /// The identity to assume in the Pod's user namespace.
    pub(crate) fn identity(&self, namespace: UserNamespace) -> Identity {
        let (uid, gid) = self.ids();
        let groups = match (self, namespace) {
            (Self::User { groups, .. }, UserNamespace::Range) => Some(groups.clone()),
            _ => None,
        };
        Identity { uid, gid, groups }
    }

    /// What is taken away before the program runs.
    pub(crate) fn restrict(&self, namespace: UserNamespace) -> Restrict {
        match self {
            Self::NetworkAdmin => Restrict::NetworkAdmin,
            Self::User { uid, capabilities, .. } if namespace != UserNamespace::Nodes => {
                let bounding = Capabilities::from_bits(*capabilities).and(Capabilities::CONTAINER);
                let held = if *uid == 0 { bounding } else { Capabilities::NONE };
                Restrict::Container { held, bounding }
            }
            Self::User { .. } | Self::Nothing => Restrict::Everything,
        }
    }
}

/// The user namespace that the containers of a Pod are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UserNamespace {
    /// The node's.
    Nodes,
    /// One of the Pod's own, with ids of its own.
    Range,
    /// One of the Pod's own, in which there is one id; a container that runs as another user has a further one within.
    Single,
}

/// What the new process is told; read from [`SPEC_FD`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The container.
    pub spec: ContainerSpec,
    /// Owner of what is made in its root, as the runner counts ids: user and group.
    pub owner: (u32, u32),
    /// Where its users are.
    pub users: UserNamespace,
}

/// What a container is made of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// An empty folder of the host on which the root is mounted.
    pub root: PathBuf,
    /// Where the root comes from. `None`: it is made of the machine's programs.
    pub image: Option<ImageRoot>,
    /// Set in the Pod's UTS namespace; not for Pods that share the node's name.
    pub hostname: Option<String>,
    /// Files and folders of the host shown in the container, in this order.
    pub binds: Vec<Bind>,
    /// Files made in the root: absolute path, text.
    pub files: Vec<(PathBuf, String)>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Where it starts; made if missing.
    pub cwd: PathBuf,
    /// Nothing in the root can be written; volumes can.
    pub read_only_root: bool,
    /// User, groups and capabilities.
    pub rights: Rights,
    /// Lives in the PID namespace of the Pod instead of one of its own.
    pub share_processes: bool,
    /// Standard input is a terminal.
    pub terminal: bool,
}

/// The root of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRoot {
    /// Where it is; nothing changes there.
    pub folder: PathBuf,
    /// Where a copy is made if the owners of its files cannot be shown as the Pod's; it goes with the Pod.
    pub copy: PathBuf,
}

/// A file or folder of the host in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host; a path that no Pod can change.
    pub source: PathBuf,
    /// Below the source; the Pod may change what is there at any time. Made if missing. Empty for the source itself.
    pub beneath: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// It cannot be written there.
    pub read_only: bool,
    /// The ids on the disk are those inside of Pods, and every Pod sees them as its own.
    pub map_ids: bool,
}

/// Runs a hidden word; `args` are those after [`WORD`]. The process must have one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Other processes of the Pod may see this one until it has become theirs.
    if process::forbid_inspection().is_err() {
        return ExitCode::from(2);
    }
    let mut args = args.into_iter();
    let word = args.next().unwrap_or_default();
    match word.to_str() {
        Some("pause") => pause::main(args.next()),
        Some("container") => container::main(),
        _ => {
            eprintln!("error: {WORD} is not for use by hand");
            ExitCode::from(2)
        }
    }
}

/// Tells the runner why there is no container or Pod.
fn report(to: std::os::fd::OwnedFd, error: &io::Error) -> ExitCode {
    let _ = File::from(to).write_all(error.to_string().as_bytes());
    ExitCode::from(127)
}

/// Puts the name of a step before its error.
fn named(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// Where a program may be, as a shell looks for it, in the first [`MAX_PATH_FOLDERS`] folders of `path`.
pub(crate) fn search(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let folders = path.split(':').filter(|d| !d.is_empty()).take(MAX_PATH_FOLDERS);
    folders.map(|dir| format!("{dir}/{program}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_not_searched_to_its_end() {
        let path = "/a:".repeat(40_000);
        assert_eq!(search("p", &path).len(), MAX_PATH_FOLDERS);
        assert_eq!(search("p", "/a::/b"), ["/a/p", "/b/p"]);
        assert_eq!(search("./p", &path), ["./p"]);
    }
}
