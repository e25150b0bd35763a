// SPDX-License-Identifier: Apache-2.0
//! Admission webhooks: who must be asked about a change, and what they answer.

mod call;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::call::Call;
use crate::patch;
use crate::selector::Labels;
use crate::status::Refusal;

/// What happens to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is created.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// Asks every validating webhook whose rules match. Their warnings are added to those of the call.
///
/// # Errors
/// 400 or the webhook's own code when one denies, 500 when one that must be asked cannot be.
pub async fn validate(
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Refusal> {
    for webhook in webhooks(call, "validatingwebhookconfigurations") {
        if applies(call, &webhook, operation, object.or(old)) {
            ask(call, &webhook, operation, object, old).await?;
        }
    }
    Ok(())
}

/// Lets every mutating webhook whose rules match change the object; says whether one did.
///
/// # Errors
/// As [`validate`]; 500 when a webhook's patch cannot be applied.
pub async fn mutate(
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<bool, Refusal> {
    let mut changed = false;
    for webhook in webhooks(call, "mutatingwebhookconfigurations") {
        if !applies(call, &webhook, operation, Some(object)) {
            continue;
        }
        let Some(patch) = ask(call, &webhook, operation, Some(object), old).await? else { continue };
        let name = webhook["name"].as_str().unwrap_or_default();
        let wrong = |why: String| Refusal::internal(format!("patch of admission webhook \"{name}\": {why}"));
        let bytes = STANDARD.decode(&patch).map_err(|e| wrong(e.to_string()))?;
        let patch = crate::document::json(&bytes).map_err(|e| wrong(e.to_string()))?;
        patch::json(object, patch).map_err(|refusal| wrong(refusal.message))?;
        changed = true;
    }
    Ok(changed)
}

fn webhooks(call: &Call, plural: &str) -> Vec<Value> {
    // Webhooks are not asked about their own configuration: a broken one could never be mended.
    if call.info.group == "admissionregistration.k8s.io" {
        return Vec::new();
    }
    let stored = call.api.store.list(&format!("admissionregistration.k8s.io/{plural}"), None, None).0;
    let of = |one: &Value| one["webhooks"].as_array().cloned().unwrap_or_default();
    stored.iter().flat_map(|one| of(&one.value)).collect()
}

fn applies(call: &Call, webhook: &Value, operation: Operation, object: Option<&Value>) -> bool {
    let matches = |list: &Value, wanted: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|item| item == "*" || item == wanted))
    };
    let sub = call.subresource();
    let resource =
        if sub.is_empty() { call.info.plural.clone() } else { format!("{}/{sub}", call.info.plural) };
    let covers = |rule: &Value| {
        let resources = &rule["resources"];
        matches(&rule["operations"], operation.as_str())
            && matches(&rule["apiGroups"], &call.info.group)
            && matches(&rule["apiVersions"], &call.info.version)
            && (resources.as_array().is_some_and(|r| {
                r.iter()
                    .any(|item| item == resource.as_str() || item == "*/*" || (item == "*" && sub.is_empty()))
            }))
            && match rule["scope"].as_str() {
                Some("Namespaced") => call.info.namespaced,
                Some("Cluster") => !call.info.namespaced,
                _ => true,
            }
    };
    if !webhook["rules"].as_array().is_some_and(|rules| rules.iter().any(covers)) {
        return false;
    }
    let fits = object.is_none_or(|object| Labels::from_object(&webhook["objectSelector"]).matches(object));
    let selector = Labels::from_object(&webhook["namespaceSelector"]);
    let namespace = call.api.get("", "namespaces", "", call.namespace());
    let inside = selector.is_empty() || namespace.is_none_or(|namespace| selector.matches(&namespace));
    fits && inside
}

/// Asks one webhook; its patch, if it has one.
async fn ask(
    call: &Call,
    webhook: &Value,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Option<String>, Refusal> {
    let name = webhook["name"].as_str().unwrap_or_default();
    let side_effects = !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
    if call.options.dry_run && side_effects {
        return Err(Refusal::bad_request(format!("admission webhook \"{name}\" does not support dry run")));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let info = &call.info;
    let kind = json!({"group": info.group, "version": info.version, "kind": info.kind});
    let resource = json!({"group": info.group, "version": info.version, "resource": info.plural});
    let object_name = object.or(old).map_or(Value::Null, |o| o["metadata"]["name"].clone());
    let mut request = json!({
        "uid": uid, "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "name": object_name, "operation": operation.as_str(), "userInfo": call.user.to_value(),
        "object": object, "oldObject": old, "dryRun": call.options.dry_run, "options": null,
    });
    if !call.subresource().is_empty() {
        request["subResource"] = call.subresource().into();
    }
    if call.info.namespaced {
        request["namespace"] = call.namespace().into();
    }
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request});
    match call::post(&call.api, webhook, &review).await {
        Ok(answer) if answer["response"]["uid"] == uid.as_str() => {
            let warnings = answer["response"]["warnings"].as_array().into_iter().flatten();
            call.warnings.extend(warnings.filter_map(Value::as_str).map(str::to_owned));
            verdict(name, &answer["response"])
        }
        Ok(_) => failed(webhook, name, "the answer is not to this request"),
        Err(reason) => failed(webhook, name, &reason),
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
