// SPDX-License-Identifier: Apache-2.0
//! What the supervisor reports: progress lines to whoever started it, and `running.json` for `status` and `down`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::paths::Paths;

/// One line of progress, as JSON, from the supervisor to the process that started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Progress {
    /// Something has begun.
    Step {
        /// What, for people.
        text: String,
    },
    /// Everything is ready.
    Ready,
    /// The mesh could not be started.
    Failed {
        /// Why, and what to do next.
        reason: String,
    },
}

/// Writes progress lines; a reader that went away is not an error.
#[derive(Debug)]
pub struct Reporter(Option<fs::File>);

impl Reporter {
    /// A reporter on the given pipe; none reports nowhere.
    pub fn new(pipe: Option<OwnedFd>) -> Self {
        Self(pipe.map(fs::File::from))
    }

    /// Reports that something has begun.
    pub fn step(&mut self, text: &str) {
        tracing::info!(step = text, "starting");
        self.send(&Progress::Step { text: text.to_owned() });
    }

    /// Reports the end, and closes the pipe.
    pub fn finish(&mut self, result: &anyhow::Result<()>) {
        match result {
            Ok(()) => self.send(&Progress::Ready),
            Err(e) => self.send(&Progress::Failed { reason: format!("{e:#}") }),
        }
        self.0 = None;
    }

    fn send(&mut self, progress: &Progress) {
        if let (Some(file), Ok(mut line)) = (&mut self.0, serde_json::to_vec(progress)) {
            line.push(b'\n');
            let _ = file.write_all(&line);
        }
    }
}

/// What runs, for `status` and `down`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Name of the mesh.
    pub name: String,
    /// Pid of the supervisor as the host sees it.
    pub pid: i32,
    /// Its start time in clock ticks since boot (`/proc/<pid>/stat` field 22): a pid alone can be reused.
    pub start_time: u64,
    /// Port of the API on 127.0.0.1.
    pub port: u16,
    /// Number of nodes.
    pub nodes: u16,
    /// Version of the binary.
    pub version: String,
    /// When it was started, RFC 3339.
    pub started: String,
    /// Whether all of it has been ready once.
    #[serde(default = "yes")]
    pub ready: bool,
}

fn yes() -> bool {
    true
}

impl Running {
    /// Writes `running.json`: a reader sees the old one or the new one, never a part.
    pub fn write(&self, paths: &Paths) -> anyhow::Result<()> {
        let file = paths.running();
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// Records that the mesh, whose supervisor the caller is, has been ready.
    pub fn set_ready(paths: &Paths) -> anyhow::Result<()> {
        match Self::last(paths)? {
            Some(running) => Self { ready: true, ..running }.write(paths),
            None => Ok(()),
        }
    }

    /// What `running.json` says, if its process is still the one that it names.
    ///
    /// # Errors
    /// The file cannot be read, or a mesh of another name runs on this data directory.
    pub fn read(paths: &Paths) -> anyhow::Result<Option<Self>> {
        let running = Self::last(paths)?.filter(|r| start_time(r.pid) == Some(r.start_time));
        if let Some(other) = running.as_ref().filter(|r| paths.named && r.name != paths.name) {
            bail!(
                "in {} runs the mesh {:?}, not {:?}: say --name {}, or another --data-dir",
                paths.data.display(),
                other.name,
                paths.name,
                other.name
            );
        }
        Ok(running)
    }

    /// What `running.json` says, whether or not it still runs.
    pub fn last(paths: &Paths) -> anyhow::Result<Option<Self>> {
        let file = paths.running();
        match fs::read(&file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }
}

/// Start time of a process in clock ticks since boot; none when it does not exist (any more).
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may hold blanks and parentheses itself.
    let (_, rest) = stat.rsplit_once(')')?;
    if rest.trim_start().starts_with(['Z', 'X']) {
        return None;
    }
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_names_its_mesh_and_another_name_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let find = |name| Paths::find(name, Some(dir.path())).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let running = Running {
            name: "a".into(),
            pid,
            start_time: start_time(pid).unwrap(),
            port: 1,
            nodes: 1,
            version: String::new(),
            started: String::new(),
            ready: true,
        };
        running.write(&find(Some("a"))).unwrap();
        assert_eq!(Running::read(&find(None)).unwrap().unwrap().name, "a");
        assert_eq!(Running::read(&find(Some("a"))).unwrap().unwrap().name, "a");
        let error = Running::read(&find(Some("b"))).unwrap_err().to_string();
        assert!(error.contains("--name a"), "{error}");
        Running { start_time: 0, ..running }.write(&find(None)).unwrap();
        assert!(Running::read(&find(Some("b"))).unwrap().is_none(), "what has ended is in nobody's way");
    }

    #[test]
    fn what_to_type_names_the_mesh() {
        let dir = tempfile::tempdir().unwrap();
        let text = Paths::find(Some("a"), Some(dir.path())).unwrap().how_to_start();
        assert_eq!(text, format!("meltemi up --detach --name a --data-dir {}", dir.path().display()));
        assert_eq!(Paths::find(Some("a"), None).unwrap().how_to_start(), "meltemi up --detach --name a");
    }
}
