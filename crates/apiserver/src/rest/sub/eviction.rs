// SPDX-License-Identifier: Apache-2.0
//! `pods/eviction`: deletes a Pod unless a PodDisruptionBudget forbids it.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use super::{check_names, live, success};
use crate::admission::{self, Operation};
use crate::answer::json_response;
use crate::call::Call;
use crate::disruption::{self, Budget};
use crate::rest::delete::{self, DeleteOptions};
use crate::schema;
use crate::status::Refusal;

pub(super) async fn evict(mut call: Call, body: Value) -> Result<Response<Body>, Refusal> {
    // Clients of before 1.22 write the older version.
    let accepted = [("policy", "v1", "Eviction"), ("policy", "v1beta1", "Eviction")];
    let eviction = schema::strict_body(body, &accepted)?;
    check_names(&call, &eviction)?;
    let options = DeleteOptions::new(&call.options, eviction.get("deleteOptions").cloned())?;
    call.options.dry_run = options.dry_run;
    admission::validate(&call, Operation::Create, Some(&eviction), None).await?;
    call.target.subresource = None;
    // Two evictions at once must not both be the last one that a budget allows.
    let _one_at_a_time = call.api.eviction.lock().await;
    let pod = live(&call)?.value;
    check_budgets(&call, &pod)?;
    delete::delete_one(&call, call.name(), &options).await?;
    Ok(json_response(StatusCode::CREATED, &success()))
}

/// Refuses with 429 what a budget forbids.
fn check_budgets(call: &Call, pod: &Value) -> Result<(), Refusal> {
    let ends = pod["metadata"]["deletionTimestamp"].is_string();
    // What does not run disrupts nobody.
    if ends || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending")) {
        return Ok(());
    }
    let budgets = call.api.store.list("policy/poddisruptionbudgets", Some(call.namespace()), None).0;
    let matching: Vec<_> = budgets.iter().filter(|budget| disruption::selects(&budget.value, pod)).collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [budget] => &budget.value,
        _ => {
            return Err(Refusal::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let counts = disruption::compute(&call.api, call.namespace(), budget);
    let Budget { healthy, desired, .. } = counts;
    if !disruption::is_healthy(pod) {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if always || (desired > 0 && healthy >= desired) {
            return Ok(());
        }
    }
    if counts.allowed() > 0 {
        return Ok(());
    }
    let why =
        format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
    Err(Refusal::budget_violated(&why))
}
