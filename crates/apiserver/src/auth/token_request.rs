// SPDX-License-Identifier: Apache-2.0
//! The TokenRequest API: `POST serviceaccounts/<name>/token`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::rbac::text;
use super::token::{Bound, Claims, Reference, user_name};
use super::{Auth, ISSUER, User};
use crate::status::{Cause, Refusal};

const MIN_SECONDS: u64 = 600;
const MAX_SECONDS: u64 = 1 << 32;
const DEFAULT_SECONDS: u64 = 3600;
/// Longest life of a token, in seconds: a year.
const MAX_LIFETIME: u64 = 365 * 24 * 3600;
/// Longest life of a token that a node asks for, in seconds: a day. It renews the tokens of its Pods long before.
const MAX_NODE_LIFETIME: u64 = 24 * 3600;

/// Signs a token for the ServiceAccount.
pub(super) fn create(
    auth: &Auth,
    user: &User,
    (namespace, name): (&str, &str),
    body: &Value,
    now: u64,
) -> Result<Value, Refusal> {
    let objects = &*auth.objects;
    let account = objects
        .get("", "serviceaccounts", namespace, name)
        .ok_or_else(|| Refusal::not_found("serviceaccounts", name))?;
    let spec = &body["spec"];
    // Who asks for longer gets the longest; the answer says until when.
    let longest = if user.is_in("system:nodes") { MAX_NODE_LIFETIME } else { MAX_LIFETIME };
    let seconds = seconds(name, &spec["expirationSeconds"])?.min(longest);
    let audiences = audiences(spec)?;
    let serviceaccount = Reference { name: name.to_owned(), uid: text(&account, "/metadata/uid") };
    let mut bound =
        Bound { namespace: namespace.to_owned(), node: None, pod: None, secret: None, serviceaccount };
    if spec["boundObjectRef"].is_object() {
        bind(auth, &mut bound, name, &spec["boundObjectRef"])?;
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        iss: ISSUER.to_owned(),
        jti: Uuid::new_v4().to_string(),
        bound,
        nbf: now,
        sub: user_name(namespace, name),
    };
    let token = auth.tokens.sign(&claims).map_err(|e| Refusal::internal(format!("signing a token: {e}")))?;
    let spec = json!({"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec["boundObjectRef"]});
    Ok(json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": timestamp(now)},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": timestamp(claims.exp)},
    }))
}

fn seconds(name: &str, given: &Value) -> Result<u64, Refusal> {
    let wrong = |why: &str| {
        let cause = Cause::invalid("spec.expirationSeconds", given, why);
        Err(Refusal::invalid("TokenRequest", "authentication.k8s.io", name, &[cause]))
    };
    if given.is_null() {
        return Ok(DEFAULT_SECONDS);
    }
    match given.as_u64() {
        Some(seconds) if seconds > MAX_SECONDS => {
            wrong("may not specify a duration larger than 2^32 seconds")
        }
        Some(seconds) if seconds >= MIN_SECONDS => Ok(seconds),
        _ => wrong("may not specify a duration less than 10 minutes"),
    }
}

fn audiences(spec: &Value) -> Result<Vec<String>, Refusal> {
    let given = match &spec["audiences"] {
        Value::Null => Vec::new(),
        Value::Array(list) => list
            .iter()
            .map(|a| a.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| Refusal::bad_request("spec.audiences: not a list of strings"))?,
        _ => return Err(Refusal::bad_request("spec.audiences: not a list of strings")),
    };
    Ok(if given.is_empty() { vec![ISSUER.to_owned()] } else { given })
}

fn bind(auth: &Auth, bound: &mut Bound, account: &str, reference: &Value) -> Result<(), Refusal> {
    let objects = &*auth.objects;
    let (kind, name, uid) = (text(reference, "/kind"), text(reference, "/name"), text(reference, "/uid"));
    let (resource, namespace) = match kind.as_str() {
        "Pod" => ("pods", bound.namespace.as_str()),
        "Secret" => ("secrets", bound.namespace.as_str()),
        "Node" => ("nodes", ""),
        other => {
            return Err(Refusal::bad_request(format!(
                "cannot bind token to object of type /v1, Kind={other}: only Pod, Secret and Node are supported"
            )));
        }
    };
    let object =
        objects.get("", resource, namespace, &name).ok_or_else(|| Refusal::not_found(resource, &name))?;
    let actual = text(&object, "/metadata/uid");
    if !uid.is_empty() && uid != actual {
        return Err(Refusal::conflict(
            resource,
            &name,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            ),
        ));
    }
    let reference = Reference { name: name.clone(), uid: actual };
    match kind.as_str() {
        "Pod" => {
            if text(&object, "/spec/serviceAccountName") != account {
                return Err(Refusal::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            let node = text(&object, "/spec/nodeName");
            if let Some(live) = objects.get("", "nodes", "", &node) {
                bound.node = Some(Reference { name: node, uid: text(&live, "/metadata/uid") });
            }
            bound.pod = Some(reference);
        }
        "Secret" => bound.secret = Some(reference),
        _ => bound.node = Some(reference),
    }
    Ok(())
}

fn timestamp(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}
