// SPDX-License-Identifier: Apache-2.0
//! What RBAC allows, read off Kubernetes' documentation ("Using RBAC Authorization", "Authorization Overview") and
//! written without a look at the server: plain loops over the objects, no index and no cache.

use serde_json::Value;

/// The objects that decide.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) roles: Vec<Value>,
    pub(crate) cluster_roles: Vec<Value>,
    pub(crate) role_bindings: Vec<Value>,
    pub(crate) cluster_role_bindings: Vec<Value>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

/// What is asked for; empty where the request says nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) group: String,
    /// `pods` or `pods/log`.
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("")
}

/// "Each rule … `verbs`, `apiGroups`, `resources`, `resourceNames`". `*` stands for all. A subresource is written with a
/// slash; `*/scale` is that subresource of every resource. With `resourceNames` a request must name one of them.
fn rule_allows(rule: &Value, asked: &Asked) -> bool {
    let verbs = strings(&rule["verbs"]);
    if !verbs.contains(&"*") && !verbs.contains(&asked.verb.as_str()) {
        return false;
    }
    let groups = strings(&rule["apiGroups"]);
    if !groups.contains(&"*") && !groups.contains(&asked.group.as_str()) {
        return false;
    }
    let resources = strings(&rule["resources"]);
    let mut covered = resources.contains(&"*") || resources.contains(&asked.resource.as_str());
    if let Some((_, sub)) = asked.resource.split_once('/') {
        covered = covered || resources.contains(&format!("*/{sub}").as_str());
    }
    let names = strings(&rule["resourceNames"]);
    covered && (names.is_empty() || names.contains(&asked.name.as_str()))
}

/// A label selector: every label, and every expression.
fn selects(selector: &Value, role: &Value) -> bool {
    let labels = &role["metadata"]["labels"];
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut holds = equal.fold(true, |holds, (key, value)| holds && labels[key] == *value);
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let found = labels[text(expression, "/key")].as_str();
        let listed = found.is_some_and(|found| strings(&expression["values"]).contains(&found));
        holds = holds
            && match text(expression, "/operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                _ => found.is_none(),
            };
    }
    holds
}

/// "The control plane overwrites any values that you manually specify in the `rules` field of an aggregate ClusterRole":
/// with the rules of the roles that it selects, which can be aggregates themselves.
fn rules_of_cluster_role<'a>(objects: &'a Objects, name: &str, path: &mut Vec<String>) -> Vec<&'a Value> {
    let Some(role) = objects.cluster_roles.iter().find(|role| text(role, "/metadata/name") == name) else {
        return Vec::new();
    };
    let own = role["rules"].as_array().into_iter().flatten();
    let Some(selectors) =
        role["aggregationRule"]["clusterRoleSelectors"].as_array().filter(|l| !l.is_empty())
    else {
        return own.collect();
    };
    if path.iter().any(|before| before == name) {
        return Vec::new();
    }
    path.push(name.to_owned());
    let mut rules = Vec::new();
    for other in &objects.cluster_roles {
        if selectors.iter().any(|selector| selects(selector, other)) {
            rules.extend(rules_of_cluster_role(objects, text(other, "/metadata/name"), path));
        }
    }
    path.pop();
    rules
}

/// "A subject is a user, a group, or a service account"; that of a ServiceAccount is `system:serviceaccount:NS:NAME`.
fn is_subject(subject: &Value, who: &Who, namespace: &str) -> bool {
    let name = text(subject, "/name");
    match text(subject, "/kind") {
        "User" => who.name == name,
        "Group" => who.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let of =
                if text(subject, "/namespace").is_empty() { namespace } else { text(subject, "/namespace") };
            who.name == format!("system:serviceaccount:{of}:{name}")
        }
        _ => false,
    }
}

fn binds(binding: &Value, who: &Who, namespace: &str) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| is_subject(subject, who, namespace))
}

/// "Permissions are purely additive (there are no deny rules)."
pub(crate) fn allows(objects: &Objects, who: &Who, asked: &Asked) -> bool {
    if who.groups.iter().any(|group| group == "system:masters") {
        return true;
    }
    for binding in objects.cluster_role_bindings.iter().filter(|binding| binds(binding, who, "")) {
        let rules = rules_of_cluster_role(objects, text(binding, "/roleRef/name"), &mut Vec::new());
        if rules.into_iter().any(|rule| rule_allows(rule, asked)) {
            return true;
        }
    }
    for binding in &objects.role_bindings {
        let namespace = text(binding, "/metadata/namespace");
        if namespace != asked.namespace || !binds(binding, who, namespace) {
            continue;
        }
        let name = text(binding, "/roleRef/name");
        let rules: Vec<&Value> = if text(binding, "/roleRef/kind") == "ClusterRole" {
            rules_of_cluster_role(objects, name, &mut Vec::new())
        } else {
            let is_meant = |role: &&Value| {
                text(role, "/metadata/name") == name && text(role, "/metadata/namespace") == namespace
            };
            let role = objects.roles.iter().find(is_meant);
            role.into_iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()).collect()
        };
        if rules.into_iter().any(|rule| rule_allows(rule, asked)) {
            return true;
        }
    }
    false
}
