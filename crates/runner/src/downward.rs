// SPDX-License-Identifier: Apache-2.0
//! The downward API: fields and resources of a Pod as text.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

use crate::content::FieldError;

/// A field by its path.
pub(crate) fn field(pod: &Pod, path: &str, node: Ipv4Addr) -> Result<String, FieldError> {
    let unsupported = || FieldError::UnsupportedField { path: path.to_owned() };
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unsupported()),
        };
        return Ok(text(map.as_ref().and_then(|m| m.get(key))));
    }
    let status = pod.status.as_ref();
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => node.to_string(),
        "status.podIP" | "status.podIPs" => text(status.and_then(|s| s.pod_ip.as_ref())),
        _ => return Err(unsupported()),
    })
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// A resource of a container, divided and rounded up; without a limit, what the machine has.
pub(crate) fn resource(
    pod: &Pod,
    container: &str,
    name: &str,
    divisor: Option<&str>,
) -> Result<String, FieldError> {
    let spec = pod.spec.as_ref();
    let found = spec
        .into_iter()
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
        .find(|c| c.name == container);
    let found = found.ok_or_else(|| FieldError::NoContainer { name: container.to_owned() })?;
    let resources = found.resources.clone().unwrap_or_default();
    let unsupported = || FieldError::UnsupportedResource { name: name.to_owned() };
    let (kind, unit) = name.split_once('.').ok_or_else(unsupported)?;
    let map = match kind {
        "limits" => resources.limits.unwrap_or_default(),
        "requests" => resources.requests.unwrap_or_default(),
        _ => return Err(unsupported()),
    };
    let value = match map.get(unit) {
        Some(quantity) => quantity_of(&quantity.0)?,
        None if kind == "requests" => 0.0,
        None => machine(unit),
    };
    let divisor = match divisor.filter(|d| !d.is_empty() && *d != "0") {
        Some(text) => quantity_of(text)?,
        None => 1.0,
    };
    Ok(format!("{:.0}", (value / divisor).ceil()))
}

fn machine(unit: &str) -> f64 {
    match unit {
        "cpu" => std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        _ => memory() as f64,
    }
}

/// The machine's memory in bytes.
pub(crate) fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")).and_then(|l| l.split_whitespace().next());
    kib.and_then(|k| k.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A quantity such as `100m`, `2`, `64Mi`.
pub(crate) fn quantity_of(text: &str) -> Result<f64, FieldError> {
    let malformed = || FieldError::MalformedQuantity { quantity: text.to_owned() };
    meltemi_resources::quantity::parse(text).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "1", "b": "x"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}}}]},
            "status": {"podIP": "10.244.1.2"}
        }))
        .unwrap();
        let node = Ipv4Addr::new(172, 30, 0, 11);
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"1\"\nb=\"x\""),
            ("spec.serviceAccountName", "default"),
            ("status.hostIP", "172.30.0.11"),
            ("status.podIP", "10.244.1.2"),
        ] {
            assert_eq!(field(&pod, path, node).unwrap(), expected, "{path}");
        }
        assert!(field(&pod, "spec.tolerations", node).is_err());
        assert_eq!(resource(&pod, "c", "limits.memory", Some("1Mi")).unwrap(), "64");
        assert_eq!(resource(&pod, "c", "limits.cpu", None).unwrap(), "2");
        assert_eq!(resource(&pod, "c", "requests.cpu", None).unwrap(), "0");
        assert!(resource(&pod, "d", "limits.cpu", None).is_err());
    }
}
