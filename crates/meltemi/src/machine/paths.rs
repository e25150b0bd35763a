// SPDX-License-Identifier: Apache-2.0
//! The data directory of a mesh on this machine and the files in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Unix sockets and the nodes' host folders, on a file system that only the mesh sees.
pub const RUN_DIR: &str = "/run/meltemi";
/// The mesh that is meant when no name is given.
pub const DEFAULT_NAME: &str = "default";
/// Name of the lock file: what tells the directory of a mesh from any other.
const LOCK: &str = "lock";

/// Paths below the data directory; nothing else of a mesh is on the host.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Name of the mesh.
    pub name: String,
    /// Whether somebody said the name: a data directory alone names the mesh that runs on it.
    pub named: bool,
    /// The data directory, 0700.
    pub data: PathBuf,
}

impl Paths {
    /// `--data-dir`, else `$MELTEMI_HOME`, else `/var/lib/meltemi` as root and `$XDG_STATE_HOME/meltemi` otherwise;
    /// a mesh with another name than `default` has a directory of its own below it (unless `--data-dir` is given).
    pub fn find(name: Option<&str>, data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let named = name.is_some();
        let name = name.unwrap_or(DEFAULT_NAME).to_owned();
        let valid = !name.is_empty()
            && name.len() <= 32
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid {
            bail!("--name {name:?}: expected 1 to 32 characters of [a-z0-9-]");
        }
        if let Some(dir) = data_dir {
            return Ok(Self { name, named, data: std::path::absolute(dir)? });
        }
        let base = match std::env::var_os("MELTEMI_HOME") {
            Some(home) if !home.is_empty() => PathBuf::from(home),
            _ if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/meltemi"),
            _ => state_home()?.join("meltemi"),
        };
        let base = std::path::absolute(base)?;
        let data = if name == DEFAULT_NAME { base } else { base.join("meshes").join(&name) };
        Ok(Self { name, named, data })
    }

    /// As [`Self::find`]; when nothing names a mesh, the one whose kubeconfig `$KUBECONFIG` is, so that a command means the
    /// mesh that `kubectl` means beside it.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn meant(
        name: Option<&str>,
        data_dir: Option<&Path>,
        kubeconfig: Option<&OsStr>,
    ) -> anyhow::Result<Self> {
        let beside =
            kubeconfig.and_then(|file| Path::new(file).parent()).filter(|dir| dir.join(LOCK).exists());
        Self::find(name, data_dir.or(beside.filter(|_| name.is_none())))
    }

    /// `meltemi up --detach` with what names this mesh, to be copied by a person.
    pub fn how_to_start(&self) -> String {
        let mut command = "meltemi up --detach".to_owned();
        let found = Self::find(Some(&self.name), None).is_ok_and(|usual| usual.data == self.data);
        if self.name != DEFAULT_NAME {
            command.push_str(&format!(" --name {}", self.name));
        }
        if !found {
            command.push_str(&format!(" --data-dir {}", self.data.display()));
        }
        command
    }

    /// Creates the data directory with mode 0700 where it is missing.
    pub fn create(&self) -> anyhow::Result<()> {
        for dir in [self.data.clone(), self.logs(), self.bin()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("creating {}", dir.display()))?;
        }
        fs::set_permissions(&self.data, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("setting the mode of {}", self.data.display()))
    }

    /// Folders for meshes that have a name, around the data directory in its usual place; the innermost first.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        let named = self.name != DEFAULT_NAME;
        let usual = named && Self::find(Some(&self.name), None).is_ok_and(|usual| usual.data == self.data);
        self.data.ancestors().skip(1).take(if usual { 2 } else { 0 })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// Logs of the supervisor and of the processes it starts itself.
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Links to the binary: `meltemi`, `istioctl`.
    pub fn bin(&self) -> PathBuf {
        self.data.join("bin")
    }

    /// Where the nodes write down which cgroups they have made.
    pub fn cgroups(&self) -> PathBuf {
        self.data.join("cgroups")
    }

    /// The user's image table.
    pub fn images(&self) -> PathBuf {
        self.data.join("images.json")
    }

    /// Held with an exclusive lock as long as the supervisor lives.
    pub fn lock(&self) -> PathBuf {
        self.data.join(LOCK)
    }

    /// What runs: see [`super::report::Running`].
    pub fn running(&self) -> PathBuf {
        self.data.join("running.json")
    }
}

fn state_home() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_STATE_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("HOME")
        .filter(|h| !h.is_empty())
        .context("neither $XDG_STATE_HOME nor $HOME is set: name a directory with --data-dir")?;
    Ok(PathBuf::from(home).join(".local/state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_names_the_mesh_where_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let (mesh, elsewhere) = (folder.path().join("mesh"), folder.path().join("elsewhere"));
        for dir in [&mesh, &elsewhere] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("kubeconfig"), "").unwrap();
        }
        fs::write(mesh.join(LOCK), "").unwrap();
        let usual = |name| Paths::find(name, None).unwrap().data;
        let file = |dir: &Path| dir.join("kubeconfig").into_os_string();
        let cases = [
            ("of a mesh", None, None, Some(file(&mesh)), mesh.clone()),
            ("of another cluster", None, None, Some(file(&elsewhere)), usual(None)),
            ("none", None, None, None, usual(None)),
            ("a name is said", Some("m"), None, Some(file(&mesh)), usual(Some("m"))),
            ("a directory is said", None, Some(elsewhere.as_path()), Some(file(&mesh)), elsewhere.clone()),
        ];
        for (what, name, data_dir, kubeconfig, expected) in cases {
            assert_eq!(Paths::meant(name, data_dir, kubeconfig.as_deref()).unwrap().data, expected, "{what}");
        }
    }
}
