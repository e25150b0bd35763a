// SPDX-License-Identifier: Apache-2.0
//! Columns and cells of kinds that are stored and seldom looked at: each cell is a field or two.

use serde_json::{Value, json};

use super::value::{count, each, labels, number, or, text};

/// Names of the columns and of those shown with `-o wide`; `None` for a kind that is not in here.
pub(super) fn names(group: &str, kind: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match (group, kind) {
        ("", "PersistentVolumeClaim") => (
            &["Name", "Status", "Volume", "Capacity", "Access Modes", "StorageClass", "Age"],
            &["VolumeMode"],
        ),
        ("", "PersistentVolume") => (
            &[
                "Name",
                "Capacity",
                "Access Modes",
                "Reclaim Policy",
                "Status",
                "Claim",
                "StorageClass",
                "Reason",
                "Age",
            ],
            &["VolumeMode"],
        ),
        ("", "ResourceQuota") => (&["Name", "Request", "Limit", "Age"], &[]),
        ("", "LimitRange") => (&["Name", "Created At"], &[]),
        ("", "PodTemplate") => (&["Name", "Containers", "Images", "Pod Labels"], &[]),
        ("", "ReplicationController") => {
            (&["Name", "Desired", "Current", "Ready", "Age"], &["Containers", "Images", "Selector"])
        }
        ("apps", "ControllerRevision") => (&["Name", "Controller", "Revision", "Age"], &[]),
        ("networking.k8s.io", "Ingress") => (&["Name", "Class", "Hosts", "Address", "Ports", "Age"], &[]),
        ("networking.k8s.io", "IngressClass") => (&["Name", "Controller", "Parameters", "Age"], &[]),
        ("networking.k8s.io", "NetworkPolicy") => (&["Name", "Pod-Selector", "Age"], &[]),
        ("storage.k8s.io", "StorageClass") => (
            &["Name", "Provisioner", "ReclaimPolicy", "VolumeBindingMode", "AllowVolumeExpansion", "Age"],
            &[],
        ),
        ("scheduling.k8s.io", "PriorityClass") => {
            (&["Name", "Value", "Global-Default", "Age", "PreemptionPolicy"], &[])
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            (&["Name", "Validations", "ParamKind", "Age"], &[])
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            (&["Name", "PolicyName", "ParamRef", "Age"], &[])
        }
        ("apiregistration.k8s.io", "APIService") => (&["Name", "Service", "Available", "Age"], &[]),
        _ => return None,
    })
}

/// The phase of a claim or volume; one that waits for its users or its finalizers is on its way out.
fn phase(item: &Value) -> Value {
    if item["metadata"]["deletionTimestamp"].is_string() {
        return json!("Terminating");
    }
    or(&item["status"]["phase"], "")
}

/// The cells of an object of a kind that has [`names`].
pub(super) fn cells(group: &str, kind: &str, item: &Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let name = item["metadata"]["name"].clone();
    let created = item["metadata"]["creationTimestamp"].clone();
    match (group, kind) {
        ("", "PersistentVolumeClaim") => vec![
            name,
            phase(item),
            or(&spec["volumeName"], ""),
            or(&status["capacity"]["storage"], ""),
            json!(access_modes(&status["accessModes"])),
            or(&spec["storageClassName"], ""),
            age,
            or(&spec["volumeMode"], "Filesystem"),
        ],
        ("", "PersistentVolume") => {
            let claim = &spec["claimRef"];
            let claim = match claim["name"].as_str() {
                Some(name) => format!("{}/{name}", text(&claim["namespace"])),
                None => String::new(),
            };
            vec![
                name,
                or(&spec["capacity"]["storage"], ""),
                json!(access_modes(&spec["accessModes"])),
                or(&spec["persistentVolumeReclaimPolicy"], "Retain"),
                phase(item),
                json!(claim),
                or(&spec["storageClassName"], ""),
                or(&status["reason"], ""),
                age,
                or(&spec["volumeMode"], "Filesystem"),
            ]
        }
        ("", "ResourceQuota") => {
            let (limits, requests) = quota(spec, status);
            vec![name, json!(requests), json!(limits), age]
        }
        ("", "LimitRange") => vec![name, created],
        ("", "PodTemplate") => {
            let template = &item["template"];
            let containers = &template["spec"]["containers"];
            let of_pod = labels(&template["metadata"]["labels"]);
            vec![name, each(containers, "name"), each(containers, "image"), of_pod]
        }
        ("", "ReplicationController") => {
            let containers = &spec["template"]["spec"]["containers"];
            vec![
                name,
                number(&spec["replicas"]),
                number(&status["replicas"]),
                number(&status["readyReplicas"]),
                age,
                each(containers, "name"),
                each(containers, "image"),
                labels(&spec["selector"]),
            ]
        }
        ("apps", "ControllerRevision") => {
            let owners = item["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            let mut owners = owners.filter(|owner| owner["controller"] == true);
            let controller = owners.next().map_or("<none>".to_owned(), |owner| {
                let (group, _) =
                    owner["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or(("", ""));
                let kind = text(&owner["kind"]).to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", text(&owner["name"]))
            });
            vec![name, json!(controller), number(&item["revision"]), age]
        }
        ("networking.k8s.io", "Ingress") => ingress(item, age),
        ("networking.k8s.io", "IngressClass") => {
            let parameters = &spec["parameters"];
            let parameters = match parameters["name"].as_str() {
                Some(name) => {
                    let group =
                        parameters["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
                    format!("{}{group}/{name}", text(&parameters["kind"]))
                }
                None => "<none>".to_owned(),
            };
            vec![name, or(&spec["controller"], ""), json!(parameters), age]
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            vec![name, labels(&spec["podSelector"]["matchLabels"]), age]
        }
        ("storage.k8s.io", "StorageClass") => {
            let default = &item["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
            let mark = if default == "true" { " (default)" } else { "" };
            vec![
                json!(format!("{}{mark}", text(&name))),
                or(&item["provisioner"], ""),
                or(&item["reclaimPolicy"], "Delete"),
                or(&item["volumeBindingMode"], "Immediate"),
                json!(item["allowVolumeExpansion"] == true),
                age,
            ]
        }
        ("scheduling.k8s.io", "PriorityClass") => vec![
            name,
            number(&item["value"]),
            json!(item["globalDefault"] == true),
            age,
            or(&item["preemptionPolicy"], "PreemptLowerPriority"),
        ],
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            let kind = &spec["paramKind"];
            let kind = match kind["kind"].as_str() {
                Some(of) => format!("{}/{of}", text(&kind["apiVersion"])),
                None => "<unset>".to_owned(),
            };
            vec![name, json!(count(&spec["validations"])), json!(kind), age]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            let given = &spec["paramRef"];
            let parameter = match (given["namespace"].as_str(), given["name"].as_str()) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
                (None, Some(name)) => format!("*/{name}"),
                _ => "<unset>".to_owned(),
            };
            vec![name, or(&spec["policyName"], ""), json!(parameter), age]
        }
        ("apiregistration.k8s.io", "APIService") => {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let mut available = conditions.filter(|condition| condition["type"] == "Available");
            let available = available.next().map_or(json!("Unknown"), |one| one["status"].clone());
            vec![name, json!("Local"), available, age]
        }
        _ => vec![name, age],
    }
}

fn access_modes(modes: &Value) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO".to_owned(),
        Some("ReadOnlyMany") => "ROX".to_owned(),
        Some("ReadWriteMany") => "RWX".to_owned(),
        Some("ReadWriteOncePod") => "RWOP".to_owned(),
        _ => text(mode),
    };
    modes.as_array().into_iter().flatten().map(short).collect::<Vec<_>>().join(",")
}

/// Limits and everything else of a quota: `name: used/hard`.
fn quota(spec: &Value, status: &Value) -> (String, String) {
    let hard = if status["hard"].is_object() { &status["hard"] } else { &spec["hard"] };
    let mut names: Vec<(&String, &Value)> = hard.as_object().into_iter().flatten().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    let shown = |(name, hard): &(&String, &Value)| {
        format!("{name}: {}/{}", text(&or(&status["used"][name.as_str()], "0")), text(hard))
    };
    let (limits, others): (Vec<_>, Vec<_>) = names.iter().partition(|(name, _)| name.starts_with("limits."));
    let list = |part: Vec<(&String, &Value)>| part.iter().map(shown).collect::<Vec<_>>().join(", ");
    (list(limits), list(others))
}

fn ingress(item: &Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let rules = spec["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut hosts: Vec<String> = rules
        .iter()
        .filter_map(|rule| rule["host"].as_str().filter(|h| !h.is_empty()))
        .map(str::to_owned)
        .collect();
    hosts.sort();
    hosts.dedup();
    let addresses = status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let addresses: Vec<String> = addresses
        .map(|one| text(if one["ip"].is_string() { &one["ip"] } else { &one["hostname"] }))
        .collect();
    let class = &item["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    let class = if spec["ingressClassName"].is_string() { &spec["ingressClassName"] } else { class };
    vec![
        item["metadata"]["name"].clone(),
        or(class, "<none>"),
        json!(if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") }),
        json!(addresses.join(",")),
        json!(if count(&spec["tls"]) > 0 { "80, 443" } else { "80" }),
        age,
    ]
}
