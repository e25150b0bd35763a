// SPDX-License-Identifier: Apache-2.0
//! The admission webhook: an invalid policy is refused before it is stored, with the reason.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use meltemi_resources::policies::validate;
use meltemi_runtime::{Readiness, Tasks};
use serde_json::{Value, json};

use crate::leader::Leadership;

/// Name of the ValidatingWebhookConfiguration in the namespace of the control plane.
const NAME: &str = "istio-validator-istio-system";
const MANAGER: &str = "istiod";
/// Largest review that is read: two objects at the API's own limit.
const LARGEST: usize = 8 << 20;

/// Judges an object: warnings, or why it is refused.
pub type Validate = Arc<dyn Fn(&Value) -> Result<Vec<String>, String> + Send + Sync>;

/// The mesh's own judgement of its objects.
pub fn validator() -> Validate {
    Arc::new(|object| {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let kind = text(&object["kind"]);
        let spec = object.get("spec").cloned().unwrap_or_else(|| json!({}));
        let judged = match kind.as_str() {
            "AuthorizationPolicy" => serde_json::from_value(spec)
                .map_err(|e| e.to_string())
                .and_then(|spec| validate::authorization_policy(&spec)),
            "PeerAuthentication" => serde_json::from_value(spec)
                .map_err(|e| e.to_string())
                .and_then(|spec| validate::peer_authentication(&spec)),
            // Other kinds are judged by their schema alone.
            _ => Ok(()),
        };
        let metadata = &object["metadata"];
        judged.map(|()| Vec::new()).map_err(|fault| {
            format!("invalid policy {}.{}: {fault}", text(&metadata["name"]), text(&metadata["namespace"]))
        })
    })
}

/// `/validate`.
pub fn routes(validate: Validate) -> Router {
    Router::new()
        .route(
            "/validate",
            post(move |Json(review): Json<Value>| {
                let validate = validate.clone();
                async move {
                    match answer(&review, &*validate) {
                        Some(answer) => (StatusCode::OK, Json(answer)),
                        None => {
                            (StatusCode::BAD_REQUEST, Json(json!({ "message": "not an AdmissionReview" })))
                        }
                    }
                }
            }),
        )
        .layer(DefaultBodyLimit::max(LARGEST))
}

/// The answer to a review; none when it is no review.
fn answer(review: &Value, validate: &dyn Fn(&Value) -> Result<Vec<String>, String>) -> Option<Value> {
    let request = review.get("request")?;
    let uid = request.get("uid")?.as_str()?;
    let operation = request.get("operation").and_then(Value::as_str).unwrap_or_default();
    let judged = match operation {
        "CREATE" | "UPDATE" => validate(request.get("object")?),
        _ => Ok(Vec::new()),
    };
    let mut response = json!({ "uid": uid, "allowed": judged.is_ok() });
    match judged {
        Ok(warnings) if warnings.is_empty() => {}
        Ok(warnings) => response["warnings"] = json!(warnings),
        Err(reason) => {
            response["status"] = json!({
                "status": "Failure",
                "message": format!("configuration is invalid: {reason}"),
                "reason": "Invalid",
                "code": 422,
            });
        }
    }
    Some(json!({
        "apiVersion": review.get("apiVersion").and_then(Value::as_str).unwrap_or("admission.k8s.io/v1"),
        "kind": "AdmissionReview",
        "response": response,
    }))
}

/// What the webhook is registered as.
pub fn configuration(namespace: &str, root_pem: &str) -> Value {
    let ca_bundle = k8s_openapi::ByteString(root_pem.as_bytes().to_vec());
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": NAME, "labels": { "app": "istiod", "istio": "istiod" } },
        "webhooks": [{
            "name": "rev.validation.istio.io",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": { "name": "istiod", "namespace": namespace, "path": "/validate", "port": 443 },
                "caBundle": ca_bundle,
            },
            "failurePolicy": "Fail",
            "matchPolicy": "Equivalent",
            "sideEffects": "None",
            "timeoutSeconds": 10,
            "rules": [{
                "apiGroups": ["security.istio.io", "telemetry.istio.io", "networking.istio.io"],
                "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["*"],
                "scope": "*",
            }],
        }],
    })
}

/// Registers the webhook while this replica leads, and says that it is ready.
pub fn register(
    client: Client,
    tasks: &Tasks,
    configuration: Value,
    mut leader: Leadership,
    readiness: &Readiness,
) {
    let ready = readiness.register("webhook registration");
    let mut drain = tasks.drain();
    tasks.spawn("webhook registration", async move {
        let registration = async {
            let kind = "ValidatingWebhookConfiguration";
            let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, "validatingwebhookconfigurations");
            let api: Api<DynamicObject> = Api::all_with(client, &resource);
            let params = PatchParams::apply(MANAGER).force();
            let mut ready = Some(ready);
            loop {
                // A replica that does not lead is as ready as its leader made the mesh.
                let lead = tokio::time::timeout(Duration::from_secs(2), leader.acquired()).await.is_ok();
                let done = if lead {
                    api.patch(NAME, &params, &Patch::Apply(&configuration)).await.map(|_| true)
                } else {
                    api.get_opt(NAME).await.map(|found| found.is_some())
                };
                match done {
                    Ok(true) => {
                        if let Some(ready) = ready.take() {
                            ready.done();
                        }
                        tokio::time::sleep(Duration::from_secs(60)).await;
                    }
                    Ok(false) => tokio::time::sleep(Duration::from_secs(1)).await,
                    Err(error) => {
                        tracing::warn!(%error, "webhook not registered, trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = drain.started() => Ok::<(), Infallible>(()),
            () = registration => Ok(()),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(operation: &str) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": { "uid": "u1", "operation": operation, "object": { "kind": "AuthorizationPolicy" } },
        })
    }

    #[test]
    fn a_refusal_carries_the_reason() {
        let refuse = |_: &Value| Err("bad CIDR range (1.2.3.4/99)".to_owned());
        let answer = answer(&review("CREATE"), &refuse).unwrap();
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["uid"], "u1");
        assert_eq!(
            answer["response"]["status"]["message"],
            "configuration is invalid: bad CIDR range (1.2.3.4/99)"
        );
    }

    #[test]
    fn the_mesh_refuses_what_istio_refuses() {
        let policy = |spec: Value| {
            let metadata = json!({ "name": "p", "namespace": "default" });
            validator()(&json!({ "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec }))
        };
        assert!(policy(json!({})).is_ok());
        let fault = policy(json!({ "rules": [{ "from": [] }] })).unwrap_err();
        assert_eq!(fault, "invalid policy p.default: `from` must not be nil/empty, found at rule 0");
        assert!(policy(json!({ "rulez": [] })).unwrap_err().contains("unknown field `rulez`"));
    }

    #[test]
    fn a_deletion_is_never_refused() {
        let refuse = |_: &Value| Err("no".to_owned());
        assert_eq!(answer(&review("DELETE"), &refuse).unwrap()["response"]["allowed"], true);
    }

    #[test]
    fn warnings_are_passed_on() {
        let warn = |_: &Value| Ok(vec!["careful".to_owned()]);
        let answer = answer(&review("UPDATE"), &warn).unwrap();
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["warnings"], json!(["careful"]));
    }

    #[test]
    fn what_is_no_review_has_no_answer() {
        assert!(answer(&json!({}), &|_| Ok(Vec::new())).is_none());
    }
}
