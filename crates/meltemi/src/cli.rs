// SPDX-License-Identifier: Apache-2.0
//! The words of the command line and where each goes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::cmd::{self, Global};
use crate::{sample, serve};

/// An ambient service mesh: identities, mutual TLS and authorization policies without sidecars.
#[derive(Parser, Debug)]
#[command(
    name = "meltemi",
    version,
    about = "An ambient service mesh: identities, mutual TLS and authorization policies without sidecars",
    propagate_version = true,
    after_help = "Example: a mesh on this machine, in one command\n  \
        meltemi up --detach && export KUBECONFIG=$(meltemi kubeconfig)\n  \
        kubectl apply -f samples/bookinfo/bookinfo.yaml"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a mesh on this machine
    Up(cmd::up::Args),
    /// Stop the mesh of this machine; nothing of it remains on the host but its data
    Down(cmd::down::Args),
    /// Show what runs on this machine and how
    Status(cmd::status::Args),
    /// Say what is in the way of a mesh on this machine, and its fix
    Doctor(cmd::status::DoctorArgs),
    /// Print the path of the kubeconfig of this machine's mesh
    Kubeconfig(cmd::status::KubeconfigArgs),
    /// The image table: what a Pod's image runs on this machine
    Image(cmd::image::Args),
    /// Walk through Istio's authorization task, each command shown and its result checked
    Demo(cmd::demo::Args),
    /// Run one role, as the images do
    #[command(subcommand, after_help = "Example:\n  meltemi serve controllers --data-dir /tmp/api")]
    Serve(serve::Role),
    /// Run one of the sample programs, as the images of the samples do
    Sample(sample::Args),
    /// What policies say of a request
    Authz(cmd::authz::Args),
    /// Find what policies probably do not mean, live or in files, as istioctl shows it
    Analyze(cmd::analyze::Args),
    /// Waypoints, as istioctl has them
    Waypoint(cmd::waypoint::Args),
    /// What a node proxy holds, as istioctl shows it
    ZtunnelConfig(cmd::ztunnel_config::Args),
    /// What a proxy holds, as istioctl shows it
    ProxyConfig(cmd::proxy_config::Args),
    /// Which proxies are connected, as istioctl shows it
    ProxyStatus(cmd::proxy_status::Args),
    /// Install the mesh into a Kubernetes, or bring it to this version
    #[command(visible_alias = "upgrade")]
    Install(cmd::install::Args),
    /// Check whether a Kubernetes can take the mesh (--pre), or how the mesh in it stands; each fault with its remedy
    Check(cmd::check::Args),
    /// Remove the mesh from a Kubernetes; enrolled Pods speak by themselves again
    Uninstall(cmd::uninstall::Args),
    /// The mesh's own manifests, as `install` applies them
    Manifest(cmd::manifest::Args),
    /// Versions of client, control plane and proxies
    Version(cmd::version::Args),
}

/// Words that ask no cluster which one: options for that are taken everywhere, as istioctl takes them, and not shown here.
const WITHOUT_CLUSTER: &[&str] =
    &["up", "down", "status", "doctor", "kubeconfig", "image", "demo", "serve", "sample", "manifest"];

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// What clap says, help and version included.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::words();
        let mut matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// Every word with its options, as `--help` shows them.
    fn words() -> clap::Command {
        let mut all = Self::command();
        // A word that has an option itself is not given that of all words.
        let hidden: Vec<clap::Arg> =
            all.get_arguments().filter(|a| a.is_global_set()).map(|a| a.clone().hide(true)).collect();
        for word in WITHOUT_CLUSTER {
            all = all.mut_subcommand(word, |command| command.args(hidden.clone()));
        }
        all
    }

    /// Whether this is a word that answers and ends, and does not serve.
    pub fn answers(&self) -> bool {
        !matches!(
            self.command,
            Command::Up(_) | Command::Down(_) | Command::Demo(_) | Command::Serve(_) | Command::Sample(_)
        )
    }

    /// The exit code of an error. What answers by its exit code must not be taken for an answer.
    pub fn failure(&self) -> ExitCode {
        if matches!(self.command, Command::Authz(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
    }

    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let global = self.global;
        match self.command {
            Command::Up(args) => cmd::up::run(&args),
            Command::Down(args) => cmd::down::run(&args),
            Command::Status(args) => block_on(cmd::status::run(&args)),
            Command::Doctor(args) => cmd::status::doctor(&args),
            Command::Kubeconfig(args) => cmd::status::kubeconfig(&args),
            Command::Image(args) => cmd::image::run(&args),
            Command::Demo(args) => cmd::demo::run(&args),
            Command::Serve(role) => serve::run(role),
            Command::Sample(args) => block_on(sample::run(args)),
            Command::Authz(args) => block_on(cmd::authz::run(args, &global)),
            Command::Analyze(args) => block_on(cmd::analyze::run(args, &global)),
            Command::Waypoint(args) => block_on(cmd::waypoint::run(args, &global)),
            Command::ZtunnelConfig(args) => block_on(cmd::ztunnel_config::run(args, &global)),
            Command::ProxyConfig(args) => block_on(cmd::proxy_config::run(args, &global)),
            Command::ProxyStatus(args) => block_on(cmd::proxy_status::run(args, &global)),
            Command::Install(args) => block_on(cmd::install::run(&args, &global)),
            Command::Check(args) => block_on(cmd::check::run(&args, &global)),
            Command::Uninstall(args) => block_on(cmd::uninstall::run(&args, &global)),
            Command::Manifest(args) => cmd::manifest::run(&args),
            Command::Version(args) => block_on(cmd::version::run(args, &global)),
        }
    }
}

/// Runs an interactive command on a small runtime of its own.
fn block_on(future: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &clap::Command, path: &str, look: &mut dyn FnMut(&str, &clap::Command)) {
        for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let path = format!("{path} {}", below.get_name());
            look(&path, below);
            each(below, &path, look);
        }
    }

    #[test]
    fn the_help_of_every_word_has_an_example() {
        Cli::words().debug_assert();
        each(&Cli::words(), "meltemi", &mut |path, command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} --help has no example");
            let words = path.split(' ').chain(["--help"]).map(OsString::from);
            let shown = Cli::read(words).expect_err("help is clap's way out");
            assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayHelp, "{path}: {shown}");
        });
    }

    #[test]
    fn words_without_a_cluster_do_not_show_its_options() {
        let mut all = Cli::words();
        all.build();
        each(&all, "meltemi", &mut |path, command| {
            let shown = command.get_arguments().any(|a| a.get_id() == "kubeconfig" && !a.is_hide_set());
            let machine = path.split(' ').nth(1).is_some_and(|word| WITHOUT_CLUSTER.contains(&word));
            assert_eq!(shown, !machine, "{path}");
        });
        let parsed = Cli::read(["meltemi", "up", "-n", "a", "--nodes", "2"].map(OsString::from)).unwrap();
        assert_eq!(parsed.global.namespace.as_deref(), Some("a"), "they are taken all the same");
    }

    /// The commands of a text, by the lines that begin with the program or pass something to it.
    fn commands(text: &str) -> Vec<Vec<OsString>> {
        let mut all = Vec::new();
        for line in text.lines() {
            let line = line.trim_start().trim_start_matches("$ ").trim_start_matches("- run: ");
            let line = line.trim_start_matches("export KUBECONFIG=$(");
            let line = line.split(" #").next().unwrap_or_default();
            for part in line.split("&&").flat_map(|p| p.split('|')) {
                let words: Vec<&str> = part.split_whitespace().map(|w| w.trim_matches(['"', ')'])).collect();
                if words.len() > 1 && words[0] == "meltemi" {
                    all.push(words.into_iter().map(OsString::from).collect());
                }
            }
        }
        all
    }

    #[test]
    fn every_command_of_the_documents_exists() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut found = 0;
        let guide = std::fs::read_dir(root.join("docs/guide")).unwrap().map(|page| page.unwrap().path());
        let others =
            ["README.md", "samples/README.md", "docs/troubleshooting.md"].map(|file| root.join(file));
        for file in guide.chain(others) {
            for command in commands(&std::fs::read_to_string(&file).unwrap()) {
                let error = Cli::read(command.clone()).err();
                assert!(error.is_none(), "{}: {command:?}: {}", file.display(), error.unwrap());
                found += 1;
            }
        }
        assert!(found > 10, "{found} commands found: the documents look otherwise than this test thinks");
    }
}
