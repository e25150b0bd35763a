// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve ROLE`: one role of the mesh, as the images run it. Arguments and environment become a Config here.

mod apiserver;
mod cni;
pub mod cni_plugin;
mod control;
mod controllers;
mod node;
mod review;
mod runner;
mod waypoint;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use meltemi_runtime::{Tasks, drain, telemetry};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// How long open connections may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
/// The same of waypoints and gateways, whose clients may have long requests and WebSockets under way: within the grace period
/// of their Pods, which is 30 s. With nothing open they end sooner.
const WAYPOINT_DRAIN: Duration = Duration::from_secs(25);

/// The roles.
#[derive(Subcommand, Debug)]
pub enum Role {
    /// The Kubernetes-compatible API of a mesh on one machine
    Apiserver(apiserver::Args),
    /// Deployments, EndpointSlices, scheduling and the like, for a mesh on one machine
    Controllers(controllers::Args),
    /// The kubelet's part of a node, for a mesh on one machine
    Runner(runner::Args),
    /// The control plane: xDS, certificates, admission, gateways (istiod)
    Control(control::Args),
    /// The layer 4 proxy of a node (ztunnel)
    Node(node::Args),
    /// The agent of a Kubernetes node: captures Pods before they start
    Cni(cni::Args),
    /// The layer 7 proxy of a Gateway: waypoint or ingress
    Waypoint(waypoint::Args),
}

/// Runs a role until it is told to stop or fails.
pub fn run(role: Role) -> anyhow::Result<ExitCode> {
    let format: telemetry::Format =
        std::env::var("LOG_FORMAT").unwrap_or_default().parse().map_err(anyhow::Error::msg)?;
    telemetry::init(format, &std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
    // One TLS library in the process, said once: several crates could bring their own.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // What a runner starts inherits its limits, and is to have the usual ones.
    if !matches!(role, Role::Runner(_)) {
        raise_descriptors()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match role {
        Role::Apiserver(args) => {
            runtime.block_on(supervised("apiserver", |tasks| apiserver::start(args, tasks)))
        }
        Role::Controllers(args) => {
            runtime.block_on(supervised("controllers", |tasks| controllers::start(args, tasks)))
        }
        Role::Runner(args) => runtime.block_on(supervised("runner", |tasks| runner::start(args, tasks))),
        Role::Cni(args) => runtime.block_on(supervised("cni", |tasks| cni::start(args, tasks))),
        Role::Control(args) => runtime.block_on(supervised("control", |tasks| control::start(args, tasks))),
        Role::Waypoint(args) => runtime
            .block_on(drained_for(WAYPOINT_DRAIN, "waypoint", |tasks| waypoint::start(args, format, tasks))),
        Role::Node(args) => runtime.block_on(supervised("node", |tasks| node::start(args, format, tasks))),
    }
}

/// As many file descriptors as this process may have: connections are what it is for.
fn raise_descriptors() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Starts a component and waits: for SIGTERM (then drains) or for one of its services to fail.
async fn supervised<F, Fut>(component: &str, start: F) -> anyhow::Result<ExitCode>
where
    F: FnOnce(Tasks) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    drained_for(DRAIN, component, start).await
}

/// As [`supervised`], of a component whose drain may take as long as `limit`.
async fn drained_for<F, Fut>(limit: Duration, component: &str, start: F) -> anyhow::Result<ExitCode>
where
    F: FnOnce(Tasks) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let (trigger, watch) = drain::channel();
    let (tasks, supervisor) = Tasks::new(component, watch);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    start(tasks).await?;
    let running = supervisor.run();
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => {
            ended?;
            anyhow::bail!("{component} ended although nothing asked it to");
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(component, "stopping");
    let (ended, ()) = tokio::join!(running, trigger.start(limit));
    ended?;
    Ok(ExitCode::SUCCESS)
}
