// SPDX-License-Identifier: Apache-2.0
//! Admission: which policies and webhooks judge a change, and their verdicts.

mod call;
mod policy;
mod request;
mod webhook;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use self::request::Request;
use crate::call::Call;
use crate::patch;
use crate::status::Refusal;

pub use self::policy::Policies;

/// What happens to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is created.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
    /// A stream into it is opened.
    Connect,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Asks every policy, and then every validating webhook, whose rules match. Their warnings are added to those of the
/// call.
///
/// # Errors
/// The code of the policy's reason, or 400 or the webhook's own code, when one denies; 500 when a webhook that must be
/// asked cannot be.
pub async fn validate(
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Refusal> {
    let request = Request { call, operation, object, old };
    if !request.is_judged() {
        return Ok(());
    }
    policy::check(&request)?;
    for webhook in webhooks(call, "validatingwebhookconfigurations") {
        if let Some(matched) = webhook::applies(&request, &webhook)? {
            webhook::ask(&request, &matched, &webhook).await?;
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
    if !(Request { call, operation, object: Some(object), old }).is_judged() {
        return Ok(changed);
    }
    for webhook in webhooks(call, "mutatingwebhookconfigurations") {
        let request = Request { call, operation, object: Some(object), old };
        let Some(matched) = webhook::applies(&request, &webhook)? else { continue };
        let Some(patch) = webhook::ask(&request, &matched, &webhook).await? else { continue };
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
    let stored = call.api.store.list(&format!("admissionregistration.k8s.io/{plural}"), None, None).0;
    let of = |one: &Value| one["webhooks"].as_array().cloned().unwrap_or_default();
    stored.iter().flat_map(|one| of(&one.value)).collect()
}
