// SPDX-License-Identifier: Apache-2.0
//! One webhook: whether it is asked, the question, and its answer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::call;
use super::request::Request;
use crate::expression::Expression;
use crate::registry::ResourceInfo;
use crate::stack;
use crate::status::Refusal;

/// The resource in the version that the webhook is asked about; `None` if it is not asked.
///
/// # Errors
/// 500 when a match condition cannot be evaluated and the webhook must be asked.
pub(super) fn applies(request: &Request<'_>, webhook: &Value) -> Result<Option<Arc<ResourceInfo>>, Refusal> {
    let matched = request.matched(&webhook["rules"], &Value::Null, &webhook["matchPolicy"]);
    let Some(matched) = matched.filter(|_| request.is_selected(webhook)) else { return Ok(None) };
    let conditions = webhook["matchConditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.is_empty() {
        return Ok(Some(matched));
    }
    let verdict = stack::with_room(|| holds(request, &matched, conditions));
    match verdict.unwrap_or_else(|| Err("match conditions cannot be evaluated now".to_owned())) {
        Ok(true) => Ok(Some(matched)),
        Ok(false) => Ok(None),
        Err(why) => failed(webhook, webhook["name"].as_str().unwrap_or_default(), &why).map(|_| None),
    }
}

/// Whether all conditions hold. One that is false decides, whatever the others are.
fn holds(request: &Request<'_>, matched: &ResourceInfo, conditions: &[Value]) -> Result<bool, String> {
    let mut facts = request.facts(matched, None);
    let mut failure = None;
    for condition in conditions {
        let expression = Expression::compile(condition["expression"].as_str().unwrap_or_default());
        match expression.and_then(|expression| facts.is_true(&expression)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => failure = Some(format!("match condition {}: {why}", condition["name"])),
        }
    }
    failure.map_or(Ok(true), Err)
}

/// Asks one webhook; its patch, if it has one.
pub(super) async fn ask(
    request: &Request<'_>,
    matched: &ResourceInfo,
    webhook: &Value,
) -> Result<Option<String>, Refusal> {
    let call = request.call;
    let name = webhook["name"].as_str().unwrap_or_default();
    let side_effects = !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
    if call.options.dry_run && side_effects {
        return Err(Refusal::bad_request(format!("admission webhook \"{name}\" does not support dry run")));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let mut question = request.describe(matched);
    question["uid"] = uid.as_str().into();
    question["object"] = json!(request.object.map(|object| request.in_version(object, matched)));
    question["oldObject"] = json!(request.old.map(|object| request.in_version(object, matched)));
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": question});
    match call::post(&call.api, webhook, &review).await {
        Ok(answer) if answer["response"]["uid"] == uid.as_str() => {
            let warnings = answer["response"]["warnings"].as_array().into_iter().flatten();
            call.warnings.extend(warnings.filter_map(Value::as_str).map(str::to_owned));
            verdict(name, &answer["response"])
        }
        Ok(_) => failed(webhook, name, "the answer is not to this request"),
        Err(error) => failed(webhook, name, &error.to_string()),
    }
}

fn verdict(name: &str, response: &Value) -> Result<Option<String>, Refusal> {
    if response["allowed"] == true {
        return Ok(response["patch"].as_str().map(str::to_owned));
    }
    let status = &response["status"];
    let reason =
        status["message"].as_str().or_else(|| status["reason"].as_str()).unwrap_or("without explanation");
    let separator = if reason == "without explanation" { " " } else { ": " };
    let mut refusal =
        Refusal::bad_request(format!("admission webhook \"{name}\" denied the request{separator}{reason}"));
    if let Some(code) =
        status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c))
    {
        refusal.code = code;
        refusal.reason = if code == 403 { "Forbidden" } else { refusal.reason };
    }
    Err(refusal)
}

/// A webhook that cannot be asked: refused, unless its owner chose to go on without it.
fn failed(webhook: &Value, name: &str, reason: &str) -> Result<Option<String>, Refusal> {
    if webhook["failurePolicy"] == "Ignore" {
        tracing::warn!(webhook = name, reason, "admission webhook failed; its policy is to go on");
        return Ok(None);
    }
    Err(Refusal::internal(format!("failed calling webhook \"{name}\": failed to call webhook: {reason}")))
}
