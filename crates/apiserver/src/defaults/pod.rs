// SPDX-License-Identifier: Apache-2.0
//! Defaults of a Pod's specification, alone or in a template.

use meltemi_resources::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{fill, sub};

pub(super) fn spec(spec: &mut Map<String, Value>) {
    fill(spec, "restartPolicy", json!("Always"));
    fill(spec, "terminationGracePeriodSeconds", json!(30));
    fill(spec, "dnsPolicy", json!("ClusterFirst"));
    fill(spec, "securityContext", json!({}));
    fill(spec, "schedulerName", json!("default-scheduler"));
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        fill(spec, "serviceAccount", account);
    }
    let host_network = spec.get("hostNetwork").is_some_and(|h| h == true);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                self::container(container, host_network);
            }
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(volume) = volume.as_object_mut() {
            self::volume(volume);
        }
    }
}

fn containers(spec: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|list| spec.get(list)?.as_array()).flatten()
}

/// What a container has a limit of and requests nothing of, it requests as much of. Of Pods only: a template stays as it
/// was written.
pub(crate) fn requests(spec: &mut Map<String, Value>) {
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(limits) = container["resources"]["limits"].as_object().cloned() else { continue };
            let Some(resources) = container["resources"].as_object_mut() else { continue };
            let Some(requests) = sub(resources, "requests") else { continue };
            for (name, limit) in limits {
                fill(requests, &name, limit);
            }
        }
    }
}

/// The quality of service of a Pod: `Guaranteed`, `Burstable` or `BestEffort`.
pub(super) fn quality(spec: &Map<String, Value>) -> &'static str {
    let amount = |container: &Value, kind: &str, name: &str| {
        Quantity::of(&container["resources"][kind][name]).filter(|amount| *amount != Quantity::ZERO)
    };
    let kinds = [("requests", "cpu"), ("requests", "memory"), ("limits", "cpu"), ("limits", "memory")];
    let is_guaranteed = |container: &Value| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = amount(container, "limits", name);
            limit.is_some() && limit == amount(container, "requests", name)
        })
    };
    let asks = |container: &Value| kinds.iter().any(|(kind, name)| amount(container, kind, name).is_some());
    if !containers(spec).any(asks) {
        "BestEffort"
    } else if containers(spec).all(is_guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    fill(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    fill(container, "terminationMessagePath", json!("/dev/termination-log"));
    fill(container, "terminationMessagePolicy", json!("File"));
    fill(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        fill(port, "protocol", json!("TCP"));
        if host_network {
            let number = port.get("containerPort").cloned().unwrap_or_default();
            fill(port, "hostPort", number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        fill(probe, "timeoutSeconds", json!(1));
        fill(probe, "periodSeconds", json!(10));
        fill(probe, "successThreshold", json!(1));
        fill(probe, "failureThreshold", json!(3));
        if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            fill(get, "path", json!("/"));
            fill(get, "scheme", json!("HTTP"));
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) =
            variable.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")?.as_object_mut())
        {
            fill(field, "apiVersion", json!("v1"));
        }
    }
}

fn volume(volume: &mut Map<String, Value>) {
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            fill(source, "defaultMode", json!(420));
        }
    }
    if volume.len() == 1 {
        sub(volume, "emptyDir");
    }
    let sources = volume.get_mut("projected").and_then(|p| p.get_mut("sources")?.as_array_mut());
    for source in sources.into_iter().flatten() {
        if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
            fill(token, "expirationSeconds", json!(3600));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_requested_and_decide_the_quality_of_service() {
        let both = |cpu: &str| json!({"cpu": cpu, "memory": "1Gi"});
        for (resources, requested, expected) in [
            (json!({}), Value::Null, "BestEffort"),
            (json!({"limits": both("1")}), json!("1"), "Guaranteed"),
            (json!({"limits": both("1"), "requests": {"cpu": "1000m"}}), json!("1000m"), "Guaranteed"),
            (json!({"limits": both("1"), "requests": {"cpu": "500m"}}), json!("500m"), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), json!("1"), "Burstable"),
            (json!({"requests": {"memory": "1"}}), Value::Null, "Burstable"),
            (json!({"limits": {"x.io/gpu": 1}}), Value::Null, "BestEffort"),
        ] {
            let mut spec = json!({"containers": [{"name": "c", "resources": resources}]});
            let map = spec.as_object_mut().unwrap();
            requests(map);
            assert_eq!(quality(map), expected, "{resources}");
            assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], requested, "{resources}");
        }
    }
}
