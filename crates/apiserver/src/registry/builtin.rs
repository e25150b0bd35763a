// SPDX-License-Identifier: Apache-2.0
//! The built-in resources, one line each.

use super::{ResourceInfo, Scale};

const NS: bool = true;
const CLUSTER: bool = false;

/// group, version, kind, plural, singular, short names, categories, namespaced, has a status.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    bool,
    bool,
);

const ROWS: &[Row] = &[
    ("", "v1", "Namespace", "namespaces", "namespace", "ns", "", CLUSTER, true),
    ("", "v1", "Node", "nodes", "node", "no", "", CLUSTER, true),
    ("", "v1", "Pod", "pods", "pod", "po", "all", NS, true),
    ("", "v1", "Service", "services", "service", "svc", "all", NS, true),
    ("", "v1", "Endpoints", "endpoints", "endpoints", "ep", "", NS, false),
    ("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", "sa", "", NS, false),
    ("", "v1", "ConfigMap", "configmaps", "configmap", "cm", "", NS, false),
    ("", "v1", "Secret", "secrets", "secret", "", "", NS, false),
    ("", "v1", "Event", "events", "event", "ev", "", NS, false),
    ("", "v1", "LimitRange", "limitranges", "limitrange", "limits", "", NS, false),
    ("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", "quota", "", NS, true),
    (
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
        "pvc",
        "",
        NS,
        true,
    ),
    ("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume", "pv", "", CLUSTER, true),
    (
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
        "rc",
        "all",
        NS,
        true,
    ),
    ("", "v1", "PodTemplate", "podtemplates", "podtemplate", "", "", NS, false),
    ("apps", "v1", "Deployment", "deployments", "deployment", "deploy", "all", NS, true),
    ("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "rs", "all", NS, true),
    ("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "ds", "all", NS, true),
    ("apps", "v1", "StatefulSet", "statefulsets", "statefulset", "sts", "all", NS, true),
    ("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision", "", "", NS, false),
    ("batch", "v1", "Job", "jobs", "job", "", "all", NS, true),
    ("batch", "v1", "CronJob", "cronjobs", "cronjob", "cj", "all", NS, true),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice", "", "", NS, false),
    ("events.k8s.io", "v1", "Event", "events", "event", "ev", "", NS, false),
    ("coordination.k8s.io", "v1", "Lease", "leases", "lease", "", "", NS, false),
    (
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "hpa",
        "all",
        NS,
        true,
    ),
    (
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "poddisruptionbudget",
        "pdb",
        "",
        NS,
        true,
    ),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy", "netpol", "", NS, false),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", "ing", "", NS, true),
    ("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass", "", "", CLUSTER, false),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", "role", "", "", NS, false),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "rolebinding", "", "", NS, false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "clusterrole", "", "", CLUSTER, false),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        "",
        "",
        CLUSTER,
        false,
    ),
    (
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        "priorityclass",
        "pc",
        "",
        CLUSTER,
        false,
    ),
    ("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", "sc", "", CLUSTER, false),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
        "crd,crds",
        "api-extensions",
        CLUSTER,
        true,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        "",
        "api-extensions",
        CLUSTER,
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        "",
        "api-extensions",
        CLUSTER,
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
        "",
        "api-extensions",
        CLUSTER,
        true,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        "",
        "api-extensions",
        CLUSTER,
        false,
    ),
    (
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservices",
        "apiservice",
        "",
        "api-extensions",
        CLUSTER,
        true,
    ),
];

/// Computed, never stored: group, version, kind, plural, singular, namespaced.
const VIRTUAL: &[(&str, &str, &str, &str, &str, bool)] = &[
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "tokenreview", CLUSTER),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview", CLUSTER),
    (
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        CLUSTER,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        CLUSTER,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        NS,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        CLUSTER,
    ),
];

/// Kinds with a scale subresource.
const SCALED: &[&str] = &["Deployment", "ReplicaSet", "StatefulSet", "ReplicationController"];

pub(super) fn resources() -> Vec<ResourceInfo> {
    let stored = ROWS.iter().map(
        |&(group, version, kind, plural, singular, short, categories, namespaced, status)| {
            let scale = SCALED.contains(&kind).then(|| Scale {
                spec_replicas: "spec.replicas".into(),
                status_replicas: "status.replicas".into(),
                label_selector: None,
            });
            // Events are one resource under two groups.
            let key = if kind == "Event" { "/events".to_owned() } else { format!("{group}/{plural}") };
            ResourceInfo {
                group: group.into(),
                version: version.into(),
                kind: kind.into(),
                plural: plural.into(),
                singular: singular.into(),
                short_names: words(short),
                categories: words(categories),
                namespaced,
                status,
                scale,
                virtual_only: false,
                custom: None,
                key: key.into(),
            }
        },
    );
    let computed = VIRTUAL.iter().map(|&(group, version, kind, plural, singular, namespaced)| ResourceInfo {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: singular.into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        status: false,
        scale: None,
        virtual_only: true,
        custom: None,
        key: format!("{group}/{plural}").into(),
    });
    stored.chain(computed).collect()
}

fn words(list: &str) -> Vec<String> {
    list.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect()
}
