// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve waypoint`: waypoints and ingress gateways.

use std::path::PathBuf;

use meltemi_identity::channel::ControlPlane;
use meltemi_model::net::ports;
use meltemi_model::{NamespacedName, SpiffeId, TrustDomain};
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Tasks, cores};
use meltemi_waypoint::Config;

/// The layer 7 proxy of a Gateway; in a Pod everything comes from the environment.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi serve waypoint --gateway-name waypoint        # in a Pod, as the gateway controller makes it"
)]
pub struct Args {
    /// Name of the Gateway
    #[arg(long, env = "GATEWAY_NAME")]
    gateway_name: String,
    /// Name of this Pod
    #[arg(long, env = "POD_NAME")]
    pod_name: String,
    /// Its namespace
    #[arg(long, env = "POD_NAMESPACE")]
    pod_namespace: String,
    /// Its address
    #[arg(long, env = "INSTANCE_IP", default_value = "")]
    instance_ip: String,
    /// Its ServiceAccount
    #[arg(long, env = "SERVICE_ACCOUNT")]
    service_account: String,
    /// Trust domain of the mesh
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Name of the cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// host:port of the control plane
    #[arg(long, env = "XDS_ADDRESS", default_value = "istiod.istio-system.svc:15012")]
    control: String,
    /// File with the mesh's roots
    #[arg(long, env = "XDS_ROOT_CA", default_value = "/var/run/secrets/istio/root-cert.pem")]
    roots: PathBuf,
    /// Threads that serve connections, a number or a percentage of the cores; one per core when unset
    #[arg(long, env = "WAYPOINT_WORKER_THREADS")]
    workers: Option<String>,
    /// File with the token
    #[arg(long, env = "AUTH_TOKEN", default_value = "/var/run/secrets/tokens/istio-token")]
    token: PathBuf,
}

/// Starts it.
pub async fn start(args: Args, log_format: Format, tasks: Tasks) -> anyhow::Result<()> {
    let server_name =
        args.control.rsplit_once(':').map_or(args.control.as_str(), |(host, _)| host).to_owned();
    let identity =
        SpiffeId::new(&TrustDomain::parse(&args.trust_domain)?, &args.pod_namespace, &args.service_account)?;
    let config = Config {
        gateway: NamespacedName::new(args.pod_namespace.clone(), args.gateway_name),
        pod: NamespacedName::new(args.pod_namespace, args.pod_name),
        identity,
        control: ControlPlane { address: args.control, server_name, roots: args.roots, token: args.token },
        cluster_id: args.cluster_id,
        instance_ip: args.instance_ip,
        log_format,
        workers: cores::worker_count(args.workers.as_deref()).map_err(anyhow::Error::msg)?,
        ready_port: ports::READY,
        stats_port: ports::STATS,
        admin_port: ports::ADMIN,
    };
    meltemi_waypoint::start(config, &tasks)?;
    Ok(())
}
