// SPDX-License-Identifier: Apache-2.0
//! What `meltemi waypoint` prints, as functions of values.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use gateway_api::gateways::Gateway;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::cmd::columns::{lay_out, row};
use crate::cmd::output::TableOrJson;

/// GatewayClass of a waypoint.
pub(super) const CLASS: &str = "istio-waypoint";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const GAP: usize = 5;

/// The Gateway of a waypoint.
pub(super) fn gateway(
    name: &str,
    namespace: Option<&str>,
    traffic: Option<&str>,
    revision: Option<&str>,
) -> anyhow::Result<Value> {
    if name == "none" {
        bail!("invalid name provided for waypoint, 'none' is a reserved value");
    }
    let mut labels = serde_json::Map::new();
    if let Some(revision) = revision.filter(|r| !r.is_empty()) {
        labels.insert(super::REVISION.to_owned(), json!(revision));
    }
    if let Some(traffic) = traffic.filter(|t| !t.is_empty()) {
        if !matches!(traffic, "all" | "none" | "service" | "workload") {
            bail!("invalid traffic type: {traffic}. Valid options are: [all none service workload]");
        }
        labels.insert(WAYPOINT_FOR.to_owned(), json!(traffic));
    }
    let mut metadata = serde_json::Map::new();
    if !labels.is_empty() {
        metadata.insert("labels".to_owned(), Value::Object(labels));
    }
    metadata.insert("name".to_owned(), json!(name));
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    Ok(json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata,
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    }))
}

/// The Gateway as YAML.
pub(super) fn yaml(gateway: &Value) -> anyhow::Result<String> {
    Ok(serde_yaml_ng::to_string(gateway)?)
}

pub(super) fn already_enrolled(namespace: &str) -> String {
    format!(
        "⚠️ Warning: namespace ({namespace}) already has an enrolled Waypoint. Consider adding the `--overwrite` \
         flag to your apply command.\n"
    )
}

pub(super) fn not_ambient(namespace: &str) -> String {
    format!(
        "⚠️ Warning: namespace is not enrolled in ambient. Consider running\t\
         `kubectl label namespace {namespace} istio.io/dataplane-mode=ambient`\n"
    )
}

/// The Programmed condition.
pub(super) fn programmed(gateway: &Gateway) -> Option<&Condition> {
    gateway.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "Programmed")
}

/// The rows of `waypoint list`.
fn list_rows(gateways: &[Gateway]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"])];
    for gateway in gateways {
        let label = |key: &str, absent: &str| {
            gateway.labels().get(key).filter(|v| !v.is_empty()).map_or(absent, String::as_str).to_owned()
        };
        rows.push(vec![
            gateway.namespace().unwrap_or_default(),
            gateway.name_any(),
            label(super::REVISION, "default"),
            label(WAYPOINT_FOR, "none"),
            programmed(gateway).map_or("False", |c| c.status.as_str()).to_owned(),
        ]);
    }
    rows
}

/// What `waypoint list` prints.
pub(super) fn list(gateways: &[Gateway], all: bool, output: TableOrJson) -> String {
    printed(list_rows(gateways), all, output)
}

/// What `waypoint status` prints.
pub(super) fn status(gateways: &[Gateway], all: bool, output: TableOrJson) -> String {
    printed(status_rows(gateways), all, output)
}

/// Rows below their heading, as a table or as JSON objects with the headings as keys.
fn printed(rows: Vec<Vec<String>>, all: bool, output: TableOrJson) -> String {
    match rows.split_first() {
        Some((heading, rows)) if output == TableOrJson::Json => {
            let keys: Vec<String> = heading.iter().map(|h| key(h)).collect();
            let objects: Vec<BTreeMap<&String, &String>> =
                rows.iter().map(|row| keys.iter().zip(row).collect()).collect();
            format!("{:#}\n", json!(objects))
        }
        Some((_, [])) => "No waypoints found.\n".to_owned(),
        _ => table(rows, all),
    }
}

/// `TRAFFIC TYPE` as `trafficType`.
fn key(heading: &str) -> String {
    let mut words = heading.split(' ').map(str::to_lowercase);
    let first = words.next().unwrap_or_default();
    words.fold(first, |key, word| key + &word[..1].to_uppercase() + &word[1..])
}

/// The rows of `waypoint status`.
fn status_rows(gateways: &[Gateway]) -> Vec<Vec<String>> {
    let mut rows = vec![row(["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"])];
    for gateway in gateways {
        let (status, reason, message) = programmed(gateway)
            .map_or(("Unknown", "Pending", "Waiting for controller"), |c| (&c.status, &c.reason, &c.message));
        rows.push(vec![
            gateway.namespace().unwrap_or_default(),
            gateway.name_any(),
            status.to_owned(),
            "Programmed".to_owned(),
            reason.to_owned(),
            message.to_owned(),
        ]);
    }
    rows
}

fn table(mut rows: Vec<Vec<String>>, all: bool) -> String {
    if !all {
        for row in &mut rows {
            row.remove(0);
        }
    }
    lay_out(&rows, GAP)
}

/// `90s`, `2m`, `1m30s`: as istioctl reads durations.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration such as 90s or 2m, got {text:?}");
    let mut total = 0f64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number * factor;
        rest = &rest[unit..];
    }
    Ok(Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waypoint(namespace: &str, name: &str, labels: &Value, programmed: &str) -> Gateway {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": { "gatewayClassName": CLASS, "listeners": [] },
            "status": { "conditions": [{
                "type": "Programmed", "status": programmed, "reason": "Programmed",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn list_prints_what_istioctl_prints() {
        let none = json!({});
        let gateways = [
            waypoint("bookinfo", "bookinfo-rev", &json!({ "istio.io/rev": "rev1" }), "True"),
            waypoint("bookinfo", "bookinfo-traffic-type", &json!({ "istio.io/waypoint-for": "all" }), "True"),
            waypoint("default", "waypoint", &none, "False"),
        ];
        assert_eq!(
            list(&gateways, true, TableOrJson::Table),
            "NAMESPACE     NAME                      REVISION     TRAFFIC TYPE     PROGRAMMED\n\
             bookinfo      bookinfo-rev              rev1         none             True\n\
             bookinfo      bookinfo-traffic-type     default      all              True\n\
             default       waypoint                  default      none             False\n"
        );
        assert_eq!(
            list(&gateways[2..], false, TableOrJson::Table),
            "NAME         REVISION     TRAFFIC TYPE     PROGRAMMED\n\
             waypoint     default      none             False\n"
        );
        assert_eq!(list(&[], false, TableOrJson::Table), "No waypoints found.\n");
        assert_eq!(list(&[], false, TableOrJson::Json), "[]\n");
        let read: Value = serde_json::from_str(&list(&gateways[2..], false, TableOrJson::Json)).unwrap();
        assert_eq!(
            (&read[0]["name"], &read[0]["programmed"]),
            (&gateways[2].name_any().into(), &"False".into()),
            "{read}"
        );
    }

    #[test]
    fn generate_labels_only_what_was_asked_for() {
        let plain = yaml(&gateway("waypoint", None, None, None).unwrap()).unwrap();
        assert_eq!(
            plain,
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\nspec:\n  \
             gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n"
        );
        let labelled = yaml(&gateway("w", Some("a"), Some("all"), None).unwrap()).unwrap();
        assert!(labelled.contains("  labels:\n    istio.io/waypoint-for: all\n  name: w\n  namespace: a\n"));
    }

    #[test]
    fn what_is_refused() {
        let refuse = |name, traffic| gateway(name, None, traffic, None).unwrap_err().to_string();
        assert_eq!(refuse("none", None), "invalid name provided for waypoint, 'none' is a reserved value");
        assert_eq!(
            refuse("w", Some("x")),
            "invalid traffic type: x. Valid options are: [all none service workload]"
        );
    }

    #[test]
    fn durations_are_read_as_istioctl_reads_them() {
        for (text, seconds) in
            [("90s", 90.0), ("2m", 120.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5h", 5400.0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "90", "s", "1d", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
