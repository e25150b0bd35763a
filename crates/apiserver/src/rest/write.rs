// SPDX-License-Identifier: Apache-2.0
//! Create, update and patch: decode, check, default, admit, store.

mod account;
mod identity;
mod rules;
mod service;

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use super::read::respond;
use crate::admission::{self, Operation};
use crate::api::Inert;
use crate::apply::{self, Manager};
use crate::bounds::Extent;
use crate::call::Call;
use crate::options::FieldValidation;
use crate::patch::{self, PatchKind};
use crate::path::Verb;
use crate::schema::Typed;
use crate::status::{Cause, Refusal};
use crate::store::{Store, StoreError, Stored};
use crate::{defaults, events, schema, validate};

/// How often a write is tried again when somebody else was faster and the client named no revision.
const ATTEMPTS: usize = 16;

pub(super) async fn create(call: &Call, body: Value) -> Result<Response<Body>, Refusal> {
    let stored = create_object(call, body, None).await?;
    Ok(respond(call, StatusCode::CREATED, &stored))
}

/// Creates an object; `applied` when it comes from a server-side apply, whose fields are noted already.
async fn create_object(call: &Call, mut object: Value, applied: Option<()>) -> Result<Arc<Value>, Refusal> {
    identity::for_create(call, &mut object)?;
    decode(call, &mut object, None)?;
    warn_of_inert(call);
    if call.info.status && !rules::keeps_status_on_create(&call.info) {
        object.as_object_mut().map(|o| o.remove("status"));
    }
    defaults::fill_in(&call.info, &mut object);
    call.warnings.extend(validate::unenforced(&call.info, &object));
    if admission::mutate(call, Operation::Create, &mut object, None).await? {
        decode(call, &mut object, None)?;
        defaults::fill_in(&call.info, &mut object);
    }
    refuse(call, &object, &validate::faults(&call.info, &object))?;
    account::wait_for_default(call, &object).await;
    // The choice of an address and its storing must not interleave with another's.
    let allocation = call.api.allocation.lock().await;
    rules::on_create(call, &mut object)?;
    if applied.is_none() {
        note(call, None, &mut object, "")?;
    }
    call.api.auth.admit_node(&call.user, &call.attributes(Verb::Create), &object, None)?;
    admit_rbac(call, &object, None)?;
    with_allocation_lock(&call.info.kind, allocation, async {
        admission::validate(call, Operation::Create, Some(&object), None).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if call.options.dry_run {
            if call.api.store.get(&call.info.key, call.namespace(), &name).is_some() {
                return Err(Refusal::already_exists(&call.info.qualified(), &name));
            }
            return Ok(Arc::new(object));
        }
        let stored = call
            .api
            .store
            .create(&call.info.key, call.namespace(), &name, object)
            .map_err(|error| call.refused(&name, error))?;
        rules::after_write(call, &stored.value);
        Ok(stored.value)
    })
    .await
}

/// Warns whoever writes an object of a kind that nothing acts on.
fn warn_of_inert(call: &Call) {
    let inert = call.api.inert.iter().find(|i| i.group == call.info.group && i.kind == call.info.kind);
    if call.subresource().is_empty() {
        call.warnings.extend(inert.map(Inert::warning));
    }
}

/// Keeps the allocation lock while a Service is admitted. For other kinds releases it first, so that a slow webhook does not
/// block them.
async fn with_allocation_lock<T>(
    kind: &str,
    lock: tokio::sync::MutexGuard<'_, ()>,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let lock = (kind == "Service").then_some(lock);
    let result = work.await;
    drop(lock);
    result
}

pub(super) async fn update(call: &Call, body: Value) -> Result<Response<Body>, Refusal> {
    let expected = body["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty()).map(str::to_owned);
    let value = change(call, expected.as_deref(), "Update", |_| Ok(body.clone())).await?;
    Ok(respond(call, StatusCode::OK, &value))
}

pub(super) async fn patch(call: &Call, kind: PatchKind, patch: Value) -> Result<Response<Body>, Refusal> {
    if kind == PatchKind::Apply {
        return apply_patch(call, patch).await;
    }
    if call.options.force {
        let why = "Forbidden: may not be specified for non-apply patch".to_owned();
        let cause = Cause { field: "force".into(), reason: "FieldValueForbidden", message: why };
        return Err(Refusal::invalid("PatchOptions", "meta.k8s.io", "", &[cause]));
    }
    let expected = patch["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let value = change(call, expected.as_deref(), "Update", |live| {
        let mut object = live.clone();
        match kind {
            PatchKind::Json => patch::json(&mut object, patch.clone())?,
            // A custom resource has no merge keys: as in Kubernetes, no strategic merge either.
            PatchKind::Strategic if call.info.custom.is_some() => {
                return Err(Refusal::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
            PatchKind::Strategic => patch::strategic(&mut object, &patch, Typed::of(&call.info))?,
            PatchKind::Merge | PatchKind::Apply => patch::merge(&mut object, &patch),
        }
        Ok(object)
    })
    .await?;
    Ok(respond(call, StatusCode::OK, &value))
}

async fn apply_patch(call: &Call, config: Value) -> Result<Response<Body>, Refusal> {
    if call.options.field_manager.is_none() {
        return Err(Refusal::bad_request("fieldManager is required for apply patch"));
    }
    if config["kind"] != call.info.kind.as_str() || config["apiVersion"] != call.info.api_version().as_str() {
        let (want, kind) = (call.info.api_version(), &call.info.kind);
        return Err(Refusal::bad_request(format!("apply: the object must be {want} {kind}")));
    }
    identity::check_shape(&config)?;
    let mut config = config;
    decode_config(call, &mut config)?;
    if config["metadata"]["name"].as_str().is_some_and(|name| name != call.name()) {
        return Err(Refusal::bad_request("metadata.name does not match the name on the URL"));
    }
    if config["metadata"]["managedFields"].as_array().is_some_and(|managers| !managers.is_empty()) {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    config["metadata"]["name"] = call.name().into();
    let (name, time) = (call.manager(), call.api.now());
    let api_version = call.info.api_version();
    let manager = Manager {
        name: &name,
        operation: "Apply",
        api_version: &api_version,
        subresource: call.subresource(),
        time: &time,
    };
    let exists = call.api.store.get(&call.info.key, call.namespace(), call.name()).is_some();
    if !exists && call.subresource().is_empty() {
        // The request was authorized as a patch; what it is about to do is to create.
        call.api.auth.authorize(&call.user, &call.attributes(Verb::Create))?;
        let object = apply::apply(None, &config, Typed::of(&call.info), &manager, true)?;
        let value = create_object(call, object, Some(())).await?;
        return Ok(respond(call, StatusCode::CREATED, &value));
    }
    let expected = config["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let value = change(call, expected.as_deref(), "Apply", |live| {
        apply::apply(Some(live), &config, Typed::of(&call.info), &manager, call.options.force)
    })
    .await?;
    Ok(respond(call, StatusCode::OK, &value))
}

/// Reads, changes, checks, admits and stores; tried again when somebody else was faster and no revision is expected.
pub(super) async fn change(
    call: &Call,
    expected: Option<&str>,
    operation: &'static str,
    work: impl Fn(&Value) -> Result<Value, Refusal>,
) -> Result<Arc<Value>, Refusal> {
    let addresses =
        call.info.group.is_empty() && call.info.kind == "Service" && call.subresource().is_empty();
    // The check of an address and its storing must not interleave with another's.
    let _allocation = if addresses { Some(call.api.allocation.lock().await) } else { None };
    for _ in 0..ATTEMPTS {
        let live = call
            .api
            .store
            .get(&call.info.key, call.namespace(), call.name())
            .ok_or_else(|| call.not_found())?;
        if expected.is_some_and(|wanted| wanted != live.revision.to_string()) {
            return Err(call.modified());
        }
        let mut object = work(&live.value)?;
        // Before anything walks through it.
        Extent::of(&object)?;
        prepare(call, &live, &mut object, operation).await?;
        admission::validate(call, Operation::Update, Some(&object), Some(&live.value)).await?;
        if call.options.dry_run {
            return Ok(Arc::new(object));
        }
        match store(call, &live, object) {
            Ok(value) => return Ok(value),
            Err(StoreError::Conflict) if expected.is_none() => {}
            Err(error) => return Err(call.refused(call.name(), error)),
        }
    }
    Err(call.modified())
}

/// Stores a namespace whose finalizers have changed; nothing else of it has, and it is admitted.
pub(super) fn finalize(call: &Call, live: &Stored, namespace: Value) -> Result<Response<Body>, Refusal> {
    if call.options.dry_run {
        return Ok(respond(call, StatusCode::OK, &Arc::new(namespace)));
    }
    let stored = store(call, live, namespace).map_err(|error| call.refused(call.name(), error))?;
    Ok(respond(call, StatusCode::OK, &stored))
}

/// Everything between the wanted object and the one that may be stored.
async fn prepare(call: &Call, live: &Stored, object: &mut Value, operation: &str) -> Result<(), Refusal> {
    identity::for_update(call, &live.value, object)?;
    decode(call, object, Some(&live.value))?;
    warn_of_inert(call);
    if call.subresource() == "status" {
        rules::only_status(&call.info, &live.value, object);
    } else if call.subresource() == "ephemeralcontainers" {
        rules::only_ephemeral_containers(&live.value, object);
    } else if call.info.status {
        // The status is changed through its subresource only.
        match live.value.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => drop(object.as_object_mut().map(|o| o.remove("status"))),
        }
    }
    defaults::fill_in(&call.info, object);
    if call.subresource().is_empty() {
        call.warnings.extend(validate::unenforced(&call.info, object));
    }
    if admission::mutate(call, Operation::Update, object, Some(&live.value)).await? {
        decode(call, object, Some(&live.value))?;
        defaults::fill_in(&call.info, object);
    }
    // What ends is let go, whatever is wrong with it.
    if call.subresource().is_empty() && !object["metadata"]["deletionTimestamp"].is_string() {
        refuse(call, object, &validate::faults(&call.info, object))?;
    }
    if call.subresource() == "ephemeralcontainers" {
        refuse(call, object, &validate::added_containers(&live.value, object))?;
    }
    rules::on_update(call, &live.value, object)?;
    if operation == "Update" {
        note(call, Some(&live.value), object, call.subresource())?;
    }
    call.api.auth.admit_node(&call.user, &call.attributes(Verb::Update), object, Some(&live.value))?;
    admit_rbac(call, object, Some(&live.value))
}

fn store(call: &Call, live: &Stored, object: Value) -> Result<Arc<Value>, StoreError> {
    let store: &Store = &call.api.store;
    let (namespace, name) = (call.namespace(), call.name());
    if super::delete::is_finished(&call.info, &object) {
        let removed = store.remove(&call.info.key, namespace, name, live.revision)?;
        super::delete::after_removal(call, &removed.value);
        return Ok(Arc::new(object));
    }
    let stored = store.replace(&call.info.key, namespace, name, live.revision, object)?;
    rules::after_write(call, &stored.value);
    Ok(stored.value)
}

/// Unknown fields, types, bounds and rules; nulls are dropped and a CRD's defaults are set.
fn decode(call: &Call, object: &mut Value, old: Option<&Value>) -> Result<(), Refusal> {
    schema::drop_nulls(object);
    if call.info.group == "events.k8s.io" {
        let found = schema::check(&call.info, object, old);
        refuse(call, object, &found.causes)?;
        *object = events::to_core(object);
        return Ok(());
    }
    schema::default_fields(&call.info, object);
    let mut found = schema::check(&call.info, object, old);
    if call.info.custom.is_none() {
        // Controllers write parts of a status; what is missing there is empty, as in Kubernetes.
        let is_missing_status =
            |cause: &Cause| cause.reason == "FieldValueRequired" && cause.field.starts_with("status.");
        found.causes.retain(|cause| !is_missing_status(cause));
    }
    let is_typed = call.info.custom.is_none();
    refuse_undecodable(call, &schema::strict_faults(object, &found.unknown, &call.duplicates, is_typed))?;
    refuse(call, object, &found.causes)?;
    if !found.unknown.is_empty() {
        schema::prune(&call.info, object);
    }
    Ok(())
}

/// Reads an applied configuration. It names the fields that its manager cares about: what it lacks is not missing, so
/// only unknown fields are judged here; the merged object is judged as a whole. As in Kubernetes they are refused
/// whatever the client asks: a field without a type has no owner.
fn decode_config(call: &Call, config: &mut Value) -> Result<(), Refusal> {
    schema::drop_nulls(config);
    let duplicates = schema::strict_faults(config, &[], &call.duplicates, false);
    refuse_undecodable(call, &duplicates)?;
    let unknown = schema::check(&call.info, config, None).unknown;
    if unknown.is_empty() {
        return Ok(());
    }
    let faults: Vec<String> =
        unknown.iter().map(|path| format!(".{path}: field not declared in schema")).collect();
    let faults =
        if faults.len() == 1 { faults.concat() } else { format!("errors:\n  {}", faults.join("\n  ")) };
    let place = [call.namespace(), "/", call.name()].concat();
    let (version, kind) = (call.info.api_version(), &call.info.kind);
    Err(Refusal::bad_request(format!(
        "failed to create typed patch object ({place}; {version}, Kind={kind}): {faults}"
    )))
}

/// Refuses unknown and duplicate fields where the group or the client is strict; warns of each otherwise, unless the
/// client does not want to know.
fn refuse_undecodable(call: &Call, faults: &[String]) -> Result<(), Refusal> {
    let validation = call.options.field_validation;
    let is_strict =
        call.api.strict_groups.contains(&call.info.group.as_str()) || validation == FieldValidation::Strict;
    if !faults.is_empty() && is_strict {
        return Err(schema::undecodable(&call.info.kind, &call.info.version, faults));
    }
    if validation == FieldValidation::Warn {
        call.warnings.extend(faults.iter().cloned());
    }
    Ok(())
}

fn refuse(call: &Call, object: &Value, causes: &[Cause]) -> Result<(), Refusal> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Refusal::invalid(&call.info.kind, &call.info.group, name, causes))
}

fn note(call: &Call, before: Option<&Value>, object: &mut Value, subresource: &str) -> Result<(), Refusal> {
    let (name, time, api_version) = (call.manager(), call.api.now(), call.info.api_version());
    let manager =
        Manager { name: &name, operation: "Update", api_version: &api_version, subresource, time: &time };
    Ok(apply::note_update(before, object, Typed::of(&call.info), &manager)?)
}

fn admit_rbac(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Refusal> {
    if call.info.group == "rbac.authorization.k8s.io" {
        return call.api.auth.admit_rbac(&call.user, &call.info.plural, call.name(), object, old);
    }
    Ok(())
}
