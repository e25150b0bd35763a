// SPDX-License-Identifier: Apache-2.0
//! Roles that say what they are for, and bindings to what can be bound.

use serde_json::Value;

use super::one_of;
use crate::status::Cause;

/// `namespaced`: a Role, which has nothing to do with paths.
pub(super) fn role(object: &Value, namespaced: bool, faults: &mut Vec<Cause>) {
    for (index, rule) in object["rules"].as_array().into_iter().flatten().enumerate() {
        let path = format!("rules[{index}]");
        let is_empty = |field: &str| rule[field].as_array().is_none_or(Vec::is_empty);
        let required = |field: &str, why: &str| Cause {
            field: format!("{path}.{field}"),
            reason: "FieldValueRequired",
            message: format!("Required value: {why}"),
        };
        if is_empty("verbs") {
            faults.push(required("verbs", "verbs must contain at least one value"));
        }
        if !is_empty("nonResourceURLs") {
            let urls = &rule["nonResourceURLs"];
            let why = if namespaced {
                "namespaced rules cannot apply to non-resource URLs"
            } else if is_empty("apiGroups") && is_empty("resources") && is_empty("resourceNames") {
                continue;
            } else {
                "rules cannot apply to both regular resources and non-resource URLs"
            };
            faults.push(Cause::invalid(format!("{path}.nonResourceURLs"), urls, why));
            continue;
        }
        if is_empty("apiGroups") {
            faults.push(required("apiGroups", "resource rules must supply at least one api group"));
        }
        if is_empty("resources") {
            faults.push(required("resources", "resource rules must supply at least one resource"));
        }
    }
}

/// `namespaced`: a RoleBinding, which can bind a Role as well.
pub(super) fn binding(object: &Value, namespaced: bool, faults: &mut Vec<Cause>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let role = &object["roleRef"];
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of(&role["apiGroup"], "roleRef.apiGroup", &[GROUP], faults);
    if role["kind"].is_null() {
        faults.push(Cause::required("roleRef.kind"));
    }
    one_of(&role["kind"], "roleRef.kind", kinds, faults);
    if role["name"].as_str().is_none_or(str::is_empty) {
        faults.push(Cause::required("roleRef.name"));
    }
    for (index, subject) in object["subjects"].as_array().into_iter().flatten().enumerate() {
        let path = format!("subjects[{index}]");
        if subject["name"].as_str().is_none_or(str::is_empty) {
            faults.push(Cause::required(format!("{path}.name")));
        }
        one_of(&subject["kind"], &format!("{path}.kind"), &["ServiceAccount", "User", "Group"], faults);
        let account = subject["kind"] == "ServiceAccount";
        one_of(
            &subject["apiGroup"],
            &format!("{path}.apiGroup"),
            if account { &[""] } else { &[GROUP] },
            faults,
        );
        if account && subject["namespace"].as_str().is_none_or(str::is_empty) {
            faults.push(Cause::required(format!("{path}.namespace")));
        }
    }
}
