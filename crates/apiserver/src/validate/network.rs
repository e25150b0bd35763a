// SPDX-License-Identifier: Apache-2.0
//! Services and EndpointSlices.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::container::PROTOCOLS;
use super::{duplicate, one_of, port};
use crate::status::Cause;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub(super) fn service(spec: &Value, faults: &mut Vec<Cause>) {
    if !TYPES.iter().any(|known| spec["type"] == *known) {
        faults.push(Cause::unsupported("spec.type", &spec["type"], &TYPES.map(str::to_owned)));
    }
    one_of(&spec["sessionAffinity"], "spec.sessionAffinity", &["ClientIP", "None"], faults);
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        one_of(&spec[field], &format!("spec.{field}"), &["Cluster", "Local"], faults);
    }
    families(spec, faults);
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
        service_port(one, &mut names, ports.len() > 1, &format!("spec.ports[{index}]"), faults);
    }
}

fn service_port<'a>(
    one: &'a Value,
    names: &mut HashSet<&'a str>,
    named: bool,
    path: &str,
    faults: &mut Vec<Cause>,
) {
    port(&one["port"], format!("{path}.port"), faults);
    if one["targetPort"].is_number() {
        port(&one["targetPort"], format!("{path}.targetPort"), faults);
    }
    one_of(&one["protocol"], &format!("{path}.protocol"), &PROTOCOLS, faults);
    let node_port = one["nodePort"].as_i64().unwrap_or(0);
    if node_port != 0 && !(30000..=32767).contains(&node_port) {
        let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
        faults.push(Cause::invalid(format!("{path}.nodePort"), &one["nodePort"], why));
    }
    let name = &one["name"];
    let text = name.as_str().unwrap_or_default();
    let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if text.is_empty() {
        if named {
            faults.push(Cause::required(format!("{path}.name")));
        }
    } else if text.len() > 63 || !letters || text.starts_with('-') || text.ends_with('-') {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                   start and end with an alphanumeric character";
        faults.push(Cause::invalid(format!("{path}.name"), name, why));
    } else if !names.insert(text) {
        faults.push(duplicate(format!("{path}.name"), name));
    }
}

/// Addresses are IPv4 here.
fn families(spec: &Value, faults: &mut Vec<Cause>) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of(&spec["ipFamilyPolicy"], "spec.ipFamilyPolicy", &policies, faults);
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        faults.push(Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why));
    }
    for (index, family) in spec["ipFamilies"].as_array().into_iter().flatten().enumerate() {
        if family != "IPv4" {
            let why = "not configured on this cluster";
            faults.push(Cause::invalid(format!("spec.ipFamilies[{index}]"), family, why));
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, faults: &mut Vec<Cause>) {
    let kind = object["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        faults.push(Cause::required("addressType"));
    }
    one_of(&object["addressType"], "addressType", &["FQDN", "IPv4", "IPv6"], faults);
    for (index, endpoint) in object["endpoints"].as_array().into_iter().flatten().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            faults.push(Cause::required(path.clone()));
        }
        for (index, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let fits = match kind {
                "IPv4" => text.parse::<Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<Ipv6Addr>().is_ok(),
                _ => !text.is_empty(),
            };
            if !fits {
                let why = format!("must be a valid {kind} address");
                faults.push(Cause::invalid(format!("{path}[{index}]"), address, why));
            }
        }
    }
    for (index, one) in object["ports"].as_array().into_iter().flatten().enumerate() {
        one_of(&one["protocol"], &format!("ports[{index}].protocol"), &PROTOCOLS, faults);
    }
}
