// SPDX-License-Identifier: Apache-2.0
//! Deletion: at once, after a Pod's grace, or when the last finalizer is gone.

mod options;

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::read::respond;
use crate::admission::{self, Operation};
use crate::answer::json_response;
use crate::bounds::Extent;
use crate::call::Call;
use crate::options::Propagation;
use crate::registry::ResourceInfo;
use crate::status::Refusal;
use crate::store::{ObjectName, StoreError, Stored};

pub(super) use options::DeleteOptions;

/// How often a deletion is tried again when the object changes meanwhile.
const ATTEMPTS: usize = 16;

pub(super) async fn delete(call: &Call, options: &DeleteOptions) -> Result<Response<Body>, Refusal> {
    let (value, removed) = delete_one(call, call.name(), options).await?;
    if !removed {
        return Ok(respond(call, StatusCode::OK, &value));
    }
    let details = json!({"name": call.name(), "group": call.info.group, "kind": call.info.plural,
                         "uid": value["metadata"]["uid"]});
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(json_response(StatusCode::OK, &status))
}

pub(super) async fn collection(call: &Call, options: &DeleteOptions) -> Result<Response<Body>, Refusal> {
    let mut answer = Deleted::default();
    for name in selected(call) {
        let mut one = call.clone();
        one.target.namespace = call.info.namespaced.then(|| name.0.clone());
        one.target.name = Some(name.1.clone());
        match delete_one(&one, one.name(), options).await {
            Ok((value, _)) => answer.add(&value),
            Err(refusal) if refusal.code == 404 => {}
            Err(refusal) => return Err(refusal),
        }
        // A long collection must not keep the other requests of this thread waiting.
        tokio::task::yield_now().await;
    }
    Ok(json_response(StatusCode::OK, &answer.to_value(call)))
}

/// Names of the objects that a collection has now and that the client selects. The objects themselves would be kept in
/// memory until the last one is deleted.
fn selected(call: &Call) -> Vec<ObjectName> {
    let selects = |object: &Value| call.options.labels.matches(object) && call.options.fields.matches(object);
    let stored = call.api.store.list(&call.info.key, call.listed_namespace(), None).0;
    let text = |object: &Value, key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    let selected = stored.iter().filter(|one| selects(&one.value));
    selected.map(|one| (text(&one.value, "namespace"), text(&one.value, "name"))).collect()
}

/// What a deletion of a collection answers: the objects, as long as they are few; how many they were otherwise.
#[derive(Debug, Default)]
struct Deleted {
    items: Vec<Value>,
    memory: usize,
    count: usize,
}

/// Memory of the deleted objects that are listed in an answer, in bytes.
const MAX_LISTED: usize = 1024 * 1024;

impl Deleted {
    fn add(&mut self, object: &Value) {
        self.count += 1;
        // A row that could not be read has no extent that matters.
        self.memory = self.memory.saturating_add(Extent::of(object).map_or(0, |extent| extent.memory));
        if self.memory <= MAX_LISTED {
            self.items.push(object.clone());
        } else {
            self.items = Vec::new();
        }
    }

    fn to_value(&self, call: &Call) -> Value {
        let info = &call.info;
        if self.memory <= MAX_LISTED {
            let revision = call.api.store.revision().to_string();
            return json!({"kind": info.list_kind(), "apiVersion": info.api_version(),
                          "metadata": {"resourceVersion": revision}, "items": self.items});
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
               "message": format!("{} {} deleted", self.count, info.qualified()),
               "details": {"group": info.group, "kind": info.plural}})
    }
}

/// Deletes or marks an object; says whether it is gone.
pub(super) async fn delete_one(
    call: &Call,
    name: &str,
    options: &DeleteOptions,
) -> Result<(Arc<Value>, bool), Refusal> {
    for _ in 0..ATTEMPTS {
        let Some(live) = call.api.store.get(&call.info.key, call.namespace(), name) else {
            return delete_unreadable(call, name, options);
        };
        preconditions(call, name, &live, options)?;
        admission::validate(call, Operation::Delete, None, Some(&live.value)).await?;
        let marked = mark(call, &live.value, options);
        if options.dry_run {
            return Ok((live.value, true));
        }
        let result = if is_finished(&call.info, &marked) {
            call.api.store.remove(&call.info.key, call.namespace(), name, live.revision).map(|stored| {
                after_removal(call, &stored.value);
                (stored.value, true)
            })
        } else {
            call.api
                .store
                .replace(&call.info.key, call.namespace(), name, live.revision, marked)
                .map(|stored| (stored.value, false))
        };
        match result {
            Ok(done) => return Ok(done),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(call.refused(name, error)),
        }
    }
    Err(Refusal::conflict(&call.info.qualified(), name, "the object keeps changing; please try again"))
}

/// Deletes a row that cannot be read. What it was is not known, so nothing that it may own is looked at.
fn delete_unreadable(
    call: &Call,
    name: &str,
    options: &DeleteOptions,
) -> Result<(Arc<Value>, bool), Refusal> {
    let conditions = options.uid.is_some() || options.resource_version.is_some();
    if conditions || options.dry_run {
        return Err(call.not_found());
    }
    let removed = call.api.store.discard_unreadable(&call.info.key, call.namespace(), name);
    if removed.map_err(|error| call.refused(name, error))? {
        Ok((Arc::new(json!({"metadata": {"namespace": call.namespace(), "name": name}})), true))
    } else {
        Err(call.not_found())
    }
}

fn preconditions(call: &Call, name: &str, live: &Stored, options: &DeleteOptions) -> Result<(), Refusal> {
    let uid = live.value["metadata"]["uid"].as_str().unwrap_or_default();
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Refusal::conflict(&call.info.qualified(), name, &why));
    }
    if options.resource_version.as_deref().is_some_and(|wanted| wanted != live.revision.to_string()) {
        return Err(Refusal::conflict(&call.info.qualified(), name, "Precondition failed: resourceVersion"));
    }
    Ok(())
}

/// The object with its deletion under way: time, grace, finalizers of the propagation policy.
fn mark(call: &Call, live: &Value, options: &DeleteOptions) -> Value {
    let mut object = live.clone();
    let finalizer = match options.propagation {
        Some(Propagation::Foreground) => Some("foregroundDeletion"),
        Some(Propagation::Orphan) => Some("orphan"),
        Some(Propagation::Background) | None => None,
    };
    if let Some(finalizer) = finalizer {
        let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if list.iter().all(|f| f != finalizer) {
            list.push(finalizer.into());
        }
        object["metadata"]["finalizers"] = list.into();
    }
    let grace = grace(call, live, options);
    let earlier = live["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if live["metadata"]["deletionTimestamp"].is_string() && earlier.is_none_or(|earlier| grace >= earlier) {
        return object;
    }
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    object["metadata"]["deletionTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if call.info.kind == "Namespace" && call.info.group.is_empty() {
        object["status"]["phase"] = "Terminating".into();
    }
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = (generation + 1).into();
    }
    object
}

/// A Pod that runs somewhere gets time to end; everything else goes at once.
fn grace(call: &Call, live: &Value, options: &DeleteOptions) -> i64 {
    let is_pod = call.info.kind == "Pod" && call.info.group.is_empty();
    let over = matches!(live["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !is_pod || over || live["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return 0;
    }
    let period = options.grace.or_else(|| live["spec"]["terminationGracePeriodSeconds"].as_i64());
    // Kubernetes reads a negative period as the shortest one.
    period.map_or(30, |period| if period < 0 { 1 } else { period })
}

/// Whether an object whose deletion is under way has nothing left to wait for.
pub(super) fn is_finished(info: &ResourceInfo, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let waits = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    let namespace = info.kind == "Namespace" && info.group.is_empty();
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !waits(&metadata["finalizers"])
        && !(namespace && waits(&object["spec"]["finalizers"]))
}

pub(super) fn after_removal(call: &Call, object: &Value) {
    if call.info.kind == "ClusterRole" {
        call.api.aggregate_roles();
    }
    if call.info.kind == "CustomResourceDefinition"
        && let Some(name) = object["metadata"]["name"].as_str()
    {
        call.api.registry.remove_definition(name);
        crate::bootstrap::sync_api_services(&call.api);
        // What it defined goes with it.
        let key = format!(
            "{}/{}",
            object["spec"]["group"].as_str().unwrap_or_default(),
            object["spec"]["names"]["plural"].as_str().unwrap_or_default()
        );
        for stored in call.api.store.list(&key, None, None).0 {
            let text = |field: &str| stored.value["metadata"][field].as_str().unwrap_or_default().to_owned();
            let _ = call.api.store.remove(&key, &text("namespace"), &text("name"), stored.revision);
        }
    }
}
