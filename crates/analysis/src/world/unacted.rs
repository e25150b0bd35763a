// SPDX-License-Identifier: Apache-2.0
//! Fields, labels and annotations that an object may have and that nothing of this mesh acts on.

use meltemi_translate::facts::Labels;
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::labels;
use serde_json::Value;

use super::read::texts;

/// Annotation with settings of Istio's proxies.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Annotations of Pods that only other implementations of the mesh read, by prefix.
const POD_ANNOTATIONS: &[&str] =
    &["traffic.sidecar.istio.io/", "ambient.istio.io/reroute-virtual-interfaces"];
/// Labels that choose a second waypoint, by prefix.
const CANARY: &str = "istio.io/use-waypoint-canary";
/// Label that names the network of an object.
const NETWORK: &str = "topology.istio.io/network";

/// One sentence for each field of an object that is stored and not acted on.
pub(super) fn list(kind: &str, object: &Value) -> Vec<String> {
    let labels = texts(&object["metadata"]["labels"]);
    let annotations = texts(&object["metadata"]["annotations"]);
    let mut out = Vec::new();
    match kind {
        "Gateway" => gateway(&object["spec"], &labels, &annotations, &mut out),
        "GatewayClass" => {
            let class = object["metadata"]["name"].as_str().and_then(classes::of);
            if class.is_some() && !object["spec"]["parametersRef"].is_null() {
                out.push("spec.parametersRef has no effect".to_owned());
            }
        }
        "Namespace" => {
            injection(&labels, &mut out);
            common(&labels, &mut out);
        }
        "Service" => {
            common(&labels, &mut out);
            if object["spec"]["loadBalancerSourceRanges"].as_array().is_some_and(|ranges| !ranges.is_empty())
            {
                out.push(
                    "spec.loadBalancerSourceRanges is not enforced: every client may connect".to_owned(),
                );
            }
        }
        "Pod" => pod(&labels, &annotations, &mut out),
        "CronJob" => template(&object["spec"]["jobTemplate"]["spec"]["template"], &mut out),
        _ => template(&object["spec"]["template"], &mut out),
    }
    out
}

fn template(template: &Value, out: &mut Vec<String>) {
    let metadata = &template["metadata"];
    pod(&texts(&metadata["labels"]), &texts(&metadata["annotations"]), out);
}

fn gateway(spec: &Value, labels: &Labels, annotations: &Labels, out: &mut Vec<String>) {
    let Some(class) = spec["gatewayClassName"].as_str().and_then(classes::of) else { return };
    if !spec["infrastructure"]["parametersRef"].is_null() {
        out.push("spec.infrastructure.parametersRef has no effect".to_owned());
    }
    if spec["addresses"].as_array().is_some_and(|all| !all.is_empty()) && class != Class::Remote {
        out.push("spec.addresses is set, so nothing is deployed for the Gateway".to_owned());
    }
    if let Some(revision) = labels.get(labels::REVISION).filter(|r| !r.is_empty() && *r != "default") {
        out.push(format!("{}={revision}: nothing is deployed for another revision", labels::REVISION));
    }
    let known = ["service", "workload", "all", "none"];
    if let Some(word) =
        labels.get(labels::WAYPOINT_FOR).filter(|w| class == Class::Waypoint && !known.contains(&w.as_str()))
    {
        out.push(format!("{}={word} is not a known value, and is taken as service", labels::WAYPOINT_FOR));
    }
    for key in [labels::WAYPOINT_INBOUND_BINDING, PROXY_CONFIG] {
        if annotations.contains_key(key) {
            out.push(format!("the annotation {key} has no effect"));
        }
    }
}

fn common(labels: &Labels, out: &mut Vec<String>) {
    for key in labels.keys().filter(|key| key.starts_with(CANARY) || *key == NETWORK) {
        out.push(format!("the label {key} has no effect"));
    }
}

/// Labels that ask for sidecars.
fn injection(labels: &Labels, out: &mut Vec<String>) {
    let revision = labels.get(labels::REVISION).is_some_and(|r| !r.is_empty());
    if labels.get("istio-injection").is_some_and(|v| v == "enabled") || revision {
        let ambient = labels.get(labels::DATAPLANE_MODE).is_some_and(|v| v == "ambient");
        let outside = if ambient { "" } else { ", so that its workloads are outside of the mesh" };
        out.push(format!("no sidecar is injected{outside}: the mesh takes istio.io/dataplane-mode=ambient"));
    }
}

fn pod(labels: &Labels, annotations: &Labels, out: &mut Vec<String>) {
    common(labels, out);
    if labels.get("sidecar.istio.io/inject").is_some_and(|v| v == "true") {
        out.push("sidecar.istio.io/inject=true: no sidecar is injected".to_owned());
    }
    let unread = |key: &&String| *key == PROXY_CONFIG || POD_ANNOTATIONS.iter().any(|p| key.starts_with(p));
    out.extend(annotations.keys().filter(unread).map(|key| format!("the annotation {key} has no effect")));
}
