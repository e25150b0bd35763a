// SPDX-License-Identifier: Apache-2.0
//! What kube-controller-manager and the scheduler do, for the one-machine cluster.
//!
//! One process: a cache for each kind that is fed by a watch, work queues keyed by object name, and for each
//! controller a pure function from what is cached to what should be done. A reconciliation reads caches only, so it
//! starts within a millisecond of the change; its writes go into the caches at once, so that the next one sees them.

mod cache;
mod claims;
mod cluster;
mod daemonset;
mod deployment;
mod endpoints;
mod events;
mod garbage;
mod heartbeat;
mod job;
mod loadbalancer;
mod namespace;
mod nodes;
mod placement;
mod podgc;
mod pods;
mod queue;
mod replicaset;
mod revisions;
mod rolling;
mod scheduler;
mod serviceaccounts;
mod statefulset;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use meltemi_runtime::{DrainWatch, TaskError, Tasks};

use crate::cluster::Cluster;

/// What the controllers are started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Credentials and address of the API; its CA is what `kube-root-ca.crt` carries.
    pub kubeconfig: PathBuf,
    /// The first three numbers of the LoadBalancer pool, e.g. 172.30.1 for 172.30.1.0/24.
    pub load_balancer_pool: [u8; 3],
    /// How long a node may leave its lease unrenewed before it counts as lost.
    pub node_grace: Duration,
    /// Where the folders of volume claims are made. `None`: claims are bound by somebody else.
    pub claims: Option<PathBuf>,
}

impl Config {
    /// With the pool and the grace of the one-machine cluster.
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, load_balancer_pool: [172, 30, 1], node_grace: nodes::GRACE, claims: None }
    }
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A controller failed.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Runs all controllers until the drain.
///
/// # Errors
/// The kubeconfig cannot be used, or a controller ended.
pub async fn run(config: Config, drain: DrainWatch) -> Result<(), Error> {
    let (tasks, supervisor) = Tasks::new("controllers", drain);
    start(config, &tasks).await?;
    drop(tasks);
    Ok(supervisor.run().await?)
}

/// Starts all controllers as services of `tasks`.
///
/// # Errors
/// The kubeconfig cannot be used.
pub async fn start(config: Config, tasks: &Tasks) -> Result<(), Error> {
    let wrong = |reason: &dyn std::fmt::Display| Error::Kubeconfig {
        path: config.kubeconfig.clone(),
        reason: reason.to_string(),
    };
    let file = Kubeconfig::read_from(&config.kubeconfig).map_err(|e| wrong(&e))?;
    let client = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|e| wrong(&e))?;
    let root_ca = root_ca(&client).ok_or_else(|| wrong(&"it names no certificate authority"))?;
    let client = meltemi_kubeclient::client(client).map_err(|e| wrong(&e))?;
    let cluster = Arc::new(Cluster::new(client, root_ca, config.load_balancer_pool, tasks));
    scheduler::start(&cluster, tasks);
    deployment::start(&cluster, tasks);
    replicaset::start(&cluster, tasks);
    daemonset::start(&cluster, tasks);
    statefulset::start(&cluster, tasks);
    job::start(&cluster, tasks);
    endpoints::start(&cluster, tasks);
    serviceaccounts::start(&cluster, tasks);
    loadbalancer::start(&cluster, tasks);
    nodes::start(&cluster, config.node_grace, tasks);
    podgc::start(&cluster, tasks);
    namespace::start(&cluster, tasks);
    garbage::start(&cluster, tasks);
    heartbeat::start(&cluster, tasks);
    if let Some(folders) = config.claims {
        claims::start(&cluster, folders, tasks);
    }
    // Subscribed first, fed afterwards: no controller misses a change.
    cluster.feed(tasks);
    Ok(())
}

/// The CA certificates of a client configuration as PEM.
fn root_ca(config: &kube::Config) -> Option<String> {
    let certificates = config.root_cert.as_ref()?;
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(std::str::from_utf8(line).unwrap_or_default());
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    (!pem.is_empty()).then_some(pem)
}

/// Base64, by way of the JSON form of Kubernetes' byte strings.
fn base64(bytes: &[u8]) -> String {
    let value = serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
