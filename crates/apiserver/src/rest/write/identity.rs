// SPDX-License-Identifier: Apache-2.0
//! What identifies an object: names, uid, revision, times; set by the server and immutable.

use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::status::{Cause, Refusal};

/// Letters for generated names: none that spell words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether it is an object with metadata at all: a patch can make anything of it.
pub(super) fn check_shape(object: &Value) -> Result<(), Refusal> {
    let wrong = |what: &str| Err(Refusal::bad_request(what));
    if !object.is_object() {
        return wrong("the body must be an object");
    }
    let metadata = &object["metadata"];
    if !metadata.is_object() && !metadata.is_null() {
        return wrong("metadata must be an object");
    }
    for key in ["name", "namespace", "generateName"] {
        if !metadata[key].is_string() && !metadata[key].is_null() {
            return wrong(&format!("metadata.{key} must be a string"));
        }
    }
    Ok(())
}

pub(super) fn for_create(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    check_shape(object)?;
    check_type(call, object)?;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let generated = object["metadata"]["generateName"].as_str().map(str::to_owned);
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().unwrap_or_default().is_empty() {
        match generated {
            Some(prefix) => metadata["name"] = format!("{prefix}{}", suffix()).into(),
            None => {
                let why = Cause {
                    field: "metadata.name".into(),
                    reason: "FieldValueRequired",
                    message: "Required value: name or generateName is required".into(),
                };
                return Err(Refusal::invalid(&call.info.kind, &call.info.group, "", &[why]));
            }
        }
    }
    check_name(call, metadata["name"].as_str().unwrap_or_default())?;
    check_namespace(call, metadata)?;
    if metadata["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let map = metadata.as_object_mut().expect("an object since above");
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        map.remove(key);
    }
    if call.subresource().is_empty() && call.options.field_manager.is_none() {
        // A client cannot say who manages fields, except by applying.
        map.remove("managedFields");
    }
    map.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    map.insert("creationTimestamp".into(), call.api.now().into());
    if super::rules::has_generation(&call.info) {
        map.insert("generation".into(), 1.into());
    } else {
        map.remove("generation");
    }
    drop_empty(metadata);
    object["apiVersion"] = call.info.api_version().into();
    object["kind"] = call.info.kind.as_str().into();
    Ok(())
}

pub(super) fn for_update(call: &Call, live: &Value, object: &mut Value) -> Result<(), Refusal> {
    check_shape(object)?;
    check_type(call, object)?;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().is_some_and(|name| !name.is_empty() && name != call.name()) {
        return Err(Refusal::bad_request("the name of the object does not match the name on the URL"));
    }
    check_namespace(call, metadata)?;
    if let (Some(wanted), Some(uid)) = (metadata["uid"].as_str(), live["metadata"]["uid"].as_str())
        && !wanted.is_empty()
        && wanted != uid
    {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Refusal::conflict(&call.info.qualified(), call.name(), &why));
    }
    let keep = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ];
    for key in keep {
        match live["metadata"].get(key) {
            Some(value) => metadata[key] = value.clone(),
            None => drop(metadata.as_object_mut().map(|m| m.remove(key))),
        }
    }
    if metadata.get("managedFields").is_none()
        && let Some(managed) = live["metadata"].get("managedFields")
    {
        metadata["managedFields"] = managed.clone();
    }
    drop_empty(metadata);
    object["apiVersion"] = call.info.api_version().into();
    object["kind"] = call.info.kind.as_str().into();
    Ok(())
}

/// What holds nothing is not written, so that adding and removing leaves no trace.
fn drop_empty(metadata: &mut Value) {
    let empty = |value: &Value| {
        value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
    };
    if let Some(map) = metadata.as_object_mut() {
        map.retain(|_, value| !empty(value));
    }
}

fn check_type(call: &Call, object: &Value) -> Result<(), Refusal> {
    let (kind, version) =
        (object["kind"].as_str().unwrap_or_default(), object["apiVersion"].as_str().unwrap_or_default());
    let right_kind = kind.is_empty() || kind == call.info.kind;
    let right_version = version.is_empty()
        || version == call.info.api_version()
        || (call.info.custom.is_some() && version.starts_with(&format!("{}/", call.info.group)));
    if right_kind && right_version {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "the object ({version}, Kind={kind}) does not match the resource ({}, Kind={})",
        call.info.api_version(),
        call.info.kind
    )))
}

fn check_namespace(call: &Call, metadata: &mut Value) -> Result<(), Refusal> {
    let given = metadata["namespace"].as_str().unwrap_or_default().to_owned();
    if !call.info.namespaced {
        if !given.is_empty() && call.info.kind != "Namespace" {
            return Err(Refusal::bad_request(format!("{} are not namespaced", call.info.plural)));
        }
        metadata.as_object_mut().map(|m| m.remove("namespace"));
        return Ok(());
    }
    let wanted = call.target.namespace.as_deref().unwrap_or_default();
    if wanted.is_empty() {
        return Err(Refusal::bad_request("an empty namespace may not be set during creation"));
    }
    if !given.is_empty() && given != wanted {
        return Err(Refusal::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({given} != {wanted})"
        )));
    }
    metadata["namespace"] = wanted.into();
    Ok(())
}

/// RFC 1123 subdomains; names of RBAC objects may hold `:` as well, as in Kubernetes.
fn check_name(call: &Call, name: &str) -> Result<(), Refusal> {
    let free = call.info.group == "rbac.authorization.k8s.io";
    let subdomain = name.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    let label = call.info.custom.is_none() && matches!(call.info.kind.as_str(), "Namespace" | "Service");
    let limit = if label { 63 } else { 253 };
    // A Service is a name in DNS of the older kind, which begins with a letter.
    let begins = !label || call.info.kind != "Service" || name.starts_with(|c: char| c.is_ascii_lowercase());
    let fine = name.len() <= limit
        && begins
        && (free && !name.contains(['/', '%']) || subdomain && !(label && name.contains('.')));
    if fine {
        return Ok(());
    }
    let why = if label {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
         with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    } else {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
         and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    };
    let cause = Cause::invalid("metadata.name", &name.into(), why);
    Err(Refusal::invalid(&call.info.kind, &call.info.group, name, &[cause]))
}

fn suffix() -> String {
    (0..5).map(|_| ALPHABET[usize::from(rand::random::<u8>()) % ALPHABET.len()] as char).collect()
}
