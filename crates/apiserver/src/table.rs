// SPDX-License-Identifier: Apache-2.0
//! `meta.k8s.io/v1 Table`: the columns that kubectl prints.

mod cells;
mod custom;
mod fields;
mod pod;
mod value;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::options::IncludeObject;
use crate::registry::ResourceInfo;

/// A column: name, type (`string`, `integer`, `date`), shown only with `-o wide`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    name: String,
    kind: &'static str,
    wide: bool,
}

fn column(name: &str, kind: &'static str) -> Column {
    Column { name: name.into(), kind, wide: false }
}

fn wide(name: &str) -> Column {
    Column { name: name.into(), kind: "string", wide: true }
}

/// Renders objects as a table, at the clock's time now.
pub fn render(
    info: &ResourceInfo,
    items: &[Arc<Value>],
    include: IncludeObject,
    revision: Option<&str>,
) -> Value {
    render_at(info, items, include, revision, jiff::Timestamp::now())
}

fn render_at(
    info: &ResourceInfo,
    items: &[Arc<Value>],
    include: IncludeObject,
    revision: Option<&str>,
    now: jiff::Timestamp,
) -> Value {
    let columns = match &info.custom {
        Some(custom) => custom::columns(&custom.columns),
        None => cells::columns(&info.group, &info.kind),
    };
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            json!({"name": c.name, "type": c.kind, "format": format, "description": "", "priority": i32::from(c.wide)})
        })
        .collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let cells = match &info.custom {
                Some(custom) => custom::cells(&custom.columns, item, now),
                None => cells::cells(&info.group, &info.kind, item, now),
            };
            match include {
                IncludeObject::Metadata => {
                    let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]});
                    json!({"cells": cells, "object": object})
                }
                IncludeObject::Object => json!({"cells": cells, "object": **item}),
                IncludeObject::None => json!({"cells": cells}),
            }
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.unwrap_or_default()},
        "columnDefinitions": definitions, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn row(group: &str, version: &str, plural: &str, object: Value) -> Vec<String> {
        let info = Registry::new().find(group, version, plural).unwrap();
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let table = render_at(&info, &[Arc::new(object)], IncludeObject::None, None, now);
        assert_eq!(
            table["columnDefinitions"].as_array().unwrap().len(),
            table["rows"][0]["cells"].as_array().unwrap().len()
        );
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect()
    }

    #[test]
    fn pods_as_kubectl_shows_them() {
        let pod = |status: Value, deleted: bool| {
            let mut pod = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "node-1", "containers": [{"name": "c"}]}, "status": status});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            pod
        };
        let waiting = json!({"phase": "Pending", "containerStatuses": [{"ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull"}}}]});
        let running = json!({"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"ready": true, "restartCount": 2,
            "state": {"running": {}}}]});
        let cases = [
            (pod(waiting, false), ["a", "0/1", "ErrImagePull", "0", "10m"]),
            (pod(running.clone(), false), ["a", "1/1", "Running", "2", "10m"]),
            (pod(running, true), ["a", "1/1", "Terminating", "2", "10m"]),
            (pod(json!({"phase": "Pending"}), false), ["a", "0/1", "Pending", "0", "10m"]),
        ];
        for (object, expected) in cases {
            assert_eq!(row("", "v1", "pods", object)[..5], expected);
        }
    }

    #[test]
    fn kinds_that_are_seldom_looked_at_show_what_kubernetes_shows() {
        let metadata = json!({"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let one = |fields: Value| {
            let mut object = json!({"metadata": metadata});
            object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            object
        };
        let ingress = json!({"spec": {"ingressClassName": "c", "tls": [{}], "rules": [{"host": "y.z"}, {"host": "x.z"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}});
        let claim = json!({"spec": {"volumeName": "v", "storageClassName": "s"}, "status": {"phase": "Bound",
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}});
        let volume = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "n", "name": "c"}}, "status": {"phase": "Bound"}});
        let quota = json!({"spec": {}, "status": {"hard": {"limits.cpu": "2", "pods": "5", "cpu": "1"},
            "used": {"pods": "3", "limits.cpu": "1"}}});
        let revision = json!({"revision": 3, "metadata": {"name": "a", "ownerReferences":
            [{"kind": "DaemonSet", "apiVersion": "apps/v1", "name": "d", "controller": true}]}});
        let leaving = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        let cases: [(&str, &str, Value, &[&str]); 13] = [
            ("networking.k8s.io", "ingresses", ingress, &["a", "c", "x.z,y.z", "10.0.0.1", "80, 443", "10m"]),
            ("networking.k8s.io", "ingresses", json!({}), &["a", "<none>", "*", "", "80", "10m"]),
            (
                "networking.k8s.io",
                "networkpolicies",
                json!({"spec": {"podSelector": {}}}),
                &["a", "<none>", "10m"],
            ),
            ("", "persistentvolumeclaims", claim, &["a", "Bound", "v", "1Gi", "RWO,ROX", "s", "10m"]),
            ("", "persistentvolumeclaims", leaving, &["a", "Terminating", "v", "", "", "", "10m"]),
            ("", "persistentvolumes", volume, &["a", "1Gi", "RWO", "Retain", "Bound", "n/c", "", "", "10m"]),
            ("", "resourcequotas", quota, &["a", "cpu: 0/1, pods: 3/5", "limits.cpu: 1/2", "10m"]),
            ("", "replicationcontrollers", json!({"spec": {"replicas": 2}}), &["a", "2", "0", "0", "10m"]),
            ("apps", "controllerrevisions", revision, &["a", "daemonset.apps/d", "3", "<unknown>"]),
            (
                "storage.k8s.io",
                "storageclasses",
                json!({"provisioner": "p"}),
                &["a", "p", "Delete", "Immediate", "false", "10m"],
            ),
            ("scheduling.k8s.io", "priorityclasses", json!({"value": 7}), &["a", "7", "false", "10m"]),
            (
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies",
                json!({"spec": {"validations": [{}]}}),
                &["a", "1", "<unset>", "10m"],
            ),
            (
                "admissionregistration.k8s.io",
                "validatingadmissionpolicybindings",
                json!({"spec": {"policyName": "p",
                "paramRef": {"name": "x"}}}),
                &["a", "p", "*/x", "10m"],
            ),
        ];
        for (group, plural, fields, expected) in cases {
            assert_eq!(row(group, "v1", plural, one(fields))[..expected.len()], *expected, "{plural}");
        }
    }

    #[test]
    fn rows_carry_what_the_client_asks_for() {
        let info = Registry::new().find("", "v1", "events").unwrap();
        let event = Arc::new(json!({"metadata": {"name": "a"}, "lastTimestamp": "2026-01-01T00:00:00Z"}));
        let object =
            |include| render(&info, std::slice::from_ref(&event), include, None)["rows"][0]["object"].clone();
        assert_eq!(object(IncludeObject::Object), *event);
        assert_eq!(object(IncludeObject::Metadata)["kind"], "PartialObjectMetadata");
        assert_eq!(object(IncludeObject::None), Value::Null);
    }

    #[test]
    fn ages() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (10_860, "3h1m"),
            (30_000, "8h"),
            (172_800, "2d"),
            (900_000, "10d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(value::human(seconds), expected);
        }
    }
}
