// SPDX-License-Identifier: Apache-2.0
//! Columns and cells of the built-in kinds.

use serde_json::{Value, json};

use super::value::{age, count, each, labels, number, or, text};
use super::{Column, column, fields, pod, value, wide};

pub(super) fn columns(group: &str, kind: &str) -> Vec<Column> {
    let text = |names: &[&str]| names.iter().map(|n| column(n, "string")).collect::<Vec<_>>();
    if let Some((plain, extra)) = fields::names(group, kind) {
        return text(plain).into_iter().chain(extra.iter().map(|name| wide(name))).collect();
    }
    let (plain, extra): (Vec<Column>, &[&str]) = match (group, kind) {
        ("", "Pod") => (
            text(&["Name", "Ready", "Status", "Restarts", "Age"]),
            &["IP", "Node", "Nominated Node", "Readiness Gates"],
        ),
        ("", "Service") => {
            (text(&["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"]), &["Selector"])
        }
        ("", "Node") => (
            text(&["Name", "Status", "Roles", "Age", "Version"]),
            &["Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime"],
        ),
        ("", "Namespace") => (text(&["Name", "Status", "Age"]), &[]),
        ("", "ConfigMap") => (text(&["Name", "Data", "Age"]), &[]),
        ("", "Secret") => (text(&["Name", "Type", "Data", "Age"]), &[]),
        ("", "ServiceAccount") => (text(&["Name", "Secrets", "Age"]), &[]),
        ("", "Endpoints") => (text(&["Name", "Endpoints", "Age"]), &[]),
        (_, "Event") => {
            (text(&["Last Seen", "Type", "Reason", "Object", "Message"]), &["Source", "Count", "Name"])
        }
        ("apps", "Deployment") => (
            text(&["Name", "Ready", "Up-to-date", "Available", "Age"]),
            &["Containers", "Images", "Selector"],
        ),
        ("apps", "ReplicaSet") => {
            (text(&["Name", "Desired", "Current", "Ready", "Age"]), &["Containers", "Images", "Selector"])
        }
        ("apps", "DaemonSet") => (
            text(&["Name", "Desired", "Current", "Ready", "Up-to-date", "Available", "Node Selector", "Age"]),
            &["Containers", "Images", "Selector"],
        ),
        ("apps", "StatefulSet") => (text(&["Name", "Ready", "Age"]), &["Containers", "Images"]),
        ("batch", "Job") => (
            text(&["Name", "Status", "Completions", "Duration", "Age"]),
            &["Containers", "Images", "Selector"],
        ),
        ("batch", "CronJob") => {
            (text(&["Name", "Schedule", "Timezone", "Suspend", "Active", "Last Schedule", "Age"]), &[])
        }
        ("discovery.k8s.io", _) => (text(&["Name", "AddressType", "Ports", "Endpoints", "Age"]), &[]),
        ("coordination.k8s.io", _) => (text(&["Name", "Holder", "Age"]), &[]),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            (text(&["Name", "Role", "Age"]), &[])
        }
        ("rbac.authorization.k8s.io", _) => (text(&["Name", "Created At"]), &[]),
        ("apiextensions.k8s.io", _) => (text(&["Name", "Created At"]), &[]),
        ("admissionregistration.k8s.io", _) => (text(&["Name", "Webhooks", "Age"]), &[]),
        ("autoscaling", _) => {
            (text(&["Name", "Reference", "Targets", "MinPods", "MaxPods", "Replicas", "Age"]), &[])
        }
        ("policy", _) => {
            (text(&["Name", "Min Available", "Max Unavailable", "Allowed Disruptions", "Age"]), &[])
        }
        _ => (text(&["Name", "Age"]), &[]),
    };
    plain.into_iter().chain(extra.iter().map(|name| wide(name))).collect()
}

pub(super) fn cells(group: &str, kind: &str, item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let metadata = &item["metadata"];
    let (spec, status) = (&item["spec"], &item["status"]);
    let name = metadata["name"].clone();
    let age = json!(age(&metadata["creationTimestamp"], now));
    match (group, kind) {
        _ if fields::names(group, kind).is_some() => fields::cells(group, kind, item, age),
        ("", "Pod") => pod::cells(item, now),
        ("", "Service") => service(item, age),
        ("", "Node") => node(item, age),
        ("", "Namespace") => vec![name, or(&status["phase"], "Active"), age],
        ("", "ConfigMap") => vec![name, json!(count(&item["data"]) + count(&item["binaryData"])), age],
        ("", "Secret") => vec![name, item["type"].clone(), json!(count(&item["data"])), age],
        ("", "ServiceAccount") => vec![name, json!(count(&item["secrets"])), age],
        ("", "Endpoints") => vec![name, json!(endpoints(item)), age],
        (_, "Event") => event(item, now),
        ("apps", _) => apps(kind, item, age),
        ("batch", "Job") => job(item, age, now).into_iter().chain(workload(spec)).collect(),
        ("batch", "CronJob") => cronjob(item, age, now),
        ("discovery.k8s.io", _) => vec![
            name,
            item["addressType"].clone(),
            each(&item["ports"], "port"),
            json!(slice_addresses(item)),
            age,
        ],
        ("coordination.k8s.io", _) => vec![name, or(&spec["holderIdentity"], ""), age],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            let role = &item["roleRef"];
            vec![name, json!(format!("{}/{}", text(&role["kind"]), text(&role["name"]))), age]
        }
        ("rbac.authorization.k8s.io" | "apiextensions.k8s.io", _) => {
            vec![name, metadata["creationTimestamp"].clone()]
        }
        ("admissionregistration.k8s.io", _) => vec![name, json!(count(&item["webhooks"])), age],
        ("autoscaling", _) => autoscaler(item, age),
        ("policy", _) => vec![
            name,
            or(&spec["minAvailable"], "N/A"),
            or(&spec["maxUnavailable"], "N/A"),
            number(&status["disruptionsAllowed"]),
            age,
        ],
        _ => vec![name, age],
    }
}

/// Containers, images and selector: the wide columns of what has a Pod template.
fn workload(spec: &Value) -> [Value; 3] {
    let template = &spec["template"]["spec"]["containers"];
    [each(template, "name"), each(template, "image"), labels(&spec["selector"]["matchLabels"])]
}

fn apps(kind: &str, item: &Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let name = item["metadata"]["name"].clone();
    let ready = || json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])));
    let mut cells = match kind {
        "Deployment" => {
            vec![name, ready(), number(&status["updatedReplicas"]), number(&status["availableReplicas"])]
        }
        "ReplicaSet" => vec![
            name,
            number(&spec["replicas"]),
            number(&status["replicas"]),
            number(&status["readyReplicas"]),
        ],
        "DaemonSet" => vec![
            name,
            number(&status["desiredNumberScheduled"]),
            number(&status["currentNumberScheduled"]),
            number(&status["numberReady"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
            labels(&spec["template"]["spec"]["nodeSelector"]),
        ],
        "StatefulSet" => vec![name, ready()],
        _ => return vec![name, age],
    };
    let [containers, images, selector] = workload(spec);
    cells.extend([age, containers, images]);
    if kind != "StatefulSet" {
        cells.push(selector);
    }
    cells
}

fn cronjob(item: &Value, age: Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let last = &status["lastScheduleTime"];
    vec![
        item["metadata"]["name"].clone(),
        spec["schedule"].clone(),
        or(&spec["timeZone"], "<none>"),
        json!(if spec["suspend"] == true { "True" } else { "False" }),
        json!(count(&status["active"])),
        json!(if last.is_string() { value::age(last, now) } else { "<none>".into() }),
        age,
    ]
}

fn autoscaler(item: &Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let target = &spec["scaleTargetRef"];
    vec![
        item["metadata"]["name"].clone(),
        json!(format!("{}/{}", text(&target["kind"]), text(&target["name"]))),
        json!("<unknown>"),
        number(&spec["minReplicas"]),
        number(&spec["maxReplicas"]),
        number(&status["currentReplicas"]),
        age,
    ]
}

fn service(item: &Value, age: Value) -> Vec<Value> {
    let spec = &item["spec"];
    let ingress = item["status"]["loadBalancer"]["ingress"].as_array().map(Vec::as_slice).unwrap_or_default();
    let addresses: Vec<String> = ingress
        .iter()
        .map(|i| i["ip"].as_str().or(i["hostname"].as_str()).unwrap_or_default().to_owned())
        .collect();
    let external = match spec["type"].as_str() {
        Some("LoadBalancer") if addresses.is_empty() => "<pending>".into(),
        Some("LoadBalancer") => addresses.join(","),
        Some("ExternalName") => text(&spec["externalName"]),
        _ => "<none>".into(),
    };
    let ports: Vec<String> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| match p["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{}:{node}/{}", p["port"], text(&p["protocol"])),
            _ => format!("{}/{}", p["port"], text(&p["protocol"])),
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") };
    vec![
        item["metadata"]["name"].clone(),
        spec["type"].clone(),
        or(&spec["clusterIP"], "<none>"),
        json!(external),
        json!(ports),
        age,
        labels(&spec["selector"]),
    ]
}

fn node(item: &Value, age: Value) -> Vec<Value> {
    let status = &item["status"];
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let mut word = if ready { "Ready" } else { "NotReady" }.to_owned();
    if item["spec"]["unschedulable"] == true {
        word.push_str(",SchedulingDisabled");
    }
    let roles: Vec<String> = item["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/").map(str::to_owned))
        .collect();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        let addresses = status["addresses"].as_array().into_iter().flatten();
        addresses
            .filter(|a| a["type"] == kind)
            .map(|a| text(&a["address"]))
            .next()
            .unwrap_or_else(|| "<none>".into())
    };
    let info = &status["nodeInfo"];
    vec![
        item["metadata"]["name"].clone(),
        json!(word),
        json!(roles),
        age,
        or(&info["kubeletVersion"], ""),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        or(&info["osImage"], "<unknown>"),
        or(&info["kernelVersion"], "<unknown>"),
        or(&info["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn event(item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    // Either form of the API: core/v1 or events.k8s.io/v1.
    let of =
        |core: &str, other: &str| if item[core].is_null() { item[other].clone() } else { item[core].clone() };
    let object = of("involvedObject", "regarding");
    let last = [
        of("lastTimestamp", "deprecatedLastTimestamp"),
        item["eventTime"].clone(),
        item["metadata"]["creationTimestamp"].clone(),
    ];
    let last = last.iter().find(|v| v.is_string()).cloned().unwrap_or_default();
    let source = of("source", "deprecatedSource");
    vec![
        json!(age(&last, now)),
        item["type"].clone(),
        item["reason"].clone(),
        json!(format!("{}/{}", text(&object["kind"]).to_lowercase(), text(&object["name"]))),
        json!(text(&of("message", "note")).trim()),
        or(&source["component"], ""),
        or(&of("count", "deprecatedCount"), "1"),
        item["metadata"]["name"].clone(),
    ]
}

fn job(item: &Value, age: Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let condition = |kind: &str| {
        status["conditions"]
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["status"] == "True"))
    };
    let word = if condition("Complete") {
        "Complete"
    } else if condition("Failed") {
        "Failed"
    } else if condition("Suspended") {
        "Suspended"
    } else {
        "Running"
    };
    let duration = match (status["startTime"].as_str(), status["completionTime"].as_str()) {
        (Some(start), Some(end)) => end.parse().map(|end| value::age(&json!(start), end)).unwrap_or_default(),
        (Some(start), None) => value::age(&json!(start), now),
        _ => String::new(),
    };
    vec![
        item["metadata"]["name"].clone(),
        json!(word),
        json!(format!("{}/{}", number(&status["succeeded"]), spec["completions"].as_i64().unwrap_or(1))),
        json!(duration),
        age,
    ]
}

fn endpoints(item: &Value) -> String {
    let mut all = Vec::new();
    for subset in item["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            for port in subset["ports"].as_array().into_iter().flatten() {
                all.push(format!("{}:{}", text(&address["ip"]), port["port"]));
            }
        }
    }
    shortened(&all, "<none>")
}

fn slice_addresses(item: &Value) -> String {
    let all: Vec<String> = item["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|e| e["addresses"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>())
        .collect();
    shortened(&all, "<unset>")
}

fn shortened(all: &[String], none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        1..=3 => all.join(","),
        n => format!("{} + {} more...", all[..3].join(","), n - 3),
    }
}
