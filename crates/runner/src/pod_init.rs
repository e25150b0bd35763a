// SPDX-License-Identifier: Apache-2.0
//! The hidden words of the binary: what runs as the first process of a Pod, and between fork and a container's program.
//!
//! Both start with one thread in fresh namespaces and need the whole of Rust between fork and exec, so the runner
//! executes its own binary again: `meltemi pod-init pause` and `meltemi pod-init container`.

use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meltemi_linux::{caps, mount, process};
use serde::{Deserialize, Serialize};

mod rootfs;

/// The first argument that means this module.
pub const WORD: &str = "pod-init";
/// Descriptor of what the process is to do, or of the pipe whose end ends the Pod.
pub(crate) const SPEC_FD: i32 = 3;
/// Descriptor on which a failure is told; it closes when the program runs.
pub(crate) const REPORT_FD: i32 = 4;

/// What a container is made of; read by the new process from [`SPEC_FD`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// An empty folder of the host on which the root is mounted.
    pub root: PathBuf,
    /// Set in the Pod's UTS namespace; not for Pods that share the node's name.
    pub hostname: Option<String>,
    /// What is shown of the host, in order.
    pub binds: Vec<Bind>,
    /// Files made in the root.
    pub files: Vec<(PathBuf, String)>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Where it starts; made if missing.
    pub cwd: PathBuf,
    /// Nothing in the root can be written; volumes can.
    pub read_only_root: bool,
    /// Keeps the network administrator's capabilities.
    pub network_admin: bool,
    /// Standard input is a terminal.
    pub terminal: bool,
}

/// A file or folder of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// It cannot be written there.
    pub read_only: bool,
}

/// Runs a hidden word; `args` are those after [`WORD`]. The process must have one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let word = args.into_iter().next().unwrap_or_default();
    match word.to_str() {
        Some("pause") => pause(),
        Some("container") => container(),
        _ => {
            eprintln!("error: {WORD} is not for use by hand");
            ExitCode::from(2)
        }
    }
}

/// Holds the Pod's namespaces and inherits its orphans until the runner closes the pipe, or is gone.
fn pause() -> ExitCode {
    process::ignore_children();
    let Ok(lifeline) = process::inherited(SPEC_FD) else { return ExitCode::from(2) };
    let mut lifeline = std::fs::File::from(lifeline);
    while lifeline.read(&mut [0; 16]).is_ok_and(|n| n > 0) {}
    ExitCode::SUCCESS
}

fn container() -> ExitCode {
    let Ok(report) = process::inherited(REPORT_FD) else { return ExitCode::from(2) };
    let error = match read_spec().and_then(|spec| become_container(&spec)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = std::fs::File::from(report).write_all(error.to_string().as_bytes());
    ExitCode::from(127)
}

fn read_spec() -> io::Result<ContainerSpec> {
    let mut text = Vec::new();
    std::fs::File::from(process::inherited(SPEC_FD)?).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn become_container(spec: &ContainerSpec) -> io::Result<std::convert::Infallible> {
    let named = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    if let Some(name) = &spec.hostname {
        nix::unistd::sethostname(name).map_err(|e| named("hostname", e.into()))?;
    }
    mount::make_private().map_err(|e| named("private mounts", e))?;
    rootfs::build(spec)?;
    mount::pivot_root(&spec.root).map_err(|e| named("pivot_root", e))?;
    if spec.read_only_root {
        rootfs::seal().map_err(|e| named("read-only root", e))?;
    }
    std::env::set_current_dir(&spec.cwd)
        .map_err(|e| named(&format!("working directory {}", spec.cwd.display()), e))?;
    let path = spec.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
    let program = spec.argv.first().map_or("", String::as_str);
    let candidates = search(program, path);
    let found = candidates.iter().any(|c| Path::new(c).is_file());
    let argv = spec.argv.iter().map(|a| Ok(CString::new(a.as_str())?)).collect::<io::Result<Vec<_>>>()?;
    let env = spec.env.iter().map(|(k, v)| Ok(CString::new(format!("{k}={v}"))?));
    let env = env.collect::<io::Result<Vec<_>>>()?;
    let programs =
        candidates.iter().map(|c| Ok(CString::new(c.as_str())?)).collect::<io::Result<Vec<_>>>()?;
    if !found {
        let why = if program.contains('/') {
            format!("exec: {program:?}: no such file or directory")
        } else {
            format!("exec: {program:?}: executable file not found in $PATH")
        };
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    caps::restrict(rights(spec.network_admin)).map_err(|e| named("dropping rights", e))?;
    Err(named(&format!("exec: {program:?}"), process::exec(&programs, &argv, &env)))
}

pub(crate) fn rights(network_admin: bool) -> caps::Restrict {
    if network_admin { caps::Restrict::NetworkAdmin } else { caps::Restrict::Everything }
}

/// Where a program may be, as a shell looks for it.
pub(crate) fn search(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':').filter(|d| !d.is_empty()).map(|dir| format!("{dir}/{program}")).collect()
}
