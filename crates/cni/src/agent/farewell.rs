// SPDX-License-Identifier: Apache-2.0
//! What the agent does when it is told to stop. If its DaemonSet is being deleted, the mesh leaves this node: the plugin
//! goes, and every Pod speaks by itself again. Otherwise another agent follows, and everything stays: no Pod starts until
//! that one is there, and those that run stay captured.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use meltemi_enrolment::Capture;
use tokio::time::timeout;

use super::entry::Entry;
use super::{Agent, install, probes, status};

/// Longest time for the API server to say whether the DaemonSet is there. Without an answer everything stays.
const ASK: Duration = Duration::from_secs(2);

/// Leaves the node as it has to be left.
pub(super) async fn say(agent: &Arc<Agent>) {
    if !is_removed(agent).await {
        tracing::info!("another agent follows: the plugin stays, and Pods stay captured");
        return;
    }
    tracing::info!("the mesh leaves this node");
    if let Err(error) = install::take_out(agent) {
        tracing::error!(%error, "the plugin is not taken out of the node's CNI configuration; do it by hand");
    }
    let captured: Vec<Arc<Entry>> =
        agent.entries().values().filter(|e| *e.capture.borrow() != Capture::Outside).cloned().collect();
    join_all(captured.into_iter().map(|entry| release(agent, entry))).await;
    if let Err(error) = probes::remove(agent) {
        tracing::error!(%error, "the node's rules for probes are still there");
    }
    let _ = std::fs::remove_file(&agent.config.socket);
    // Here the folder is a mount, and busy; on the node it is not.
    let folder = agent.config.socket.parent().and_then(|folder| agent.host.resolve(folder).ok());
    if let Some(Err(error)) = folder.map(std::fs::remove_dir) {
        tracing::warn!(%error, "the folder of the plugin's socket is still there");
    }
}

/// Whether the agent's DaemonSet is deleted or about to be. What is not known is no.
async fn is_removed(agent: &Agent) -> bool {
    let api: Api<DaemonSet> = Api::namespaced(agent.client.clone(), &agent.config.own_namespace);
    match timeout(ASK, api.get_opt(&agent.config.daemon_set)).await {
        Ok(Ok(Some(set))) => set.metadata.deletion_timestamp.is_some(),
        Ok(Ok(None)) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "it is not known whether the mesh is removed");
            false
        }
        Err(_) => false,
    }
}

async fn release(agent: &Arc<Agent>, entry: Arc<Entry>) {
    let leaving = entry.clone();
    let removed = tokio::task::spawn_blocking(move || meltemi_capture::remove(&leaving.netns)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(pod = %entry.full_name(), %error, "the capture's rules are not removed")
        }
        Err(error) => tracing::error!(%error, "removing the capture's rules"),
    }
    let pod = entry.object.borrow().clone();
    if let Err(error) = timeout(ASK, status::forget(&agent.client, &pod)).await.unwrap_or(Ok(())) {
        tracing::warn!(pod = %entry.full_name(), %error, "the Pod's status still says that it is captured");
    }
}
