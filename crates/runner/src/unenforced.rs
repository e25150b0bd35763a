// SPDX-License-Identifier: Apache-2.0
//! Pod fields this runner does not enforce, reported in a `NotEnforced` event, so that nobody relies on them.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, SecurityContext};

use crate::cgroups::Controller;
use crate::rights;

/// The fields, in the order of the Pod; empty when everything is enforced. `holds` tells which limits can be had.
pub(crate) fn fields(pod: &Pod, holds: impl Fn(Controller) -> bool) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found: Vec<String> =
        of_pod(spec).into_iter().filter(|(_, set)| *set).map(|(f, _)| format!("spec.{f}")).collect();
    let context = PodSecurityContext::default();
    let context = spec.security_context.as_ref().unwrap_or(&context);
    let of_context = of_pod_context(context).into_iter().filter(|(_, set)| *set);
    found.extend(of_context.map(|(f, _)| format!("spec.securityContext.{f}")));
    for volume in spec.volumes.iter().flatten() {
        if volume.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()) {
            found.push(format!("emptyDir.sizeLimit of volume {}", volume.name));
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.extend(limits(container, &holds));
        found.extend(of_container(pod, container));
    }
    found
}

fn of_pod(spec: &PodSpec) -> [(&'static str, bool); 4] {
    [
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("hostUsers", spec.host_users == Some(true)),
        ("runtimeClassName", spec.runtime_class_name.is_some()),
    ]
}

fn of_pod_context(context: &PodSecurityContext) -> [(&'static str, bool); 4] {
    [
        ("sysctls", context.sysctls.as_ref().is_some_and(|s| !s.is_empty())),
        ("seLinuxOptions", context.se_linux_options.is_some()),
        ("seccompProfile", context.seccomp_profile.as_ref().is_some_and(|p| p.type_ != "RuntimeDefault")),
        ("appArmorProfile", context.app_armor_profile.as_ref().is_some_and(|p| p.type_ != "RuntimeDefault")),
    ]
}

/// The limits of a container that nothing holds, each by its name.
fn limits(container: &Container, holds: impl Fn(Controller) -> bool) -> Vec<String> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let names = limits.into_iter().flat_map(|limits| limits.keys());
    let open = names.filter(|name| match name.as_str() {
        "memory" => !holds(Controller::Memory),
        "cpu" => !holds(Controller::Cpu),
        _ => true,
    });
    open.map(|name| format!("resources.limits.{name} of container {}", container.name)).collect()
}

/// The mesh's own Pods that work on the node do get the rights that they ask for.
fn of_container(pod: &Pod, container: &Container) -> Vec<String> {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    // On the node's network every port is the node's.
    let host_port = !host_network && container.ports.iter().flatten().any(|port| port.host_port.is_some());
    let mut asked = vec![("hostPort", host_port)];
    if let Some(context) = &container.security_context {
        asked.extend(of_context(pod, container, context));
    }
    let named = asked.into_iter().filter(|(_, set)| *set);
    named.map(|(field, _)| format!("{field} of container {}", container.name)).collect()
}

fn of_context(pod: &Pod, container: &Container, context: &SecurityContext) -> [(&'static str, bool); 6] {
    let system = rights::is_system(pod);
    // The node's own: its users are the node's.
    let group = context.run_as_group.is_some_and(|g| g != 0) || context.run_as_user.is_some_and(|u| u != 0);
    [
        ("runAsUser or runAsGroup", system && group),
        ("privileged", context.privileged == Some(true)),
        ("capabilities.add", !system && rights::refused_capabilities(container)),
        ("procMount", context.proc_mount.as_deref().is_some_and(|p| p != "Default")),
        ("seccompProfile", context.seccomp_profile.as_ref().is_some_and(|p| p.type_ != "RuntimeDefault")),
        ("appArmorProfile", context.app_armor_profile.as_ref().is_some_and(|p| p.type_ != "RuntimeDefault")),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_enforced_is_named() {
        let of = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            fields(&pod, |limit| limit == Controller::Memory).join(", ")
        };
        let one =
            |context: serde_json::Value| json!({"containers": [{"name": "c", "securityContext": context}]});
        let cases = [
            (json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}), ""),
            (
                json!({"containers": [{"name": "c", "resources": {"limits": {
                    "cpu": "1", "memory": "1Mi", "ephemeral-storage": "1Gi"}}}]}),
                "resources.limits.cpu of container c, resources.limits.ephemeral-storage of container c",
            ),
            (
                json!({"securityContext": {"runAsUser": 1, "runAsGroup": 1, "fsGroup": 1, "runAsNonRoot": true},
                       "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 2}]}]}),
                "hostPort of container c",
            ),
            (
                one(json!({"privileged": true, "capabilities": {"add": ["NET_ADMIN"]}})),
                "privileged of container c, capabilities.add of container c",
            ),
            (one(json!({"capabilities": {"drop": ["ALL"], "add": ["CHOWN", "NET_BIND_SERVICE"]}})), ""),
            (one(json!({"procMount": "Unmasked", "runAsUser": 7})), "procMount of container c"),
            (
                json!({"hostPID": true, "hostIPC": true, "containers": [],
                       "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}),
                "spec.hostPID, spec.hostIPC, emptyDir.sizeLimit of volume v",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}, "sysctls": [{"name": "a", "value": "1"}]},
                       "containers": []}),
                "spec.securityContext.sysctls, spec.securityContext.seccompProfile",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(spec.clone()), expected, "{spec}");
        }
    }
}
