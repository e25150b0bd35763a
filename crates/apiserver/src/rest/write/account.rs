// SPDX-License-Identifier: Apache-2.0
//! The ServiceAccount `default` of a namespace that has just been made: a controller makes it a moment later, and one
//! manifest with a namespace and its Pods must not depend on who is faster. Kubernetes' admission looks ten times, too.

use std::time::Duration;

use serde_json::Value;

use crate::call::Call;

/// How long a namespace counts as new. One that is older has lost its account, and its Pods are refused at once.
const NEW: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
/// How long a Pod waits for the account.
const LIMIT: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until the account exists that a Pod without one of its own runs as; returns without it after [`LIMIT`], and at
/// once for everything else.
pub(super) async fn wait_for_default(call: &Call, object: &Value) {
    let named = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    let is_core_pod = call.info.kind == "Pod" && call.info.group.is_empty();
    if !is_core_pod || !matches!(named, "" | "default") || !is_new_namespace(call) {
        return;
    }
    let there = async {
        while call.api.get("", "serviceaccounts", call.namespace(), "default").is_none() {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    // Without the account the Pod is refused by name.
    let _ = tokio::time::timeout(LIMIT, there).await;
}

fn is_new_namespace(call: &Call) -> bool {
    let made = call.api.get("", "namespaces", "", call.namespace()).and_then(|namespace| {
        namespace["metadata"]["creationTimestamp"].as_str()?.parse::<jiff::Timestamp>().ok()
    });
    made.is_some_and(|made| jiff::Timestamp::now().duration_since(made).abs() < NEW)
}
