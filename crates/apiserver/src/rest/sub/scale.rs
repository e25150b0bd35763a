// SPDX-License-Identifier: Apache-2.0
//! `scale`: `autoscaling/v1 Scale` over the object's own fields.

use axum::body::Body;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{check_names, check_preconditions, live};
use crate::admission::{self, Operation};
use crate::answer::json_response;
use crate::call::Call;
use crate::patch::{self, PatchKind};
use crate::path::Verb;
use crate::registry::Scale;
use crate::rest::{body, write};
use crate::schema;
use crate::status::{Cause, Refusal};

pub(super) async fn serve(
    call: &Call,
    verb: Verb,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let paths = call.info.scale.as_ref().ok_or_else(Refusal::no_such_path)?;
    let live = live(call)?.value;
    let current = scale_of(paths, &live);
    let wanted = match verb {
        Verb::Get => return Ok(json_response(StatusCode::OK, &current)),
        Verb::Patch => {
            let (kind, patch) = body::patch(request).await?;
            patched(call, current.clone(), kind, patch.strict()?)?
        }
        _ => body::read(request).await?,
    };
    let wanted = schema::strict_body(wanted, &[("autoscaling", "v1", "Scale")])?;
    check_names(call, &wanted)?;
    check_preconditions(call, &wanted, &live)?;
    let replicas = replicas(call, &wanted)?;
    admission::validate(call, Operation::Update, Some(&wanted), Some(&current)).await?;
    let mut main = call.clone();
    main.target.subresource = None;
    // A patch was made of the present object: only an update names a revision of its own.
    let expected =
        wanted["metadata"]["resourceVersion"].as_str().filter(|v| verb == Verb::Update && !v.is_empty());
    let value =
        write::change(&main, expected, "Update", |live| with_replicas(call, paths, live, replicas)).await?;
    Ok(json_response(StatusCode::OK, &scale_of(paths, &value)))
}

fn patched(call: &Call, mut scale: Value, kind: PatchKind, patch: Value) -> Result<Value, Refusal> {
    match kind {
        PatchKind::Json => patch::json(&mut scale, patch)?,
        PatchKind::Apply if call.options.field_manager.is_none() => {
            return Err(Refusal::bad_request("fieldManager is required for apply patch"));
        }
        // A Scale has no lists: every other kind of patch merges it.
        PatchKind::Merge | PatchKind::Strategic | PatchKind::Apply => patch::merge(&mut scale, &patch),
    }
    Ok(scale)
}

/// The number that is asked for. Clients that write zero leave the field out.
fn replicas(call: &Call, wanted: &Value) -> Result<i32, Refusal> {
    let given = &wanted["spec"]["replicas"];
    let replicas = if given.is_null() { Some(0) } else { given.as_i64().and_then(|n| i32::try_from(n).ok()) };
    replicas.filter(|number| *number >= 0).ok_or_else(|| {
        let why = format!("must be between 0 and {}", i32::MAX);
        let cause = Cause::invalid("spec.replicas", given, why);
        Refusal::invalid("Scale", "autoscaling", call.name(), &[cause])
    })
}

fn with_replicas(call: &Call, paths: &Scale, live: &Value, replicas: i32) -> Result<Value, Refusal> {
    let mut object = live.clone();
    let mut field = &mut object;
    for key in paths.spec_replicas.split('.') {
        if !field.is_object() && !field.is_null() {
            let why = "the scale subresource's specReplicasPath leads through a field that is no object";
            let cause = Cause::invalid(paths.spec_replicas.clone(), field, why);
            return Err(Refusal::invalid(&call.info.kind, &call.info.group, call.name(), &[cause]));
        }
        field = &mut field[key];
    }
    *field = replicas.into();
    Ok(object)
}

fn scale_of(paths: &Scale, object: &Value) -> Value {
    let at = |path: &str| path.split('.').fold(object, |value, key| &value[key]).clone();
    let selector = match &paths.label_selector {
        Some(path) => at(path).as_str().unwrap_or_default().to_owned(),
        None => {
            let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
            let equal = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            equal.collect::<Vec<_>>().join(",")
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
