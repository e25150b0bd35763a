// SPDX-License-Identifier: Apache-2.0
//! The supervisor: first process of the mesh's private namespaces, owner of its network and of the processes that are
//! not Pods. When it ends, however it ends, the kernel ends everything else.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use meltemi_runtime::telemetry::{self, Format};
use nix::mount::MsFlags;
use tokio::signal::unix::{SignalKind, signal};

use super::children::{Children, Program};
use super::deploy;
use super::id_block::IdBlock;
use super::network::{Network, REPAIR_INTERVAL};
use super::paths::{Paths, RUN_DIR};
use super::report::{Reporter, Running};

/// What the launcher hands over.
#[derive(Debug)]
pub struct Handed {
    /// The API's listener, on the host's loopback.
    pub listener: OwnedFd,
    /// Where progress goes.
    pub progress: OwnedFd,
    /// Held until the supervisor ends.
    pub lock: File,
    /// Number of nodes.
    pub nodes: u16,
    /// User ids of the Pods; held until the supervisor ends.
    pub ids: IdBlock,
}

/// How long the components may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(6);

/// Runs the supervisor until it is told to stop.
///
/// # Errors
/// The mesh could not be started; the launcher has been told as well.
pub fn run(paths: &Paths, handed: Handed) -> anyhow::Result<()> {
    telemetry::init(Format::Text, "info");
    let mut reporter = Reporter::new(Some(handed.progress));
    let result = supervise(paths, handed.listener, handed.nodes, handed.ids.number, &mut reporter);
    reporter.finish(&result);
    drop((handed.lock, handed.ids));
    result
}

fn supervise(
    paths: &Paths,
    listener: OwnedFd,
    nodes: u16,
    id_block: u32,
    reporter: &mut Reporter,
) -> anyhow::Result<()> {
    private_run_dir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = signal(SignalKind::terminate())?;
        reporter.step("preparing the private network");
        let network = Network::build(nodes).context("preparing the private network")?;
        let mut children = Children::new(paths)?;
        let started = tokio::select! {
            result = start(paths, &network, listener, id_block, &mut children, reporter) => result,
            _ = stop.recv() => Err(anyhow::anyhow!("stopped before it was ready")),
        };
        if started.is_ok() {
            Running::set_ready(paths)?;
            reporter.finish(&Ok(()));
            tokio::select! {
                _ = stop.recv() => {}
                () = keep_network(&network) => {}
            }
        }
        tracing::info!("stopping");
        children.stop(GRACE).await;
        started
    })
}

/// Puts the network back when somebody changes it from outside. Never resolves.
async fn keep_network(network: &Network) {
    let mut failing = false;
    loop {
        tokio::time::sleep(REPAIR_INTERVAL).await;
        let result = network.restore();
        if let Err(error) = &result
            && !failing
        {
            tracing::warn!(%error, "the private network could not be put back");
        }
        failing = result.is_err();
    }
}

async fn start(
    paths: &Paths,
    network: &Network,
    listener: OwnedFd,
    id_block: u32,
    children: &mut Children,
    reporter: &mut Reporter,
) -> anyhow::Result<()> {
    let nodes = network.nodes();
    reporter.step("starting the API server");
    children.start(Program::apiserver(paths, nodes.len(), listener)?)?;
    let client = deploy::api_ready(paths).await?;
    deploy::forget_nodes(&client, &nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>()).await?;
    children.start(Program::controllers(paths)?)?;
    for node in nodes {
        children.start(Program::runner(paths, node, id_block)?)?;
    }
    reporter.step("applying the mesh's own manifests");
    deploy::apply(&client).await?;
    reporter.step("waiting for the nodes");
    deploy::nodes_ready(&client, nodes.len()).await?;
    reporter.step("waiting for the control plane and the node proxies");
    deploy::mesh_ready(&client, nodes.len()).await
}

/// A `/run` of the mesh's own: the host's is neither seen nor touched.
fn private_run_dir() -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=0755"))
        .context("mounting /run")?;
    std::fs::create_dir(RUN_DIR).context("creating the run directory")
}
