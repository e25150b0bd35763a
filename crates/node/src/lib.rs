// SPDX-License-Identifier: Apache-2.0
//! The layer 4 node proxy: outbound, inbound, plaintext, ZDS client, admin.
//!
//! For each enrolled Pod that the node's agent hands over, listeners are opened inside the Pod's network namespace, one set
//! for each core. A connection stays on the core that accepted it. The proxy decides with what the [`meltemi_view::View`]
//! knows; without a control plane it goes on with what it knew last.

mod admin;
mod connections;
mod context;
mod dns;
mod inbound;
mod legacy;
mod outbound;
mod places;
mod plaintext;
mod pod;
mod record;
mod sockets;
mod workers;
mod zds;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meltemi_identity::CertManager;
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::{CaFetcher, Fetcher};
use meltemi_model::TrustDomain;
use meltemi_model::net::ports;
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Readiness, Tasks, admin as endpoints};
use meltemi_view::View;
use meltemi_view::access_log::AccessLog;
use meltemi_view::metrics::TcpMetrics;
use meltemi_wire::xds::types;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::workers::Workers;

/// Pause before another attempt to open a port that an earlier process still holds.
const PORT_RETRY: Duration = Duration::from_millis(100);
/// Interval between two looks whether anything is open, during a drain.
const IDLE_POLL: Duration = Duration::from_millis(50);

/// What the node proxy is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this Pod.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// The node.
    pub node_name: String,
    /// Its address.
    pub instance_ip: IpAddr,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Socket of the node's agent.
    pub zds_socket: PathBuf,
    /// The control plane, for xDS and certificates.
    pub control: ControlPlane,
    /// Lifetime of certificates to ask for.
    pub certificate_ttl: Duration,
    /// Whom captured DNS requests that the mesh cannot answer go to, from inside the Pod's namespace.
    pub resolver: SocketAddr,
    /// Connections of one Pod at once, of both directions: what is over is refused, so that a flood at one Pod leaves the
    /// others theirs.
    pub connections_per_pod: usize,
    /// Data path threads.
    pub workers: usize,
    /// Form of the access log.
    pub log_format: Format,
    /// Admin, metrics and readiness endpoints; none in tests.
    pub endpoints: Option<Endpoints>,
}

/// Where the process itself listens.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// `/config_dump`, `/logging`: loopback only.
    pub admin: SocketAddr,
    /// `/metrics`.
    pub stats: SocketAddr,
    /// `/healthz/ready`.
    pub ready: SocketAddr,
}

impl Default for Endpoints {
    fn default() -> Self {
        let on = |ip: Ipv4Addr, port| SocketAddr::new(ip.into(), port);
        Self {
            admin: on(Ipv4Addr::LOCALHOST, ports::ADMIN),
            stats: on(Ipv4Addr::UNSPECIFIED, ports::STATS),
            ready: on(Ipv4Addr::UNSPECIFIED, ports::READY),
        }
    }
}

/// Why the node proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Threads cannot be started.
    #[error("threads: {0}")]
    Threads(#[from] io::Error),
}

/// Starts the node proxy under the caller's tasks.
///
/// # Errors
/// See [`Error`].
pub async fn start(config: Config, tasks: &Tasks) -> Result<View, Error> {
    let readiness = Readiness::new();
    let fetcher = CaFetcher {
        control: config.control.clone(),
        ttl: config.certificate_ttl,
        impersonate: true,
        cluster_id: config.cluster_id.clone(),
    };
    let view = View::start(view_config(&config), readiness.register("xds"), tasks);
    start_with(config, view.clone(), fetcher, readiness, tasks)?;
    Ok(view)
}

/// Starts the node proxy with a view and a source of certificates of the caller's.
///
/// # Errors
/// See [`Error`].
pub fn start_with(
    config: Config,
    view: View,
    fetcher: impl Fetcher,
    readiness: Readiness,
    tasks: &Tasks,
) -> Result<(), Error> {
    let metrics = Metrics::new();
    let context = Arc::new(Context {
        view,
        certificates: CertManager::start(fetcher, tasks),
        metrics: TcpMetrics::register(&metrics),
        log: AccessLog::start(config.log_format)?,
        tasks: tasks.clone(),
        cluster_id: config.cluster_id,
        trust_domain: config.trust_domain,
        resolver: config.resolver,
        connections: connections::Connections::default(),
        connections_per_pod: config.connections_per_pod,
        open: TaskTracker::new(),
        closing: CancellationToken::new(),
    });
    let workers = Workers::start(config.workers, &context)?;
    if let Some(at) = config.endpoints {
        let admin = admin::routes(context.clone()).merge(endpoints::logging_routes());
        serve(tasks, "admin", at.admin, admin);
        serve(tasks, "stats", at.stats, endpoints::stats_routes(metrics));
        serve(tasks, "ready", at.ready, endpoints::ready_routes(readiness.clone()));
    }
    let successor = CancellationToken::new();
    tasks.spawn("handover", hand_over(context.clone(), successor.clone()));
    let client = zds::Client::new(config.zds_socket, context, workers, readiness.register("zds"), successor);
    tasks.spawn("zds", client.run());
    Ok(())
}

/// During a drain, goes on accepting until another proxy has taken over, or nothing is open that a drain would wait for:
/// otherwise new connections would wait for the end of old ones.
async fn hand_over(
    context: Arc<Context>,
    successor: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut drain = context.tasks.drain();
    drain.started().await;
    let idle = async {
        // Not what is accepted: tunnels of peers stay until they are asked to go.
        while !context.view.registry.is_empty() {
            tokio::time::sleep(IDLE_POLL).await;
        }
    };
    tokio::select! {
        () = successor.cancelled() => {}
        () = idle => {}
        () = drain.forced() => {}
    }
    context.closing.cancel();
    Ok(())
}

fn view_config(config: &Config) -> meltemi_view::Config {
    let metadata = [
        ("NAME", config.pod_name.clone()),
        ("NAMESPACE", config.pod_namespace.clone()),
        ("INSTANCE_IPS", config.instance_ip.to_string()),
        ("NODE_NAME", config.node_name.clone()),
        ("CLUSTER_ID", config.cluster_id.clone()),
        ("VERSION", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let (ip, name, namespace) = (config.instance_ip, &config.pod_name, &config.pod_namespace);
    meltemi_view::Config {
        control: config.control.clone(),
        node_id: format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<BTreeMap<_, _>>(),
        // Policies first: what is known of a workload must not be ahead of what holds for it.
        types: vec![types::AUTHORIZATION, types::ADDRESS],
    }
}

/// Serves an endpoint. The process before this one holds the port until its drain begins.
fn serve(tasks: &Tasks, name: &str, address: SocketAddr, routes: axum::Router) {
    let mut drain = tasks.drain();
    tasks.spawn(name, async move {
        loop {
            match endpoints::serve(address, routes.clone(), drain.clone()).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                other => return other,
            }
            tokio::select! {
                () = tokio::time::sleep(PORT_RETRY) => {}
                () = drain.started() => return Ok(()),
            }
        }
    });
}
