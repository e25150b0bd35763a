// SPDX-License-Identifier: Apache-2.0
//! The APIs that ask: TokenReview, SelfSubjectReview and the access reviews behind `kubectl auth can-i`.

use serde_json::{Value, json};

use super::rbac::text;
use super::{Attributes, Auth, ISSUER, ResourceTarget, Target, User, Verdict};
use crate::status::Refusal;

/// Answers a review; `None` when the resource is no review.
pub(super) fn review(
    auth: &Auth,
    user: &User,
    (group, resource, namespace): (&str, &str, &str),
    body: &Value,
) -> Option<Result<Value, Refusal>> {
    let spec = &body["spec"];
    let status = match (group, resource) {
        ("authentication.k8s.io", "tokenreviews") => Ok(token_review(auth, spec)),
        ("authentication.k8s.io", "selfsubjectreviews") => Ok(json!({"userInfo": user.to_value()})),
        ("authorization.k8s.io", "selfsubjectaccessreviews") => access_review(auth, user, spec),
        ("authorization.k8s.io", "subjectaccessreviews") => {
            subject(spec).and_then(|subject| access_review(auth, &subject, spec))
        }
        ("authorization.k8s.io", "localsubjectaccessreviews") => {
            if text(spec, "/resourceAttributes/namespace") == namespace {
                subject(spec).and_then(|subject| access_review(auth, &subject, spec))
            } else {
                Err(Refusal::bad_request(
                    "spec.resourceAttributes.namespace must match the request's namespace",
                ))
            }
        }
        ("authorization.k8s.io", "selfsubjectrulesreviews") => {
            Ok(rules_review(auth, user, &text(spec, "/namespace")))
        }
        _ => return None,
    };
    Some(status.map(|status| {
        let mut answer = body.clone();
        answer["metadata"] = json!({"creationTimestamp": null});
        answer["status"] = status;
        answer
    }))
}

fn token_review(auth: &Auth, spec: &Value) -> Value {
    let given: Vec<&str> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let audiences = if given.is_empty() { vec![ISSUER] } else { given };
    match auth.tokens.verify(&*auth.objects, &text(spec, "/token"), &audiences, super::now()) {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
        }
        Err(reason) => json!({"authenticated": false, "user": {}, "error": reason}),
    }
}

fn subject(spec: &Value) -> Result<User, Refusal> {
    let strings = |value: &Value| {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let user = User {
        name: text(spec, "/user"),
        uid: text(spec, "/uid"),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), strings(values)))
            .collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Refusal::bad_request("spec: at least one of user or group must be specified"));
    }
    Ok(user)
}

fn access_review(auth: &Auth, user: &User, spec: &Value) -> Result<Value, Refusal> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let field = |name: &str| resource[name].as_str().unwrap_or_default();
    let attributes = match (resource.is_object(), path.is_object()) {
        (true, false) => Attributes {
            verb: field("verb"),
            target: Target::Resource(ResourceTarget {
                group: field("group"),
                resource: field("resource"),
                subresource: field("subresource"),
                namespace: field("namespace"),
                name: field("name"),
                field_selector: "",
            }),
        },
        (false, true) => Attributes {
            verb: path["verb"].as_str().unwrap_or_default(),
            target: Target::Path(path["path"].as_str().unwrap_or_default()),
        },
        _ => {
            return Err(Refusal::bad_request(
                "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    Ok(match auth.judge(user, &attributes) {
        Verdict::Allowed(by) => json!({"allowed": true, "reason": by}),
        Verdict::Denied(reason) if reason.is_empty() => json!({"allowed": false}),
        Verdict::Denied(reason) => json!({"allowed": false, "reason": reason}),
    })
}

fn rules_review(auth: &Auth, user: &User, namespace: &str) -> Value {
    let rbac = auth.rbac.get(&*auth.objects);
    let (mut resource, mut path) = (Vec::new(), Vec::new());
    if user.is_in("system:masters") {
        resource.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        path.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    for rule in rbac.rules_for(user, namespace) {
        if rule.non_resource_urls.is_empty() {
            resource.push(json!(rule));
        } else {
            path.push(json!(rule));
        }
    }
    // What a node may do depends on its Pods and has no form as rules.
    let incomplete = user.is_in("system:nodes");
    let mut status = json!({"resourceRules": resource, "nonResourceRules": path, "incomplete": incomplete});
    if incomplete {
        status["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    status
}
