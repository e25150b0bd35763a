// SPDX-License-Identifier: Apache-2.0
//! One object, in the form that the client asks for.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::answer::json_response;
use crate::call::Call;
use crate::registry::ResourceInfo;
use crate::status::Refusal;
use crate::{events, table};

/// The form of an answer, from the Accept header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The object itself.
    Object,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata`.
    Metadata,
}

impl Form {
    /// The first acceptable form that is known.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
        for part in accept.split(',') {
            let words: Vec<&str> = part.split(';').map(str::trim).collect();
            if words.first() != Some(&"application/json") {
                continue;
            }
            if words.contains(&"as=Table") && !words.contains(&"v=v1beta1") {
                return Self::Table;
            }
            if words.contains(&"as=PartialObjectMetadata") || words.contains(&"as=PartialObjectMetadataList")
            {
                return Self::Metadata;
            }
            return Self::Object;
        }
        Self::Object
    }
}

/// Whether a client takes an object as it is, be it as its last choice; what has no metadata has no other form.
pub(super) fn accepts_object(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|part| !part.split(';').any(|word| word.trim().starts_with("as=")))
}

/// An object as this version of the resource shows it.
pub(super) fn shown(info: &ResourceInfo, value: &Arc<Value>) -> Arc<Value> {
    if info.group == "events.k8s.io" {
        return Arc::new(events::to_events_api(value));
    }
    let api_version = info.api_version();
    let has_defaults = info.custom.as_ref().is_some_and(|custom| custom.has_defaults);
    if value["apiVersion"] == api_version.as_str() && !has_defaults {
        return value.clone();
    }
    let mut value = (**value).clone();
    value["apiVersion"] = api_version.into();
    // A definition can get a default after an object was stored.
    crate::schema::default_fields(info, &mut value);
    Arc::new(value)
}

/// An object in a form.
pub(super) fn formed(call: &Call, form: Form, value: &Arc<Value>) -> Value {
    let info = &call.info;
    let value = shown(info, value);
    match form {
        Form::Object => (*value).clone(),
        Form::Table => {
            let revision = value["metadata"]["resourceVersion"].as_str();
            table::render(info, std::slice::from_ref(&value), call.options.include_object, revision)
        }
        Form::Metadata => metadata(&value),
    }
}

/// Only the metadata of an object.
pub(super) fn metadata(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// An answer with one object.
pub(super) fn respond(call: &Call, code: StatusCode, value: &Arc<Value>) -> Response<Body> {
    json_response(code, &formed(call, Form::of(&call.headers), value))
}

pub(super) fn get(call: &Call) -> Result<Response<Body>, Refusal> {
    super::revision::check_get(call)?;
    let stored =
        call.api.store.get(&call.info.key, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
    Ok(respond(call, StatusCode::OK, &stored.value))
}
