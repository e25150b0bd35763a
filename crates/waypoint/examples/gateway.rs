// SPDX-License-Identifier: Apache-2.0
//! A gateway on a port, with one route to a backend, for load generators:
//! `cargo run --release -p meltemi-waypoint --example gateway -- PORT BACKEND [THREADS]`, then `wrk -c32 http://127.0.0.1:PORT/`.
//! With 0 threads the multi-threaded runtime serves it. Compare two by alternating them: absolute figures depend on the machine.

use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_identity::CertManager;
use meltemi_identity::channel::ControlPlane;
use meltemi_identity::manager::{Fetch, Fetcher};
use meltemi_model::l7::{Backend, Listener, Parent, Protocol, Route, RouteMatch, RouteRule, Target};
use meltemi_model::service::{AppProtocol, PortMapping};
use meltemi_model::{
    NamespacedHostname, NamespacedName, Service, SpiffeId, TrustDomain, Workload, WorkloadUid,
};
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::telemetry::Format;
use meltemi_runtime::{Tasks, drain};
use meltemi_state::Delta;
use meltemi_view::access_log::AccessLog;
use meltemi_view::{Mesh, View};
use meltemi_waypoint::{Config, Limits, Parts};
use tokio::net::TcpListener;

struct NoCa;

impl Fetcher for NoCa {
    fn fetch<'a>(&'a self, _: &'a SpiffeId, _: String) -> Fetch<'a> {
        Box::pin(async { Err("nothing here needs a certificate".to_owned()) })
    }
}

/// One listener with one route to a Service with one endpoint.
fn mesh(gateway: &NamespacedName, port: u16, backend: SocketAddr) -> Mesh {
    let key = NamespacedHostname::new("default", "web.default.svc.cluster.local");
    let target_port = backend.port();
    let ports = vec![PortMapping { service_port: 80, target_port, app_protocol: AppProtocol::Http11 }];
    let mut service = Service::empty(key.clone(), "web");
    service.ports.clone_from(&ports);
    let mut workload = Workload::empty(WorkloadUid::pod("Kubernetes", "default", "web"), "default", "web");
    workload.addresses = vec![backend.ip()];
    workload.services.insert(key.clone(), ports);
    let mut mesh = Mesh::default();
    mesh.snapshot.apply([Delta::Service(Box::new(service)), Delta::Workload(Box::new(workload))]);
    let listener = Listener {
        gateway: gateway.clone(),
        name: "http".into(),
        port,
        protocol: Protocol::Http,
        hostname: None,
        secrets: Vec::new(),
    };
    mesh.listeners.insert("http".into(), Arc::new(listener));
    let rule = RouteRule {
        matches: vec![RouteMatch::default()],
        backends: vec![Backend { service: Some(key), port: 80, weight: 1, filters: Vec::new() }],
        ..RouteRule::default()
    };
    let route = Route {
        name: NamespacedName::new("default", "route"),
        created: String::new(),
        hostnames: Vec::new(),
        parents: vec![Parent { target: Target::Gateway(gateway.clone()), section: None, port: None }],
        rules: vec![rule],
    };
    mesh.routes.insert("default/route".into(), Arc::new(route));
    mesh
}

fn config(gateway: NamespacedName, workers: usize) -> Result<Config, Box<dyn std::error::Error>> {
    Ok(Config {
        gateway,
        pod: NamespacedName::new("default", "gateway"),
        identity: SpiffeId::new(&TrustDomain::default(), "default", "gateway")?,
        control: ControlPlane {
            address: String::new(),
            server_name: String::new(),
            roots: "/".into(),
            token: "/".into(),
        },
        cluster_id: "Kubernetes".into(),
        instance_ip: String::new(),
        log_format: Format::Text,
        workers,
        ready_port: 0,
        stats_port: 0,
        admin_port: 0,
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("the port is missing")?.parse()?;
    let backend: SocketAddr = arguments.next().ok_or("the backend is missing")?.parse()?;
    let workers = arguments.next().map_or(Ok(2), |n| n.parse())?;
    let gateway = NamespacedName::new("default", "gateway");
    let (trigger, watch) = drain::channel();
    let (tasks, supervisor) = Tasks::new("gateway", watch);
    let parts = Parts {
        view: View::fixed(mesh(&gateway, port, backend)),
        certs: CertManager::start(NoCa, &tasks),
        log: AccessLog::to(std::io::sink(), Format::Text)?,
        metrics: Metrics::new(),
        limits: Limits::default(),
    };
    let hbone = TcpListener::bind("127.0.0.1:0").await?;
    meltemi_waypoint::serve(config(gateway, workers)?, parts, hbone, &tasks)?;
    let ended = supervisor.run().await;
    drop(trigger);
    Ok(ended?)
}
