// SPDX-License-Identifier: Apache-2.0
//! The connected node proxies and what each has been told.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use meltemi_linux::netns::NetNs;
use meltemi_runtime::lock::lock;
use tokio::sync::{mpsc, watch};

/// What a node proxy said of a Pod: that it serves it, or why it does not. `None` until one has said something.
pub(crate) type Answer = Option<Result<(), String>>;

/// An enrolled Pod.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub netns: Arc<NetNs>,
    /// Where answers are kept.
    pub answer: Arc<watch::Sender<Answer>>,
}

#[derive(Debug)]
pub(super) enum Command {
    Add(Workload),
    Del(String),
    /// A later proxy has taken over.
    Successor,
}

/// Listening sockets of one Pod that are kept at most: as many as fit into one message beside the network namespace.
pub(super) const MAX_LISTENERS: usize = meltemi_linux::seqpacket::MAX_FDS - 1;

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    workloads: BTreeMap<String, Workload>,
    connections: BTreeMap<u64, Connection>,
    /// The proxies' listening sockets in each Pod, so that they outlive a proxy: what arrives between two proxies waits.
    listeners: BTreeMap<String, Vec<Arc<OwnedFd>>>,
    /// A proxy has served all that it was told of at first.
    served: Arc<watch::Sender<bool>>,
}

#[derive(Debug)]
struct Connection {
    commands: mpsc::UnboundedSender<Command>,
    told: BTreeSet<String>,
    keeps_listeners: bool,
}

/// The connected proxies and what they have to know.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Arc<Mutex<Inner>>);

impl Proxies {
    /// Adds a Pod, or hands it over once more.
    pub(crate) fn add(&self, workload: Workload) {
        let mut inner = lock(&self.0);
        inner.workloads.insert(workload.uid.clone(), workload.clone());
        if let Some(mut newest) = inner.connections.last_entry() {
            newest.get_mut().told.insert(workload.uid.clone());
            let _ = newest.get().commands.send(Command::Add(workload));
        }
    }

    /// Removes a Pod.
    pub(crate) fn remove(&self, uid: &str) {
        let mut inner = lock(&self.0);
        inner.listeners.remove(uid);
        if inner.workloads.remove(uid).is_none() {
            return;
        }
        for connection in inner.connections.values_mut() {
            connection.told.remove(uid);
            let _ = connection.commands.send(Command::Del(uid.to_owned()));
        }
    }

    /// Whether a proxy is connected.
    pub(crate) fn any(&self) -> bool {
        !lock(&self.0).connections.is_empty()
    }

    /// Keeps the answer of a proxy: whoever serves a Pod, but a refusal only of the newest one, which the Pod is for.
    pub(super) fn answered(&self, id: u64, uid: &str, result: Result<(), String>) {
        let inner = lock(&self.0);
        let newest = inner.connections.last_key_value().is_some_and(|(newest, _)| *newest == id);
        if (newest || result.is_ok())
            && let Some(workload) = inner.workloads.get(uid)
        {
            workload.answer.send_replace(Some(result));
        }
    }

    /// A Pod that is still to be served.
    pub(crate) fn get(&self, uid: &str) -> Option<Workload> {
        lock(&self.0).workloads.get(uid).cloned()
    }

    pub(super) fn connect(&self) -> (u64, Vec<Workload>, mpsc::UnboundedReceiver<Command>) {
        let (commands, rx) = mpsc::unbounded_channel();
        let mut inner = lock(&self.0);
        inner.next += 1;
        let id = inner.next;
        let snapshot: Vec<Workload> = inner.workloads.values().cloned().collect();
        let told = inner.workloads.keys().cloned().collect();
        inner.connections.insert(id, Connection { commands, told, keeps_listeners: false });
        (id, snapshot, rx)
    }

    /// A proxy has said whether it keeps listeners.
    pub(super) fn greeted(&self, id: u64, keeps_listeners: bool) {
        if let Some(connection) = lock(&self.0).connections.get_mut(&id) {
            connection.keeps_listeners = keeps_listeners;
        }
    }

    /// The kept listening sockets of a Pod, for the proxy that takes it.
    pub(super) fn listeners(&self, uid: &str) -> Vec<Arc<OwnedFd>> {
        lock(&self.0).listeners.get(uid).cloned().unwrap_or_default()
    }

    /// Keeps listening sockets that a proxy has opened in a Pod.
    pub(super) fn keep_listeners(&self, uid: &str, sockets: Vec<OwnedFd>) {
        let mut inner = lock(&self.0);
        // The Pod may have left meanwhile.
        if inner.workloads.contains_key(uid) {
            let kept = inner.listeners.entry(uid.to_owned()).or_default();
            let room = MAX_LISTENERS.saturating_sub(kept.len());
            kept.extend(sockets.into_iter().take(room).map(Arc::new));
        }
    }

    /// A proxy serves everything of its snapshot: those before it may stop accepting. One that keeps no listeners has
    /// opened its own beside the kept ones, to which the kernel must not hand connections any more.
    pub(super) fn took_over(&self, id: u64) {
        let mut inner = lock(&self.0);
        if !inner.connections.get(&id).is_some_and(|connection| connection.keeps_listeners) {
            inner.listeners.clear();
        }
        inner.served.send_replace(true);
        for (_, earlier) in inner.connections.range(..id).filter(|(_, earlier)| earlier.keeps_listeners) {
            let _ = earlier.commands.send(Command::Successor);
        }
    }

    /// The kept listening sockets of all Pods, for an agent that takes this one's place.
    pub fn all_listeners(&self) -> Vec<(String, Vec<Arc<OwnedFd>>)> {
        lock(&self.0).listeners.iter().map(|(uid, kept)| (uid.clone(), kept.clone())).collect()
    }

    /// Keeps the sockets that an earlier agent has kept, for the proxy that will take their Pod.
    pub fn inherit(&self, uid: String, sockets: Vec<OwnedFd>) {
        let sockets = sockets.into_iter().take(MAX_LISTENERS).map(Arc::new).collect();
        lock(&self.0).listeners.insert(uid, sockets);
    }

    /// Tells the proxies that another one, of another agent, serves the Pods as well.
    pub fn succeed(&self) {
        for connection in lock(&self.0).connections.values().filter(|connection| connection.keeps_listeners) {
            let _ = connection.commands.send(Command::Successor);
        }
    }

    /// Resolves when a proxy has served all that it was told of at first.
    pub async fn served(&self) {
        let mut served = lock(&self.0).served.subscribe();
        let _ = served.wait_for(|served| *served).await;
    }

    /// How many proxies have connected so far; `None` while one is connected.
    pub(super) fn abandoned(&self) -> Option<u64> {
        let inner = lock(&self.0);
        inner.connections.is_empty().then_some(inner.next)
    }

    /// Closes the kept listeners if no proxy has come since there were `so_far`: what waits is reset, what comes is
    /// refused.
    pub(super) fn close_abandoned(&self, so_far: u64) {
        let mut inner = lock(&self.0);
        if inner.connections.is_empty() && inner.next == so_far {
            inner.listeners.clear();
        }
    }

    /// A proxy is gone: the newest of those left learns what only that one knew.
    pub(super) fn disconnect(&self, id: u64) {
        let mut inner = lock(&self.0);
        inner.connections.remove(&id);
        let workloads: Vec<Workload> = inner.workloads.values().cloned().collect();
        let Some(mut newest) = inner.connections.last_entry() else { return };
        for workload in workloads {
            if newest.get_mut().told.insert(workload.uid.clone()) {
                let _ = newest.get().commands.send(Command::Add(workload));
            }
        }
    }
}
