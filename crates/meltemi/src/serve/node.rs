// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve node`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
#[command(after_help = "Example:\n  meltemi serve node           # in a Pod, as deploy/node.yaml does")]
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
    /// Resolver of the Pods, for names that the mesh does not know; by default this Pod's own (/etc/resolv.conf)
    #[arg(long, env = "POD_RESOLVER")]
    resolver: Option<SocketAddr>,
    /// Threads of the data path: a number or a percentage of the cores
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS")]
    workers: Option<String>,
}

/// Where most clusters have their DNS.
const USUAL_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// A Pod gets one in so many of the file descriptors as connections; most connections need two.
const PART: usize = 4;

fn descriptors() -> anyhow::Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(soft).unwrap_or(usize::MAX))
}

/// The resolver that this Pod has from its cluster, else the usual one.
fn own_resolver() -> SocketAddr {
    let told = std::fs::read_to_string("/etc/resolv.conf").ok();
    SocketAddr::new(told.and_then(|text| nameserver(&text)).unwrap_or(USUAL_RESOLVER), 53)
}

/// The first name server of a `resolv.conf`(5) that is not of this host.
fn nameserver(text: &str) -> Option<IpAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    { addresses }.find(|address| !address.is_loopback())
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
        resolver: args.resolver.unwrap_or_else(own_resolver),
        connections_per_pod: descriptors()? / PART,
        workers: cores::worker_count(args.workers.as_deref()).map_err(anyhow::Error::msg)?,
        log_format,
        endpoints: Some(Endpoints::default()),
    };
    meltemi_node::start(config, &tasks).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_the_clusters() {
        for (text, expected) in [
            (
                "search svc.cluster.local\nnameserver 10.43.0.10\nnameserver 1.1.1.1\noptions ndots:5\n",
                Some("10.43.0.10"),
            ),
            ("nameserver 127.0.0.53\nnameserver fd00::10\n", Some("fd00::10")),
            ("nameservers 1.2.3.4\nnameserver\n# nameserver 1.2.3.4\n", None),
        ] {
            assert_eq!(nameserver(text), expected.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }
}
