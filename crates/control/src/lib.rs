// SPDX-License-Identifier: Apache-2.0
//! The control plane: watches objects, translates them, publishes xDS, signs certificates, keeps status, runs gateways.
//!
//! ```text
//! watchers (source) ─▶ engine (translate::Index, Table) ─▶ publish ─▶ xDS streams
//!                            │                                          │ acknowledgements
//!                            ├─▶ gateway controller, root certificates  ▼
//!                            └─────────────────────────────────────▶ status writer
//! ```
//! Every replica serves; the one that holds the Lease writes.

pub mod access;
pub mod auth;
pub mod ca;
pub mod engine;
pub mod error;
pub mod gateways;
pub mod jwks;
pub mod leader;
pub mod metrics;
pub mod monitoring;
pub mod namespaces;
pub mod pods;
pub mod publish;
pub mod review;
pub mod security;
pub mod source;
pub mod status;
mod statuses;
pub mod tls;
pub mod webhook;
pub mod xds;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meltemi_kubeclient::Watches;
use meltemi_model::net::ports;
use meltemi_runtime::metrics::Metrics;
use meltemi_runtime::{DrainWatch, Readiness, Tasks, admin};
use meltemi_translate::MeshConfig;
use meltemi_translate::gateways::deployment::ProxyTemplate;
use meltemi_wire::xds::server::Publisher;
use tokio::sync::{mpsc, watch};

pub use error::Error;

/// Validity of the control plane's own certificate; it is replaced at half of it.
const SERVING_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Interval between two checks of the serving certificate against the wall clock.
const SERVING_LOOK: Duration = Duration::from_secs(1);
/// Events that may wait for the engine.
const WAITING: usize = 16_384;

/// What the control plane needs to know.
#[derive(Clone)]
pub struct Config {
    /// How the API is reached.
    pub kube: kube::Config,
    /// The mesh's settings; its root namespace is the control plane's own.
    pub mesh: MeshConfig,
    /// Unique name of this replica, e.g. its Pod.
    pub identity: String,
    /// Image of the proxies of Gateways.
    pub proxy_image: String,
    /// Address that every port is opened on.
    pub listen: IpAddr,
    /// Ports; the defaults are Istio's.
    pub ports: Ports,
    /// Addresses that keys of issuers are fetched from beside the usual ones.
    pub jwks_allowed: Vec<ipnet::IpNet>,
    /// Says what policies probably do not mean; without one their status leaves it out.
    pub reviewer: Option<review::Reviewer>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("mesh", &self.mesh)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Ports of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// xDS and certificates.
    pub xds: u16,
    /// Admission.
    pub webhook: u16,
    /// Metrics, readiness, debug.
    pub monitoring: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { xds: ports::XDS, webhook: ports::WEBHOOK, monitoring: ports::MONITORING }
    }
}

impl Config {
    /// The usual settings for a replica of that name and image.
    pub fn new(kube: kube::Config, identity: impl Into<String>, proxy_image: impl Into<String>) -> Self {
        Self {
            kube,
            mesh: MeshConfig::default(),
            identity: identity.into(),
            proxy_image: proxy_image.into(),
            listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ports: Ports::default(),
            jwks_allowed: Vec::new(),
            reviewer: None,
        }
    }
}

/// Runs the control plane until `drain` starts.
///
/// # Errors
/// The API cannot be used, a port cannot be opened, the authority cannot be loaded, or a task ended.
pub async fn run(config: Config, drain: DrainWatch) -> Result<(), Error> {
    let (tasks, supervisor) = Tasks::new("control", drain);
    start(config, &tasks).await?;
    drop(tasks);
    supervisor.run().await?;
    Ok(())
}

/// Starts the control plane's tasks; they are `tasks`' owner's from then on.
///
/// # Errors
/// The API cannot be used, a port cannot be opened, or the authority cannot be loaded.
pub async fn start(config: Config, tasks: &Tasks) -> Result<(), Error> {
    let client = meltemi_kubeclient::client(config.kube.clone())?;
    let namespace: Arc<str> = config.mesh.root_namespace.clone();
    let readiness = Readiness::new();
    let core = Arc::new(ca::authority(&client, &namespace, &config.mesh.trust_domain).await?);
    let leader = leader::elect(client.clone(), tasks, &namespace, &config.identity);
    let (published, publishing) = watch::channel(false);
    let metrics = Metrics::new();
    let counters = metrics::ControlMetrics::register(&metrics);
    let outlets = engine::Outlets {
        pods: pods::Directory::default(),
        accounts: access::GatewayAccounts::default(),
        gateways: gateways::Gateways::default(),
        namespaces: namespaces::Namespaces::default(),
        status: status::StatusQueue::default(),
        publisher: Publisher::new(),
        proxies: xds::Proxies::new(counters.clone()),
        keys: jwks::Keys::default(),
        metrics: counters,
        watches: Watches::default(),
        published,
    };
    serve(&config, tasks, &core, &outlets, (&client, &publishing, &readiness, metrics)).await?;
    write(&config, tasks, &core, &outlets, (&client, &leader));
    // After the server listens: an API that cannot reach it refuses every policy.
    webhook::register(
        client.clone(),
        tasks,
        webhook::configuration(&namespace, core.root_pem()),
        leader.clone(),
        &readiness,
    );
    let permitted = jwks::Permitted::beside(config.jwks_allowed.clone());
    jwks::start(tasks, outlets.keys.clone(), jwks::Fetcher::of_machine(permitted));
    let (events, received) = mpsc::channel(WAITING);
    let review = review::start(tasks, config.reviewer, leader);
    let watches = outlets.watches.clone();
    engine::Engine::new(config.mesh.clone(), outlets).start(tasks, received, review);
    source::Source::new(client, namespace, tasks.clone(), events, watches).start();
    wait_published(tasks, publishing, &readiness);
    Ok(())
}

/// Opens the ports: xDS and certificates, admission, monitoring.
async fn serve(
    config: &Config,
    tasks: &Tasks,
    core: &Arc<meltemi_identity::CaCore>,
    outlets: &engine::Outlets,
    (client, publishing, readiness, metrics): (&kube::Client, &watch::Receiver<bool>, &Readiness, Metrics),
) -> Result<(), Error> {
    let namespace = config.mesh.root_namespace.clone();
    let serving = serve_as(core, tasks, &namespace)?;
    let authenticator = Arc::new(auth::Authenticator::new(client.clone()));
    let access = access::Access {
        trust_domain: config.mesh.trust_domain.clone(),
        namespace: namespace.clone(),
        pods: outlets.pods.clone(),
        gateways: outlets.accounts.clone(),
    };
    let at = |port| SocketAddr::new(config.listen, port);
    let tls_config = |alpn: &[&[u8]]| serving.config(alpn).map_err(|e| Error::Ca(e.to_string()));

    let discovery = xds::Endpoint {
        publisher: outlets.publisher.clone(),
        proxies: outlets.proxies.clone(),
        authenticator: authenticator.clone(),
        access: access.clone(),
        tasks: tasks.clone(),
        published: publishing.clone(),
        next: 1.into(),
    };
    let certificates = ca::Endpoint {
        core: core.clone(),
        authenticator: authenticator.clone(),
        access,
        metrics: outlets.metrics.clone(),
    };
    let services = tonic::service::Routes::new(discovery.into_service())
        .add_service(certificates.into_service())
        .into_axum_router();
    tls::serve_http(tasks, "xds", tls::bind(at(config.ports.xds)).await?, tls_config(&[b"h2"])?, services);

    let hook = tls::bind(at(config.ports.webhook)).await?;
    let hooks = webhook::routes(webhook::validator(), outlets.metrics.clone());
    tls::serve_http(tasks, "webhook", hook, tls_config(&[b"h2", b"http/1.1"])?, hooks);

    let pages = monitoring::Pages {
        authenticator,
        namespace,
        proxies: outlets.proxies.clone(),
        publisher: outlets.publisher.clone(),
        watches: outlets.watches.clone(),
    };
    let routes = monitoring::routes(pages, metrics, readiness.clone());
    tasks.spawn("monitoring", admin::serve(at(config.ports.monitoring), routes, tasks.drain()));
    Ok(())
}

/// Starts what writes objects, while this replica leads.
fn write(
    config: &Config,
    tasks: &Tasks,
    core: &meltemi_identity::CaCore,
    outlets: &engine::Outlets,
    (client, leader): (&kube::Client, &leader::Leadership),
) {
    let root = core.root_pem().to_owned();
    namespaces::start(client.clone(), tasks, &outlets.namespaces, root, leader.clone());
    status::start(client.clone(), tasks, &outlets.status, leader.clone());
    gateways::Controller {
        client: client.clone(),
        gateways: outlets.gateways.clone(),
        status: outlets.status.clone(),
        template: ProxyTemplate {
            image: config.proxy_image.clone(),
            control_address: format!("istiod.{}.svc:{}", config.mesh.root_namespace, ports::XDS),
        },
        mesh: config.mesh.clone(),
        leader: leader.clone(),
        watches: outlets.watches.clone(),
    }
    .start(tasks);
}

/// Says that the component is ready once the mesh has been published.
fn wait_published(tasks: &Tasks, mut published: watch::Receiver<bool>, readiness: &Readiness) {
    let ready = readiness.register("mesh");
    tasks.spawn_job("readiness", async move {
        if published.wait_for(|p| *p).await.is_ok() {
            ready.done();
        }
        Ok::<(), std::convert::Infallible>(())
    });
}

/// Signs the control plane's own certificate, and again at half its validity.
fn serve_as(
    core: &Arc<meltemi_identity::CaCore>,
    tasks: &Tasks,
    namespace: &str,
) -> Result<tls::Serving, Error> {
    let names: Vec<String> = [
        format!("istiod.{namespace}.svc"),
        format!("istiod.{namespace}"),
        format!("istiod.{namespace}.svc.cluster.local"),
    ]
    .into();
    let serving = tls::Serving::new(ca::serving(core, &names, SERVING_VALIDITY)?);
    let (core, renewed) = (core.clone(), serving.clone());
    let mut drain = tasks.drain();
    let mut made = SystemTime::now();
    tasks.spawn("serving certificate", async move {
        loop {
            tokio::select! {
                () = drain.started() => return Ok::<(), Error>(()),
                () = tokio::time::sleep(SERVING_LOOK) => {}
            }
            if is_stale(made, SystemTime::now()) {
                made = SystemTime::now();
                renewed.replace(ca::serving(&core, &names, SERVING_VALIDITY)?);
            }
        }
    });
    Ok(serving)
}

/// Whether a serving certificate of this age is to be made anew: by the wall clock, which others judge it by, and which
/// may have been put forward or back.
fn is_stale(made: SystemTime, now: SystemTime) -> bool {
    now.duration_since(made).map_or(true, |age| age >= SERVING_VALIDITY / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_certificate_follows_the_wall_clock() {
        let made = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        for (now, stale) in [
            (made, false),
            (made + Duration::from_secs(60), false),
            (made + SERVING_VALIDITY / 2, true),
            (made + SERVING_VALIDITY + 2 * day, true),
            (made - 2 * day, true),
        ] {
            assert_eq!(is_stale(made, now), stale, "{now:?}");
        }
    }
}
