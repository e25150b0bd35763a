// SPDX-License-Identifier: Apache-2.0
//! The words of the command line and where each goes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cmd::{self, Global};
use crate::{sample, serve};

/// An ambient service mesh: identities, mutual TLS and authorization policies without sidecars.
#[derive(Parser, Debug)]
#[command(
    name = "meltemi",
    version,
    about,
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
    #[command(subcommand)]
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
    /// Versions of client, control plane and proxies
    Version(cmd::version::Args),
}

impl Cli {
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
            Command::Version(args) => block_on(cmd::version::run(args, &global)),
        }
    }
}

/// Runs an interactive command on a small runtime of its own.
fn block_on(future: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
