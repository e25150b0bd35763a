// SPDX-License-Identifier: Apache-2.0
//! Whether a policy means something: Istio's checks in Istio's words, and a few of our own where a slip of the pen would
//! make a policy weaker than it reads.

mod authorization;
mod keys;
mod request;
mod targets;
mod values;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{AuthorizationPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec};

pub use self::keys::{Key, key};
pub use self::request::{duration_ms, jwks_uri};
pub use self::values::{dry_run, is_template, port, range};

/// Annotation of a policy that is only reported on.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Why it is refused; empty when it is valid.
    pub faults: Vec<String>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

impl Review {
    pub(crate) fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    pub(crate) fn take(&mut self, check: Result<(), String>) {
        self.faults.extend(check.err());
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Warnings of a valid object.
    ///
    /// # Errors
    /// The faults, one on the line or each on a line of its own.
    pub fn result(self) -> Result<Vec<String>, String> {
        match self.faults.as_slice() {
            [] => Ok(self.warnings),
            [one] => Err(one.clone()),
            many => Err(format!("{} errors occurred:\n\t* {}\n\n", many.len(), many.join("\n\t* "))),
        }
    }
}

/// Checks an AuthorizationPolicy with the annotations of its object.
pub fn review_authorization(
    spec: &AuthorizationPolicySpec,
    annotations: &BTreeMap<String, String>,
) -> Review {
    authorization::review(spec, annotations)
}

/// Checks a PeerAuthentication.
pub fn review_peer(spec: &PeerAuthenticationSpec) -> Review {
    let mut review = Review::default();
    let selects = spec.selector.as_ref().and_then(|s| s.match_labels.as_ref()).is_some_and(|l| !l.is_empty());
    if let Some(ports) = &spec.port_level_mtls {
        if !selects && !ports.is_empty() {
            review.fault("mesh/namespace peer authentication cannot have port level mTLS");
        }
        if ports.is_empty() {
            review.fault("port level mTLS, if defined, must have at least one element");
        }
        // Written otherwise than in plain digits, two keys could be one port.
        let plain =
            |text: &String| text.parse::<u16>().is_ok_and(|port| port > 0 && port.to_string() == *text);
        if !ports.keys().all(plain) {
            review.fault("port must be in range 1..65535");
        }
    }
    targets::selector(spec.selector.as_ref(), &mut review);
    review
}

/// Checks a RequestAuthentication.
pub fn review_request(spec: &RequestAuthenticationSpec) -> Review {
    request::review(spec)
}

/// Checks an AuthorizationPolicy.
///
/// # Errors
/// The faults, in the words of Istio.
pub fn authorization_policy(spec: &AuthorizationPolicySpec) -> Result<(), String> {
    review_authorization(spec, &BTreeMap::new()).result().map(drop)
}

/// Checks a PeerAuthentication.
///
/// # Errors
/// The faults, in the words of Istio.
pub fn peer_authentication(spec: &PeerAuthenticationSpec) -> Result<(), String> {
    review_peer(spec).result().map(drop)
}

/// Checks a RequestAuthentication.
///
/// # Errors
/// The faults, in the words of Istio.
pub fn request_authentication(spec: &RequestAuthenticationSpec) -> Result<(), String> {
    review_request(spec).result().map(drop)
}

/// Fields of an object beside its spec.
const AROUND: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];

/// Checks an object as admission sees it; none when its kind has no check beside its schema.
pub fn object(object: &Value) -> Option<Review> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    let (group, _) = object["apiVersion"].as_str()?.split_once('/')?;
    if group != "security.istio.io" {
        return None;
    }
    let (name, namespace) = (text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"]));
    let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
    let annotations = annotations.map(|(key, value)| (key.clone(), text(value))).collect();
    let judged = match kind.as_str() {
        "AuthorizationPolicy" => spec(object).map(|spec| {
            let mut review = review_authorization(&spec, &annotations);
            for fault in &mut review.faults {
                *fault = format!("invalid policy {name}.{namespace}: {fault}");
            }
            review
        }),
        "PeerAuthentication" => spec(object).map(|spec| review_peer(&spec)),
        "RequestAuthentication" => spec(object).map(|spec| review_request(&spec)),
        _ => return None,
    };
    let mut review = judged.unwrap_or_else(|fault| Review { faults: vec![fault], warnings: Vec::new() });
    let unknown = object.as_object().into_iter().flatten().find(|(key, _)| !AROUND.contains(&key.as_str()));
    if let Some((field, _)) = unknown {
        review.fault(format!("unknown field {field:?} on {kind} resource {namespace}/{name}"));
    }
    Some(review)
}

/// The spec of an object; an absent one is empty.
///
/// # Errors
/// The field that is not known or has another form, by its path.
pub fn spec<T: DeserializeOwned>(object: &Value) -> Result<T, String> {
    let spec = match &object["spec"] {
        Value::Null => Value::Object(serde_json::Map::new()),
        spec => spec.clone(),
    };
    serde_path_to_error::deserialize(spec).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { "spec".to_owned() } else { format!("spec.{path}") };
        format!("error decoding configuration: {place}: {}", error.into_inner())
    })
}

#[cfg(test)]
mod tests;
