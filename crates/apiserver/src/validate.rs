// SPDX-License-Identifier: Apache-2.0
//! What the schemas of the built-in kinds do not say: names that must differ, ports that must exist, labels. Pure.

pub(crate) mod definition;
mod pod;
mod sizes;

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::registry::ResourceInfo;
use crate::status::Cause;

/// What is wrong with an object, its defaults being set.
pub fn faults(info: &ResourceInfo, object: &Value) -> Vec<Cause> {
    let mut faults = Vec::new();
    labels(&object["metadata"]["labels"], "metadata.labels", &mut faults);
    sizes::faults(info, object, &mut faults);
    let spec = &object["spec"];
    match (info.group.as_str(), info.kind.as_str()) {
        _ if info.custom.is_some() => {}
        ("", "Pod") => pod::spec(spec, "spec", &mut faults),
        ("", "Service") => service(spec, &mut faults),
        ("", "Secret") => secret(object, &mut faults),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("", "ReplicationController") => {
            at_least_zero(&spec["replicas"], "spec.replicas", &mut faults);
            template(&spec["template"], "spec.template", &["Always"], &mut faults);
        }
        ("batch", "Job") => {
            template(&spec["template"], "spec.template", &["OnFailure", "Never"], &mut faults)
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition::faults(object, &mut faults),
        _ => {}
    }
    faults
}

fn template(template: &Value, path: &str, policies: &[&str], faults: &mut Vec<Cause>) {
    labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"), faults);
    let policy = &template["spec"]["restartPolicy"];
    if !policies.iter().any(|allowed| policy == allowed) {
        let allowed: Vec<String> = policies.iter().map(|p| (*p).to_owned()).collect();
        faults.push(Cause::unsupported(format!("{path}.spec.restartPolicy"), policy, &allowed));
    }
    pod::spec(&template["spec"], &format!("{path}.spec"), faults);
}

fn at_least_zero(value: &Value, path: &str, faults: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|number| number < 0) {
        faults.push(Cause::invalid(path, value, "must be greater than or equal to 0"));
    }
}

fn duplicate(path: String, value: &Value) -> Cause {
    Cause { field: path, reason: "FieldValueDuplicate", message: format!("Duplicate value: {value}") }
}

fn port(value: &Value, path: String, faults: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
        faults.push(Cause::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

fn labels(labels: &Value, path: &str, faults: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        let name = key.rsplit('/').next().unwrap_or_default();
        if !is_label(name) || name.is_empty() || key.split('/').count() > 2 {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                       an alphanumeric character";
            faults.push(Cause::invalid(path, &key.as_str().into(), why));
        }
        if !value.as_str().is_some_and(is_label) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
            faults.push(Cause::invalid(path, value, why));
        }
    }
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

fn service(spec: &Value, faults: &mut Vec<Cause>) {
    const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !TYPES.iter().any(|known| spec["type"] == *known) {
        faults.push(Cause::unsupported("spec.type", &spec["type"], &TYPES.map(str::to_owned)));
    }
    if spec["type"] == "ExternalName" {
        if spec["externalName"].as_str().is_none_or(str::is_empty) {
            faults.push(Cause::required("spec.externalName"));
        }
        return;
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && spec["clusterIP"] != "None" {
        faults.push(Cause::required("spec.ports"));
    }
    let mut names = HashSet::new();
    for (index, one) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        port(&one["port"], format!("{path}.port"), faults);
        if one["targetPort"].is_number() {
            port(&one["targetPort"], format!("{path}.targetPort"), faults);
        }
        let name = &one["name"];
        if ports.len() > 1 && name.as_str().is_none_or(str::is_empty) {
            faults.push(Cause::required(format!("{path}.name")));
        } else if name.as_str().is_some_and(|name| !names.insert(name)) {
            faults.push(duplicate(format!("{path}.name"), name));
        }
    }
}

fn secret(object: &Value, faults: &mut Vec<Cause>) {
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        if value.as_str().is_none_or(|text| STANDARD.decode(text).is_err()) {
            faults.push(Cause::invalid(format!("data[{key}]"), &"<secret>".into(), "illegal base64 data"));
        }
    }
}

#[cfg(test)]
mod tests;
