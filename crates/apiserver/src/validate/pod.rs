// SPDX-License-Identifier: Apache-2.0
//! A Pod's specification, alone or in a template.

use std::collections::HashSet;

use serde_json::Value;

use super::container::{self, relative};
use super::{at_least_zero, duplicate, one_of};
use crate::status::Cause;

/// `claims`: volumes that are declared elsewhere, by their `name`.
pub(super) fn spec(spec: &Value, path: &str, claims: &[Value], faults: &mut Vec<Cause>) {
    const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
    if !POLICIES.iter().any(|known| spec["restartPolicy"] == *known) {
        let path = format!("{path}.restartPolicy");
        faults.push(Cause::unsupported(path, &spec["restartPolicy"], &POLICIES.map(str::to_owned)));
    }
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(&spec["dnsPolicy"], &format!("{path}.dnsPolicy"), &dns, faults);
    for field in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        at_least_zero(&spec[field], &format!("{path}.{field}"), faults);
    }
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    names(volumes, &format!("{path}.volumes"), faults);
    for (index, one) in volumes.iter().enumerate() {
        volume(one, &format!("{path}.volumes[{index}]"), faults);
    }
    for (index, one) in spec["tolerations"].as_array().into_iter().flatten().enumerate() {
        toleration(one, &format!("{path}.tolerations[{index}]"), faults);
    }
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        faults.push(Cause::required(format!("{path}.containers")));
    }
    let mounted: HashSet<&str> =
        volumes.iter().chain(claims).filter_map(|volume| volume["name"].as_str()).collect();
    for list in ["initContainers", "containers"] {
        let containers = spec[list].as_array().map(Vec::as_slice).unwrap_or_default();
        names(containers, &format!("{path}.{list}"), faults);
        for (index, one) in containers.iter().enumerate() {
            container::faults(one, &mounted, &format!("{path}.{list}[{index}]"), faults);
        }
    }
}

/// Every element has a name of its own that a host could have.
pub(super) fn names(list: &[Value], path: &str, faults: &mut Vec<Cause>) {
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

/// One source, and files below it.
fn volume(volume: &Value, path: &str, faults: &mut Vec<Cause>) {
    let sources =
        volume.as_object().into_iter().flat_map(|volume| volume.keys()).filter(|key| *key != "name");
    for other in sources.skip(1) {
        let message = "Forbidden: may not specify more than 1 volume type".to_owned();
        faults.push(Cause { field: format!("{path}.{other}"), reason: "FieldValueForbidden", message });
    }
    let projected = volume["projected"]["sources"].as_array().into_iter().flatten();
    for source in projected.chain([volume]) {
        for kind in ["configMap", "secret", "downwardAPI"] {
            for (index, item) in source[kind]["items"].as_array().into_iter().flatten().enumerate() {
                relative(&item["path"], &format!("{path}.{kind}.items[{index}].path"), faults);
            }
        }
        relative(&source["serviceAccountToken"]["path"], &format!("{path}.serviceAccountToken.path"), faults);
    }
}

fn toleration(one: &Value, path: &str, faults: &mut Vec<Cause>) {
    one_of(&one["operator"], &format!("{path}.operator"), &["Equal", "Exists"], faults);
    let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
    if one["effect"] != "" {
        one_of(&one["effect"], &format!("{path}.effect"), &effects, faults);
    }
    let is_set = |field: &str| one[field].as_str().is_some_and(|text| !text.is_empty());
    if !is_set("key") && one["operator"] != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        faults.push(Cause::invalid(format!("{path}.operator"), &one["operator"], why));
    }
    if one["operator"] == "Exists" && is_set("value") {
        let why = "value must be empty when `operator` is 'Exists'";
        faults.push(Cause::invalid(format!("{path}.value"), &one["value"], why));
    }
    if !one["tolerationSeconds"].is_null() && one["effect"] != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        faults.push(Cause::invalid(format!("{path}.effect"), &one["effect"], why));
    }
}
