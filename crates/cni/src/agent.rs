// SPDX-License-Identifier: Apache-2.0
//! The agent of a node: who starts, runs and ends here, what of it is captured, and who is told.
//!
//! Every Pod that the agent knows has an entry with its network namespace (`entry`). New ones come by the plugin (`server`),
//! those that ran before by a look at the node's processes (`adopt`).

mod adopt;
mod entry;
mod farewell;
mod handover;
mod host;
mod install;
mod pods;
mod probes;
mod refusal;
mod server;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use meltemi_enrolment::{Enrolment, Rules, zds};
use meltemi_kubeclient::{Events, Watches};
use meltemi_linux::netns::{NetNs, NetNsId};
use meltemi_linux::seqpacket::SeqPacket;
use meltemi_runtime::lock::lock;
use meltemi_runtime::{Readiness, Ready, Tasks, admin};
use tokio::sync::watch;

use self::entry::Entry;
use self::host::HostRoot;
use self::refusal::Refusal;

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node_name: String,
    /// Namespace of the agent's own Pods.
    pub own_namespace: String,
    /// The DaemonSet that they belong to.
    pub daemon_set: String,
    /// Where plugins ask, on the node and here.
    pub socket: PathBuf,
    /// Where the node proxy of the same Pod connects.
    pub zds_socket: PathBuf,
    /// The node's `/proc`.
    pub host_proc: PathBuf,
    /// Namespaces whose Pods are never captured.
    pub excluded: BTreeSet<String>,
    /// Folder of the node's CNI configuration; `None` looks for it.
    pub conf_dir: Option<PathBuf>,
    /// Folder of the node's CNI plugins; `None` looks for it.
    pub bin_dir: Option<PathBuf>,
    /// The program that becomes the plugin.
    pub binary: PathBuf,
    /// Where readiness is asked; `None` serves it nowhere.
    pub ready: Option<SocketAddr>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's own namespaces are not to be seen.
    #[error("{path}: {reason}; the agent needs the node's /proc there and CAP_SYS_PTRACE")]
    Host {
        /// What was looked at.
        path: String,
        /// Why not.
        reason: io::Error,
    },
}

/// Pods by namespace and name.
type Objects = BTreeMap<(String, String), Arc<Pod>>;

/// Shared by all parts of the agent.
struct Agent {
    config: Config,
    client: kube::Client,
    tasks: Tasks,
    enrolment: Arc<Enrolment>,
    events: Events,
    watches: Watches,
    host: HostRoot,
    host_netns: NetNs,
    /// The Pods of this node, by namespace and name, as the API has them. `None` until they have been listed once.
    objects: watch::Sender<Option<Objects>>,
    /// Those with a network namespace, by uid.
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// All Pods that ran before have been taken up.
    adopted: watch::Sender<bool>,
    /// It answers plugins, and so the node is its own.
    serving: watch::Sender<bool>,
    /// The next agent of the node has taken over.
    succeeded: watch::Sender<bool>,
    /// Rung when the host's rules for probes may have to change.
    probes_changed: tokio::sync::Notify,
}

/// Starts everything and returns; the tasks run until the drain.
///
/// # Errors
/// Something that cannot get better by waiting; an API server or a cluster's network that is not there yet can.
pub async fn start(config: Config, client: kube::Client, tasks: &Tasks) -> Result<(), Error> {
    let of_init = config.host_proc.join("1/ns/net");
    let host_netns = NetNs::from_path(&of_init)
        .map_err(|reason| Error::Host { path: of_init.display().to_string(), reason })?;
    let rules = Rules {
        node_probes: true,
        excluded: config.excluded.clone(),
        look_again: Some(std::time::Duration::from_secs(5)),
    };
    let readiness = Readiness::new();
    let agent = Arc::new(Agent {
        events: Events::new(client.clone(), "meltemi-cni", &config.node_name, tasks),
        client,
        tasks: tasks.clone(),
        enrolment: Arc::new(Enrolment::new(rules)),
        watches: Watches::default(),
        host: HostRoot::new(config.host_proc.join("1/root")),
        host_netns,
        objects: watch::channel(None).0,
        entries: Mutex::default(),
        adopted: watch::channel(false).0,
        serving: watch::channel(false).0,
        succeeded: watch::channel(false).0,
        probes_changed: tokio::sync::Notify::new(),
        config,
    });
    // Before the proxy connects: it gets the sockets with its Pods.
    let earlier = handover::take(&agent).await;
    let parts = Parts {
        listed: readiness.register("pods"),
        installed: readiness.register("cni"),
        takes_questions: readiness.register("plugin socket"),
    };
    run(&agent, earlier, parts);
    if let Some(address) = agent.config.ready {
        tasks.spawn("ready", admin::serve(address, admin::ready_routes(readiness), tasks.drain()));
    }
    Ok(())
}

/// What has to come about before the agent is ready.
struct Parts {
    listed: Ready,
    installed: Ready,
    takes_questions: Ready,
}

fn run(agent: &Arc<Agent>, earlier: Option<SeqPacket>, parts: Parts) {
    let Parts { listed, installed, takes_questions } = parts;
    agent.service("plugin socket", server::serve(agent.clone(), earlier, takes_questions));
    agent.service("watch pods", pods::watch(agent.clone()));
    agent.service("watch namespaces", pods::watch_namespaces(agent.clone()));
    agent.service("adopt pods", adopt::run(agent.clone(), listed));
    let (installing, probing) = (agent.clone(), agent.clone());
    agent.service("cni configuration", async move {
        installing.while_in_charge(install::run(&installing, installed)).await;
    });
    agent.service("probes", async move { probing.while_in_charge(probes::run(&probing)).await });
    let (shared, path, tasks) =
        (agent.enrolment.clone(), agent.config.zds_socket.clone(), agent.tasks.clone());
    // The folder is shared by the two containers of this Pod and by nobody else.
    agent.tasks.spawn("zds", async move { zds::serve(shared, &path, &tasks, |peer| peer.uid == 0).await });
    let (leaving, mut drain) = (agent.clone(), agent.tasks.drain());
    agent.tasks.spawn("farewell", async move {
        drain.started().await;
        farewell::say(&leaving).await;
        Ok::<(), Infallible>(())
    });
}

impl Agent {
    /// Spawns what runs until the drain.
    fn service(&self, name: &str, work: impl Future<Output = ()> + Send + 'static) {
        let mut drain = self.tasks.drain();
        self.tasks.spawn(name, async move {
            tokio::select! {
                () = work => {}
                () = drain.started() => {}
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Spawns what ends when its Pod does, or at the drain.
    fn job(&self, name: &str, work: impl Future<Output = ()> + Send + 'static) {
        let mut drain = self.tasks.drain();
        self.tasks.spawn_job(name, async move {
            tokio::select! {
                () = work => {}
                () = drain.started() => {}
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Does work on the node's own files and rules for ever, from when this agent is the node's until the next one is.
    async fn while_in_charge(&self, work: impl Future<Output = ()>) {
        let (mut serving, mut succeeded) = (self.serving.subscribe(), self.succeeded.subscribe());
        let _ = serving.wait_for(|serving| *serving).await;
        let is_succeeded = async { succeeded.wait_for(|succeeded| *succeeded).await.is_ok() };
        let stopped = tokio::select! {
            () = work => false,
            stopped = is_succeeded => stopped,
        };
        if stopped {
            std::future::pending::<()>().await;
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        lock(&self.entries)
    }

    /// Whether a Pod is left to itself: its namespace is excluded, or it has no network of its own.
    fn ignores(&self, pod: &Pod) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        on_host || self.config.excluded.contains(namespace)
    }

    /// Checks that a network namespace can be a Pod's: not the node's, and no other Pod's.
    fn check_netns(&self, netns: &NetNs, uid: &str) -> Result<NetNsId, Refusal> {
        let id = netns.id().map_err(Refusal::Namespace)?;
        if self.host_netns.id().is_ok_and(|host| host == id) {
            return Err(Refusal::NodesNamespace);
        }
        let taken = self.entries().values().find(|other| other.netns_id == id && other.uid != uid).cloned();
        taken.map_or(Ok(id), |other| Err(Refusal::OthersNamespace(other.full_name())))
    }
}

/// `NAMESPACE/NAME`.
fn full_name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}
