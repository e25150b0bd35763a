// SPDX-License-Identifier: Apache-2.0
//! The layer 7 proxy: waypoints and ingress gateways, the life of a request in named phases.
//!
//! ```text
//! accept ──▶ check ──▶ authorize ──▶ route ──▶ forward ──▶ log
//! HBONE or   strict    policies of   rules of  HBONE with  one line,
//! a plain    HTTP,     the Service   HTTP-     the proxy's whatever
//! listener   one path  and Gateway   Routes    identity    happened
//! ```
//!
//! On ports that declare no protocol `detect` comes first: what is not HTTP is judged and forwarded as TCP (`tcp`).
//!
//! What is judged is what is forwarded: the normalised path. A request that can be read in two ways is judged in both.

mod accept;
mod answers;
mod authorize;
mod balance;
mod body;
mod certificates;
mod check;
mod config;
mod connection;
mod context;
mod cors;
mod detect;
mod expect;
mod facts;
mod filters;
mod forward;
mod gateway;
mod guard;
mod headers;
mod hello;
mod limits;
mod log;
mod metrics;
mod mirror;
mod moves;
mod pool;
mod providers;
mod pulse;
mod replay;
mod reports;
mod request;
mod retry;
mod route;
mod served;
mod streams;
mod strict;
mod tcp;
mod tls;
mod tokens;
mod upgrade;
mod upstream;
mod workers;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_identity::CertManager;
use meltemi_identity::manager::CaFetcher;
use meltemi_model::net::ports;
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::{Readiness, Tasks, admin};
use meltemi_view::access_log::AccessLog;
use meltemi_view::view::{Config as ViewConfig, View};
use meltemi_wire::xds::types;
use tokio::net::{TcpListener, TcpSocket};

use crate::context::Context;
use crate::workers::Workers;

pub use crate::config::{Config, Parts};
pub use crate::limits::Limits;

/// Why it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The access log's thread.
    #[error("access log: {0}")]
    Log(#[source] std::io::Error),
    /// The port of the tunnels.
    #[error("port of the tunnels: {0}")]
    Listen(#[source] std::io::Error),
    /// The threads that serve connections.
    #[error("threads: {0}")]
    Threads(#[source] std::io::Error),
}

/// Tunnels that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Lifetime of the certificate to ask for.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// Starts everything; the tasks are `tasks`' from then on.
///
/// # Errors
/// See [`Error`].
pub fn start(config: Config, tasks: &Tasks) -> Result<(), Error> {
    let readiness = Readiness::new();
    let metrics = Metrics::new();
    let fetcher = CaFetcher {
        control: config.control.clone(),
        ttl: TTL,
        impersonate: false,
        cluster_id: config.cluster_id.clone(),
    };
    let certs = CertManager::start(fetcher, tasks);
    certs.prefetch(&config.identity);
    let namespace = &config.pod.namespace;
    let view = ViewConfig {
        control: config.control.clone(),
        node_id: format!(
            "waypoint~{}~{}.{namespace}~{namespace}.svc.cluster.local",
            config.instance_ip, config.pod.name
        ),
        metadata: metadata(&config),
        types: vec![
            // What is known of a Service must not be ahead of what holds for it.
            types::SETTINGS,
            types::HTTP_POLICY,
            types::JWT,
            types::TLS_SECRET,
            types::ROUTE,
            types::ADDRESS,
            types::LISTENER,
        ],
    };
    let view = View::start(view, readiness.register("xds"), tasks);
    let log = AccessLog::start(config.log_format).map_err(Error::Log)?;
    let certificate = readiness.register("certificate");
    let listener = listen().map_err(Error::Listen)?;
    let parts = Parts { view, certs, log, metrics: metrics.clone(), limits: Limits::default() };
    let context = serving(config.clone(), parts, listener, tasks)?;
    let own = context.clone();
    tasks.spawn_job("certificate", async move {
        while own.certificate().await.is_err() {}
        certificate.done();
        Ok::<(), std::convert::Infallible>(())
    });
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    tasks.spawn("ready", admin::serve(any(config.ready_port), admin::ready_routes(readiness), tasks.drain()));
    tasks.spawn("stats", admin::serve(any(config.stats_port), admin::stats_routes(metrics), tasks.drain()));
    let routes = admin::logging_routes().merge(context::dump_routes(context));
    tasks.spawn("admin", admin::serve(local(config.admin_port), routes, tasks.drain()));
    Ok(())
}

/// Starts to serve tunnels on `hbone`, and the listeners of the Gateway, with parts that are made; the tasks are `tasks`'.
///
/// # Errors
/// [`Error::Threads`].
pub fn serve(config: Config, parts: Parts, hbone: TcpListener, tasks: &Tasks) -> Result<(), Error> {
    serving(config, parts, hbone, tasks).map(drop)
}

fn serving(config: Config, parts: Parts, hbone: TcpListener, tasks: &Tasks) -> Result<Arc<Context>, Error> {
    let context = Arc::new(Context::new(config, parts, tasks.clone()));
    tasks.spawn("upstreams", context.upstreams.clone().sweep(tasks.drain()));
    let moves = context.moves.clone();
    let gateway = context.config.gateway.clone();
    tasks.spawn("moves", moves.watch(context.view.clone(), gateway, tasks.drain()));
    let (view, interval) = (context.view.clone(), context.limits.token_check);
    tasks.spawn("token expiry", tokens::watch_expiry(view, interval, tasks.drain()));
    let workers = Workers::start(context.config.workers, &context, tasks).map_err(Error::Threads)?;
    let workers = Arc::new(workers);
    tasks.spawn("hbone", accept::serve(context.clone(), workers.clone(), hbone));
    tasks.spawn("gateway", gateway::serve(context.clone(), workers));
    Ok(context)
}

fn listen() -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), ports::HBONE))?;
    socket.listen(BACKLOG)
}

fn metadata(config: &Config) -> BTreeMap<String, String> {
    let pairs = [
        ("NAME", config.pod.name.to_string()),
        ("NAMESPACE", config.pod.namespace.to_string()),
        ("CLUSTER_ID", config.cluster_id.clone()),
        ("VERSION", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}
