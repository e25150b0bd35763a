// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve cni`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use meltemi_cni::agent::{self, Config};
use meltemi_runtime::Tasks;

/// Port of readiness: the node proxy of the same Pod has the usual one.
const READY: u16 = 15022;

/// The agent of a Kubernetes node; in a Pod everything comes from the environment.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi serve cni            # in a Pod, as deploy/node.yaml does")]
pub struct Args {
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Namespace of the agent's own Pods
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pod_namespace: String,
    /// The DaemonSet that they belong to; while it is there, no Pod of another namespace starts without an agent
    #[arg(long, env = "DAEMON_SET", default_value = "ztunnel")]
    daemon_set: String,
    /// Namespaces whose Pods are never captured and start without an agent, separated by commas
    #[arg(long, env = "EXCLUDE_NAMESPACES", default_value = "kube-system", value_delimiter = ',')]
    exclude_namespaces: Vec<String>,
    /// Folder of the node's CNI configuration; looked for when unset
    #[arg(long, env = "CNI_CONF_DIR")]
    conf_dir: Option<PathBuf>,
    /// Folder of the node's CNI plugins; looked for when unset
    #[arg(long, env = "CNI_BIN_DIR")]
    bin_dir: Option<PathBuf>,
    /// The node's /proc
    #[arg(long, env = "HOST_PROC", default_value = "/host/proc")]
    host_proc: PathBuf,
    /// Socket for the node proxy
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    zds_socket: PathBuf,
    /// Socket for the plugin, the same path on the node
    #[arg(long, env = "CNI_SOCKET", default_value = meltemi_cni::SOCKET)]
    socket: PathBuf,
}

/// Starts it.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let client = meltemi_kubeclient::client(kube::Config::infer().await?)?;
    let excluded = args.exclude_namespaces.into_iter().filter(|name| !name.is_empty());
    let config = Config {
        node_name: args.node_name,
        own_namespace: args.pod_namespace,
        daemon_set: args.daemon_set,
        socket: args.socket,
        zds_socket: args.zds_socket,
        host_proc: args.host_proc,
        excluded: excluded.collect(),
        conf_dir: args.conf_dir,
        bin_dir: args.bin_dir,
        binary: std::env::current_exe()?,
        ready: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, READY))),
    };
    agent::start(config, client, &tasks).await?;
    Ok(())
}
