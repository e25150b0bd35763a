// SPDX-License-Identifier: Apache-2.0
//! Rules of single kinds: namespaces that end, tokens of Pods, immutable fields, generations.

use serde_json::{Value, json};

use super::service;
use crate::call::Call;
use crate::registry::ResourceInfo;
use crate::status::{Cause, Refusal};
use crate::validate::definition;

/// A node registers itself with its status; of everything else the status belongs to its controllers.
pub(super) fn keeps_status_on_create(info: &ResourceInfo) -> bool {
    info.custom.is_none() && info.kind == "Node"
}

/// Kinds whose specification somebody observes.
pub(super) fn has_generation(info: &ResourceInfo) -> bool {
    let groups = [
        "apps",
        "batch",
        "networking.k8s.io",
        "policy",
        "discovery.k8s.io",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
    ];
    info.custom.is_some()
        || groups.contains(&info.group.as_str())
        || info.group.is_empty() && matches!(info.kind.as_str(), "Pod" | "ReplicationController")
}

pub(super) fn on_create(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    namespace_is_open(call, object)?;
    match (call.info.group.as_str(), call.info.kind.as_str()) {
        ("", "Service") => service::addresses(call, object, None),
        ("", "Pod") => {
            if !object["spec"]["ephemeralContainers"].is_null() {
                let message = "Forbidden: cannot be set on create".to_owned();
                let field = "spec.ephemeralContainers".to_owned();
                return Err(fault(call, object, Cause { field, reason: "FieldValueForbidden", message }));
            }
            pod_classes(call, object)?;
            pod_account(call, object)
        }
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => selector_fits(call, object),
        ("batch", "Job") => {
            job_selector(object);
            Ok(())
        }
        ("apiextensions.k8s.io", _) => {
            establish(call, object);
            Ok(())
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            observe_policy(object);
            Ok(())
        }
        _ => Ok(()),
    }
}

pub(super) fn on_update(call: &Call, live: &Value, object: &mut Value) -> Result<(), Refusal> {
    let main = call.subresource().is_empty();
    keep_finalizers(call, live, object)?;
    if main {
        match (call.info.group.as_str(), call.info.kind.as_str()) {
            ("", "Service") => service::addresses(call, object, Some(live))?,
            // They are changed through the subresource `finalize` only.
            ("", "Namespace") => match live["spec"].get("finalizers") {
                Some(finalizers) => object["spec"]["finalizers"] = finalizers.clone(),
                None => drop(object["spec"].as_object_mut().map(|spec| spec.remove("finalizers"))),
            },
            ("", "ConfigMap" | "Secret") => keep_immutable(call, live, object)?,
            ("", "Pod") => pod_is_immutable(call, live, object)?,
            ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => {
                immutable(call, live, object, &["spec", "selector"])?;
                selector_fits(call, object)?;
            }
            ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
                immutable(call, live, object, &["roleRef"])?;
            }
            ("apiextensions.k8s.io", _) => {
                if let Some(cause) = definition::changes(live, object).into_iter().next() {
                    return Err(fault(call, object, cause));
                }
                establish(call, object);
            }
            _ => {}
        }
    }
    let without = |value: &Value| {
        let mut value = value.clone();
        value.as_object_mut().map(|v| ["metadata", "status"].map(|key| v.remove(key)));
        value
    };
    if main && has_generation(&call.info) && without(live) != without(object) {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or(1);
        object["metadata"]["generation"] = (generation + 1).into();
    }
    if main && call.info.kind == "ValidatingAdmissionPolicy" {
        observe_policy(object);
    }
    Ok(())
}

/// A policy is in force as soon as it is stored, and its expressions have been read by then.
fn observe_policy(object: &mut Value) {
    object["status"]["observedGeneration"] = object["metadata"]["generation"].clone();
    object["status"]["typeChecking"] = json!({});
}

/// A write to a Pod's ephemeral containers changes nothing else.
pub(super) fn only_ephemeral_containers(live: &Value, object: &mut Value) {
    let containers = object["spec"].get("ephemeralContainers").cloned();
    let managed = object["metadata"].get("managedFields").cloned();
    *object = live.clone();
    match containers {
        Some(containers) => object["spec"]["ephemeralContainers"] = containers,
        None => drop(object["spec"].as_object_mut().map(|spec| spec.remove("ephemeralContainers"))),
    }
    if let Some(managed) = managed {
        object["metadata"]["managedFields"] = managed;
    }
}

/// A write to the status changes nothing else (of built-in kinds also labels and annotations, as in Kubernetes).
pub(super) fn only_status(info: &ResourceInfo, live: &Value, object: &mut Value) {
    let status = object.get("status").cloned();
    let managed = object["metadata"].get("managedFields").cloned();
    let metadata = object["metadata"].clone();
    *object = live.clone();
    match status {
        Some(status) => object["status"] = status,
        None => drop(object.as_object_mut().map(|o| o.remove("status"))),
    }
    if let Some(managed) = managed {
        object["metadata"]["managedFields"] = managed;
    }
    if info.custom.is_none() {
        for key in ["annotations", "labels"] {
            match metadata.get(key) {
                Some(value) => object["metadata"][key] = value.clone(),
                // The last one was taken away: empty maps are not kept.
                None => drop(object["metadata"].as_object_mut().map(|m| m.remove(key))),
            }
        }
    }
}

pub(super) fn after_write(call: &Call, object: &Value) {
    if call.info.kind == "CustomResourceDefinition" {
        call.api.registry.add_definition(object);
        crate::bootstrap::sync_api_services(&call.api);
    }
    if call.info.kind == "ClusterRole" {
        call.api.aggregate_roles();
    }
}

fn fault(call: &Call, object: &Value, cause: Cause) -> Refusal {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Refusal::invalid(&call.info.kind, &call.info.group, name, &[cause])
}

fn namespace_is_open(call: &Call, object: &Value) -> Result<(), Refusal> {
    if !call.info.namespaced {
        return Ok(());
    }
    let namespace = call.namespace();
    let Some(found) = call.api.get("", "namespaces", "", namespace) else {
        return Err(Refusal::not_found("namespaces", namespace));
    };
    if found["metadata"]["deletionTimestamp"].is_string() && call.info.kind != "Event" {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        return Err(Refusal::forbidden(format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            call.info.qualified()
        )));
    }
    Ok(())
}

/// What is being deleted gets no new finalizers: it would never go.
fn keep_finalizers(call: &Call, live: &Value, object: &Value) -> Result<(), Refusal> {
    if !live["metadata"]["deletionTimestamp"].is_string() {
        return Ok(());
    }
    let of = |value: &Value| value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let before = of(live);
    let new: Vec<Value> = of(object).into_iter().filter(|finalizer| !before.contains(finalizer)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let why =
        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers";
    let message = format!("{why} {}", Value::Array(new));
    Err(fault(
        call,
        object,
        Cause { field: "metadata.finalizers".into(), reason: "FieldValueForbidden", message },
    ))
}

/// A ConfigMap or Secret that says so keeps its data, and keeps saying so.
fn keep_immutable(call: &Call, live: &Value, object: &Value) -> Result<(), Refusal> {
    if live["immutable"] != true {
        return Ok(());
    }
    for field in ["immutable", "data", "binaryData"] {
        if live[field] != object[field] {
            let message = "Forbidden: field is immutable when `immutable` is set".to_owned();
            let cause = Cause { field: field.into(), reason: "FieldValueForbidden", message };
            return Err(fault(call, object, cause));
        }
    }
    Ok(())
}

fn immutable(call: &Call, live: &Value, object: &Value, path: &[&str]) -> Result<(), Refusal> {
    let at = |value: &Value| path.iter().fold(value.clone(), |value, key| value[*key].clone());
    if at(live) == at(object) {
        return Ok(());
    }
    Err(fault(call, object, Cause::invalid(path.join("."), &at(object), "field is immutable")))
}

fn selector_fits(call: &Call, object: &Value) -> Result<(), Refusal> {
    let selector = &object["spec"]["selector"];
    if !selector.is_object() {
        return Err(fault(call, object, Cause::required("spec.selector")));
    }
    let labels = crate::selector::Labels::from_object(selector);
    let template = &object["spec"]["template"];
    if labels.is_empty() || !labels.matches(template) {
        let found = &template["metadata"]["labels"];
        let why = "`selector` does not match template `labels`";
        return Err(fault(call, object, Cause::invalid("spec.template.metadata.labels", found, why)));
    }
    Ok(())
}

fn job_selector(object: &mut Value) {
    let uid = object["metadata"]["uid"].clone();
    let name = object["metadata"]["name"].clone();
    if object["spec"]["selector"].is_null() {
        object["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
        let labels = &mut object["spec"]["template"]["metadata"]["labels"];
        if !labels.is_object() {
            *labels = json!({});
        }
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("job-name", &name),
        ] {
            labels[key] = value.clone();
        }
    }
}

/// Priority classes that every cluster has, with their values.
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// A Pod names priority and runtime classes that exist; its priority is that of its class.
fn pod_classes(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let refuse = |why: String| Err(Refusal::forbidden(format!("pods \"{name}\" is forbidden: {why}")));
    let spec = &mut object["spec"];
    if let Some(class) = spec["priorityClassName"].as_str().filter(|class| !class.is_empty()) {
        let system = SYSTEM_PRIORITIES.iter().find(|(known, _)| *known == class).map(|(_, value)| *value);
        let stored = || call.api.get("scheduling.k8s.io", "priorityclasses", "", class)?["value"].as_i64();
        match system.or_else(stored) {
            Some(priority) => spec["priority"] = priority.into(),
            None => return refuse(format!("no PriorityClass with name {class} was found")),
        }
    }
    match spec["runtimeClassName"].as_str().filter(|class| !class.is_empty()) {
        Some(class) => refuse(format!("pod rejected: RuntimeClass \"{class}\" not found")),
        None => Ok(()),
    }
}

/// A Pod runs as a ServiceAccount that exists, and gets its token unless it or the account declines.
fn pod_account(call: &Call, object: &mut Value) -> Result<(), Refusal> {
    let spec = &mut object["spec"];
    let name = spec["serviceAccountName"].as_str().filter(|n| !n.is_empty()).unwrap_or("default").to_owned();
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    let Some(account) = call.api.get("", "serviceaccounts", call.namespace(), &name) else {
        let pod = object["metadata"]["name"].as_str().unwrap_or_default();
        return Err(Refusal::forbidden(format!(
            "pods \"{pod}\" is forbidden: error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            call.namespace()
        )));
    };
    let declined = spec["automountServiceAccountToken"] == false
        || (spec["automountServiceAccountToken"].is_null()
            && account["automountServiceAccountToken"] == false);
    if declined {
        return Ok(());
    }
    const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let volume = "kube-api-access";
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().all(|mount| mount["mountPath"] != MOUNT) {
                let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT});
                container["volumeMounts"] = mounts.into_iter().chain([mount]).collect();
            }
        }
    }
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    if volumes.iter().all(|v| v["name"] != volume) {
        let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}});
        spec["volumes"] = volumes.into_iter().chain([projected]).collect();
    }
    Ok(())
}

fn pod_is_immutable(call: &Call, live: &Value, object: &Value) -> Result<(), Refusal> {
    let frozen = |value: &Value| {
        let mut spec = value["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            // A Pod of before this default was made lacks it.
            crate::defaults::requests_of_pod(spec);
            for key in
                ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"]
            {
                spec.remove(key);
            }
            for list in ["containers", "initContainers"] {
                for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    container.as_object_mut().map(|c| ["image", "imagePullPolicy"].map(|key| c.remove(key)));
                }
            }
        }
        spec
    };
    if frozen(live) == frozen(object) {
        return Ok(());
    }
    let message = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                   `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                   existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                   previously negative)";
    Err(fault(
        call,
        object,
        Cause { field: "spec".into(), reason: "FieldValueForbidden", message: message.into() },
    ))
}

/// A definition is served as soon as it is stored; its conditions say so.
fn establish(call: &Call, object: &mut Value) {
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": call.api.now()});
    if object["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
        object["status"]["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
    let storage = definition::storage_version(object).cloned().unwrap_or_default();
    let mut stored = object["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    if storage.is_string() && !stored.contains(&storage) {
        stored.push(storage);
        object["status"]["storedVersions"] = stored.into();
    }
}
