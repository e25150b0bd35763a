// SPDX-License-Identifier: Apache-2.0
//! A Pod's specification, alone or in a template.

use std::collections::HashSet;

use serde_json::Value;

use super::{at_least_zero, duplicate, port};
use crate::status::Cause;

pub(super) fn spec(spec: &Value, path: &str, faults: &mut Vec<Cause>) {
    const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
    if !POLICIES.iter().any(|known| spec["restartPolicy"] == *known) {
        let path = format!("{path}.restartPolicy");
        faults.push(Cause::unsupported(path, &spec["restartPolicy"], &POLICIES.map(str::to_owned)));
    }
    let grace = &spec["terminationGracePeriodSeconds"];
    at_least_zero(grace, &format!("{path}.terminationGracePeriodSeconds"), faults);
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    names(volumes, &format!("{path}.volumes"), faults);
    let volumes: HashSet<&str> = volumes.iter().filter_map(|volume| volume["name"].as_str()).collect();
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        faults.push(Cause::required(format!("{path}.containers")));
    }
    for list in ["initContainers", "containers"] {
        let containers = spec[list].as_array().map(Vec::as_slice).unwrap_or_default();
        names(containers, &format!("{path}.{list}"), faults);
        for (index, one) in containers.iter().enumerate() {
            container(one, &volumes, &format!("{path}.{list}[{index}]"), faults);
        }
    }
}

/// Every element has a name of its own that a host could have.
fn names(list: &[Value], path: &str, faults: &mut Vec<Cause>) {
    let mut seen = HashSet::new();
    for (index, one) in list.iter().enumerate() {
        let (name, path) = (&one["name"], format!("{path}[{index}].name"));
        let text = name.as_str().unwrap_or_default();
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() {
            faults.push(Cause::required(path));
        } else if text.len() > 63 || !text.bytes().all(letter) || text.starts_with('-') || text.ends_with('-')
        {
            let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                       start and end with an alphanumeric character";
            faults.push(Cause::invalid(path, name, why));
        } else if !seen.insert(text) {
            faults.push(duplicate(path, name));
        }
    }
}

fn container(container: &Value, volumes: &HashSet<&str>, path: &str, faults: &mut Vec<Cause>) {
    if container["image"].as_str().is_none_or(str::is_empty) {
        faults.push(Cause::required(format!("{path}.image")));
    }
    for (index, one) in container["ports"].as_array().into_iter().flatten().enumerate() {
        port(&one["containerPort"], format!("{path}.ports[{index}].containerPort"), faults);
    }
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}.volumeMounts[{index}]");
        if mount["name"].as_str().is_none_or(|name| !volumes.contains(name)) {
            let message = format!("Not found: {}", mount["name"]);
            faults.push(Cause { field: format!("{at}.name"), reason: "FieldValueNotFound", message });
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let one = &container[probe];
        if !one.is_object() {
            continue;
        }
        let handlers = ["httpGet", "tcpSocket", "exec", "grpc"];
        if handlers.iter().all(|handler| one[*handler].is_null()) {
            let message = "Required value: must specify a handler type".to_owned();
            faults.push(Cause { field: format!("{path}.{probe}"), reason: "FieldValueRequired", message });
        }
    }
}
