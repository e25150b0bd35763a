// SPDX-License-Identifier: Apache-2.0
//! What a Pod asks for and a node of one machine does not give: named in an event, so that nobody relies on it.

use k8s_openapi::api::core::v1::{Container, Pod};

/// The fields, in the order of the Pod; empty when everything holds.
pub(crate) fn fields(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found = Vec::new();
    if let Some(context) = &spec.security_context {
        let user = [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)];
        found.extend(
            user.iter().filter(|(_, id)| id.is_some()).map(|(f, _)| format!("spec.securityContext.{f}")),
        );
        if context.fs_group.is_some() {
            found.push("spec.securityContext.fsGroup".to_owned());
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.extend(of_container(container, spec.host_network == Some(true)));
    }
    found
}

/// The mesh's own Pods, on the node's network, do get the rights that they ask for.
fn of_container(container: &Container, host_network: bool) -> Vec<String> {
    let name = &container.name;
    let mut found = Vec::new();
    if container.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|limits| !limits.is_empty()) {
        found.push(format!("resources.limits of container {name}"));
    }
    // On the node's network every port is the node's.
    if !host_network && container.ports.iter().flatten().any(|port| port.host_port.is_some()) {
        found.push(format!("hostPort of container {name}"));
    }
    if let Some(context) = &container.security_context {
        if context.run_as_user.is_some() || context.run_as_group.is_some() {
            found.push(format!("runAsUser or runAsGroup of container {name}"));
        }
        if context.privileged == Some(true) {
            found.push(format!("privileged of container {name}"));
        }
        let adds = context.capabilities.as_ref().and_then(|c| c.add.as_ref());
        if adds.is_some_and(|add| !add.is_empty()) && !host_network {
            found.push(format!("capabilities.add of container {name}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_given_is_named() {
        let of = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            fields(&pod).join(", ")
        };
        let cases = [
            (json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}), ""),
            (
                json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}),
                "resources.limits of container c",
            ),
            (
                json!({"securityContext": {"runAsUser": 1}, "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 2}]}]}),
                "spec.securityContext.runAsUser, hostPort of container c",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true, "capabilities": {"add": ["NET_ADMIN"]}}}]}),
                "privileged of container c, capabilities.add of container c",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(spec.clone()), expected, "{spec}");
        }
    }
}
