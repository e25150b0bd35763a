// SPDX-License-Identifier: Apache-2.0
//! Columns and cells of the built-in kinds.

use serde_json::{Value, json};

use super::{Column, age, column, wide};

pub(super) fn columns(group: &str, kind: &str) -> Vec<Column> {
    let text = |names: &[&str]| names.iter().map(|n| column(n, "string")).collect::<Vec<_>>();
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

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn or(value: &Value, otherwise: &str) -> Value {
    let text = text(value);
    if text.is_empty() { json!(otherwise) } else { json!(text) }
}

fn number(value: &Value) -> Value {
    json!(value.as_i64().unwrap_or(0))
}

fn count(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

fn labels(value: &Value) -> Value {
    let list: Vec<String> =
        value.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    json!(if list.is_empty() { "<none>".to_owned() } else { list.join(",") })
}

fn each(list: &Value, key: &str) -> Value {
    let list: Vec<String> = list.as_array().into_iter().flatten().map(|item| text(&item[key])).collect();
    json!(list.join(","))
}

pub(super) fn cells(group: &str, kind: &str, item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let metadata = &item["metadata"];
    let (spec, status) = (&item["spec"], &item["status"]);
    let name = metadata["name"].clone();
    let age = json!(age(&metadata["creationTimestamp"], now));
    let template = &spec["template"]["spec"]["containers"];
    let workload =
        || [each(template, "name"), each(template, "image"), labels(&spec["selector"]["matchLabels"])];
    match (group, kind) {
        ("", "Pod") => pod(item, now),
        ("", "Service") => service(item, age),
        ("", "Node") => node(item, age),
        ("", "Namespace") => vec![name, or(&status["phase"], "Active"), age],
        ("", "ConfigMap") => vec![name, json!(count(&item["data"]) + count(&item["binaryData"])), age],
        ("", "Secret") => vec![name, item["type"].clone(), json!(count(&item["data"])), age],
        ("", "ServiceAccount") => vec![name, json!(count(&item["secrets"])), age],
        ("", "Endpoints") => vec![name, json!(endpoints(item)), age],
        (_, "Event") => event(item, now),
        ("apps", "Deployment") => [
            name,
            json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"]))),
            number(&status["updatedReplicas"]),
            number(&status["availableReplicas"]),
            age,
        ]
        .into_iter()
        .chain(workload())
        .collect(),
        ("apps", "ReplicaSet") => [
            name,
            number(&spec["replicas"]),
            number(&status["replicas"]),
            number(&status["readyReplicas"]),
            age,
        ]
        .into_iter()
        .chain(workload())
        .collect(),
        ("apps", "DaemonSet") => [
            name,
            number(&status["desiredNumberScheduled"]),
            number(&status["currentNumberScheduled"]),
            number(&status["numberReady"]),
            number(&status["updatedNumberScheduled"]),
            number(&status["numberAvailable"]),
            labels(&spec["template"]["spec"]["nodeSelector"]),
            age,
        ]
        .into_iter()
        .chain(workload())
        .collect(),
        ("apps", "StatefulSet") => vec![
            name,
            json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"]))),
            age,
            each(template, "name"),
            each(template, "image"),
        ],
        ("batch", "Job") => job(item, age, now).into_iter().chain(workload()).collect(),
        ("batch", "CronJob") => vec![
            name,
            spec["schedule"].clone(),
            or(&spec["timeZone"], "<none>"),
            json!(if spec["suspend"] == true { "True" } else { "False" }),
            json!(count(&status["active"])),
            json!(if status["lastScheduleTime"].is_string() {
                super::age(&status["lastScheduleTime"], now)
            } else {
                "<none>".into()
            }),
            age,
        ],
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
        ("autoscaling", _) => {
            let target = &spec["scaleTargetRef"];
            let reference = json!(format!("{}/{}", text(&target["kind"]), text(&target["name"])));
            vec![
                name,
                reference,
                json!("<unknown>"),
                number(&spec["minReplicas"]),
                number(&spec["maxReplicas"]),
                number(&status["currentReplicas"]),
                age,
            ]
        }
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

fn pod(item: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (metadata, spec, status) = (&item["metadata"], &item["spec"], &item["status"]);
    let total = count(&spec["containers"]);
    let statuses = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = statuses.iter().filter(|s| s["ready"] == true).count();
    let restarts: i64 = statuses.iter().filter_map(|s| s["restartCount"].as_i64()).sum();
    let last = statuses
        .iter()
        .filter_map(|s| s["lastState"]["terminated"]["finishedAt"].as_str())
        .max()
        .map(|at| super::age(&json!(at), now));
    let restarts = match last {
        Some(last) if restarts > 0 => format!("{restarts} ({last} ago)"),
        _ => restarts.to_string(),
    };
    vec![
        metadata["name"].clone(),
        json!(format!("{ready}/{total}")),
        json!(pod_state(item, statuses, ready)),
        json!(restarts),
        json!(age(&metadata["creationTimestamp"], now)),
        or(&status["podIP"], "<none>"),
        or(&spec["nodeName"], "<none>"),
        or(&status["nominatedNodeName"], "<none>"),
        json!("<none>"),
    ]
}

/// The word in the STATUS column: the most telling reason there is.
fn pod_state(item: &Value, statuses: &[Value], ready: usize) -> String {
    let status = &item["status"];
    if item["metadata"]["deletionTimestamp"].is_string() {
        return "Terminating".into();
    }
    let inits = status["initContainerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let total = count(&item["spec"]["initContainers"]);
    for (index, init) in inits.iter().enumerate() {
        let state = &init["state"];
        if state["terminated"]["exitCode"] == 0 || init["started"] == true && init["ready"] == true {
            continue;
        }
        if let Some(terminated) = state["terminated"].as_object() {
            let reason = terminated.get("reason").map(text).unwrap_or_default();
            return format!(
                "Init:{}",
                if reason.is_empty() { format!("ExitCode:{}", terminated["exitCode"]) } else { reason }
            );
        }
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return format!("Init:{waiting}");
        }
        return format!("Init:{index}/{total}");
    }
    let mut word = status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("Unknown").to_owned();
    for one in statuses.iter().rev() {
        let state = &one["state"];
        if let Some(reason) = state["waiting"]["reason"].as_str().filter(|r| !r.is_empty()) {
            word = reason.to_owned();
        } else if state["terminated"].is_object() {
            let reason = text(&state["terminated"]["reason"]);
            word = if reason.is_empty() {
                format!("ExitCode:{}", state["terminated"]["exitCode"])
            } else {
                reason
            };
        }
    }
    if word == "Completed" && ready > 0 { "Running".into() } else { word }
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
        (Some(start), Some(end)) => end.parse().map(|end| super::age(&json!(start), end)).unwrap_or_default(),
        (Some(start), None) => super::age(&json!(start), now),
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
