// SPDX-License-Identifier: Apache-2.0
//! What all parts of the runner share.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use meltemi_enrolment::{Enrolment, Rules};
use meltemi_kubeclient::{Events, Watches};
use meltemi_runtime::Tasks;
use tokio::sync::{Notify, watch};

use crate::cgroups::{self, Cgroups};
use crate::configs::watched::Configs;
use crate::container::running::Running;
use crate::image::Entries;
use crate::lock::lock;
use crate::net::Pool;
use crate::repair::AppliedRules;
use crate::sandbox::Sandbox;
use crate::state::State;
use crate::users::Supply;

/// What the runner is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// The node's address; the calling process is in the node's network namespace.
    pub address: Ipv4Addr,
    /// Addresses for Pods.
    pub pod_cidr: Ipv4Net,
    /// Kubeconfig with the node's client certificate.
    pub kubeconfig: PathBuf,
    /// The node's private root: what `hostPath` volumes show. ZDS listens below it.
    pub host_root: PathBuf,
    /// Where Pods' volumes and roots are made; short, in memory if possible, emptied at start.
    pub pods_dir: PathBuf,
    /// Where the nodes of the mesh mark the user ids that they have given to Pods.
    pub ids_dir: PathBuf,
    /// Which part of the machine's user ids the mesh takes as root; see [`crate::users::Supply::new`].
    pub ids_block: u32,
    /// Name of the mesh's cgroups.
    pub group: String,
    /// File in which this node writes down where they are.
    pub groups_record: PathBuf,
    /// Where logs are kept.
    pub logs_dir: PathBuf,
    /// The user's image table.
    pub images: PathBuf,
    /// Where the folders of volume claims are.
    pub claims_dir: PathBuf,
    /// The binary shown in every Pod.
    pub binary: PathBuf,
    /// Certificate, key and client CA (PEM files) of the kubelet's API.
    pub serving: ServingFiles,
    /// Address of the cluster's DNS; held by this node.
    pub dns_address: Ipv4Addr,
    /// Address and port of the API server for Pods.
    pub api_address: Ipv4Addr,
    /// `cluster.local`.
    pub cluster_domain: String,
}

impl Config {
    /// The runner of a node of a mesh on one machine: where things are in its run and data directories.
    pub fn one_machine(
        node_name: &str,
        address: Ipv4Addr,
        pod_cidr: Ipv4Net,
        run_dir: &Path,
        data_dir: &Path,
    ) -> std::io::Result<Self> {
        let components = data_dir.join("components");
        Ok(Self {
            node_name: node_name.to_owned(),
            address,
            pod_cidr,
            kubeconfig: components.join(format!("runner-{node_name}.kubeconfig")),
            host_root: run_dir.join(node_name),
            pods_dir: run_dir.join(format!("{node_name}-pods")),
            ids_dir: run_dir.join("user-ids"),
            ids_block: 0,
            group: cgroups::mesh_group(data_dir),
            groups_record: data_dir.join("cgroups").join(node_name),
            logs_dir: data_dir.join("logs").join("pods").join(node_name),
            images: data_dir.join("images.json"),
            claims_dir: data_dir.join("claims"),
            binary: std::env::current_exe()?,
            serving: ServingFiles {
                certificate: components.join(format!("kubelet-{node_name}.crt")),
                key: components.join(format!("kubelet-{node_name}.key")),
                client_ca: components.join("ca.crt"),
            },
            dns_address: Ipv4Addr::new(10, 96, 0, 10),
            api_address: Ipv4Addr::new(10, 96, 0, 1),
            cluster_domain: "cluster.local".to_owned(),
        })
    }
}

/// PEM files of the kubelet's API.
#[derive(Clone, Debug)]
pub struct ServingFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA that signs the API server's client certificate.
    pub client_ca: PathBuf,
}

/// Tokens by Pod, audience and path, with the time during which they are used.
pub(crate) type Tokens = HashMap<String, (Vec<u8>, std::ops::Range<Timestamp>)>;

/// What of the machine the Pods of this node share out among them.
pub(crate) struct Shares {
    pub users: Supply,
    pub cgroups: Cgroups,
}

/// Shared by all parts.
pub(crate) struct Context {
    pub config: Config,
    pub client: kube::Client,
    pub cluster_ca: Vec<u8>,
    pub tasks: Tasks,
    pub events: Events,
    pub enrolment: Arc<Enrolment>,
    pub names: Arc<crate::names::View>,
    /// User ids of Pods.
    pub users: Supply,
    /// Limits of containers.
    pub cgroups: Cgroups,
    pub configs: Configs,
    pub watches: Watches,
    pub rules: AppliedRules,
    pool: Mutex<Pool>,
    images: Mutex<Arc<Entries>>,
    tokens: Mutex<Tokens>,
    pods: Mutex<BTreeMap<String, Arc<PodEntry>>>,
}

/// A Pod that this node runs.
pub(crate) struct PodEntry {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The object as last seen.
    pub object: watch::Sender<Arc<Pod>>,
    /// Rung when the status may have changed.
    pub changed: Notify,
    state: Mutex<State>,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
}

impl Context {
    pub(crate) fn new(
        config: Config,
        client: kube::Client,
        cluster_ca: Vec<u8>,
        tasks: Tasks,
        entries: Entries,
        shares: Shares,
    ) -> Arc<Self> {
        let Shares { users, cgroups } = shares;
        let pool = Mutex::new(Pool::new(config.pod_cidr));
        let events = Events::new(client.clone(), "kubelet", &config.node_name, &tasks);
        Arc::new(Self {
            enrolment: Arc::new(Enrolment::new(Rules::default())),
            names: Arc::new(crate::names::View::new(&config.cluster_domain)),
            configs: Configs::default(),
            watches: Watches::default(),
            rules: AppliedRules::default(),
            config,
            client,
            cluster_ca,
            tasks,
            events,
            users,
            cgroups,
            pool,
            images: Mutex::new(Arc::new(entries)),
            tokens: Mutex::default(),
            pods: Mutex::default(),
        })
    }

    /// Spawns what may end at any time, and ends when the runner is told to stop.
    pub(crate) fn job<F, E>(&self, name: &str, work: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let mut drain = self.tasks.drain();
        self.tasks.spawn_job(name, async move {
            tokio::select! {
                result = work => result,
                () = drain.started() => Ok(()),
            }
        });
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        lock(&self.pool)
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    pub(crate) fn images(&self) -> Arc<Entries> {
        lock(&self.images).clone()
    }

    pub(crate) fn set_images(&self, entries: Entries) {
        *lock(&self.images) = Arc::new(entries);
    }

    pub(crate) fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PodEntry>>> {
        lock(&self.pods)
    }

    /// A Pod by its name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodEntry>> {
        self.pods().values().find(|p| p.namespace == namespace && p.name == name).cloned()
    }
}

impl PodEntry {
    pub(crate) fn new(pod: Arc<Pod>, state: State) -> Self {
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            object: watch::channel(pod).0,
            changed: Notify::new(),
            state: Mutex::new(state),
            sandbox: Mutex::new(None),
            running: Mutex::default(),
        }
    }

    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.object.borrow().clone()
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// Changes the state; the status follows.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        let before = state.clone();
        change(&mut state);
        if *state != before {
            self.changed.notify_one();
        }
    }

    pub(crate) fn sandbox(&self) -> Option<Arc<Sandbox>> {
        lock(&self.sandbox).clone()
    }

    pub(crate) fn set_sandbox(&self, sandbox: Option<Arc<Sandbox>>) {
        *lock(&self.sandbox) = sandbox;
    }

    pub(crate) fn running(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Running>>> {
        lock(&self.running)
    }

    /// `NAMESPACE/NAME`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn host_network(&self) -> bool {
        self.pod().spec.as_ref().and_then(|s| s.host_network) == Some(true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use meltemi_runtime::drain;

    use super::*;

    /// Of a runner that reaches no API server.
    pub(crate) fn context(node: Ipv4Addr) -> Arc<Context> {
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let folder = Path::new("/nonexistent");
        let range = "10.244.1.0/24".parse().unwrap();
        let config = Config::one_machine("node-1", node, range, folder, folder).unwrap();
        let api = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(api).unwrap();
        let shares = Shares { users: Supply::new(&config.ids_dir, 0).unwrap(), cgroups: Cgroups::default() };
        Context::new(config, client, Vec::new(), tasks, Entries::new(), shares)
    }
}
