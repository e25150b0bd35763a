// SPDX-License-Identifier: Apache-2.0
//! Keeps a Pod's status in the API: written when it changes here, and again when another has written over it there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::MAX_RETRY;
use crate::context::{Context, PodEntry};

/// First pause after a failed write; doubled each time, up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_millis(50);
/// Least time between two corrections of what another writes: two that disagree must not fill the API.
const CORRECTION: Duration = Duration::from_secs(1);

/// What was written last.
#[derive(Debug, Default)]
struct Written {
    /// The status as this runner wanted it.
    wanted: Value,
    /// The Pod as the API answered. `None` when the write was refused.
    answer: Option<Pod>,
}

/// Why a status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It is not what was written last.
    Changed,
    /// The API has another one than it had after that write.
    Overwritten,
}

/// Writes the status whenever it has to be, until the Pod is over; then once more.
pub(super) async fn report(ctx: &Arc<Context>, entry: &Arc<PodEntry>, mut over: watch::Receiver<bool>) {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &entry.namespace);
    let mut written = Written::default();
    let mut pause = MIN_RETRY;
    loop {
        let last = *over.borrow();
        let seen = entry.pod();
        let pod = written.answer.as_ref().filter(|answer| is_newer(answer, &seen)).unwrap_or(&seen);
        let wanted = serde_json::to_value(entry.state().status(pod, Timestamp::now())).unwrap_or_default();
        if let Some(reason) = reason(&written, &wanted, &seen) {
            let patch = json!({"metadata": {"uid": entry.uid}, "status": wanted});
            match api.patch_status(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(answer) => {
                    written = Written { wanted, answer: Some(answer) };
                    pause = MIN_RETRY;
                    if reason == Reason::Overwritten {
                        tracing::warn!(pod = %entry.full_name(), "another wrote the status; it is written again");
                        tokio::time::sleep(CORRECTION).await;
                    }
                }
                Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 || e.code == 422 => {
                    tracing::debug!(pod = %entry.full_name(), error = %e, "status refused");
                    written = Written { wanted, answer: None };
                }
                Err(error) => {
                    tracing::warn!(pod = %entry.full_name(), %error, "status not written");
                    if last {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_RETRY);
                    continue;
                }
            }
        }
        if last {
            return;
        }
        tokio::select! {
            () = entry.changed.notified() => {}
            _ = over.changed() => {}
        }
    }
}

/// Whether the status has to be written: `seen` is the Pod as the watch shows it, which may be older than our last write.
fn reason(written: &Written, wanted: &Value, seen: &Pod) -> Option<Reason> {
    let overwritten = |answer: &Pod| is_newer(seen, answer) && seen.status != answer.status;
    if written.answer.as_ref().is_some_and(overwritten) {
        return Some(Reason::Overwritten);
    }
    (*wanted != written.wanted).then_some(Reason::Changed)
}

/// Whether one state of a Pod is later than another.
fn is_newer(pod: &Pod, than: &Pod) -> bool {
    let revision = |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    match (revision(pod), revision(than)) {
        (Some(one), Some(other)) => one > other,
        // Revisions that are no numbers cannot be compared: what the watch shows counts.
        _ => pod.metadata.resource_version != than.metadata.resource_version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(revision: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "resourceVersion": revision},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        }))
        .unwrap()
    }

    #[test]
    fn a_status_is_written_when_it_changed_here_or_there() {
        let (ours, other) = (json!({"phase": "Running"}), json!({"phase": "Pending"}));
        let cases = [
            ("nothing was written yet", Value::Null, None, pod("5", "False"), Some(Reason::Changed)),
            ("changed here", other, Some(pod("5", "True")), pod("5", "True"), Some(Reason::Changed)),
            ("as written", ours.clone(), Some(pod("5", "True")), pod("5", "True"), None),
            ("the watch is behind our write", ours.clone(), Some(pod("10", "True")), pod("9", "False"), None),
            ("another wrote something else", ours.clone(), Some(pod("9", "True")), pod("10", "True"), None),
            (
                "another wrote the status",
                ours.clone(),
                Some(pod("9", "True")),
                pod("10", "False"),
                Some(Reason::Overwritten),
            ),
            ("the write was refused", ours.clone(), None, pod("10", "False"), None),
        ];
        for (what, wanted, answer, seen, expected) in cases {
            assert_eq!(reason(&Written { wanted, answer }, &ours, &seen), expected, "{what}");
        }
    }
}
