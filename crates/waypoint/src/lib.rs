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
//! What is judged is what is forwarded: the normalised path. A request that can be read in two ways is judged in both.

mod accept;
mod authorize;
mod check;
mod context;
mod forward;
mod gateway;
mod log;
mod request;
mod route;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meltemi_identity::CertManager;
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::CaFetcher;
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::{Readiness, Tasks, admin};
use meltemi_view::access_log::AccessLog;
use meltemi_view::view::{Config as ViewConfig, View};
use meltemi_wire::xds::types;

use crate::context::Context;

/// What a waypoint or gateway is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Gateway that it serves.
    pub gateway: NamespacedName,
    /// Its own Pod.
    pub pod: NamespacedName,
    /// Its identity.
    pub identity: SpiffeId,
    /// Where the control plane is.
    pub control: ControlPlane,
    /// Its cluster.
    pub cluster_id: String,
    /// Its address, for the node id.
    pub instance_ip: String,
    /// Ports of readiness, metrics, admin.
    pub ready_port: u16,
    /// Metrics.
    pub stats_port: u16,
    /// Admin, loopback only.
    pub admin_port: u16,
}

/// Why it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The access log's thread.
    #[error("access log: {0}")]
    Log(#[source] std::io::Error),
}

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
            types::SETTINGS,
            types::ADDRESS,
            types::HTTP_POLICY,
            types::ROUTE,
            types::LISTENER,
            types::JWT,
            types::TLS_SECRET,
        ],
    };
    let view = View::start(view, readiness.register("xds"), tasks);
    let log = AccessLog::start().map_err(Error::Log)?;
    let certificate = readiness.register("certificate");
    let context = Arc::new(Context::new(config.clone(), view, certs, log, tasks.clone()));
    let own = context.clone();
    tasks.spawn_job("certificate", async move {
        while own.certificate().await.is_err() {}
        certificate.done();
        Ok::<(), std::convert::Infallible>(())
    });
    tasks.spawn("hbone", accept::serve(context.clone()));
    tasks.spawn("gateway", gateway::serve(context.clone()));
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    tasks.spawn("ready", admin::serve(any(config.ready_port), admin::ready_routes(readiness), tasks.drain()));
    tasks.spawn("stats", admin::serve(any(config.stats_port), admin::stats_routes(metrics), tasks.drain()));
    let routes = admin::logging_routes().merge(context::dump_routes(context));
    tasks.spawn("admin", admin::serve(local(config.admin_port), routes, tasks.drain()));
    Ok(())
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
