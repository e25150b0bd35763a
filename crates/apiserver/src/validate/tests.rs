// SPDX-License-Identifier: Apache-2.0
//! Objects with one fault each, and what is said of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::registry::Registry;

fn said(group: &str, plural: &str, object: &Value) -> Vec<String> {
    let info = Registry::new().find(group, "v1", plural).unwrap();
    faults(&info, object).iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
}

#[test]
fn pods() {
    let fine = json!({"metadata": {"labels": {"app.kubernetes.io/name": "x", "empty": ""}}, "spec": {
        "restartPolicy": "Always", "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 1}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    assert_eq!(said("", "pods", &fine), [""; 0]);
    let cases = [
        ("/spec/containers", json!([]), "spec.containers: Required value"),
        ("/spec/containers/0/image", json!(""), "spec.containers[0].image: Required value"),
        (
            "/spec/containers/0/name",
            json!("A"),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123",
        ),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!(70000),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        ("/spec/volumes", json!([]), "spec.containers[0].volumeMounts[0].name: Not found: \"v\""),
        (
            "/spec/volumes",
            json!([{"name": "v"}, {"name": "v"}]),
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ),
        ("/spec/restartPolicy", json!("Maybe"), "spec.restartPolicy: Unsupported value: \"Maybe\""),
        ("/metadata/labels", json!({"a": "b c"}), "metadata.labels: Invalid value: \"b c\""),
        ("/metadata/labels", json!({"a/b/c": "d"}), "metadata.labels: Invalid value: \"a/b/c\""),
    ];
    for (at, value, expected) in cases {
        let mut object = fine.clone();
        *object.pointer_mut(at).unwrap() = value;
        let said = said("", "pods", &object);
        assert!(said.len() == 1 && said[0].starts_with(expected), "{at}: {said:?}");
    }
}

#[test]
fn services_workloads_and_secrets() {
    let port = |number: i64, name: &str| json!({"port": number, "name": name});
    let service = |kind: &str, ports: &[Value]| json!({"spec": {"type": kind, "ports": ports}});
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]});
    let cases = [
        ("", "services", service("ClusterIP", &[port(80, "a"), port(81, "b")]), ""),
        ("", "services", service("ClusterIP", &[]), "spec.ports: Required value"),
        ("", "services", service("Cluster", &[port(80, "a")]), "spec.type: Unsupported value: \"Cluster\""),
        ("", "services", service("NodePort", &[port(0, "a")]), "spec.ports[0].port: Invalid value: 0"),
        (
            "",
            "services",
            service("ClusterIP", &[port(1, "a"), port(2, "a")]),
            "spec.ports[1].name: Duplicate value",
        ),
        ("", "services", service("ExternalName", &[]), "spec.externalName: Required value"),
        ("", "secrets", json!({"data": {"a": "YQ=="}}), ""),
        ("", "secrets", json!({"data": {"a": "%"}}), "data[a]: Invalid value"),
        (
            "apps",
            "deployments",
            json!({"spec": {"template": {"spec": pod}}}),
            "spec.template.spec.restartPolicy",
        ),
        ("batch", "jobs", json!({"spec": {"template": {"spec": pod}}}), ""),
    ];
    for (group, plural, object, expected) in cases {
        let said = said(group, plural, &object).join("; ");
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{object}: {said}");
    }
}

#[test]
fn sizes() {
    let text = |n: usize| Value::from("x".repeat(n));
    let coded = |n: usize| Value::from(STANDARD.encode(vec![0; n]));
    let annotated = |n: usize| json!({"metadata": {"annotations": {"a": text(n)}}});
    let (data, annotations) = (1024 * 1024, 256 * 1024);
    let cases = [
        ("configmaps", json!({"data": {"a": text(data)}}), ""),
        ("configmaps", json!({"data": {"a": text(data), "b": "x"}}), "data: Too long"),
        ("configmaps", json!({"data": {"a": "x"}, "binaryData": {"b": coded(data)}}), "data: Too long"),
        ("secrets", json!({"data": {"a": coded(data)}}), ""),
        ("secrets", json!({"data": {"a": coded(data + 1)}}), "data: Too long"),
        ("configmaps", annotated(annotations - 1), ""),
        ("configmaps", annotated(annotations), "metadata.annotations: Too long"),
    ];
    for (plural, object, expected) in cases {
        let said = said("", plural, &object).join("\n");
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{plural}: {said}");
    }
}

/// A field of a Pod's container, or of the Pod, and what is said of it.
#[test]
fn faults_of_containers_and_volumes() {
    let fine = json!({"spec": {"restartPolicy": "Always", "containers": [{"name": "a", "image": "x",
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    let cases = [
        ("c", json!({"imagePullPolicy": "Sometimes"}), "imagePullPolicy: Unsupported value"),
        ("c", json!({"ports": [{"containerPort": 80, "name": "a name"}]}), "ports[0].name: Invalid value"),
        (
            "c",
            json!({"ports": [{"containerPort": 80, "protocol": "tcp"}]}),
            "ports[0].protocol: Unsupported value",
        ),
        (
            "c",
            json!({"ports": [{"containerPort": 80, "hostPort": 70000}]}),
            "ports[0].hostPort: Invalid value",
        ),
        ("c", json!({"env": [{"value": "x"}]}), "env[0].name: Required value"),
        (
            "c",
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {}}}]}),
            "env[0].valueFrom: Invalid value",
        ),
        (
            "c",
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {}, "secretKeyRef": {}}}]}),
            "env[0].valueFrom: Invalid value",
        ),
        ("c", json!({"resources": {"limits": {"cpu": "abc"}}}), "resources.limits[cpu]: Invalid value"),
        ("c", json!({"resources": {"limits": {"cpu": "-1"}}}), "resources.limits[cpu]: Invalid value"),
        (
            "c",
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}}),
            "resources.requests: Invalid value",
        ),
        ("c", json!({"livenessProbe": {"exec": {}, "httpGet": {}}}), "livenessProbe.httpGet: Forbidden"),
        ("c", json!({"readinessProbe": {"periodSeconds": 1}}), "readinessProbe: Required value"),
        ("c", json!({"volumeMounts": [{"name": "v"}]}), "volumeMounts[0].mountPath: Required value"),
        (
            "c",
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "../x"}]}),
            "volumeMounts[0].subPath: Invalid value",
        ),
        (
            "c",
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]}),
            "volumeMounts[1].mountPath: Invalid value",
        ),
        (
            "p",
            json!({"volumes": [{"name": "v", "emptyDir": {}, "secret": {}}]}),
            "volumes[0].secret: Forbidden",
        ),
        (
            "p",
            json!({"volumes": [{"name": "v", "configMap": {"items": [{"key": "k", "path": "/etc/x"}]}}]}),
            "volumes[0].configMap.items[0].path: Invalid value",
        ),
        (
            "p",
            json!({"tolerations": [{"key": "k", "operator": "Is"}]}),
            "tolerations[0].operator: Unsupported value",
        ),
        ("p", json!({"tolerations": [{"operator": "Equal"}]}), "tolerations[0].operator: Invalid value"),
        (
            "p",
            json!({"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}),
            "tolerations[0].value: Invalid value",
        ),
        (
            "p",
            json!({"tolerations": [{"key": "k", "effect": "No"}]}),
            "tolerations[0].effect: Unsupported value",
        ),
        ("p", json!({"dnsPolicy": "Never"}), "dnsPolicy: Unsupported value"),
    ];
    for (at, patch, expected) in cases {
        let mut object = fine.clone();
        let (pointer, prefix) =
            if at == "c" { ("/spec/containers/0", "spec.containers[0].") } else { ("/spec", "spec.") };
        crate::patch::merge(object.pointer_mut(pointer).unwrap(), &patch);
        let said = said("", "pods", &object);
        assert!(said.len() == 1 && said[0].starts_with(&format!("{prefix}{expected}")), "{patch}: {said:?}");
    }
}

#[test]
fn faults_of_other_kinds() {
    let pod = json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "x"}]});
    let deployment = |strategy: Value| json!({"spec": {"strategy": strategy, "template": {"spec": pod}}});
    let service = |patch: Value| {
        let mut service = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
        crate::patch::merge(&mut service["spec"], &patch);
        service
    };
    let role = |rule: Value| json!({"rules": [rule]});
    let binding = |role: Value, subject: Value| json!({"roleRef": role, "subjects": [subject]});
    let reader = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"});
    let alice = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"});
    let mut claims = json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "data"}}], "template": {"spec": pod}}});
    claims["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/d"}]);
    let never = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]});
    let cron = |schedule: &str| json!({"spec": {"schedule": schedule, "jobTemplate": {"spec": {"template": {"spec": never}}}}});
    let rbac = "rbac.authorization.k8s.io";
    let cases = [
        (
            "apps",
            "deployments",
            deployment(
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
            ),
            "",
        ),
        (
            "apps",
            "deployments",
            deployment(
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            ),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value",
        ),
        (
            "apps",
            "deployments",
            deployment(json!({"type": "Recreate", "rollingUpdate": {}})),
            "spec.strategy.rollingUpdate: Forbidden",
        ),
        ("apps", "deployments", deployment(json!({"type": "Slow"})), "spec.strategy.type: Unsupported value"),
        ("apps", "statefulsets", claims, ""),
        ("batch", "cronjobs", cron("*/5 * * * *"), ""),
        ("batch", "cronjobs", cron("every day"), "spec.schedule: Invalid value"),
        (
            "",
            "services",
            service(json!({"ports": [{"port": 80, "nodePort": 80}]})),
            "spec.ports[0].nodePort: Invalid value",
        ),
        (
            "",
            "services",
            service(json!({"ports": [{"port": 80, "protocol": "tcp"}]})),
            "spec.ports[0].protocol: Unsupported value",
        ),
        (
            "",
            "services",
            service(json!({"ports": [{"port": 80, "name": "A"}]})),
            "spec.ports[0].name: Invalid value",
        ),
        (
            "",
            "services",
            service(json!({"ipFamilyPolicy": "RequireDualStack"})),
            "spec.ipFamilyPolicy: Invalid value",
        ),
        ("", "services", service(json!({"ipFamilyPolicy": "PreferDualStack"})), ""),
        ("", "services", service(json!({"ipFamilies": ["IPv6"]})), "spec.ipFamilies[0]: Invalid value"),
        (
            "",
            "services",
            service(json!({"sessionAffinity": "Cookie"})),
            "spec.sessionAffinity: Unsupported value",
        ),
        ("", "configmaps", json!({"data": {"a.b-c_d": "x"}}), ""),
        ("", "configmaps", json!({"data": {"../x": "x"}}), "data[../x]: Invalid value"),
        (
            "",
            "configmaps",
            json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}),
            "binaryData[a]: Invalid value",
        ),
        (
            "",
            "configmaps",
            json!({"metadata": {"annotations": {"a b": "x"}}}),
            "metadata.annotations: Invalid value",
        ),
        (
            "",
            "configmaps",
            json!({"metadata": {"finalizers": ["a b"]}}),
            "metadata.finalizers[0]: Invalid value",
        ),
        (
            "",
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "YQ==", "tls.key": "YQ=="}}),
            "",
        ),
        (
            "",
            "secrets",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "YQ=="}}),
            "data[tls.key]: Required value",
        ),
        (
            "",
            "secrets",
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "YQ=="}}),
            "data[.dockerconfigjson]: Invalid value",
        ),
        ("policy", "poddisruptionbudgets", json!({"spec": {"minAvailable": "50%"}}), ""),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}}),
            "spec: Invalid value",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": "half"}}),
            "spec.minAvailable: Invalid value",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            "",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "ipv4"}),
            "addressType: Unsupported value",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            "endpoints[0].addresses[0]: Invalid value",
        ),
        (rbac, "roles", role(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]})), ""),
        (
            rbac,
            "roles",
            role(json!({"apiGroups": [""], "resources": ["pods"]})),
            "rules[0].verbs: Required value",
        ),
        (
            rbac,
            "roles",
            role(json!({"verbs": ["get"], "apiGroups": [""]})),
            "rules[0].resources: Required value",
        ),
        (
            rbac,
            "roles",
            role(json!({"verbs": ["get"], "resources": ["pods"]})),
            "rules[0].apiGroups: Required value",
        ),
        (
            rbac,
            "roles",
            role(json!({"verbs": ["get"], "nonResourceURLs": ["/x"]})),
            "rules[0].nonResourceURLs: Invalid value",
        ),
        (rbac, "clusterroles", role(json!({"verbs": ["get"], "nonResourceURLs": ["/x"]})), ""),
        (rbac, "rolebindings", binding(reader.clone(), alice.clone()), ""),
        (
            rbac,
            "clusterrolebindings",
            binding(reader.clone(), alice.clone()),
            "roleRef.kind: Unsupported value",
        ),
        (
            rbac,
            "rolebindings",
            binding(reader.clone(), json!({"kind": "user", "name": "a"})),
            "subjects[0].kind: Unsupported value",
        ),
        (
            rbac,
            "rolebindings",
            binding(reader.clone(), json!({"kind": "ServiceAccount", "name": "a"})),
            "subjects[0].namespace: Required value",
        ),
        (rbac, "rolebindings", binding(json!({"kind": "Role"}), alice), "roleRef.name: Required value"),
    ];
    for (group, plural, object, expected) in cases {
        let said = said(group, plural, &object).join("; ");
        let shown: String = object.to_string().chars().take(300).collect();
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{shown}: {said}");
    }
}

#[test]
fn what_a_job_asks_for_and_does_not_get_is_named() {
    let registry = Registry::new();
    let said =
        |plural: &str, object: Value| unenforced(&registry.find("batch", "v1", plural).unwrap(), &object);
    let job = json!({"completionMode": "Indexed", "podFailurePolicy": {}});
    let of_job = said("jobs", json!({"spec": job}));
    assert!(of_job[0].starts_with("spec.podFailurePolicy:") && of_job[1].starts_with("spec.completionMode:"));
    let of_cron_job = said("cronjobs", json!({"spec": {"jobTemplate": {"spec": job}}}));
    assert!(of_cron_job[1].starts_with("spec.jobTemplate.spec.completionMode:"), "{of_cron_job:?}");
    assert_eq!(said("jobs", json!({"spec": {"completionMode": "NonIndexed"}})), [""; 0]);
}

#[test]
fn what_a_stateful_set_asks_for_and_does_not_get_is_named() {
    let registry = Registry::new();
    let info = registry.find("apps", "v1", "statefulsets").unwrap();
    let said = |spec: Value| unenforced(&info, &json!({"spec": spec})).join("; ");
    let kept = said(
        json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"}}),
    );
    assert!(
        kept.starts_with("spec.persistentVolumeClaimRetentionPolicy.whenDeleted:")
            && !kept.contains("whenScaled")
    );
    let rolling = said(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}));
    assert!(rolling.starts_with("spec.updateStrategy.rollingUpdate.maxUnavailable:"), "{rolling}");
    assert_eq!(said(json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}})), "");
}
