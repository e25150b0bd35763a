// SPDX-License-Identifier: Apache-2.0
//! A mesh of two nodes for the time of a benchmark, and what its processes cost.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// Programs that the benchmark drives, as absolute paths.
pub(crate) struct Tools {
    meltemi: PathBuf,
    kubectl: PathBuf,
    /// Folder of `oha`, mounted into the clients' containers.
    pub(crate) load_generator: PathBuf,
    pub(crate) iperf3: bool,
    pub(crate) haproxy: bool,
    /// Envoy's folder and program, where it is there.
    pub(crate) envoy: Option<PathBuf>,
}

impl Tools {
    /// Looks for the programs; a peer that is missing is left out, with a line that says so.
    ///
    /// # Errors
    /// The mesh's binary, `oha` or nginx is missing.
    pub(crate) fn find(meltemi: &Path, kubectl: &Path, tools: &Path) -> anyhow::Result<Self> {
        let meltemi = meltemi
            .canonicalize()
            .with_context(|| format!("{}: no mesh binary; run `make build`", meltemi.display()))?;
        let load_generator =
            tools.join("bin").canonicalize().ok().filter(|dir| dir.join("oha").exists()).with_context(
                || format!("{}/bin/oha: no load generator; run `make bench`", tools.display()),
            )?;
        if !Path::new("/usr/sbin/nginx").exists() {
            bail!("/usr/sbin/nginx is missing: it is the server of every path (Debian: nginx-light)");
        }
        let envoy = tools.join("envoy").canonicalize().ok();
        let found = Self {
            meltemi,
            kubectl: kubectl.to_path_buf(),
            load_generator,
            iperf3: Path::new("/usr/bin/iperf3").exists(),
            haproxy: Path::new("/usr/sbin/haproxy").exists(),
            envoy,
        };
        for (there, what) in [
            (found.iperf3, "iperf3: bytes per second are not measured"),
            (found.haproxy, "haproxy: not compared"),
            (found.envoy.is_some(), "envoy in the tools folder: not compared (scripts/envoy.sh)"),
        ] {
            if !there {
                eprintln!("bench: no {what}");
            }
        }
        Ok(found)
    }
}

/// A running mesh; taken down when dropped.
pub(crate) struct Mesh {
    meltemi: PathBuf,
    kubectl: PathBuf,
    name: String,
    /// Process id of the supervisor, the ancestor of every process of the mesh.
    supervisor: u32,
    /// Configurations of the servers and peers, mounted read-only at `/bench/etc`.
    pub(crate) etc: PathBuf,
    home: TempDir,
}

impl Mesh {
    /// Starts a mesh of two nodes in a data directory of its own.
    pub(crate) fn start(tools: &Tools) -> anyhow::Result<Self> {
        let home = TempDir::with_prefix("meltemi-bench-")?;
        let etc = home.path().join("etc");
        std::fs::create_dir(&etc)?;
        let mut mesh = Self {
            meltemi: tools.meltemi.clone(),
            kubectl: tools.kubectl.clone(),
            name: format!("bench-{}", std::process::id()),
            supervisor: 0,
            etc,
            home,
        };
        mesh.meltemi("up", &["--nodes", "2", "--detach"])?;
        let running = mesh.data_dir().join("running.json");
        let running: serde_json::Value = serde_json::from_slice(&std::fs::read(running)?)?;
        let pid = running["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        mesh.supervisor = pid.context("running.json names no process")?;
        Ok(mesh)
    }

    /// Runs a command of `meltemi` that works on a mesh of this machine; returns its output.
    pub(crate) fn meltemi(&self, command: &str, args: &[&str]) -> anyhow::Result<String> {
        let data = self.data_dir();
        let mut run = Command::new(&self.meltemi);
        run.args(command.split(' ')).args(["--name", &self.name]).arg("--data-dir").arg(&data);
        output(run.args(args).current_dir(self.home.path()))
    }

    /// Runs a command of `meltemi` that talks to the API; returns its output.
    pub(crate) fn meltemi_by_api(&self, args: &[&str]) -> anyhow::Result<String> {
        output(Command::new(&self.meltemi).args(args).env("KUBECONFIG", self.data_dir().join("kubeconfig")))
    }

    fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Runs `kubectl` and returns its output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        output(self.kubectl_command().args(args))
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", self.data_dir().join("kubeconfig"));
        command
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.home.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        output(self.kubectl_command().args(["apply", "--server-side", "-f"]).arg(&file)).map(drop)
    }

    /// Runs a program in the container of a client Pod.
    pub(crate) fn exec(&self, namespace: &str, command: &[&str]) -> anyhow::Result<String> {
        let mut run = self.kubectl_command();
        output(run.args(["-n", namespace, "exec", "client", "--"]).args(command))
    }

    /// CPU time in seconds that `programs` of this mesh have used until now.
    pub(crate) fn cpu_seconds(&self, programs: &[Program]) -> f64 {
        let ticks: u64 = self
            .running(programs)
            .filter_map(|pid| {
                let fields = stat(pid)?;
                // Fields 14 and 15 of proc_pid_stat(5), counted here from field 3: user and system time.
                Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
            })
            .sum();
        // Linux reports processor time to programs in hundredths of a second (USER_HZ).
        ticks as f64 / 100.0
    }

    /// Resident memory of `programs` of this mesh in bytes.
    pub(crate) fn resident_bytes(&self, programs: &[Program]) -> u64 {
        self.running(programs)
            .filter_map(|pid| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .sum::<u64>()
            * 1024
    }

    /// Process ids of `programs` below this mesh's supervisor.
    fn running(&self, programs: &[Program]) -> impl Iterator<Item = u32> {
        processes()
            .filter(|pid| programs.iter().any(|program| program.is(*pid)))
            .filter(|pid| is_descendant(*pid, self.supervisor))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Err(error) = self.meltemi("down", &["--purge"]) {
            eprintln!("bench: the mesh {} was not taken down: {error:#}", self.name);
        }
    }
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let ran: Output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not start", command.get_program().to_string_lossy()))?;
    if !ran.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            ran.status,
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Ok(String::from_utf8(ran.stdout)?)
}

/// A program of the mesh, by its command line and the Pod that it runs in.
pub(crate) struct Program {
    /// Part of the command line, with spaces between the arguments.
    pub(crate) command: &'static str,
    /// Begin of the Pod's name as its `POD_NAME` says it; `None`: every Pod's.
    pub(crate) pod: Option<&'static str>,
}

impl Program {
    fn is(&self, pid: u32) -> bool {
        let read = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        read("cmdline").replace('\0', " ").contains(self.command)
            && self.pod.is_none_or(|pod| {
                read("environ")
                    .split('\0')
                    .filter_map(|variable| variable.strip_prefix("POD_NAME="))
                    .any(|name| name.starts_with(pod))
            })
    }
}

/// Every process of the machine.
fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
}

/// Fields of `/proc/PID/stat` after the program's name, which may itself hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn is_descendant(pid: u32, ancestor: u32) -> bool {
    let mut pid = pid;
    // A chain of parents is as long as processes are nested; the bound is for one that changes while it is read.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        match stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}
