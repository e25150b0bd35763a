// SPDX-License-Identifier: Apache-2.0
//! What every request has at hand: the view, the proxy's certificate and workload, tunnels, the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use meltemi_identity::{CertManager, Issued, Svid};
use meltemi_model::workload::{GatewayAddress, GatewayDestination};
use meltemi_model::{NamespacedHostname, NamespacedName, Service, Workload, WorkloadUid};
use meltemi_runtime::places::PerSource;
use meltemi_runtime::{DrainWatch, Tasks};
use meltemi_tunnel::Pool;
use meltemi_view::access_log::AccessLog;
use meltemi_view::{Mesh, View};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::balance::Outliers;
use crate::certificates::Certificates;
use crate::config::{Config, Parts};
use crate::limits::{DRAIN_QUIET, Limits, MAX_HANDSHAKES};
use crate::log::time_text;
use crate::metrics::HttpMetrics;
use crate::moves::Moves;
use crate::pool::Upstreams;
use crate::retry::Budgets;
use crate::served::Served;

/// How long a request waits for the proxy's own certificate.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Context {
    pub(crate) config: Config,
    /// Of the proxy's own workload.
    uid: WorkloadUid,
    /// The proxy's own workload as long as the mesh does not know it.
    alone: Arc<Workload>,
    pub(crate) view: View,
    pub(crate) certs: CertManager,
    pub(crate) pool: Pool,
    /// Connections to backends.
    pub(crate) upstreams: Upstreams,
    /// Backends that have failed.
    pub(crate) outliers: Arc<Outliers>,
    /// Of retries.
    pub(crate) budgets: Budgets,
    /// What open connections are addressed to.
    pub(crate) moves: Moves,
    pub(crate) log: AccessLog,
    pub(crate) metrics: HttpMetrics,
    pub(crate) limits: Limits,
    /// Places for connections of clients. One source leaves a quarter to the others: not less, since it may be a load
    /// balancer.
    pub(crate) places: PerSource,
    /// Handshakes of tunnels that are under way.
    pub(crate) handshakes: PerSource,
    /// Certificates of listeners.
    pub(crate) certificates: Arc<Certificates>,
    /// KiB for the heads of open requests.
    pub(crate) heads: Arc<Semaphore>,
    /// Places for copies of requests.
    pub(crate) copies: Arc<Semaphore>,
    pub(crate) tasks: Tasks,
    /// Of `tasks`; every request looks at it.
    drain: DrainWatch,
    begun: Instant,
    /// When the last client came, in milliseconds after `begun`.
    arrived: Arc<AtomicU64>,
}

impl Context {
    pub(crate) fn new(config: Config, parts: Parts, tasks: Tasks) -> Self {
        let (pool, connections) = (tunnels(&tasks), parts.limits.connections);
        let metrics = HttpMetrics::register(&parts.metrics);
        let pod = &config.pod;
        let uid = WorkloadUid::pod(&config.cluster_id, &pod.namespace, &pod.name);
        let alone = Arc::new(Workload::empty(uid.clone(), pod.namespace.clone(), pod.name.clone()));
        Self {
            config,
            uid,
            alone,
            view: parts.view,
            certs: parts.certs,
            pool,
            upstreams: Upstreams::new(parts.limits, tasks.clone()),
            outliers: Arc::default(),
            budgets: Budgets::default(),
            moves: Moves::default(),
            log: parts.log,
            metrics,
            limits: parts.limits,
            places: PerSource::new(connections - connections / 4, connections),
            handshakes: PerSource::new(MAX_HANDSHAKES, connections),
            certificates: Arc::default(),
            heads: Arc::new(Semaphore::new(parts.limits.heads)),
            copies: Arc::new(Semaphore::new(parts.limits.copies)),
            drain: tasks.drain(),
            begun: Instant::now(),
            arrived: Arc::default(),
            tasks,
        }
    }

    /// The context of one of `count` workers: its connections to backends and their bounds, and its retries, are its own;
    /// everything else is shared.
    pub(crate) fn for_worker(&self, count: usize) -> Self {
        let each = |all: usize| (all / count.max(1)).max(1);
        let limits = Limits {
            upstream_requests: each(self.limits.upstream_requests),
            upstream_waiting: each(self.limits.upstream_waiting),
            ..self.limits
        };
        Self {
            config: self.config.clone(),
            uid: self.uid.clone(),
            alone: self.alone.clone(),
            view: self.view.clone(),
            certs: self.certs.clone(),
            pool: tunnels(&self.tasks),
            upstreams: Upstreams::new(limits, self.tasks.clone()),
            outliers: self.outliers.clone(),
            budgets: Budgets::default(),
            moves: self.moves.clone(),
            log: self.log.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits,
            places: self.places.clone(),
            handshakes: self.handshakes.clone(),
            certificates: self.certificates.clone(),
            heads: self.heads.clone(),
            copies: self.copies.clone(),
            tasks: self.tasks.clone(),
            drain: self.drain.clone(),
            begun: self.begun,
            arrived: self.arrived.clone(),
        }
    }

    /// Whether the proxy has been told to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_started()
    }

    /// Resolves some time after the proxy has been told to end: clients have had the time to learn of it.
    pub(crate) async fn drained(&self) {
        self.drain.clone().started().await;
        tokio::time::sleep(self.limits.drain).await;
    }

    /// Notes that a client has come.
    pub(crate) fn arrived(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.arrived.store(since, Ordering::Relaxed);
    }

    /// Resolves when the proxy has been told to end and no client comes any more, or [`Context::drained`] does.
    pub(crate) async fn deserted(&self) {
        self.drain.clone().started().await;
        let told = Instant::now();
        loop {
            let arrived = self.begun + Duration::from_millis(self.arrived.load(Ordering::Relaxed));
            let quiet = (arrived.max(told) + DRAIN_QUIET).min(told + self.limits.drain);
            if quiet <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(quiet).await;
        }
    }

    /// Whether few places are left for connections.
    pub(crate) fn is_crowded(&self) -> bool {
        self.places.free() < self.limits.connections / 4
    }

    pub(crate) async fn certificate(&self) -> Result<Arc<Svid>, String> {
        self.certs.get(&self.config.identity, PATIENCE).await
    }

    /// The proxy's own workload: where it is decides which endpoints are near. Looked up by its uid, since every request
    /// asks; by its name only while the mesh does not know the uid.
    pub(crate) fn own(&self, mesh: &Mesh) -> Arc<Workload> {
        let (pod, snapshot) = (&self.config.pod, &mesh.snapshot);
        let known =
            snapshot.workload(&self.uid).or_else(|| snapshot.workload_named(&pod.namespace, &pod.name));
        known.cloned().unwrap_or_else(|| self.alone.clone())
    }

    /// Whether this proxy is the waypoint of a service.
    pub(crate) fn serves(&self, service: &Service) -> bool {
        serves(&self.config.gateway, service)
    }

    /// Whether this proxy is the waypoint of a Pod, for what is addressed to the Pod itself.
    pub(crate) fn serves_workload(&self, workload: &Workload) -> bool {
        serves_workload(&self.config.gateway, workload)
    }

    /// Resolves when this proxy is no longer the waypoint of what a connection is addressed to; never at a gateway.
    pub(crate) async fn stops_serving(&self, served: &Served) {
        self.moves.left(served, &self.view, &self.config.gateway).await;
    }
}

/// Tunnels to backends, opened from the proxy's own network.
fn tunnels(tasks: &Tasks) -> Pool {
    let connector: meltemi_tunnel::client::Connector =
        Arc::new(|address| Box::pin(tokio::net::TcpStream::connect(address)));
    Pool::new(connector, tasks.clone())
}

/// Whether the proxies of a Gateway are the waypoint of a service.
pub(crate) fn serves(gateway: &NamespacedName, service: &Service) -> bool {
    let mut all = service.waypoint.iter().chain(service.weighted_waypoints.iter().map(|w| &w.destination));
    all.any(|waypoint| is_address_of(gateway, waypoint))
}

/// Whether the proxies of a Gateway are the waypoint of a Pod, for what is addressed to the Pod itself.
pub(crate) fn serves_workload(gateway: &NamespacedName, workload: &Workload) -> bool {
    workload.waypoint.as_ref().is_some_and(|waypoint| is_address_of(gateway, waypoint))
}

/// Whether a waypoint's address is the Service of a Gateway's proxies: `<name>.<namespace>.svc.<domain>`.
fn is_address_of(gateway: &NamespacedName, waypoint: &GatewayAddress) -> bool {
    let GatewayDestination::Hostname(NamespacedHostname { namespace, hostname }) = &waypoint.destination
    else {
        return false;
    };
    let mut labels = hostname.split('.');
    *namespace == gateway.namespace
        && labels.next() == Some(&*gateway.name)
        && labels.next() == Some(&*gateway.namespace)
        && labels.next() == Some("svc")
}

/// `/config_dump`: certificates, and what the proxy was told.
pub(crate) fn dump_routes(context: Arc<Context>) -> Router {
    Router::new().route(
        "/config_dump",
        get(move || {
            let dump = dump(&context);
            async move { axum::Json(dump) }
        }),
    )
}

fn dump(context: &Context) -> Value {
    let mesh = context.view.mesh();
    let time = |at: std::time::SystemTime| time_text(at);
    let certificates: Vec<Value> = context
        .certs
        .all()
        .into_iter()
        .map(|(identity, issued)| match issued {
            Issued::Ready(svid) => json!({
                "identity": identity.as_str(), "state": "Available",
                "certChain": [{"pem": svid.chain_pem.concat(), "serialNumber": svid.serial,
                    "validFrom": time(svid.not_before), "expirationTime": time(svid.not_after)}],
                "rootCerts": [{"pem": svid.roots_pem}],
            }),
            Issued::Pending(error) => json!({
                "identity": identity.as_str(), "state": error.map_or("Initializing".to_owned(), |e| format!("Unavailable: {e}")),
                "certChain": [], "rootCerts": [],
            }),
        })
        .collect();
    let values = |map: Vec<Value>| Value::Array(map);
    json!({
        "certificates": certificates,
        "policies": values(mesh.http_policies.values().filter_map(|p| serde_json::to_value(&**p).ok()).collect()),
        "routes": values(mesh.routes.values().filter_map(|r| serde_json::to_value(&**r).ok()).collect()),
        "listeners": values(mesh.listeners.values().filter_map(|l| serde_json::to_value(&**l).ok()).collect()),
        "version": {"version": env!("CARGO_PKG_VERSION")},
    })
}
