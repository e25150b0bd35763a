// SPDX-License-Identifier: Apache-2.0
//! Containers of a Pod: image, ports, environment, resources, mounts, probes.

use std::collections::HashSet;

use meltemi_resources::quantity::Quantity;
use serde_json::Value;

use super::{duplicate, one_of, port};
use crate::status::Cause;

pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn faults(container: &Value, volumes: &HashSet<&str>, path: &str, faults: &mut Vec<Cause>) {
    if container["image"].as_str().is_none_or(str::is_empty) {
        faults.push(Cause::required(format!("{path}.image")));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&container["imagePullPolicy"], &format!("{path}.imagePullPolicy"), &policies, faults);
    ports(container, path, faults);
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        environment(variable, &format!("{path}.env[{index}]"), faults);
    }
    resources(&container["resources"], &format!("{path}.resources"), faults);
    mounts(container, volumes, path, faults);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        handler(
            &container[probe],
            &format!("{path}.{probe}"),
            &["exec", "grpc", "httpGet", "tcpSocket"],
            faults,
        );
    }
    for hook in ["postStart", "preStop"] {
        let handlers = ["exec", "httpGet", "sleep", "tcpSocket"];
        handler(&container["lifecycle"][hook], &format!("{path}.lifecycle.{hook}"), &handlers, faults);
    }
}

fn forbidden(field: String, why: &str) -> Cause {
    Cause { field, reason: "FieldValueForbidden", message: format!("Forbidden: {why}") }
}

fn ports(container: &Value, path: &str, faults: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (index, one) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
        port(&one["containerPort"], format!("{path}.containerPort"), faults);
        one_of(&one["protocol"], &format!("{path}.protocol"), &PROTOCOLS, faults);
        if one["hostPort"].as_i64().is_some_and(|number| number != 0) {
            port(&one["hostPort"], format!("{path}.hostPort"), faults);
        }
        let Some(name) = one["name"].as_str().filter(|name| !name.is_empty()) else { continue };
        if !is_port_name(name) {
            let why = "must contain at most 15 lower case alphanumeric characters or '-', at least one of them a \
                       letter, and must not begin, end or double '-'";
            faults.push(Cause::invalid(format!("{path}.name"), &one["name"], why));
        } else if !names.insert(name) {
            faults.push(duplicate(format!("{path}.name"), &one["name"]));
        }
    }
}

/// An IANA service name.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

fn environment(variable: &Value, path: &str, faults: &mut Vec<Cause>) {
    match variable["name"].as_str() {
        None | Some("") => faults.push(Cause::required(format!("{path}.name"))),
        Some(name) if name.contains('=') => {
            let why = "a valid environment variable name must not contain '='";
            faults.push(Cause::invalid(format!("{path}.name"), &variable["name"], why));
        }
        Some(_) => {}
    }
    let Some(source) = variable["valueFrom"].as_object() else { return };
    if variable["value"].as_str().is_some_and(|value| !value.is_empty()) {
        let why = "may not be specified when `value` is not empty";
        faults.push(Cause::invalid(format!("{path}.valueFrom"), &"".into(), why));
    }
    if source.len() != 1 {
        let why = if source.is_empty() {
            "must specify one of its sources"
        } else {
            "may not have more than one field specified at a time"
        };
        faults.push(Cause::invalid(format!("{path}.valueFrom"), &"".into(), why));
    }
}

fn resources(resources: &Value, path: &str, faults: &mut Vec<Cause>) {
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            match Quantity::of(value) {
                Some(quantity) if !quantity.is_negative() => {}
                Some(_) => {
                    let why = "must be greater than or equal to 0";
                    faults.push(Cause::invalid(format!("{path}.{list}[{name}]"), value, why));
                }
                None => {
                    let why = "quantities must match the regular expression \
                               '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                    faults.push(Cause::invalid(format!("{path}.{list}[{name}]"), value, why));
                }
            }
        }
    }
    for (name, value) in resources["requests"].as_object().into_iter().flatten() {
        let (request, limit) = (Quantity::of(value), Quantity::of(&resources["limits"][name]));
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            let why = format!("must be less than or equal to {name} limit of {}", resources["limits"][name]);
            faults.push(Cause::invalid(format!("{path}.requests"), value, why));
        }
    }
}

fn mounts(container: &Value, volumes: &HashSet<&str>, path: &str, faults: &mut Vec<Cause>) {
    let mut targets = HashSet::new();
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount["name"].as_str().is_none_or(|name| !volumes.contains(name)) {
            let message = format!("Not found: {}", mount["name"]);
            faults.push(Cause { field: format!("{path}.name"), reason: "FieldValueNotFound", message });
        }
        match mount["mountPath"].as_str().filter(|target| !target.is_empty()) {
            None => faults.push(Cause::required(format!("{path}.mountPath"))),
            Some(target) if !targets.insert(target) => {
                let why = "must be unique";
                faults.push(Cause::invalid(format!("{path}.mountPath"), &mount["mountPath"], why));
            }
            Some(_) => {}
        }
        for field in ["subPath", "subPathExpr"] {
            relative(&mount[field], &format!("{path}.{field}"), faults);
        }
    }
}

/// A path below a volume.
pub(super) fn relative(value: &Value, path: &str, faults: &mut Vec<Cause>) {
    let Some(text) = value.as_str() else { return };
    if text.starts_with('/') {
        faults.push(Cause::invalid(path, value, "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        faults.push(Cause::invalid(path, value, "must not contain '..'"));
    }
}

fn handler(one: &Value, path: &str, handlers: &[&str], faults: &mut Vec<Cause>) {
    if !one.is_object() {
        return;
    }
    let mut given = handlers.iter().filter(|handler| !one[**handler].is_null());
    if given.next().is_none() {
        let message = "Required value: must specify a handler type".to_owned();
        faults.push(Cause { field: path.to_owned(), reason: "FieldValueRequired", message });
    }
    faults.extend(
        given.map(|other| forbidden(format!("{path}.{other}"), "may not specify more than 1 handler type")),
    );
}
