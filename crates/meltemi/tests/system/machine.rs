// SPDX-License-Identifier: Apache-2.0
//! A mesh of a test's own: its data in a temporary directory, stopped when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

/// Brought by `scripts/kubectls.sh`.
pub(crate) const KUBECTLS: [&str; 2] = ["kubectl-1.20", "kubectl-1.35"];

const BINARY: &str = env!("CARGO_BIN_EXE_meltemi");
/// Longest wait for something that must come. Generous, since other builds may share the machine: only a failure is slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// What `kubectl wait` says, and fails, when there is nothing yet that it could wait for.
const NOTHING_TO_WAIT_FOR: &str = "no matching resources found";

pub(crate) struct Machine {
    dir: Option<tempfile::TempDir>,
    name: String,
    env: Vec<(&'static str, &'static str)>,
    mounted: bool,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

impl Machine {
    /// Starts a mesh of two nodes and chooses a kubectl for it.
    pub(crate) fn start(kubectl: &str) -> Self {
        let machine = Self::prepare(kubectl, &[]);
        machine.up(&["--nodes", "2"]);
        machine
    }

    /// As [`Self::start`], with environment variables for what is started.
    pub(crate) fn start_with(kubectl: &str, env: &[(&'static str, &'static str)]) -> Self {
        let machine = Self::prepare(kubectl, env);
        machine.up(&["--nodes", "2"]);
        machine
    }

    /// A mesh that is not started yet.
    pub(crate) fn prepare(kubectl: &str, env: &[(&'static str, &'static str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = repository().join("target/tools").join(kubectl);
        assert!(program.exists(), "{} is missing: scripts/kubectls.sh brings it", program.display());
        let path = dir.path().join("path");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(program, path.join("kubectl")).unwrap();
        let name = format!("t{}", std::process::id());
        Self { dir: Some(dir), name, env: env.to_vec(), mounted: false }
    }

    /// `meltemi up --detach` of this mesh, to be started by the test itself.
    pub(crate) fn up_command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["up", "--detach", "--name", &self.name, "--data-dir"]).arg(self.data());
        command.envs(self.env.iter().copied()).stdin(Stdio::null());
        command
    }

    fn root(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Puts the data of a mesh that is not started yet on a disk of its own, of so many bytes. Needs root.
    pub(crate) fn on_small_disk(&mut self, bytes: u64) {
        std::fs::create_dir(self.data()).unwrap();
        let options = format!("size={bytes},mode=0700");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &self.data(), Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        self.mounted = true;
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    pub(crate) fn up(&self, nodes: &[&str]) {
        let output = self.up_command().args(nodes).output().unwrap();
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
        let own = format!("{}:{}", self.root().join("path").display(), self.data().join("bin").display());
        let path = format!("{own}:{}", std::env::var("PATH").unwrap());
        shell.args(["-c", &format!("exec 2>&1\n{command}")]).current_dir(repository()).stdin(Stdio::null());
        shell.env("PATH", path).env("KUBECONFIG", self.data().join("kubeconfig")).env("HOME", self.root());
        shell
    }

    /// Runs a command once; what it prints, and its exit code.
    pub(crate) fn run(&self, command: &str) -> (String, Option<i32>) {
        let output = self.shell(command).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
    }

    /// What a command prints.
    pub(crate) fn output(&self, command: &str) -> String {
        self.run(command).0
    }

    /// Runs a command once. A `kubectl wait` whose objects do not exist yet (the Pods of a new Deployment) has not
    /// waited: it runs again until there is something to wait for.
    pub(crate) fn step(&self, command: &str, shows: &str, code: i32) {
        self.retry(command, shows, code, |text| text.contains(NOTHING_TO_WAIT_FOR));
    }

    /// Runs a command until it shows a text and ends with a code: for what follows from a write on its own time, like
    /// the first request to a new Service.
    pub(crate) fn until(&self, command: &str, shows: &str, code: i32) {
        self.retry(command, shows, code, |_| true);
    }

    /// Runs a command until it shows a text, whatever its exit code.
    pub(crate) fn eventually(&self, command: &str, shows: &str) {
        self.until(&format!("{command}\ntrue"), shows, 0);
    }

    /// Runs a command, again while `again` says so of its output, for at most [`LIMIT`].
    fn retry(&self, command: &str, shows: &str, code: i32, again: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        loop {
            let output = self.shell(command).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            if output.status.code() == Some(code) && text.contains(shows) {
                return;
            }
            assert!(
                again(&text) && begun.elapsed() < LIMIT,
                "$ {command}\n{text}\nexit {:?} instead of {code}, must show {shows:?}",
                output.status.code(),
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Forwards a port of a Pod or Service (with its `-n`); ended when dropped.
    pub(crate) fn forward(&self, what: &str, port: u16) -> (Background, u16) {
        let local = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let forward = self.background(&format!("kubectl port-forward {what} {local}:{port}"));
        forward.shows(b"Forwarding from");
        (forward, local)
    }

    /// Forwards a port and gets a page through it.
    pub(crate) fn port_forward(&self, what: &str, port: u16, path: &str, shows: &str) {
        let (_forward, local) = self.forward(what, port);
        self.eventually(&format!("curl -s http://localhost:{local}{path}"), shows);
    }

    /// Writes down every packet that the machine between the nodes sees, in the mesh's own network namespace.
    pub(crate) fn wiretap(&self) -> Background {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/wiretap.py");
        let pid = self.pid("serve apiserver").unwrap();
        // As an ordinary user the namespaces belong to a user namespace, which is entered first.
        let user = if nix::unistd::geteuid().is_root() { "" } else { "-U --preserve-credentials " };
        let tap = self
            .background(&format!("nsenter -t {pid} {user}-n python3 -u {} /dev/stdout", script.display()));
        tap.shows(b"listening");
        tap
    }

    /// Runs a command as root of the hub's network namespace; what it prints.
    pub(crate) fn in_hub(&self, command: &str) -> String {
        self.enter("serve apiserver", command)
    }

    /// Runs a command as root of the first node's network namespace; what it prints.
    pub(crate) fn on_node(&self, command: &str) -> String {
        self.enter("serve runner", command)
    }

    fn enter(&self, process: &str, command: &str) -> String {
        let pid = self.pid(process).unwrap();
        // As an ordinary user the namespaces belong to a user namespace, which is entered first.
        let user = if nix::unistd::geteuid().is_root() { "" } else { "-U --preserve-credentials " };
        let path = "PATH=$PATH:/usr/sbin:/sbin";
        self.output(&format!("{path} nsenter -t {pid} {user}-n -m bash -c '{command}' 2>&1"))
    }

    pub(crate) fn down(&self) {
        let mut command = Command::new(BINARY);
        command.args(["down", "--name", &self.name, "--data-dir"]).arg(self.data());
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "down");
    }

    /// The process id, as the host sees it, of a process of this mesh whose command line has the text.
    pub(crate) fn pid(&self, text: &str) -> Option<i32> {
        let has = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // With a blank at the end: `serve control` is not `serve controllers`.
            String::from_utf8_lossy(&line).replace('\0', " ").contains(&format!("{text} "))
        };
        self.family().into_iter().find(has)
    }

    /// All processes of this mesh, the supervisor first.
    fn family(&self) -> Vec<i32> {
        let mut family = vec![self.supervisor()];
        let mut at = 0;
        while let Some(pid) = family.get(at).copied() {
            at += 1;
            for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let new = children.split_whitespace().filter_map(|p| p.parse::<i32>().ok());
                let new: Vec<i32> = new.filter(|p| !family.contains(p)).collect();
                family.extend(new);
            }
        }
        family
    }

    /// Sends a signal to every process of this mesh.
    pub(crate) fn signal_all(&self, signal: Signal) {
        for pid in self.family() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }

    /// Kills a process of this mesh as `kill -9` does; true when there was one.
    pub(crate) fn kill(&self, text: &str) -> bool {
        self.signal(text, Signal::SIGKILL)
    }

    /// Sends a signal to a process of this mesh; true when there was one.
    pub(crate) fn signal(&self, text: &str, signal: Signal) -> bool {
        let Some(pid) = self.pid(text) else { return false };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).is_ok()
    }

    /// Starts a command in the background, its output in a file.
    pub(crate) fn background(&self, command: &str) -> Background {
        let output = self.root().join(format!("output-{}", BACKGROUND.fetch_add(1, Ordering::Relaxed)));
        let file = std::fs::File::create(&output).unwrap();
        let child = self.shell(&format!("exec {command}")).stdout(file).spawn().unwrap();
        Background { child, output }
    }

    /// Where a test may put files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn supervisor(&self) -> i32 {
        let running = std::fs::read_to_string(self.data().join("running.json")).unwrap();
        let running: serde_json::Value = serde_json::from_str(&running).unwrap();
        i32::try_from(running["pid"].as_i64().unwrap()).unwrap()
    }

    /// Stops it and starts it again on its data, with other words about its nodes.
    pub(crate) fn restart(self, nodes: &[&str]) -> Self {
        self.down();
        assert!(self.processes().is_empty(), "left behind: {:?}", self.processes());
        self.up(nodes);
        self
    }

    /// Kills the first process of the mesh, and gives the kernel a moment.
    pub(crate) fn kill_supervisor(&self) {
        let pid = self.supervisor();
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
            .filter(|line| line.contains(&data) && !line.contains("system-"))
            .collect()
    }
}

/// A command in the background, ended when dropped.
pub(crate) struct Background {
    child: Child,
    output: PathBuf,
}

static BACKGROUND: AtomicUsize = AtomicUsize::new(0);

impl Background {
    /// What it has printed so far.
    pub(crate) fn output(&self) -> Vec<u8> {
        std::fs::read(&self.output).unwrap()
    }

    /// Waits until it has printed a text.
    pub(crate) fn shows(&self, text: &[u8]) {
        let begun = Instant::now();
        while !self.output().windows(text.len()).any(|window| window == text) {
            let seen = String::from_utf8_lossy(&self.output()).into_owned();
            assert!(begun.elapsed() < LIMIT, "{:?} did not show in {seen:?}", String::from_utf8_lossy(text));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its exit code, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    /// The exit code, when it ends within this time.
    pub(crate) fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(code) = self.ended() {
                return Some(code);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        if self.mounted {
            let _ = nix::mount::umount2(&self.data(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
