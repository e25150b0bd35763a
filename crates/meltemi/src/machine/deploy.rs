// SPDX-License-Identifier: Apache-2.0
//! Applies the mesh's own manifests (`deploy/`, the same as on Kubernetes) and waits until the mesh stands.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams};
use tokio::time::Instant;

use super::paths::Paths;
use crate::manifests::apply::Applier;
use crate::manifests::{self, Engine};

/// How long the API server may take to answer.
const API_LIMIT: Duration = Duration::from_secs(30);
/// How often the API server may end before it is given up: it is started again after short pauses.
const MOST_ENDS: usize = 4;
/// How long nodes, control plane and node proxies may take.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A client for the API, once it answers that it is ready.
pub async fn api_ready(paths: &Paths) -> anyhow::Result<Client> {
    let begun = Instant::now();
    let log = paths.logs().join("apiserver.log");
    // Read only what this run appends to the log.
    let from = std::fs::metadata(&log).map_or(0, |m| m.len());
    loop {
        let error = match try_client(paths).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let ends = ends(&log, from);
        if let Some(last) = ends.last().filter(|_| ends.len() >= MOST_ENDS) {
            bail!("the API server ends at once: {last}; its log is {}", log.display());
        }
        if begun.elapsed() > API_LIMIT {
            return Err(
                error.context(format!("the API server does not answer; its log is {}", log.display()))
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a component said each time when it ended with an error, from a place of its log on.
fn ends(log: &Path, from: u64) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let new = bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
    String::from_utf8_lossy(new)
        .lines()
        .filter_map(|l| l.strip_prefix("Error: "))
        .map(str::to_owned)
        .collect()
}

async fn try_client(paths: &Paths) -> anyhow::Result<Client> {
    let mut kubeconfig = kube::config::Kubeconfig::read_from(paths.kubeconfig())?;
    // The administrator's file names the host's loopback; this process sees the API at its inner address.
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
        cluster.server = Some(format!("https://{}:443", super::network::API));
    }
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let client = Client::try_from(config)?;
    let ready = client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
    if ready.trim() != "ok" {
        bail!("/readyz says {ready:?}");
    }
    Ok(client)
}

/// Applies every manifest in order, by server-side apply.
pub async fn apply(client: &Client) -> anyhow::Result<()> {
    let mut applier = Applier::new(client).await?;
    for object in manifests::objects(Engine::Machine)? {
        applier.apply(&object).await?;
    }
    Ok(())
}

/// Removes the nodes of an earlier start that this one does not have; what was bound to them is placed anew.
pub async fn forget_nodes(client: &Client, names: &[&str]) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    for node in api.list(&ListParams::default()).await.context("listing the nodes of last time")? {
        let name = node.metadata.name.unwrap_or_default();
        if !names.contains(&name.as_str()) {
            tracing::info!(node = name, "not part of the mesh any more");
            api.delete(&name, &DeleteParams::default()).await.with_context(|| format!("removing {name}"))?;
        }
    }
    Ok(())
}

/// Waits until every node is Ready.
pub async fn nodes_ready(client: &Client, nodes: usize) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    wait("the nodes", async || {
        let list = api.list(&ListParams::default()).await?;
        let ready = list.items.iter().filter(|node| node_is_ready(node)).count();
        Ok((ready >= nodes).then_some(()).ok_or_else(|| format!("{ready} of {nodes} are Ready")))
    })
    .await
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Waits until the control plane and a node proxy on each node are ready.
pub async fn mesh_ready(client: &Client, nodes: usize) -> anyhow::Result<()> {
    let istiod: Api<Deployment> = Api::namespaced(client.clone(), "istio-system");
    wait("the control plane (deploy/istiod)", async || {
        let status = istiod.get_status("istiod").await?.status.unwrap_or_default();
        let ready = status.ready_replicas.unwrap_or(0);
        Ok((ready > 0).then_some(()).ok_or_else(|| "no replica is ready".to_owned()))
    })
    .await?;
    let ztunnel: Api<DaemonSet> = Api::namespaced(client.clone(), "istio-system");
    wait("the node proxies (ds/ztunnel)", async || {
        let status = ztunnel.get_status("ztunnel").await?.status.unwrap_or_default();
        let ready = usize::try_from(status.number_ready).unwrap_or(0);
        Ok((ready >= nodes).then_some(()).ok_or_else(|| format!("{ready} of {nodes} are ready")))
    })
    .await
}

/// Looks until `look` says that it is so, or the limit has passed.
async fn wait(what: &str, look: impl AsyncFn() -> kube::Result<Result<(), String>>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let state = match look().await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(state)) => state,
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > READY_LIMIT {
            bail!("{what} did not become ready within {} s: {state}", READY_LIMIT.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_this_start_are_told_from_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("apiserver.log");
        assert!(ends(&log, 0).is_empty());
        std::fs::write(&log, "Error: old\n").unwrap();
        let from = std::fs::metadata(&log).unwrap().len();
        std::fs::write(&log, "Error: old\n2026 INFO begun\nError: the disk is full\n").unwrap();
        assert_eq!(ends(&log, from), ["the disk is full"]);
    }
}
