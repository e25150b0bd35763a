// SPDX-License-Identifier: Apache-2.0
//! The admission webhook: an invalid policy is refused before it is stored, with the reason.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use meltemi_model::NamespacedName;
use meltemi_resources::policies::validate;
use meltemi_runtime::{Readiness, Tasks};
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::Labels;
use meltemi_translate::security::authorization;
use serde_json::{Value, json};

use crate::leader::Leadership;
use crate::metrics::ControlMetrics;

/// Name of the ValidatingWebhookConfiguration in the namespace of the control plane.
const NAME: &str = "istio-validator-istio-system";
const MANAGER: &str = "istiod";
/// Largest review that is read: two objects at the API's own limit.
const LARGEST: usize = 8 << 20;

/// Judges an object: warnings, or why it is refused.
pub type Validate = Arc<dyn Fn(&Value) -> Result<Vec<String>, String> + Send + Sync>;

/// The mesh's own judgement of its objects; other kinds are judged by their schema alone.
pub fn validator() -> Validate {
    Arc::new(|object| {
        let warnings = validate::object(object).map_or(Ok(Vec::new()), validate::Review::result)?;
        if object["kind"] == "AuthorizationPolicy" {
            taken(object)?;
        }
        Ok(warnings)
    })
}

/// What admission takes, the engine takes: nothing may be stored that every proxy would refuse.
fn taken(object: &Value) -> Result<(), String> {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    // One that is yet to be generated begins so.
    let name = ["name", "generateName"].into_iter().map(text).find(|n| !n.is_empty()).unwrap_or("new");
    let name = NamespacedName::new(text("namespace"), name);
    let spec = validate::spec(object)?;
    authorization::read(&name, &spec, &Labels::new(), &MeshConfig::default()).map(drop)
}

/// `/validate`.
pub fn routes(validate: Validate, metrics: ControlMetrics) -> Router {
    Router::new()
        .route(
            "/validate",
            post(move |Json(review): Json<Value>| {
                let (validate, metrics) = (validate.clone(), metrics.clone());
                async move {
                    match answer(&review, &*validate) {
                        Some(answer) => {
                            let kind = review["request"]["kind"]["kind"].as_str().unwrap_or_default();
                            metrics.admission(kind, answer["response"]["allowed"] == true);
                            (StatusCode::OK, Json(answer))
                        }
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
        "CREATE" | "UPDATE" => {
            let mut object = request.get("object")?.clone();
            // The namespace of the request is the object's, said or not.
            if object["metadata"].is_object() && object["metadata"]["namespace"].is_null() {
                object["metadata"]["namespace"] = request.get("namespace").cloned().unwrap_or_default();
            }
            match unchanged(request.get("oldObject"), &object) {
                true => Ok(Vec::new()),
                false => validate(&object),
            }
        }
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

/// Whether what is judged of an object is as it was: one that was stored before there was a judge must not be kept from
/// losing its finalizers.
fn unchanged(old: Option<&Value>, object: &Value) -> bool {
    let judged = |o: &Value| (o["spec"].clone(), o["metadata"]["annotations"][validate::DRY_RUN].clone());
    let fields = |o: &Value| o.as_object().map(|o| o.keys().cloned().collect::<BTreeSet<String>>());
    old.is_some_and(|old| !old.is_null() && judged(old) == judged(object) && fields(old) == fields(object))
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
    use tower::ServiceExt as _;

    use super::*;

    fn review(operation: &str) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": { "uid": "u1", "operation": operation, "object": { "kind": "AuthorizationPolicy" } },
        })
    }

    #[tokio::test]
    async fn a_review_that_is_too_large_is_refused_and_the_next_one_is_answered() {
        let routes = routes(validator(), ControlMetrics::default());
        for (padding, expected) in [(LARGEST, StatusCode::PAYLOAD_TOO_LARGE), (0, StatusCode::OK)] {
            let body = review("DELETE").to_string() + &" ".repeat(padding);
            let request = axum::http::Request::post("/validate").header("content-type", "application/json");
            let answer =
                routes.clone().oneshot(request.body(axum::body::Body::from(body)).unwrap()).await.unwrap();
            assert_eq!(answer.status(), expected);
        }
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

    /// Posts a review of an object to the handler; the answer's `response`.
    async fn post(operation: &str, kind: &str, object: Value) -> Value {
        let mut object = object;
        object["apiVersion"] = json!("security.istio.io/v1");
        object["kind"] = json!(kind);
        object["metadata"]["name"] = json!("p");
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": { "uid": "u1", "operation": operation, "namespace": "default", "name": "p", "object": object },
        });
        let request = axum::http::Request::post("/validate")
            .header("content-type", "application/json")
            .body(axum::body::Body::from(review.to_string()))
            .unwrap();
        let answer = routes(validator(), ControlMetrics::default()).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = axum::body::to_bytes(answer.into_body(), LARGEST).await.unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("AdmissionReview"), &json!("u1")));
        answer["response"].clone()
    }

    /// What is refused, with the whole message that `kubectl` shows.
    #[tokio::test]
    async fn the_mesh_refuses_what_istio_refuses_and_names_the_field() {
        let spec = |spec: Value| json!({ "spec": spec });
        let source = |source: Value| spec(json!({ "rules": [{ "from": [{ "source": source }] }] }));
        let service = json!({ "kind": "Service", "group": "", "name": "x" });
        let labels = json!({ "matchLabels": { "a": "b" } });
        let cases = [
            ("AuthorizationPolicy", spec(json!({})), ""),
            ("AuthorizationPolicy", json!({}), ""),
            (
                "AuthorizationPolicy",
                spec(json!({ "rules": [{ "from": [] }] })),
                "invalid policy p.default: `from` must not be empty, found at rule 0",
            ),
            (
                "AuthorizationPolicy",
                source(json!({})),
                "invalid policy p.default: `from.source` must not be empty, found at rule 0",
            ),
            (
                "AuthorizationPolicy",
                source(json!({ "ipBlocks": ["1.2.3.4/99"] })),
                "invalid policy p.default: bad CIDR range (1.2.3.4/99): netip.ParsePrefix(\"1.2.3.4/99\"): prefix length \
                 out of range",
            ),
            (
                "AuthorizationPolicy",
                spec(json!({ "action": "DENY" })),
                "invalid policy p.default: DENY action without `rules` is meaningless as it will never be triggered, add an \
                 empty rule `{}` if you want it be triggered for every request",
            ),
            (
                "AuthorizationPolicy",
                spec(json!({ "selector": labels, "targetRefs": [service] })),
                "invalid policy p.default: only one of targetRefs or workloadSelector can be set",
            ),
            (
                "AuthorizationPolicy",
                json!({ "metadata": { "annotations": { "istio.io/dry-run": "maybe" } } }),
                "invalid policy p.default: annotation istio.io/dry-run: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "AuthorizationPolicy",
                spec(json!({ "rules": [{ "to": [{ "operation": { "paths": ["a/{*}"] } }] }] })),
                "policy default/p is not valid rule[0] clause[0]: paths: invalid or unsupported path a/{*}: it does not begin \
                 with `/`",
            ),
            (
                "AuthorizationPolicy",
                json!({ "rules": [] }),
                "unknown field \"rules\" on AuthorizationPolicy resource default/p",
            ),
            (
                "PeerAuthentication",
                spec(json!({ "portLevelMtls": { "80": { "mode": "STRICT" } } })),
                "mesh/namespace peer authentication cannot have port level mTLS",
            ),
            ("PeerAuthentication", spec(json!({ "mtls": { "mode": "STRICT" } })), ""),
            (
                "RequestAuthentication",
                spec(json!({ "jwtRules": [{ "audiences": ["a"] }] })),
                "issuer or jwksUri must be non-empty string",
            ),
            (
                "RequestAuthentication",
                spec(json!({ "jwtRules": [{ "issuer": "a", "jwks": "{}" }], "targetRefs": [service] })),
                "jwks parse error: neither a set of keys nor a key",
            ),
            ("RequestAuthentication", spec(json!({ "jwtRules": [{ "issuer": "a" }] })), ""),
        ];
        for (kind, object, message) in cases {
            let response = post("CREATE", kind, object.clone()).await;
            let text = format!("{kind} {object}: {response}");
            assert_eq!(response["allowed"], message.is_empty(), "{text}");
            if !message.is_empty() {
                assert_eq!(
                    response["status"]["message"],
                    format!("configuration is invalid: {message}"),
                    "{text}"
                );
                assert_eq!(
                    (&response["status"]["code"], &response["status"]["reason"]),
                    (&json!(422), &json!("Invalid"))
                );
            }
            assert_eq!(post("DELETE", kind, object).await["allowed"], true, "{text}");
        }
    }

    #[tokio::test]
    async fn a_typo_is_named_by_its_path() {
        for (kind, spec, path, field) in [
            ("AuthorizationPolicy", json!({ "rulez": [] }), "spec.rulez", "rulez"),
            (
                "AuthorizationPolicy",
                json!({ "rules": [{ "to": [{ "operation": { "path": ["/"] } }] }] }),
                "spec.rules[0].to[0].operation.path",
                "path",
            ),
            ("PeerAuthentication", json!({ "mtls": { "modus": "STRICT" } }), "spec.mtls.modus", "modus"),
            (
                "RequestAuthentication",
                json!({ "jwtRules": [{ "issuer": "a", "audience": ["b"] }] }),
                "spec.jwtRules[0].audience",
                "audience",
            ),
        ] {
            let response = post("UPDATE", kind, json!({ "spec": spec })).await;
            let message = response["status"]["message"].as_str().unwrap();
            let wanted = format!(
                "configuration is invalid: error decoding configuration: {path}: unknown field `{field}`"
            );
            assert!(message.starts_with(&wanted), "{message}");
        }
    }

    #[tokio::test]
    async fn what_is_allowed_may_come_with_a_warning() {
        let http_only =
            json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] });
        let response = post("CREATE", "AuthorizationPolicy", json!({ "spec": http_only })).await;
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().contains("will deny all traffic to TCP ports"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_a_bad_request() {
        for body in
            ["", "{}", "{\"request\": {}}", "[", "{\"request\": {\"uid\": \"u\", \"operation\": \"CREATE\"}}"]
        {
            let request = axum::http::Request::post("/validate").header("content-type", "application/json");
            let request = request.body(axum::body::Body::from(body)).unwrap();
            let answer = routes(validator(), ControlMetrics::default()).oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
        }
    }

    #[test]
    fn what_is_stored_may_lose_its_finalizers() {
        let refuse = |_: &Value| Err("no".to_owned());
        let object = |rules: Value, finalizers: Value| json!({ "spec": { "rules": rules }, "metadata": { "finalizers": finalizers } });
        let mut review = review("UPDATE");
        review["request"]["oldObject"] = object(json!([]), json!(["f"]));
        for (new, allowed) in
            [(object(json!([]), json!([])), true), (object(json!([{}]), json!(["f"])), false)]
        {
            review["request"]["object"] = new;
            assert_eq!(answer(&review, &refuse).unwrap()["response"]["allowed"], allowed);
        }
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
