// SPDX-License-Identifier: Apache-2.0
//! Objects that tests put into a mesh: a server, clients, policies.

use serde_json::{Value, json};

use crate::machine::Machine;

const ECHO: &str = include_str!("echo.py");

/// A namespace, enrolled or not.
pub(crate) fn namespace(name: &str, ambient: bool) -> Value {
    let labels = if ambient { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A client with a ServiceAccount of its own name, on a node.
pub(crate) fn client(namespace: &str, name: &str, node: &str) -> Vec<Value> {
    pod(namespace, name, node, &["/bin/sleep", "infinity"])
}

/// The server `echo`, and its Service on port 80.
pub(crate) fn echo(namespace: &str, node: &str) -> Vec<Value> {
    let mut objects = pod(namespace, "echo", node, &["python3", "-u", "-c", ECHO]);
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "namespace": namespace},
        "spec": {"selector": {"app": "echo"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    }));
    objects
}

/// A Pod with a ServiceAccount of its own name, on a node.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, command: &[&str]) -> Vec<Value> {
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {
            "serviceAccountName": name, "terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "main", "image": "curlimages/curl", "command": command}]}}),
    ]
}

/// An AuthorizationPolicy.
pub(crate) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Applies objects.
pub(crate) fn apply(machine: &Machine, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    machine.step(&format!("kubectl apply -f - <<'END'\n{list}\nEND"), "", 0);
}

/// Applies a policy and waits until it is in force.
pub(crate) fn enforce(machine: &Machine, namespace: &str, name: &str, spec: &Value) {
    apply(machine, &[policy(namespace, name, spec)]);
    machine.step(
        &format!("kubectl -n {namespace} wait --for=condition=meltemi.dev/Enforced authorizationpolicy/{name} --timeout=120s"),
        "condition met",
        0,
    );
}

/// Waits until all Pods of a namespace are ready, and enrolled where they should be.
pub(crate) fn ready(machine: &Machine, namespace: &str, enrolled: usize) {
    machine.step(
        &format!("kubectl -n {namespace} wait --for=condition=Ready pods --all --timeout=120s"),
        "condition met",
        0,
    );
    if enrolled > 0 {
        machine.eventually(
            &format!(
                "kubectl -n {namespace} get pods -o yaml | grep -c 'ambient.istio.io/redirection: enabled'"
            ),
            &enrolled.to_string(),
        );
    }
}
