// SPDX-License-Identifier: Apache-2.0
//! Keeps the plugin on the node: the program beside the other plugins, and the entry in the configuration that the runtime
//! takes. Others rewrite that file; it is looked at twice a second.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meltemi_runtime::Ready;

use super::Agent;
use super::host::{HostRoot, write_whole};
use crate::PLUGIN;
use crate::conflist::{self, Change, Entry, File};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Mode of a configuration file that was not there before.
const MODE: u32 = 0o600;
/// Longest configuration file, in bytes: longer ones are not the runtime's.
const MAX_FILE: u64 = 1024 * 1024;

/// Where containerd is told its folders, if it is not told where.
const CONTAINERD: [&str; 3] = [
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/snap/microk8s/current/args/containerd.toml",
];
/// Folders of configuration on the platforms that are known: the usual one, k3s and k3d, MicroK8s.
const CONF_DIRS: [&str; 3] = [
    "/etc/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];
/// Folders of plugins: the usual one, GKE, k3s, k3d, MicroK8s, Debian.
const BIN_DIRS: [&str; 6] = [
    "/opt/cni/bin",
    "/home/kubernetes/bin",
    "/var/lib/rancher/k3s/data/cni",
    "/bin",
    "/var/snap/microk8s/current/opt/cni/bin",
    "/usr/lib/cni",
];

/// The node's folders, as the node names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folders {
    pub conf: PathBuf,
    pub bin: PathBuf,
}

/// Puts the plugin in place and keeps it there; `installed` is told when it is for the first time.
pub(super) async fn run(agent: &Arc<Agent>, installed: Ready) {
    let mut installed = Some(installed);
    let mut said = String::new();
    let mut copied = false;
    loop {
        let (working, known) = (agent.clone(), copied);
        let result = tokio::task::spawn_blocking(move || put_in(&working, known)).await;
        match result.map_err(io::Error::other).and_then(|result| result) {
            Ok((folders, changed)) => {
                let now =
                    format!("the plugin is in {} and {}", folders.conf.display(), folders.bin.display());
                if changed || now != said {
                    tracing::info!(changed, "{now}");
                }
                (said, copied) = (now, true);
                if let Some(installed) = installed.take() {
                    installed.done();
                }
            }
            Err(error) => {
                let now = error.to_string();
                if now != said {
                    tracing::warn!(error = now, "the CNI plugin is not in place; it is tried again");
                }
                said = now;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Takes the plugin out of the node's configuration, and its program away.
pub(super) fn take_out(agent: &Agent) -> io::Result<()> {
    for conf in conf_dirs(agent) {
        let folder = agent.host.resolve(&conf)?;
        change(&folder, conflist::take_out(&read(&folder)))?;
    }
    for bin in bin_dirs(agent) {
        match std::fs::remove_file(agent.host.resolve(&bin.join(PLUGIN))?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// One look. `copied`: the program has been copied by this process, and is only looked for.
fn put_in(agent: &Agent, copied: bool) -> io::Result<(Folders, bool)> {
    let folders = find(agent)?;
    let bin = agent.host.resolve(&folders.bin)?.join(PLUGIN);
    let mut changed = false;
    if !(copied && bin.exists()) {
        changed |= copy(&agent.config.binary, &bin)?;
    }
    let conf = agent.host.resolve(&folders.conf)?;
    let changes = conflist::put_in(&read(&conf), &entry(agent)).map_err(io::Error::other)?;
    changed |= !changes.is_empty();
    change(&conf, changes)?;
    Ok((folders, changed))
}

fn entry(agent: &Agent) -> Entry {
    Entry {
        socket: agent.config.socket.display().to_string(),
        excluded_namespaces: agent.config.excluded.iter().cloned().collect(),
        own_namespace: agent.config.own_namespace.clone(),
        own_prefix: format!("{}-", agent.config.daemon_set),
    }
}

/// Copies the program unless the same is there; whether it was copied.
fn copy(from: &Path, to: &Path) -> io::Result<bool> {
    let bytes = std::fs::read(from)?;
    let is_same = std::fs::metadata(to).is_ok_and(|there| there.len() == bytes.len() as u64)
        && std::fs::read(to).is_ok_and(|there| there == bytes);
    if !is_same {
        write_whole(to, &bytes, 0o755)?;
    }
    Ok(!is_same)
}

/// The files of a folder that can be configuration.
fn read(folder: &Path) -> Vec<File> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| read_file(&entry)).collect()
}

/// Only what is a file itself: a link could lead anywhere.
fn read_file(entry: &std::fs::DirEntry) -> Option<File> {
    let is_file = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_FILE);
    let name = entry.file_name().into_string().ok().filter(|_| is_file)?;
    Some(File { name, text: std::fs::read_to_string(entry.path()).ok()? })
}

fn change(folder: &Path, changes: Vec<Change>) -> io::Result<()> {
    for change in changes {
        match change {
            Change::Write(file) => {
                let path = folder.join(&file.name);
                let mode = std::fs::metadata(&path).map_or(MODE, |meta| meta.permissions().mode() & 0o7777);
                write_whole(&path, file.text.as_bytes(), mode)?;
            }
            Change::Remove(name) => std::fs::remove_file(folder.join(name))?,
        }
    }
    Ok(())
}

/// The folders: as set, or as containerd is told, or where this platform has them.
fn find(agent: &Agent) -> io::Result<Folders> {
    let is_network = |dir: &PathBuf| {
        let files = agent.host.resolve(dir).map(|folder| read(&folder)).unwrap_or_default();
        conflist::put_in(&files, &entry(agent)).is_ok()
    };
    let conf = conf_dirs(agent);
    let conf = conf.iter().find(|dir| is_network(dir)).ok_or_else(|| {
        let looked: Vec<String> = conf.iter().map(|dir| dir.display().to_string()).collect();
        io::Error::other(format!("{}; looked in {}", conflist::Error::NoNetwork, looked.join(", ")))
    })?;
    let needed = conflist::plugins_of(&read(&agent.host.resolve(conf)?));
    let bins = bin_dirs(agent);
    let has_others = bins.iter().find(|dir| needed.iter().all(|plugin| agent.host.has(&dir.join(plugin))));
    let bin = has_others.ok_or_else(|| {
        let looked: Vec<String> = bins.iter().map(|dir| dir.display().to_string()).collect();
        io::Error::other(format!(
            "no folder has the plugins {}; looked in {}",
            needed.join(", "),
            looked.join(", ")
        ))
    })?;
    Ok(Folders { conf: conf.clone(), bin: bin.clone() })
}

fn conf_dirs(agent: &Agent) -> Vec<PathBuf> {
    let told = containerd_configs(&agent.config.host_proc);
    candidates(&agent.host, agent.config.conf_dir.as_ref(), &told, "conf_dir", &CONF_DIRS)
}

fn bin_dirs(agent: &Agent) -> Vec<PathBuf> {
    let told = containerd_configs(&agent.config.host_proc);
    candidates(&agent.host, agent.config.bin_dir.as_ref(), &told, "bin_dir", &BIN_DIRS)
}

/// The configuration files of containerd: the one that it is started with where that is to be seen. A file at the usual place
/// may be another program's, or nobody's.
fn containerd_configs(proc: &Path) -> Vec<PathBuf> {
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let running: Vec<PathBuf> = lines.filter_map(|line| config_argument(&line)).collect();
    if running.is_empty() { CONTAINERD.map(PathBuf::from).to_vec() } else { running }
}

/// The argument of `-c` or `--config` of a containerd, by its command line.
fn config_argument(line: &[u8]) -> Option<PathBuf> {
    let words: Vec<&str> =
        line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    if Path::new(words.first()?).file_name()? != "containerd" {
        return None;
    }
    let after = words.iter().position(|word| *word == "-c" || *word == "--config");
    let separate = after.and_then(|at| words.get(at + 1)).copied();
    let joined =
        words.iter().find_map(|word| word.strip_prefix("--config=").or_else(|| word.strip_prefix("-c=")));
    separate.or(joined).filter(|path| path.starts_with('/')).map(PathBuf::from)
}

fn candidates(
    host: &HostRoot,
    set: Option<&PathBuf>,
    containerd: &[PathBuf],
    key: &str,
    known: &[&str],
) -> Vec<PathBuf> {
    if let Some(set) = set {
        return vec![set.clone()];
    }
    let told = containerd.iter().filter_map(|path| setting(&host.read(path).ok()?, key));
    let mut all: Vec<PathBuf> = Vec::new();
    for dir in told.chain(known.iter().map(PathBuf::from)) {
        if !all.contains(&dir) {
            all.push(dir);
        }
    }
    all
}

/// The value of a line `KEY = "VALUE"`: containerd has each of the two keys once.
fn setting(text: &str, key: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (name.trim() == key && value.starts_with('/')).then(|| PathBuf::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_those_of_the_platform() {
        let k3s = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/var/lib/rancher/k3s/data/cni\"\n  conf_dir = \"/x\"\n";
        let table = [
            (
                None,
                None,
                vec![
                    "/etc/cni/net.d",
                    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
                    "/var/snap/microk8s/current/args/cni-network",
                ],
            ),
            (None, Some("/set"), vec!["/set"]),
            (
                Some(k3s),
                None,
                vec![
                    "/x",
                    "/etc/cni/net.d",
                    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
                    "/var/snap/microk8s/current/args/cni-network",
                ],
            ),
            (
                Some("conf_dir = \"/etc/cni/net.d\"\n"),
                None,
                vec![
                    "/etc/cni/net.d",
                    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
                    "/var/snap/microk8s/current/args/cni-network",
                ],
            ),
        ];
        for (containerd, set, expected) in table {
            let root = tempfile::tempdir().unwrap();
            if let Some(text) = containerd {
                std::fs::create_dir_all(root.path().join("etc/containerd")).unwrap();
                std::fs::write(root.path().join("etc/containerd/config.toml"), text).unwrap();
            }
            let host = HostRoot::new(root.path().to_owned());
            let configs = CONTAINERD.map(PathBuf::from);
            let found = candidates(&host, set.map(PathBuf::from).as_ref(), &configs, "conf_dir", &CONF_DIRS);
            assert_eq!(found, expected.into_iter().map(PathBuf::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_configuration_that_containerd_runs_with_is_the_one() {
        for (line, expected) in [
            ("containerd\0-c\0/x/containerd.toml\0", Some("/x/containerd.toml")),
            ("/usr/bin/containerd\0--log-level\0info\0--config\0/etc/c.toml\0", Some("/etc/c.toml")),
            ("/usr/bin/containerd\0--config=/etc/d.toml\0", Some("/etc/d.toml")),
            ("/usr/bin/containerd\0", None),
            ("/usr/bin/containerd\0-c\0relative\0", None),
            ("/usr/bin/containerd-shim-runc-v2\0-c\0/x\0", None),
            ("", None),
        ] {
            assert_eq!(config_argument(line.as_bytes()), expected.map(PathBuf::from), "{line}");
        }
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(containerd_configs(proc.path()), CONTAINERD.map(PathBuf::from));
        std::fs::create_dir(proc.path().join("9")).unwrap();
        std::fs::write(proc.path().join("9/cmdline"), "containerd\0-c\0/x\0").unwrap();
        assert_eq!(containerd_configs(proc.path()), [PathBuf::from("/x")]);
    }
}
