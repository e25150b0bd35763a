// SPDX-License-Identifier: Apache-2.0
//! Defaults that clients, controllers and kubectl rely on: what Kubernetes fills in when an object is written.

mod pod;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::registry::ResourceInfo;

pub(crate) use self::pod::requests as requests_of_pod;

/// Sets a field that is missing or null.
fn fill(map: &mut Map<String, Value>, key: &str, value: Value) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value);
    }
}

/// A field as a map; created when missing.
fn sub<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    fill(map, key, json!({}));
    map.get_mut(key)?.as_object_mut()
}

/// Fills in the defaults of a built-in kind.
pub fn fill_in(info: &ResourceInfo, object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    match (info.group.as_str(), info.kind.as_str()) {
        ("", "Pod") => {
            let mut quality = "BestEffort";
            if let Some(spec) = sub(map, "spec") {
                pod::spec(spec);
                pod::requests(spec);
                quality = pod::quality(spec);
            }
            if let Some(status) = sub(map, "status") {
                fill(status, "phase", json!("Pending"));
                fill(status, "qosClass", json!(quality));
            }
        }
        ("", "Namespace") => {
            // Of one that ends, the finalizer is removed and must not come back.
            let ends = map.get("metadata").is_some_and(|m| m["deletionTimestamp"].is_string());
            if !ends && let Some(spec) = sub(map, "spec") {
                fill(spec, "finalizers", json!(["kubernetes"]));
            }
            if let Some(status) = sub(map, "status") {
                fill(status, "phase", json!("Active"));
            }
            name_label(map);
        }
        ("", "Service") => service(map),
        ("", "Secret") => secret(map),
        ("apps", "Deployment") => deployment(map),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => {
            if let Some(spec) = sub(map, "spec") {
                fill(spec, "replicas", json!(1));
                template(spec);
            }
        }
        ("apps", "DaemonSet") => daemon_set(map),
        ("apps", "StatefulSet") => stateful_set(map),
        ("batch", "Job") => job(map),
        ("batch", "CronJob") => cron_job(map),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(map),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => policy(map),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            if let Some(resources) = map.get_mut("spec").and_then(|spec| spec.get_mut("matchResources")) {
                match_resources(resources);
            }
        }
        ("admissionregistration.k8s.io", _) => webhooks(map),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(map),
        ("policy", "PodDisruptionBudget") | ("autoscaling", "HorizontalPodAutoscaler") => {
            sub(map, "status");
        }
        _ => {}
    }
}

/// The label by which selectors find a namespace by its name; nobody can take it away.
fn name_label(map: &mut Map<String, Value>) {
    let Some(metadata) = sub(map, "metadata") else { return };
    let Some(name) = metadata.get("name").cloned() else { return };
    if let Some(labels) = sub(metadata, "labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name);
    }
}

/// `stringData` is for writing only: it becomes data.
fn secret(map: &mut Map<String, Value>) {
    fill(map, "type", json!("Opaque"));
    let Some(Value::Object(texts)) = map.remove("stringData") else { return };
    if let Some(data) = sub(map, "data") {
        for (key, text) in texts {
            data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
        }
    }
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(template) = sub(spec, "template") {
        fill(template, "metadata", json!({"creationTimestamp": null}));
        if let Some(Value::Object(metadata)) = template.get_mut("metadata") {
            metadata.retain(|_, value| !value.is_null());
        }
        if let Some(spec) = sub(template, "spec") {
            pod::spec(spec);
        }
    }
}

fn deployment(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "replicas", json!(1));
    fill(spec, "revisionHistoryLimit", json!(10));
    fill(spec, "progressDeadlineSeconds", json!(600));
    if let Some(strategy) = sub(spec, "strategy") {
        fill(strategy, "type", json!("RollingUpdate"));
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = sub(strategy, "rollingUpdate")
        {
            fill(rolling, "maxSurge", json!("25%"));
            fill(rolling, "maxUnavailable", json!("25%"));
        }
    }
    template(spec);
}

fn daemon_set(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "revisionHistoryLimit", json!(10));
    if let Some(strategy) = sub(spec, "updateStrategy") {
        fill(strategy, "type", json!("RollingUpdate"));
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = sub(strategy, "rollingUpdate")
        {
            fill(rolling, "maxSurge", json!(0));
            fill(rolling, "maxUnavailable", json!(1));
        }
    }
    template(spec);
}

fn stateful_set(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "replicas", json!(1));
    fill(spec, "podManagementPolicy", json!("OrderedReady"));
    fill(spec, "revisionHistoryLimit", json!(10));
    if let Some(strategy) = sub(spec, "updateStrategy") {
        fill(strategy, "type", json!("RollingUpdate"));
    }
    template(spec);
}

fn job(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    // A work queue says how many at a time and not how often.
    if spec.get("parallelism").is_none() {
        fill(spec, "completions", json!(1));
    }
    fill(spec, "parallelism", json!(1));
    fill(spec, "backoffLimit", json!(6));
    fill(spec, "suspend", json!(false));
    fill(spec, "completionMode", json!("NonIndexed"));
    template(spec);
}

fn cron_job(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "concurrencyPolicy", json!("Allow"));
    fill(spec, "suspend", json!(false));
    fill(spec, "successfulJobsHistoryLimit", json!(3));
    fill(spec, "failedJobsHistoryLimit", json!(1));
}

fn service(map: &mut Map<String, Value>) {
    if let Some(status) = sub(map, "status") {
        fill(status, "loadBalancer", json!({}));
    }
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "type", json!("ClusterIP"));
    fill(spec, "sessionAffinity", json!("None"));
    fill(spec, "internalTrafficPolicy", json!("Cluster"));
    if spec["type"] == "ExternalName" {
        return;
    }
    fill(spec, "ipFamilies", json!(["IPv4"]));
    fill(spec, "ipFamilyPolicy", json!("SingleStack"));
    if spec["type"] == "LoadBalancer" || spec["type"] == "NodePort" {
        fill(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if spec["type"] == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        fill(port, "protocol", json!("TCP"));
        let target = port.get("port").cloned().unwrap_or_default();
        // Clients written in Go send zero for what they leave out.
        if port.get("targetPort").is_some_and(|t| *t == 0 || t == "") {
            port.remove("targetPort");
        }
        fill(port, "targetPort", target);
    }
}

fn binding(map: &mut Map<String, Value>) {
    if let Some(reference) = sub(map, "roleRef") {
        fill(reference, "apiGroup", json!("rbac.authorization.k8s.io"));
    }
    for subject in map.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if subject["kind"] != "ServiceAccount"
            && let Some(subject) = subject.as_object_mut()
        {
            fill(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
        }
    }
}

fn policy(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "failurePolicy", json!("Fail"));
    if let Some(constraints) = spec.get_mut("matchConstraints") {
        match_resources(constraints);
    }
}

fn match_resources(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    fill(resources, "matchPolicy", json!("Equivalent"));
    fill(resources, "namespaceSelector", json!({}));
    fill(resources, "objectSelector", json!({}));
    for rules in ["resourceRules", "excludeResourceRules"] {
        for rule in resources.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(rule) = rule.as_object_mut() {
                fill(rule, "scope", json!("*"));
            }
        }
    }
}

fn webhooks(map: &mut Map<String, Value>) {
    for webhook in map.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(webhook) = webhook.as_object_mut() else { continue };
        fill(webhook, "failurePolicy", json!("Fail"));
        fill(webhook, "matchPolicy", json!("Equivalent"));
        fill(webhook, "timeoutSeconds", json!(10));
        fill(webhook, "namespaceSelector", json!({}));
        fill(webhook, "objectSelector", json!({}));
        for rule in webhook.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(rule) = rule.as_object_mut() {
                fill(rule, "scope", json!("*"));
            }
        }
        if let Some(service) =
            webhook.get_mut("clientConfig").and_then(|c| c.get_mut("service")?.as_object_mut())
        {
            fill(service, "port", json!(443));
        }
    }
}

/// Names, and at once the conditions and stored versions that an established definition has.
fn definition(map: &mut Map<String, Value>) {
    let Some(spec) = sub(map, "spec") else { return };
    fill(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = sub(spec, "names") {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        fill(names, "singular", json!(kind.to_lowercase()));
        fill(names, "listKind", json!(format!("{kind}List")));
    }
    let names = spec.get("names").cloned().unwrap_or_default();
    let stored: Vec<Value> = spec
        .get("versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    if let Some(status) = sub(map, "status") {
        status.insert("acceptedNames".into(), names);
        fill(status, "storedVersions", json!(stored));
    }
}
