// SPDX-License-Identifier: Apache-2.0
//! A mesh of a test's own: its data in a temporary directory, stopped when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Brought by `scripts/kubectls.sh`.
pub(crate) const KUBECTLS: [&str; 2] = ["kubectl-1.20", "kubectl-1.35"];

const BINARY: &str = env!("CARGO_BIN_EXE_meltemi");
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Machine {
    dir: Option<tempfile::TempDir>,
    name: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

impl Machine {
    /// Starts a mesh of two nodes and chooses a kubectl for it.
    pub(crate) fn start(kubectl: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = repository().join("target/tools").join(kubectl);
        assert!(program.exists(), "{} is missing: scripts/kubectls.sh brings it", program.display());
        let path = dir.path().join("path");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(program, path.join("kubectl")).unwrap();
        let name = format!("t{}", std::process::id());
        let machine = Self { dir: Some(dir), name };
        machine.up();
        machine
    }

    fn root(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    fn up(&self) {
        let mut command = Command::new(BINARY);
        command.args(["up", "--detach", "--nodes", "2", "--name", &self.name, "--data-dir"]).arg(self.data());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "up: {text}\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.data().join("logs")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            all.push_str(&format!(
                "--- {}\n{}\n",
                entry.path().display(),
                lines[lines.len().saturating_sub(30)..].join("\n")
            ));
        }
        all
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        let path = format!("{}:{}", self.root().join("path").display(), std::env::var("PATH").unwrap());
        shell.args(["-c", &format!("exec 2>&1\n{command}")]).current_dir(repository()).stdin(Stdio::null());
        shell.env("PATH", path).env("KUBECONFIG", self.data().join("kubeconfig")).env("HOME", self.root());
        shell
    }

    /// What a command prints.
    pub(crate) fn output(&self, command: &str) -> String {
        String::from_utf8_lossy(&self.shell(command).output().unwrap().stdout).into_owned()
    }

    /// Runs a command once.
    pub(crate) fn step(&self, command: &str, shows: &str, code: i32) {
        let output = self.shell(command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.code() == Some(code) && text.contains(shows),
            "$ {command}\n{text}\nexit {:?} instead of {code}, must show {shows:?}\n{}",
            output.status.code(),
            self.logs()
        );
    }

    /// Runs a command until it shows a text.
    pub(crate) fn eventually(&self, command: &str, shows: &str) {
        let begun = Instant::now();
        loop {
            let text = self.output(command);
            if text.contains(shows) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "$ {command}\n{text}\nmust show {shows:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Forwards a port and gets a page through it.
    pub(crate) fn port_forward(&self, what: &str, port: u16, path: &str, shows: &str) {
        let local = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut forward = self
            .shell(&format!("exec kubectl port-forward {what} {local}:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.eventually(&format!("curl -s http://localhost:{local}{path}"), shows);
        forward.kill().unwrap();
        forward.wait().unwrap();
    }

    fn down(&self) {
        let mut command = Command::new(BINARY);
        command.args(["down", "--name", &self.name, "--data-dir"]).arg(self.data());
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "down");
    }

    /// Stops it and starts it again on its data.
    pub(crate) fn restart(self) -> Self {
        self.down();
        assert!(self.processes().is_empty(), "left behind: {:?}", self.processes());
        self.up();
        self
    }

    /// Kills the first process of the mesh, and gives the kernel a moment.
    pub(crate) fn kill_supervisor(&self) {
        let running = std::fs::read_to_string(self.data().join("running.json")).unwrap();
        let running: serde_json::Value = serde_json::from_str(&running).unwrap();
        let pid = i32::try_from(running["pid"].as_i64().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let begun = Instant::now();
        while !self.processes().is_empty() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Command lines of processes that work on this mesh's data.
    pub(crate) fn processes(&self) -> Vec<String> {
        let data = self.data().to_string_lossy().into_owned();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&data) && !line.contains("cluster-"))
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let _ = Command::new(BINARY)
            .args(["down", "--purge", "--name", &self.name, "--data-dir"])
            .arg(self.data())
            .stdout(Stdio::null())
            .status();
    }
}
