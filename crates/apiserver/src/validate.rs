// SPDX-License-Identifier: Apache-2.0
//! What the schemas of the built-in kinds do not say: names that must differ, ports that must exist, labels. Pure.

mod admission;
mod container;
mod data;
pub(crate) mod definition;
mod ephemeral;
mod metadata;
mod network;
mod pod;
mod rbac;
mod sizes;
mod workload;

use serde_json::Value;

use crate::registry::ResourceInfo;
use crate::status::Cause;

pub(crate) use ephemeral::added_containers;
pub(crate) use metadata::{is_label, is_qualified_name};

/// What is wrong with an object, its defaults being set.
pub fn faults(info: &ResourceInfo, object: &Value) -> Vec<Cause> {
    let mut faults = Vec::new();
    metadata::faults(&object["metadata"], &mut faults);
    sizes::faults(info, object, &mut faults);
    let spec = &object["spec"];
    match (info.group.as_str(), info.kind.as_str()) {
        _ if info.custom.is_some() => {}
        ("", "Pod") => pod::spec(spec, "spec", &[], &mut faults),
        ("", "Service") => network::service(spec, &mut faults),
        ("", "ConfigMap") => data::config_map(object, &mut faults),
        ("", "Secret") => data::secret(object, &mut faults),
        ("apps", kind @ ("Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet"))
        | ("", kind @ "ReplicationController") => workload::controller(kind, spec, &mut faults),
        ("batch", "Job") => workload::job(spec, "spec", &mut faults),
        ("batch", "CronJob") => workload::cron_job(spec, &mut faults),
        ("policy", "PodDisruptionBudget") => workload::disruption_budget(spec, &mut faults),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, &mut faults),
        ("rbac.authorization.k8s.io", "Role") => rbac::role(object, true, &mut faults),
        ("rbac.authorization.k8s.io", "ClusterRole") => rbac::role(object, false, &mut faults),
        ("rbac.authorization.k8s.io", "RoleBinding") => rbac::binding(object, true, &mut faults),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => rbac::binding(object, false, &mut faults),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition::faults(object, &mut faults),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => admission::policy(spec, &mut faults),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            admission::binding(spec, &mut faults);
        }
        ("admissionregistration.k8s.io", _) => admission::webhooks(object, &mut faults),
        ("apiregistration.k8s.io", "APIService") if spec["service"].is_object() => {
            let message = "Forbidden: requests are not forwarded to other API servers here".to_owned();
            faults.push(Cause { field: "spec.service".into(), reason: "FieldValueForbidden", message });
        }
        _ => {}
    }
    faults
}

/// What an object asks for and does not get in this cluster, to be named where it is written.
pub fn unenforced(info: &ResourceInfo, object: &Value) -> Vec<String> {
    let spec = &object["spec"];
    let mut warnings = Vec::new();
    match (info.group.as_str(), info.kind.as_str()) {
        ("", "Service") if spec["type"] == "NodePort" => {
            let why =
                "node ports are not opened: use a LoadBalancer Service, a Gateway or kubectl port-forward";
            warnings.push(format!("spec.type: {why}"));
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy")
            if !spec["auditAnnotations"].is_null() =>
        {
            warnings.push("spec.auditAnnotations: there is no audit log in this cluster".to_owned());
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding")
            if spec["validationActions"].as_array().is_some_and(|all| all.contains(&"Audit".into())) =>
        {
            let why = "there is no audit log in this cluster: Audit writes to the log of the API server";
            warnings.push(format!("spec.validationActions: {why}"));
        }
        ("apps", "StatefulSet") => unenforced_stateful_set(spec, &mut warnings),
        ("batch", "Job") => unenforced_job(spec, "spec", &mut warnings),
        ("batch", "CronJob") => {
            unenforced_job(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", &mut warnings);
        }
        _ => {}
    }
    warnings
}

fn unenforced_stateful_set(spec: &Value, warnings: &mut Vec<String>) {
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    for field in ["whenDeleted", "whenScaled"] {
        if retention[field] == "Delete" {
            let why = "claims are kept until somebody deletes them";
            warnings.push(format!("spec.persistentVolumeClaimRetentionPolicy.{field}: {why}"));
        }
    }
    if !spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"].is_null() {
        warnings.push(
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Pods are replaced one after the other"
                .to_owned(),
        );
    }
}

fn unenforced_job(spec: &Value, path: &str, warnings: &mut Vec<String>) {
    let fields = ["podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "podReplacementPolicy"];
    let given = fields.iter().filter(|field| !spec[**field].is_null());
    warnings.extend(given.map(|field| format!("{path}.{field}: nothing in this cluster acts on it")));
    if spec["completionMode"] == "Indexed" {
        warnings
            .push(format!("{path}.completionMode: Indexed Jobs are not run in this cluster: the Job fails"));
    }
}

fn template(template: &Value, path: &str, policies: &[&str], claims: &[Value], faults: &mut Vec<Cause>) {
    metadata::labels(&template["metadata"]["labels"], &format!("{path}.metadata.labels"), faults);
    let policy = &template["spec"]["restartPolicy"];
    if !policies.iter().any(|allowed| policy == allowed) {
        let allowed: Vec<String> = policies.iter().map(|p| (*p).to_owned()).collect();
        faults.push(Cause::unsupported(format!("{path}.spec.restartPolicy"), policy, &allowed));
    }
    if !template["spec"]["ephemeralContainers"].is_null() {
        let message = "Forbidden: ephemeral containers not allowed in pod template".to_owned();
        let field = format!("{path}.spec.ephemeralContainers");
        faults.push(Cause { field, reason: "FieldValueForbidden", message });
    }
    pod::spec(&template["spec"], &format!("{path}.spec"), claims, faults);
}

/// A field that has one of some values, where it is set.
fn one_of(value: &Value, path: &str, allowed: &[&str], faults: &mut Vec<Cause>) {
    if !value.is_null() && !allowed.iter().any(|known| value == known) {
        let allowed: Vec<String> = allowed.iter().map(|&known| known.to_owned()).collect();
        faults.push(Cause::unsupported(path, value, &allowed));
    }
}

fn at_least_zero(value: &Value, path: &str, faults: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|number| number < 0) {
        faults.push(Cause::invalid(path, value, "must be greater than or equal to 0"));
    }
}

fn duplicate(path: String, value: &Value) -> Cause {
    Cause { field: path, reason: "FieldValueDuplicate", message: format!("Duplicate value: {value}") }
}

fn port(value: &Value, path: String, faults: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
        faults.push(Cause::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

#[cfg(test)]
mod tests;
