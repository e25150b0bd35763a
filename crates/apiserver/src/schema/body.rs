// SPDX-License-Identifier: Apache-2.0
//! Bodies that are no stored object: evictions, bindings, scales, token requests, options of deletions, reviews.

use serde_json::{Value, json};

use super::check::{self, Found};
use super::{definition_name, drop_nulls, strict_faults};
use crate::options::FieldValidation;
use crate::status::Refusal;

/// Reads the body of a subresource. A field that is unknown, of another type or of another kind is always an error: a
/// typo in an eviction's `dryRun` would otherwise evict.
///
/// # Errors
/// 400 naming the fields.
pub fn strict_body(body: Value, accepted: &[(&str, &str, &str)]) -> Result<Value, Refusal> {
    body_of(body, accepted, FieldValidation::Strict)
}

/// Reads the body of a review; unknown fields are errors only when the client asks for that.
///
/// # Errors
/// 400 naming the fields.
pub fn review_body(
    body: Value,
    kind: (&str, &str, &str),
    validation: FieldValidation,
) -> Result<Value, Refusal> {
    body_of(body, &[kind], validation)
}

/// `accepted` lists (group, version, kind); the first one's schema is the judge.
fn body_of(
    mut body: Value,
    accepted: &[(&str, &str, &str)],
    validation: FieldValidation,
) -> Result<Value, Refusal> {
    drop_nulls(&mut body);
    let Some(&(group, version, kind)) = accepted.first() else { return Ok(body) };
    if !body.is_object() {
        return Err(Refusal::bad_request(format!("the body must be an object of kind {kind}")));
    }
    let given = (&body["apiVersion"], &body["kind"]);
    let is_unset = |value: &Value| value.is_null() || value == "";
    let fits = |&(group, version, kind): &(&str, &str, &str)| {
        (is_unset(given.0) || *given.0 == api_version(group, version))
            && (is_unset(given.1) || given.1 == kind)
    };
    if !accepted.iter().any(fits) {
        let wanted = api_version(group, version);
        return Err(Refusal::bad_request(format!(
            "the body ({}, Kind={}) is not the {wanted} {kind} that this resource takes",
            given.0, given.1
        )));
    }
    let mut found = Found::default();
    if let Some(name) = definition_name(group, version, kind) {
        check::object(&json!({"$ref": format!("#/$defs/{name}")}), &body, &mut found);
    }
    refuse(kind, version, &found, validation)?;
    Ok(body)
}

/// Reads `DeleteOptions`, of whatever group and version: clients write those of the object that they delete.
///
/// # Errors
/// 400 naming the fields.
pub fn delete_options(mut body: Value) -> Result<Value, Refusal> {
    const DEFINITION: &str = "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    drop_nulls(&mut body);
    if !body.is_object() || !(body["kind"].is_null() || body["kind"] == "" || body["kind"] == "DeleteOptions")
    {
        return Err(Refusal::bad_request("the body of a deletion must be of kind DeleteOptions"));
    }
    let mut found = Found::default();
    check::object(&json!({"$ref": DEFINITION}), &body, &mut found);
    refuse("DeleteOptions", "v1", &found, FieldValidation::Strict)?;
    Ok(body)
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn refuse(kind: &str, version: &str, found: &Found, validation: FieldValidation) -> Result<(), Refusal> {
    if validation == FieldValidation::Strict && !found.unknown.is_empty() {
        return Err(undecodable(kind, version, &strict_faults(&Value::Null, &found.unknown, &[], true)));
    }
    // What is missing has a default, or is refused by the handler in its own words.
    let wrong: Vec<&str> = found
        .causes
        .iter()
        .filter(|cause| cause.reason != "FieldValueRequired")
        .map(|cause| cause.message.as_str())
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let wrong = wrong.join(", ");
    Err(Refusal::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {wrong}"
    )))
}

/// 400 for what a strict decoder refuses ([`strict_faults`]), in the words of Kubernetes.
pub fn undecodable(kind: &str, version: &str, faults: &[String]) -> Refusal {
    let list = faults.join(", ");
    Refusal::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {list}"
    ))
}
