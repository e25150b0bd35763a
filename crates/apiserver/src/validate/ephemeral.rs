// SPDX-License-Identifier: Apache-2.0
//! Ephemeral containers: added to a Pod that runs, and neither changed nor taken away again.

use std::collections::HashSet;

use serde_json::Value;

use super::{container, duplicate, pod};
use crate::status::Cause;

const PATH: &str = "spec.ephemeralContainers";
/// Fields of other containers that a container without a promise to run does not have.
const NOT_ALLOWED: [&str; 8] = [
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "startupProbe",
];

/// What is wrong with the ephemeral containers of a Pod, its defaults being set, compared with those that it has.
pub(crate) fn added_containers(live: &Value, object: &Value) -> Vec<Cause> {
    let mut faults = Vec::new();
    let list = |pod: &Value| pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(live), list(object));
    let others = ["initContainers", "containers"].map(|l| object["spec"][l].as_array().cloned());
    let others: Vec<Value> = others.into_iter().flatten().flatten().collect();
    let taken: HashSet<&str> = others.iter().filter_map(|c| c["name"].as_str()).collect();
    let volumes = object["spec"]["volumes"].as_array().into_iter().flatten();
    let volumes: HashSet<&str> = volumes.filter_map(|volume| volume["name"].as_str()).collect();
    pod::names(&after, PATH, &mut faults);
    for (index, one) in after.iter().enumerate() {
        let path = format!("{PATH}[{index}]");
        if one["name"].as_str().is_some_and(|name| taken.contains(name)) {
            faults.push(duplicate(format!("{path}.name"), &one["name"]));
        }
        container::faults(one, &volumes, &path, &mut faults);
        let is_set = |value: &Value| !value.is_null() && *value != serde_json::json!({});
        for field in NOT_ALLOWED.iter().filter(|field| is_set(&one[**field])) {
            faults.push(forbidden(format!("{path}.{field}"), "cannot be set for an Ephemeral Container"));
        }
        for (number, mount) in one["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if mount[field].as_str().is_some_and(|text| !text.is_empty()) {
                    let path = format!("{path}.volumeMounts[{number}].{field}");
                    faults.push(forbidden(path, "cannot be set for an Ephemeral Container"));
                }
            }
        }
        let target = &one["targetContainerName"];
        if target.as_str().is_some_and(|name| !name.is_empty() && !taken.contains(name)) {
            let message = format!("Not found: {target}");
            let field = format!("{path}.targetContainerName");
            faults.push(Cause { field, reason: "FieldValueNotFound", message });
        }
    }
    for old in &before {
        let why = match after.iter().find(|new| new["name"] == old["name"]) {
            None => "removed",
            Some(new) if new != old => "changed",
            Some(_) => continue,
        };
        let why = format!("existing ephemeral containers {} may not be {why}", old["name"]);
        faults.push(forbidden(PATH.to_owned(), &why));
    }
    faults
}

fn forbidden(field: String, why: &str) -> Cause {
    Cause { field, reason: "FieldValueForbidden", message: format!("Forbidden: {why}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "web"}], "initContainers": [{"name": "init"}],
                        "volumes": [{"name": "data"}], "ephemeralContainers": ephemeral}})
    }

    #[test]
    fn containers_are_added_and_nothing_else() {
        let one = json!({"name": "d1", "image": "busybox", "resources": {}});
        let cases = [
            (json!([one]), ""),
            (json!([one, {"name": "d2", "image": "b", "targetContainerName": "web"}]), ""),
            (
                json!([one, {"name": "d2", "image": "b", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]),
                "",
            ),
            (json!([]), "existing ephemeral containers \"d1\" may not be removed"),
            (
                json!([{"name": "d1", "image": "other"}]),
                "existing ephemeral containers \"d1\" may not be changed",
            ),
            (json!([one, one]), "spec.ephemeralContainers[1].name Duplicate value: \"d1\""),
            (
                json!([one, {"name": "web", "image": "b"}]),
                "spec.ephemeralContainers[1].name Duplicate value: \"web\"",
            ),
            (json!([one, {"name": "init", "image": "b"}]), "Duplicate value: \"init\""),
            (json!([one, {"name": "D2", "image": "b"}]), "RFC 1123"),
            (json!([one, {"name": "d2"}]), "spec.ephemeralContainers[1].image Required"),
            (
                json!([one, {"name": "d2", "image": "b", "ports": [{"containerPort": 1}]}]),
                "[1].ports Forbidden: cannot be set",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "livenessProbe": {"exec": {"command": ["x"]}}}]),
                "livenessProbe Forbidden",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]),
                "lifecycle Forbidden",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "resources": {"limits": {"cpu": "1"}}}]),
                "resources Forbidden",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "restartPolicy": "Always"}]),
                "restartPolicy Forbidden",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "targetContainerName": "none"}]),
                "Not found: \"none\"",
            ),
            (json!([one, {"name": "d2", "image": "b", "targetContainerName": "d1"}]), "Not found: \"d1\""),
            (
                json!([one, {"name": "d2", "image": "b", "volumeMounts": [{"name": "data", "mountPath": "/d", "subPath": "x"}]}]),
                "subPath Forbidden",
            ),
            (
                json!([one, {"name": "d2", "image": "b", "volumeMounts": [{"name": "no", "mountPath": "/d"}]}]),
                "Not found: \"no\"",
            ),
        ];
        for (after, why) in cases {
            let found = added_containers(&pod(&json!([one])), &pod(&after));
            let text: Vec<String> = found.iter().map(|c| format!("{} {}", c.field, c.message)).collect();
            let text = text.join("; ");
            assert!(if why.is_empty() { text.is_empty() } else { text.contains(why) }, "{after}: {text}");
        }
    }
}
