// SPDX-License-Identifier: Apache-2.0
//! A Pod of this node with its network namespace.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use meltemi_enrolment::{Capture, Error, Host, Member, Subject};
use meltemi_linux::netns::{NetNs, NetNsId};
use tokio::sync::watch;

use super::{Agent, full_name, status};

/// Pause after the first look at a Pod that ran before and could not be captured.
const RETRY: Duration = Duration::from_millis(200);

/// A Pod of this node with its network namespace.
pub(super) struct Entry {
    pub uid: String,
    /// The runtime's id of its sandbox; empty for one that ran before the agent.
    pub sandbox: String,
    pub netns: NetNs,
    pub netns_id: NetNsId,
    /// The addresses that the plugin was told.
    pub addresses: Vec<IpAddr>,
    /// The object as last seen.
    pub object: watch::Sender<Arc<Pod>>,
    /// Whether its traffic passes the proxy.
    pub capture: watch::Sender<Capture>,
}

/// What an entry is made of.
pub(super) struct Found {
    pub pod: Arc<Pod>,
    pub sandbox: String,
    pub netns: NetNs,
    pub netns_id: NetNsId,
    pub addresses: Vec<IpAddr>,
}

impl Entry {
    pub(super) fn full_name(&self) -> String {
        full_name(&self.object.borrow())
    }

    /// All addresses that are known.
    pub(super) fn all_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().copied().chain(addresses(&self.object.borrow())).collect()
    }
}

/// The addresses of a Pod in its status.
pub(super) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let all = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    all.chain(status.and_then(|s| s.pod_ip.as_deref())).filter_map(|ip| ip.parse().ok()).collect()
}

/// An entry as enrolment sees it. It does not keep the entry: the Pod's end is its own.
struct Place {
    agent: Weak<Agent>,
    entry: Weak<Entry>,
}

impl Host for Place {
    fn netns(&self) -> io::Result<Option<NetNs>> {
        self.entry.upgrade().map(|entry| entry.netns.try_clone()).transpose()
    }

    fn show(&self, capture: Capture) {
        let Some(entry) = self.entry.upgrade() else { return };
        let changed = entry.capture.send_if_modified(|shown| {
            let differs = *shown != capture;
            *shown = capture;
            differs
        });
        if let (true, Some(agent)) = (changed, self.agent.upgrade()) {
            agent.probes_changed.notify_one();
        }
    }

    fn warn(&self, reason: &'static str, message: String) {
        if let (Some(agent), Some(entry)) = (self.agent.upgrade(), self.entry.upgrade()) {
            let pod = entry.object.borrow().clone();
            agent.events.warning(&pod, None, reason, message);
        }
    }
}

/// A Pod that starts: captured before this returns, if it belongs into the mesh.
pub(super) async fn start(agent: &Arc<Agent>, found: Found) -> Result<(), Error> {
    let uid = found.pod.metadata.uid.clone().unwrap_or_default();
    // Another sandbox of the same Pod: what was before of it has ended.
    end(agent, &uid).await;
    let entry = insert(agent, found);
    let member = member(agent, &entry, false);
    match member.reconcile(&entry.netns, true).await {
        Ok(due) => {
            follow(agent, &entry, member, due);
            Ok(())
        }
        Err(error) => {
            drop(entry);
            end(agent, &uid).await;
            Err(error)
        }
    }
}

/// A Pod that ran before the agent. Returns after its first reconciliation; what failed is tried again.
pub(super) async fn adopt(agent: &Arc<Agent>, found: Found) {
    let entry = insert(agent, found);
    let member = member(agent, &entry, true);
    let due = match member.reconcile(&entry.netns, false).await {
        Ok(due) => due,
        Err(error) => {
            tracing::error!(pod = %entry.full_name(), %error, "a running Pod is not enrolled; it is tried again");
            Some(RETRY)
        }
    };
    follow(agent, &entry, member, due);
}

/// A Pod, or its sandbox, has ended.
pub(super) async fn end(agent: &Arc<Agent>, uid: &str) {
    let removed = agent.entries().remove(uid);
    if removed.is_some() {
        agent.enrolment.end(uid).await;
        agent.probes_changed.notify_one();
    }
}

fn insert(agent: &Arc<Agent>, found: Found) -> Arc<Entry> {
    let Found { pod, sandbox, netns, netns_id, addresses } = found;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let entry = Arc::new(Entry {
        uid: uid.clone(),
        sandbox,
        netns,
        netns_id,
        addresses,
        object: watch::channel(pod).0,
        capture: watch::channel(Capture::Outside).0,
    });
    agent.entries().insert(uid, entry.clone());
    agent.probes_changed.notify_one();
    entry
}

fn member(agent: &Arc<Agent>, entry: &Arc<Entry>, found_running: bool) -> Member {
    let pod = entry.object.borrow().clone();
    let subject = Subject {
        uid: entry.uid.clone(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        object: entry.object.subscribe(),
        host: Arc::new(Place { agent: Arc::downgrade(agent), entry: Arc::downgrade(entry) }),
        found_running,
    };
    Member::new(agent.enrolment.clone(), agent.client.clone(), subject)
}

fn follow(agent: &Arc<Agent>, entry: &Arc<Entry>, member: Member, due: Option<Duration>) {
    agent.job("enrolment", member.follow(due));
    let pod = entry.object.borrow().clone();
    agent.job("condition", status::report(agent.client.clone(), pod, entry.capture.subscribe()));
}
