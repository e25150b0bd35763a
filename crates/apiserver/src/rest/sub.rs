// SPDX-License-Identifier: Apache-2.0
//! Subresources other than the status: scale, binding, eviction, token, finalize, and the streams of Pods.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::delete::{self, DeleteOptions};
use super::{body, write};
use crate::answer::json_response;
use crate::call::Call;
use crate::options::Options;
use crate::status::Refusal;
use crate::store::StoreError;
use crate::streaming::PodStream;

pub(super) async fn dispatch(
    call: Call,
    verb: &str,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let sub = call.subresource().to_owned();
    match (call.info.group.as_str(), call.info.plural.as_str(), sub.as_str(), verb) {
        (_, _, "scale", _) if call.info.scale.is_some() => scale(&call, verb, request).await,
        ("", "pods", "binding", "create") => {
            let binding = body::read(request).await?;
            bind(&call, &binding)
        }
        ("", "pods", "eviction", "create") => {
            let eviction = body::read(request).await?;
            let options = DeleteOptions::new(&Options::default(), eviction.get("deleteOptions"));
            let mut call = call;
            call.target.subresource = None;
            delete::delete(&call, &options).await?;
            Ok(json_response(StatusCode::CREATED, &success()))
        }
        ("", "pods", "log" | "exec" | "attach" | "portforward", _) => stream(&call, request).await,
        ("", "serviceaccounts", "token", "create") => {
            let review = body::read(request).await?;
            let token = call.api.auth.create_token(call.namespace(), call.name(), &review)?;
            Ok(json_response(StatusCode::CREATED, &token))
        }
        ("", "namespaces", "finalize", "update") => {
            let namespace = body::read(request).await?;
            let mut call = call;
            call.target.subresource = None;
            write::update(&call, namespace).await
        }
        _ => Err(Refusal::no_such_path()),
    }
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// The scheduler's decision: sets the node once, with the condition that says so.
fn bind(call: &Call, binding: &Value) -> Result<Response<Body>, Refusal> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Refusal::bad_request("target.name: Required value"));
    }
    loop {
        let live = call
            .api
            .store
            .get(&call.info.key, call.namespace(), call.name())
            .ok_or_else(|| call.not_found())?;
        let mut pod = (*live.value).clone();
        if pod["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty()) {
            let why = format!("pod {} is already assigned to node {}", call.name(), pod["spec"]["nodeName"]);
            return Err(Refusal::conflict("pods/binding", call.name(), &why));
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", call.name());
            return Err(Refusal::conflict("pods/binding", call.name(), &why));
        }
        pod["spec"]["nodeName"] = node.into();
        let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                               "lastTransitionTime": call.api.now()});
        let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
        pod["status"]["conditions"] = conditions.into();
        match call.api.store.replace(&call.info.key, call.namespace(), call.name(), live.revision, pod) {
            Ok(_) => return Ok(json_response(StatusCode::CREATED, &success())),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(call.refused(call.name(), error)),
        }
    }
}

/// `autoscaling/v1 Scale` over the object's own fields.
/// Serves a streaming subresource. A client that may only read is refused what acts, whatever method asks for it: the
/// upgrade of a WebSocket is a GET.
async fn stream(call: &Call, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    let stream = PodStream::of(call.subresource()).ok_or_else(Refusal::no_such_path)?;
    if stream != PodStream::Log {
        call.api.auth.authorize(&call.user, &call.attributes("create"))?;
    }
    call.api.streaming.serve(stream, call.namespace(), call.name(), request).await
}

async fn scale(call: &Call, verb: &str, request: Request<Body>) -> Result<Response<Body>, Refusal> {
    let paths = call.info.scale.clone().ok_or_else(Refusal::no_such_path)?;
    let live =
        call.api.store.get(&call.info.key, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
    let current = scale_of(call, &live.value);
    let wanted = match verb {
        "get" => return Ok(json_response(StatusCode::OK, &current)),
        "update" => body::read(request).await?,
        "patch" => {
            let (kind, patch) = body::patch(request).await?;
            let mut scale = current;
            match kind {
                crate::patch::PatchKind::Json => crate::patch::json(&mut scale, patch)?,
                _ => crate::patch::merge(&mut scale, &patch),
            }
            scale
        }
        _ => return Err(Refusal::method_not_allowed()),
    };
    let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let cause = crate::status::Cause::invalid(
            "spec.replicas",
            &replicas.into(),
            "must be greater than or equal to 0",
        );
        return Err(Refusal::invalid("Scale", "autoscaling", call.name(), &[cause]));
    }
    let mut patch = Value::Null;
    for key in paths.spec_replicas.rsplit('.') {
        patch = if patch.is_null() { json!({key: replicas}) } else { json!({key: patch}) };
    }
    if let Some(version) = wanted["metadata"]["resourceVersion"].as_str() {
        patch["metadata"] = json!({"resourceVersion": version});
    }
    let mut main = call.clone();
    main.target.subresource = None;
    write::patch(&main, crate::patch::PatchKind::Merge, patch).await?;
    let stored =
        call.api.store.get(&call.info.key, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
    Ok(json_response(StatusCode::OK, &scale_of(call, &stored.value)))
}

fn scale_of(call: &Call, object: &Arc<Value>) -> Value {
    let at = |path: &str| path.split('.').fold(&**object, |value, key| &value[key]).clone();
    let Some(paths) = &call.info.scale else { return Value::Null };
    let selector = match &paths.label_selector {
        Some(path) => at(path).as_str().unwrap_or_default().to_owned(),
        None => {
            let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
            labels
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        }
    };
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
                     "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"]},
        "spec": {"replicas": at(&paths.spec_replicas).as_i64().unwrap_or(0)},
        "status": {"replicas": at(&paths.status_replicas).as_i64().unwrap_or(0), "selector": selector},
    })
}
