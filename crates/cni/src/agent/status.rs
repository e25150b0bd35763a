// SPDX-License-Identifier: Apache-2.0
//! The condition `meltemi.dev/Captured` of a Pod, which only who may write a Pod's status can write.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use meltemi_enrolment::{ANNOTATION, CAPTURED, Capture};
use meltemi_runtime::backoff::Backoff;
use serde_json::{Value, json};
use tokio::sync::watch;

/// First and longest pause before a status that was not written is written again.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Writes each change of a Pod's capture, until the Pod has ended.
pub(super) async fn report(client: kube::Client, pod: Arc<Pod>, mut capture: watch::Receiver<Capture>) {
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    let mut written = written_before(&pod);
    loop {
        let wanted = capture.borrow_and_update().clone();
        if written.as_ref() != Some(&wanted) {
            match write(&client, &pod, &wanted).await {
                Ok(()) => written = Some(wanted),
                Err(error) => {
                    tracing::debug!(%error, "the condition of a Pod is not written; it is tried again");
                    let pause = backoff.next().unwrap_or(MAX_PAUSE);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => continue,
                        changed = capture.changed() => match changed {
                            Ok(()) => continue,
                            Err(_) => return,
                        },
                    }
                }
            }
        }
        backoff.reset();
        if capture.changed().await.is_err() {
            return;
        }
    }
}

/// What the Pod's condition says already, where that is nothing; `None` has to be written anew.
fn written_before(pod: &Pod) -> Option<Capture> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let has = conditions.into_iter().flatten().any(|condition| condition.type_ == CAPTURED);
    (!has).then_some(Capture::Outside)
}

/// Takes the condition and the annotation of the mesh away.
pub(super) async fn forget(client: &kube::Client, pod: &Pod) -> kube::Result<()> {
    let annotations = json!({ANNOTATION: null});
    let status = json!({"conditions": [condition(&Capture::Outside)]});
    patch(client, pod, json!({"uid": pod.metadata.uid, "annotations": annotations}), status).await
}

async fn write(client: &kube::Client, pod: &Pod, capture: &Capture) -> kube::Result<()> {
    patch(client, pod, json!({"uid": pod.metadata.uid}), json!({"conditions": [condition(capture)]})).await
}

async fn patch(client: &kube::Client, pod: &Pod, metadata: Value, status: Value) -> kube::Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": metadata, "status": status});
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        // Gone, or another Pod of this name.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// The condition as a strategic merge patch: the API merges the list by type, and what is null goes.
fn condition(capture: &Capture) -> Value {
    let (is, reason, message) = match capture {
        Capture::Outside => return json!({"$patch": "delete", "type": CAPTURED}),
        Capture::Captured => ("True", None, None),
        Capture::Not { reason, message } => ("False", Some(*reason), Some(message)),
    };
    let now = Time(Timestamp::now());
    json!({"type": CAPTURED, "status": is, "reason": reason, "message": message, "lastTransitionTime": now})
}
