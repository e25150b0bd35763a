// SPDX-License-Identifier: Apache-2.0
//! Ephemeral containers: added to a Pod that runs, to look at it. Each runs once and counts for nothing but itself.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use tokio::sync::watch;

use super::run::{keep, waiting};
use crate::container::running::Running;
use crate::container::{StartError, StartReason};
use crate::context::{Context, PodEntry};
use crate::restart::RestartPolicy;
use crate::sandbox::Sandbox;

/// Starts the ephemeral containers that the Pod gets, each once; never ends.
pub(super) async fn run(ctx: &Arc<Context>, entry: &Arc<PodEntry>, sandbox: &Arc<Sandbox>) {
    // They end with this function.
    let (_here, gone) = watch::channel(());
    let mut begun = BTreeSet::new();
    let mut object = entry.object.subscribe();
    loop {
        let pod = object.borrow_and_update().clone();
        entry.update(|s| s.add_ephemeral(&pod, Timestamp::now()));
        for one in pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()) {
            if !begun.insert(one.name.clone()) {
                continue;
            }
            let spec = match container_of(one) {
                Ok(spec) => spec,
                Err(error) => {
                    waiting(entry, &one.name, StartReason::Config.as_str(), &error);
                    continue;
                }
            };
            let (ctx2, entry, sandbox, mut gone) =
                (ctx.clone(), entry.clone(), sandbox.clone(), gone.clone());
            ctx.job("ephemeral container", async move {
                tokio::select! {
                    () = keep(&ctx2, &entry, &sandbox, &spec, RestartPolicy::Never) => {}
                    _ = gone.changed() => {}
                }
                Ok::<(), Infallible>(())
            });
        }
        if object.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The running container whose processes an ephemeral one is to see. `None` for all others.
pub(super) fn target_of(entry: &PodEntry, name: &str) -> Result<Option<Arc<Running>>, StartError> {
    let pod = entry.pod();
    let mut all = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let target = all.find(|one| one.name == name).and_then(|one| one.target_container_name.clone());
    let Some(target) = target.filter(|target| !target.is_empty()) else { return Ok(None) };
    let found = entry.running().get(&target).cloned();
    let message = format!("unable to find target container {target:?}: it is not running");
    found.map(Some).ok_or(StartError { reason: StartReason::Config, message })
}

/// An ephemeral container as one of the others.
fn container_of(ephemeral: &EphemeralContainer) -> Result<Container, String> {
    let mut fields = serde_json::to_value(ephemeral).map_err(|e| e.to_string())?;
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("targetContainerName");
    }
    serde_json::from_value(fields).map_err(|e| e.to_string())
}

/// Whether a container was added to a Pod that ran.
pub(crate) fn is_one(pod: &Pod, name: &str) -> bool {
    let mut ephemeral = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    ephemeral.any(|container| container.name == name)
}
