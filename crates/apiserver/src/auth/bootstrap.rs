// SPDX-License-Identifier: Apache-2.0
//! The roles and bindings that a cluster starts with.

use serde_json::{Value, json};

const API: &str = "rbac.authorization.k8s.io/v1";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// Paths that everyone may read.
const PUBLIC: &[&str] =
    &["/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*", "/version", "/version/"];
/// Paths that say what the API has.
const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
/// Paths that say who issues tokens.
const ISSUER: &[&str] = &[
    "/.well-known/openid-configuration",
    "/.well-known/openid-configuration/",
    "/openid/v1/jwks",
    "/openid/v1/jwks/",
];

/// ClusterRoles and ClusterRoleBindings to be created where they are missing.
pub fn bootstrap_objects() -> Vec<Value> {
    let paths = |urls: &[&str]| json!([{"nonResourceURLs": urls, "verbs": ["get"]}]);
    vec![
        role(
            "cluster-admin",
            json!([
                {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                {"nonResourceURLs": ["*"], "verbs": ["*"]},
            ]),
        ),
        aggregated("admin", &["admin", "edit", "view"]),
        aggregated("edit", &["edit", "view"]),
        aggregated("view", &["view"]),
        aggregate_to("admin", admin_rules()),
        aggregate_to("edit", edit_rules()),
        aggregate_to("view", view_rules()),
        role("system:public-info-viewer", paths(PUBLIC)),
        role("system:discovery", paths(DISCOVERY)),
        role("system:service-account-issuer-discovery", paths(ISSUER)),
        role("system:basic-user", basic_user_rules()),
        role("system:auth-delegator", auth_delegator_rules()),
        role("system:kube-controller-manager", controller_rules()),
        binding("cluster-admin", "cluster-admin", &[group("system:masters")]),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            &[group("system:authenticated"), group("system:unauthenticated")],
        ),
        binding("system:discovery", "system:discovery", &[group("system:authenticated")]),
        binding("system:basic-user", "system:basic-user", &[group("system:authenticated")]),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &[group("system:serviceaccounts")],
        ),
        binding(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            &[
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-controller-manager"}),
            ],
        ),
    ]
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Value) -> Value {
    json!({"apiVersion": API, "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

/// A role with the rules of every ClusterRole that has one of the labels.
fn aggregated(name: &str, labels: &[&str]) -> Value {
    let selectors: Vec<Value> =
        labels.iter().map(|label| json!({"matchLabels": {aggregation_label(label): "true"}})).collect();
    let mut role = role(name, json!([]));
    role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    role
}

fn aggregation_label(name: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{name}")
}

/// The rules of the built-in kinds for an aggregated role.
fn aggregate_to(name: &str, rules: Value) -> Value {
    let mut role = role(&format!("system:aggregate-to-{name}"), rules);
    role["metadata"]["labels"][aggregation_label(name)] = "true".into();
    role
}

fn group(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name})
}

fn binding(name: &str, role: &str, subjects: &[Value]) -> Value {
    json!({
        "apiVersion": API, "kind": "ClusterRoleBinding", "metadata": metadata(name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// Namespaced resources of the built-in groups, without Secrets and what grants rights.
fn workloads(verbs: &[&str]) -> Vec<Value> {
    vec![
        json!({"apiGroups": [""], "resources": ["configmaps", "endpoints", "persistentvolumeclaims", "pods",
            "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services"], "verbs": verbs}),
        json!({"apiGroups": ["apps"], "resources": ["daemonsets", "deployments", "deployments/scale", "replicasets",
            "replicasets/scale", "statefulsets", "statefulsets/scale"], "verbs": verbs}),
        json!({"apiGroups": ["batch"], "resources": ["cronjobs", "jobs"], "verbs": verbs}),
        json!({"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": verbs}),
        json!({"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": verbs}),
        json!({"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "networkpolicies"], "verbs": verbs}),
    ]
}

fn view_rules() -> Value {
    let mut rules = workloads(&READ);
    rules.extend([
        json!({"apiGroups": [""], "resources": ["bindings", "events", "limitranges", "namespaces", "namespaces/status",
            "persistentvolumeclaims/status", "pods/log", "pods/status", "resourcequotas", "resourcequotas/status",
            "services/status"], "verbs": READ}),
        json!({"apiGroups": ["apps"], "resources": ["controllerrevisions", "daemonsets/status", "deployments/status",
            "replicasets/status", "statefulsets/status"], "verbs": READ}),
        json!({"apiGroups": ["batch"], "resources": ["cronjobs/status", "jobs/status"], "verbs": READ}),
        json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": READ}),
    ]);
    Value::Array(rules)
}

fn edit_rules() -> Value {
    let Value::Array(mut rules) = view_rules() else { return Value::Null };
    rules.extend(workloads(&WRITE));
    rules.extend([
        json!({"apiGroups": [""], "resources": ["secrets"], "verbs": READ}),
        json!({"apiGroups": [""], "resources": ["secrets", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy",
            "services/proxy", "pods/eviction"], "verbs": WRITE}),
        json!({"apiGroups": [""], "resources": ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy",
            "services/proxy"], "verbs": READ}),
        json!({"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}),
        json!({"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]}),
        json!({"apiGroups": [""], "resources": ["events"], "verbs": WRITE}),
    ]);
    Value::Array(rules)
}

fn admin_rules() -> Value {
    let Value::Array(mut rules) = edit_rules() else { return Value::Null };
    let verbs: Vec<&str> = READ.iter().chain(&WRITE).copied().collect();
    rules.extend([
        json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": verbs}),
        json!({"apiGroups": ["authorization.k8s.io"], "resources": ["localsubjectaccessreviews"], "verbs": ["create"]}),
    ]);
    Value::Array(rules)
}

fn basic_user_rules() -> Value {
    json!([
        {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
         "verbs": ["create"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
    ])
}

fn auth_delegator_rules() -> Value {
    json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ])
}

/// One process runs all built-in controllers and the scheduler. It may see and delete everything (garbage
/// collection, namespace deletion), but it makes only what these controllers make, and no roles.
fn controller_rules() -> Value {
    json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch", "delete", "deletecollection"]},
        {"apiGroups": [""], "resources": ["pods", "events", "endpoints", "configmaps", "serviceaccounts",
            "persistentvolumeclaims"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": [""], "resources": ["pods/binding", "bindings", "pods/eviction"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["pods/status", "nodes", "nodes/status", "services", "services/status",
            "namespaces", "namespaces/status", "namespaces/finalize"], "verbs": ["update", "patch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": ["batch"], "resources": ["*"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["create", "update", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "update", "patch"]},
        // Garbage collection takes owner references and finalizers away, whatever the object.
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["patch", "update"]},
    ])
}
