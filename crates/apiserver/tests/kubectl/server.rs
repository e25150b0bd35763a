// SPDX-License-Identifier: Apache-2.0
//! A server of its own process on loopback, in a directory that goes with it, and kubectl pointed at it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use meltemi_apiserver::{Config, Inert};
use meltemi_runtime::{Tasks, drain};

/// The data directory, for the process that is the server.
const DIRECTORY: &str = "MELTEMI_TEST_APISERVER_DIR";
/// The port, for the process that is the server; any free one if it is not set.
const PORT: &str = "MELTEMI_TEST_APISERVER_PORT";
/// Another kubectl than the one in PATH.
const KUBECTL: &str = "KUBECTL";

/// What kubectl said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    directory: tempfile::TempDir,
    /// The port that it keeps over a restart; any if 0.
    port: u16,
    /// The root of the file systems that its process sees.
    root: PathBuf,
}

/// The body of the server's process: serves until its standard input ends, so that it never outlives the test.
pub(crate) fn be_the_server() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let port = std::env::var(PORT).map_or(0, |port| port.parse().unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let config = Config {
            host_port: listener.local_addr().unwrap().port(),
            listeners: vec![listener],
            data_dir: PathBuf::from(directory),
            cluster_name: "test".into(),
            nodes: Vec::new(),
            advertise: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
            inert: vec![Inert {
                group: "networking.k8s.io",
                kind: "NetworkPolicy",
                instead: "use something else",
            }],
            strict_groups: &["example.com"],
        };
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("apiserver", watch);
        meltemi_apiserver::start(config, &tasks).await.unwrap();
        println!("\nserving");
        let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        parent.await.unwrap().unwrap();
    });
}

/// The program of the server's process, over its directory or over a file system of its own at that place.
fn program(directory: &Path, disk: Option<u32>) -> Command {
    let this = std::env::current_exe().unwrap();
    let Some(size) = disk else { return Command::new(this) };
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=$1 none \"$2\" && shift 2 && exec \"$@\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.arg(size.to_string()).args([directory, &this]);
    command
}

fn spawn(directory: &Path, port: u16, disk: Option<u32>) -> Child {
    let mut child = program(directory, disk)
        .args(["--exact", "server_process", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(PORT, port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "serving"), "the server did not start");
    child
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_at(0)
    }

    /// A server that is found at the same address after [`Self::kill_and_restart`].
    pub(crate) fn start_at_fixed_port() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self::start_at(free)
    }

    fn start_at(port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = spawn(directory.path(), port, None);
        Self { child, directory, port, root: PathBuf::from("/") }.with_service_account()
    }

    /// A server whose data directory is a file system of so many bytes.
    pub(crate) fn start_on_disk(size: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = spawn(directory.path(), 0, Some(size));
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        Self { child, directory, port: 0, root }.with_service_account()
    }

    fn with_service_account(self) -> Self {
        let server = self;
        // What the ServiceAccount controller would make, without which no Pod is admitted.
        server.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: default}");
        server
    }

    /// SIGKILL, and a new process over the same directory.
    pub(crate) fn kill_and_restart(&mut self) {
        self.restart_after(|_| {});
    }

    /// SIGKILL, a change to the database, and a new process.
    pub(crate) fn restart_after(&mut self, change: impl FnOnce(&Path)) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        change(&self.data().join("db.sqlite"));
        self.child = spawn(self.directory.path(), self.port, None);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The data directory, as the server sees it.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join(self.directory.path().strip_prefix("/").unwrap())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data().join("kubeconfig")
    }

    /// The address in the kubeconfig.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let (_, rest) = text.split_once("https://").unwrap();
        rest.split(|c: char| c.is_whitespace() || c == '"').next().unwrap().parse().unwrap()
    }

    /// kubectl, ready for further arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let kubectl = std::env::var(KUBECTL).unwrap_or_else(|_| "kubectl".into());
        let mut command = Command::new(kubectl);
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs kubectl with something to read.
    pub(crate) fn say(&self, args: &[&str], input: &str) -> Said {
        let mut child = self
            .command(args)
            .spawn()
            .expect("kubectl is in PATH (Debian: apt install kubernetes-client, or set KUBECTL)");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Said {
            ok: output.status.success(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs kubectl; its standard output.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let said = self.say(args, "");
        assert!(said.ok, "kubectl {args:?}: {}", said.err);
        said.out
    }

    /// Runs kubectl with something to read.
    #[track_caller]
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> String {
        let said = self.say(args, input);
        assert!(said.ok, "kubectl {args:?}: {}", said.err);
        said.out
    }

    /// Runs kubectl with something to read; what it writes to standard error, whether it succeeds or not.
    pub(crate) fn standard_error(&self, args: &[&str], input: &str) -> String {
        self.say(args, input).err
    }

    /// Runs kubectl, which must fail; its standard error.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], input: &str) -> String {
        let said = self.say(args, input);
        assert!(!said.ok, "kubectl {args:?} went through: {}", said.out);
        said.err
    }

    /// `kubectl apply -f -`; both outputs.
    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) -> String {
        self.apply_with(&[], yaml)
    }

    #[track_caller]
    pub(crate) fn apply_with(&self, flags: &[&str], yaml: &str) -> String {
        let said = self.say(&[&["apply", "-f", "-"], flags].concat(), yaml);
        assert!(said.ok, "kubectl apply: {}", said.err);
        said.out + &said.err
    }

    /// A value of an object, by JSONPath.
    #[track_caller]
    pub(crate) fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
