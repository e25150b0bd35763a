// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve apiserver`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::Context;
use meltemi_apiserver::pki::NodeSpec;
use meltemi_apiserver::{Config, Inert};
use meltemi_resources::inert;
use meltemi_runtime::Tasks;

use crate::machine::network;

/// Groups of the mesh's own configuration. A field that is not known here is one that is not acted on: a policy with a
/// typo would be weaker than it reads.
const STRICT_GROUPS: &[&str] = &[
    "security.istio.io",
    "networking.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "meltemi.dev",
];

/// The Kubernetes-compatible API of a mesh on one machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: an API on loopback, without a mesh\n  \
    meltemi serve apiserver --data-dir /tmp/api --listen 127.0.0.1:6443 --advertise 127.0.0.1")]
pub struct Args {
    /// Data directory
    #[arg(long)]
    data_dir: PathBuf,
    /// Descriptor of a listening socket to serve, handed over by the supervisor
    #[arg(long)]
    listen_fd: Option<i32>,
    /// Addresses to listen on
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Address of the Service `kubernetes`
    #[arg(long, default_value_t = IpAddr::V4(network::API))]
    advertise: IpAddr,
    /// Number of nodes that get credentials
    #[arg(long, default_value_t = 1)]
    nodes: u16,
    /// Name of the cluster in the kubeconfigs
    #[arg(long, default_value = "meltemi")]
    cluster_name: String,
}

/// Starts it.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    if let Some(fd) = args.listen_fd {
        listeners.push(TcpListener::from(meltemi_linux::process::inherited(fd).context("--listen-fd")?));
    }
    let inside =
        (args.listen.is_empty() && args.listen_fd.is_some()).then_some(SocketAddr::new(args.advertise, 443));
    for address in args.listen.iter().chain(&inside) {
        listeners.push(TcpListener::bind(address).with_context(|| format!("--listen {address}"))?);
    }
    let host_port =
        listeners.first().context("nothing to listen on: give --listen or --listen-fd")?.local_addr()?.port();
    let config = Config {
        listeners,
        data_dir: args.data_dir,
        cluster_name: args.cluster_name,
        host_port,
        nodes: (1..=args.nodes).map(node).collect(),
        advertise: args.advertise,
        inert: list_inert(),
        strict_groups: STRICT_GROUPS,
    };
    meltemi_apiserver::start(config, &tasks).await?;
    Ok(())
}

/// Kinds that nothing on one machine acts on. A NetworkPolicy that seems to hold is a hole, so who writes one is warned.
fn list_inert() -> Vec<Inert> {
    let kinds = inert::KINDS.iter();
    kinds.map(|one| Inert { group: one.group, kind: one.kind, instead: one.instead }).collect()
}

fn node(index: u16) -> NodeSpec {
    let [_, low] = (10 + index).to_be_bytes();
    NodeSpec { name: format!("node-{index}"), address: IpAddr::V4(Ipv4Addr::new(172, 30, 0, low)) }
}
