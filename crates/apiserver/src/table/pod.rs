// SPDX-License-Identifier: Apache-2.0
//! A Pod's row: its state in one word, and how ready it is.

use serde_json::{Value, json};

use super::value::{age, count, or, text};

pub(super) fn cells(item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (metadata, spec, status) = (&item["metadata"], &item["spec"], &item["status"]);
    let total = count(&spec["containers"]);
    let statuses = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = statuses.iter().filter(|s| s["ready"] == true).count();
    let restarts: i64 = statuses.iter().filter_map(|s| s["restartCount"].as_i64()).sum();
    let last = statuses
        .iter()
        .filter_map(|s| s["lastState"]["terminated"]["finishedAt"].as_str())
        .max()
        .map(|at| age(&json!(at), now));
    let restarts = match last {
        Some(last) if restarts > 0 => format!("{restarts} ({last} ago)"),
        _ => restarts.to_string(),
    };
    vec![
        metadata["name"].clone(),
        json!(format!("{ready}/{total}")),
        json!(pod_state(item, statuses, ready)),
        json!(restarts),
        json!(age(&metadata["creationTimestamp"], now)),
        or(&status["podIP"], "<none>"),
        or(&spec["nodeName"], "<none>"),
        or(&status["nominatedNodeName"], "<none>"),
        json!("<none>"),
    ]
}

/// The word in the STATUS column: the most telling reason there is.
fn pod_state(item: &Value, statuses: &[Value], ready: usize) -> String {
    let status = &item["status"];
    if item["metadata"]["deletionTimestamp"].is_string() {
        return "Terminating".into();
    }
    let inits = status["initContainerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let total = count(&item["spec"]["initContainers"]);
    for (index, init) in inits.iter().enumerate() {
        let state = &init["state"];
        if state["terminated"]["exitCode"] == 0 || init["started"] == true && init["ready"] == true {
            continue;
        }
        if let Some(terminated) = state["terminated"].as_object() {
            let reason = terminated.get("reason").map(text).unwrap_or_default();
            return format!(
                "Init:{}",
                if reason.is_empty() { format!("ExitCode:{}", terminated["exitCode"]) } else { reason }
            );
        }
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return format!("Init:{waiting}");
        }
        return format!("Init:{index}/{total}");
    }
    let mut word = status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("Unknown").to_owned();
    for one in statuses.iter().rev() {
        let state = &one["state"];
        if let Some(reason) = state["waiting"]["reason"].as_str().filter(|r| !r.is_empty()) {
            word = reason.to_owned();
        } else if state["terminated"].is_object() {
            let reason = text(&state["terminated"]["reason"]);
            word = if reason.is_empty() {
                format!("ExitCode:{}", state["terminated"]["exitCode"])
            } else {
                reason
            };
        }
    }
    if word == "Completed" && ready > 0 { "Running".into() } else { word }
}
