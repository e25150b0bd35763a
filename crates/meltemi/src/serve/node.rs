// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve node`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use meltemi_identity::channel::ControlPlane;
use meltemi_model::TrustDomain;
use meltemi_node::{Config, Endpoints};
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Tasks, cores};
use nix::sys::resource::{Resource, getrlimit};

/// The layer 4 proxy of a node; in a Pod everything comes from the environment.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi serve node           # in a Pod, as deploy/ztunnel.yaml does")]
pub struct Args {
    /// Name of this Pod
    #[arg(long, env = "POD_NAME", default_value = "ztunnel")]
    pod_name: String,
    /// Its namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pod_namespace: String,
    /// Name of the node
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Address of this Pod
    #[arg(long, env = "INSTANCE_IP")]
    instance_ip: IpAddr,
    /// The control plane, host:port
    #[arg(long, env = "XDS_ADDRESS", default_value = "istiod.istio-system.svc:15012")]
    control: String,
    /// Name of the cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Socket of the node's agent
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    zds_socket: PathBuf,
    /// File with the roots of the mesh
    #[arg(long, env = "CA_ROOT_CA", default_value = "/var/run/secrets/istio/root-cert.pem")]
    roots: PathBuf,
    /// File with the token that is presented to the control plane
    #[arg(long, env = "AUTH_TOKEN", default_value = "/var/run/secrets/tokens/istio-token")]
    token: PathBuf,
    /// Lifetime of certificates, in hours
    #[arg(long, env = "CERTIFICATE_HOURS", default_value_t = 24)]
    certificate_hours: u32,
    /// Resolver of the Pods, for names that the mesh does not know
    #[arg(long, env = "POD_RESOLVER", default_value = "10.96.0.10:53")]
    resolver: SocketAddr,
    /// Threads of the data path: a number or a percentage of the cores
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS")]
    workers: Option<String>,
}

/// A Pod gets one in so many of the file descriptors as connections; most connections need two.
const PART: usize = 4;

fn descriptors() -> anyhow::Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Starts it.
pub async fn start(args: Args, log_format: Format, tasks: Tasks) -> anyhow::Result<()> {
    let (host, _) = args.control.rsplit_once(':').context("--control: expected host:port")?;
    let config = Config {
        control: ControlPlane {
            server_name: host.to_owned(),
            address: args.control,
            roots: args.roots,
            token: args.token,
        },
        pod_name: args.pod_name,
        pod_namespace: args.pod_namespace,
        node_name: args.node_name,
        instance_ip: args.instance_ip,
        cluster_id: args.cluster_id,
        trust_domain: TrustDomain::parse(&args.trust_domain)?,
        zds_socket: args.zds_socket,
        certificate_ttl: Duration::from_secs(3600) * args.certificate_hours.max(1),
        resolver: args.resolver,
        connections_per_pod: descriptors()? / PART,
        workers: cores::worker_count(args.workers.as_deref()).map_err(anyhow::Error::msg)?,
        log_format,
        endpoints: Some(Endpoints::default()),
    };
    meltemi_node::start(config, &tasks).await?;
    Ok(())
}
