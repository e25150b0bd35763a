// SPDX-License-Identifier: Apache-2.0
//! Enrolment of this node's Pods in the mesh: what the runner does of it, beside the crate `enrolment`.

use std::io;
use std::sync::{Arc, Weak};

use meltemi_enrolment::{Capture, Error, Host, Member, Subject};
use meltemi_linux::netns::NetNs;
use meltemi_linux::sockopt::PeerCredentials;

use crate::context::{Context, PodEntry};
use crate::sandbox::Sandbox;

/// Label of a namespace whose Pods may use the node's network; it takes rights on Namespaces to set it.
const HOST_NETWORK: &str = "meltemi.dev/host-network";
/// The mesh's own namespace: its Pods may use the node's network without the label.
const SYSTEM: &str = "istio-system";

/// A Pod of this node, for enrolment.
struct Place {
    ctx: Arc<Context>,
    entry: Arc<PodEntry>,
    sandbox: Weak<Sandbox>,
}

impl Host for Place {
    fn netns(&self) -> io::Result<Option<NetNs>> {
        match (self.sandbox.upgrade(), self.entry.sandbox()) {
            (Some(sandbox), Some(_)) => sandbox.netns().try_clone().map(Some),
            _ => Ok(None),
        }
    }

    fn show(&self, capture: Capture) {
        self.entry.update(|state| state.capture = capture);
    }

    fn warn(&self, reason: &'static str, message: String) {
        self.ctx.events.warning(&self.entry.pod(), None, reason, message);
    }
}

/// Checks that a Pod on the node's network is in a namespace whose administrator allows it. From there every listener of
/// the node can be reached, and nothing is captured.
///
/// # Errors
/// It does not, or the labels of the namespace are not known; the message says what to do.
pub(crate) async fn check_host_network(ctx: &Arc<Context>, entry: &PodEntry) -> Result<(), String> {
    if entry.namespace == SYSTEM {
        return Ok(());
    }
    let labels = ctx.enrolment.labels_of(&ctx.client, &entry.namespace).await;
    let labels = labels.ok_or_else(|| Error::UnknownNamespace(entry.namespace.clone()).to_string())?;
    if labels.get(HOST_NETWORK).is_some_and(|value| value == "allowed") {
        return Ok(());
    }
    Err(format!(
        "spec.hostNetwork: namespace {} does not allow the node's network; an administrator allows it by the label \
         {HOST_NETWORK}=allowed of the namespace",
        entry.namespace
    ))
}

/// Before the first process of a Pod starts: captures its traffic if it belongs into the mesh, and keeps that in line with
/// its labels from then on.
///
/// # Errors
/// It should be captured and could not be, or it is not known whether it should: no process of it may start.
pub(crate) async fn before_start(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
) -> Result<(), Error> {
    let place = Place { ctx: ctx.clone(), entry: entry.clone(), sandbox: Arc::downgrade(sandbox) };
    let subject = Subject {
        uid: entry.uid.clone(),
        namespace: entry.namespace.clone(),
        name: entry.name.clone(),
        object: entry.object.subscribe(),
        host: Arc::new(place),
        found_running: false,
    };
    let member = Member::new(ctx.enrolment.clone(), ctx.client.clone(), subject);
    let due = member.reconcile(sandbox.netns(), true).await?;
    ctx.job("enrolment", async move {
        member.follow(due).await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(())
}

/// After the last process of a Pod has ended.
pub(crate) async fn after_end(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    ctx.enrolment.end(&entry.uid).await;
}

/// Only a process of a Pod that runs as istio-system/ztunnel on this node may ask for other Pods' namespaces.
pub(crate) fn is_proxy(ctx: &Context, peer: PeerCredentials) -> bool {
    let namespace_of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(theirs) = namespace_of(peer.pid) else { return false };
    peer.uid == nix::unistd::geteuid().as_raw()
        && ctx.pods().values().any(|entry| {
            let pod = entry.pod();
            let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
            let proxy = entry.namespace == SYSTEM && account == Some("ztunnel");
            proxy && entry.sandbox().is_some_and(|s| namespace_of(s.pid()).as_ref() == Some(&theirs))
        })
}
