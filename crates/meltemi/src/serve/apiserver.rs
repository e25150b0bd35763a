// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve apiserver`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::Context;
use meltemi_apiserver::pki::NodeSpec;
use meltemi_apiserver::{Config, Inert};
use meltemi_runtime::Tasks;

use crate::machine::network;

/// What `controllers`, `runner` and the control plane do nothing for. A NetworkPolicy that seems to hold is a hole.
const INERT: &[Inert] = &[
    inert("networking.k8s.io", "NetworkPolicy", "an AuthorizationPolicy is enforced"),
    inert("networking.k8s.io", "Ingress", "a Gateway of class istio with an HTTPRoute is served"),
    inert("apps", "StatefulSet", "a Deployment is run"),
    inert("batch", "CronJob", "a Job is run"),
    inert("autoscaling", "HorizontalPodAutoscaler", "kubectl scale changes the number of Pods"),
    inert("", "ReplicationController", "a Deployment is run"),
    inert("", "ResourceQuota", ""),
    inert("", "LimitRange", ""),
    inert("", "PersistentVolumeClaim", "an emptyDir lives as long as its Pod"),
    inert("", "PersistentVolume", "an emptyDir lives as long as its Pod"),
    inert(
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        "a ValidatingWebhookConfiguration is called",
    ),
    inert(
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        "a ValidatingWebhookConfiguration is called",
    ),
    // Of Istio and the Gateway API: definitions that others bring, whose objects this mesh does not read.
    inert("networking.istio.io", "VirtualService", "an HTTPRoute is served"),
    inert("networking.istio.io", "Gateway", "a Gateway of gateway.networking.k8s.io is served"),
    inert("networking.istio.io", "DestinationRule", ""),
    inert("networking.istio.io", "ServiceEntry", ""),
    inert("networking.istio.io", "Sidecar", ""),
    inert("networking.istio.io", "EnvoyFilter", ""),
    inert("networking.istio.io", "WorkloadEntry", ""),
    inert("networking.istio.io", "WorkloadGroup", ""),
    inert("networking.istio.io", "ProxyConfig", ""),
    inert("telemetry.istio.io", "Telemetry", ""),
    inert("extensions.istio.io", "WasmPlugin", ""),
    inert("extensions.istio.io", "TrafficExtension", ""),
    inert("gateway.networking.k8s.io", "GRPCRoute", "an HTTPRoute that matches the path is served"),
    inert("gateway.networking.k8s.io", "TCPRoute", ""),
    inert("gateway.networking.k8s.io", "TLSRoute", ""),
    inert("gateway.networking.k8s.io", "UDPRoute", ""),
    inert("gateway.networking.k8s.io", "BackendTLSPolicy", ""),
    inert("gateway.networking.k8s.io", "ListenerSet", ""),
    inert("gateway.networking.x-k8s.io", "XListenerSet", ""),
    inert("gateway.networking.x-k8s.io", "XBackendTrafficPolicy", ""),
    inert("gateway.networking.x-k8s.io", "XMesh", ""),
];

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

const fn inert(group: &'static str, kind: &'static str, instead: &'static str) -> Inert {
    Inert { group, kind, instead }
}

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
        inert: INERT,
        strict_groups: STRICT_GROUPS,
    };
    meltemi_apiserver::start(config, &tasks).await?;
    Ok(())
}

fn node(index: u16) -> NodeSpec {
    let [_, low] = (10 + index).to_be_bytes();
    NodeSpec { name: format!("node-{index}"), address: IpAddr::V4(Ipv4Addr::new(172, 30, 0, low)) }
}
