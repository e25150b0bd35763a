// SPDX-License-Identifier: Apache-2.0
//! `pods/binding`: the scheduler's decision, which sets the node once, with the condition that says so.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{check_names, check_preconditions, live, success};
use crate::admission::{self, Operation};
use crate::answer::json_response;
use crate::call::Call;
use crate::schema;
use crate::status::{Cause, Refusal};
use crate::store::StoreError;

pub(super) async fn bind(call: &Call, body: Value) -> Result<Response<Body>, Refusal> {
    let binding = schema::strict_body(body, &[("", "v1", "Binding")])?;
    check_names(call, &binding)?;
    let target = &binding["target"];
    let mut causes = Vec::new();
    if target["name"].as_str().is_none_or(str::is_empty) {
        causes.push(Cause::required("target.name"));
    }
    if target["kind"].as_str().is_some_and(|kind| !kind.is_empty() && kind != "Node") {
        causes.push(Cause::unsupported("target.kind", &target["kind"], &["Node".to_owned()]));
    }
    if !causes.is_empty() {
        return Err(Refusal::invalid("Binding", "", call.name(), &causes));
    }
    admission::validate(call, Operation::Create, Some(&binding), None).await?;
    loop {
        let live = live(call)?;
        let pod = bound(call, &live.value, &binding)?;
        if call.options.dry_run {
            break;
        }
        match call.api.store.replace(&call.info.key, call.namespace(), call.name(), live.revision, pod) {
            Ok(_) => break,
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(call.refused(call.name(), error)),
        }
    }
    Ok(json_response(StatusCode::CREATED, &success()))
}

/// The Pod on its node.
fn bound(call: &Call, live: &Value, binding: &Value) -> Result<Value, Refusal> {
    let conflict = |why: &str| Err(Refusal::conflict("pods/binding", call.name(), why));
    check_preconditions(call, binding, live)?;
    let mut pod = live.clone();
    if pod["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty()) {
        let why = format!("pod {} is already assigned to node {}", call.name(), pod["spec"]["nodeName"]);
        return conflict(&why);
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return conflict(&format!("pod {} is being deleted, cannot be assigned to a host", call.name()));
    }
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                           "lastTransitionTime": call.api.now()});
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
    Ok(pod)
}
