// SPDX-License-Identifier: Apache-2.0
//! Role-based access control over the live Roles and bindings, compiled when they have changed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attributes, Objects, ResourceTarget, Target, User};
use crate::selector::Labels;

/// The group of the objects read here.
pub(super) const GROUP: &str = "rbac.authorization.k8s.io";

/// A `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    pub(super) verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub(super) non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether the rule allows the request.
    pub(super) fn allows(&self, attributes: &Attributes<'_>) -> bool {
        let verb = self.verbs.iter().any(|v| v == "*" || v == attributes.verb);
        verb && match attributes.target {
            Target::Resource(target) => self.covers(&target),
            Target::Path(path) => self.non_resource_urls.iter().any(|url| covers_path(url, path)),
        }
    }

    fn covers(&self, target: &ResourceTarget<'_>) -> bool {
        let named = self.resource_names.is_empty()
            || (!target.name.is_empty() && self.resource_names.iter().any(|n| n == target.name));
        named
            && self.api_groups.iter().any(|g| g == "*" || g == target.group)
            && self.resources.iter().any(|r| covers_resource(r, target.resource, target.subresource))
    }
}

/// Whether a rule's resource (`*`, `pods`, `pods/log`, `*/scale`) covers a request's.
pub(super) fn covers_resource(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == "*" || of == resource),
    }
}

/// Whether a rule's URL (`*`, `/healthz`, `/healthz/*`) covers a path.
pub(super) fn covers_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

/// A binding's role, for the subjects that it is indexed by.
struct Grant {
    /// The namespace in which it holds; everywhere (and for paths) when there is none.
    namespace: Option<String>,
    rules: Arc<Vec<Rule>>,
    binding: String,
    role: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// All grants by subject.
#[derive(Default)]
pub(super) struct Rbac {
    grants: HashMap<Subject, Vec<Grant>>,
}

impl Rbac {
    /// Reads roles and bindings; a binding whose role does not exist grants nothing.
    pub(super) fn compile(objects: &dyn Objects) -> Self {
        let mut rbac = Self::default();
        let cluster_roles = cluster_roles(objects);
        let roles: HashMap<(String, String), Arc<Vec<Rule>>> = objects
            .list(GROUP, "roles", None)
            .iter()
            .map(|role| {
                ((text(role, "/metadata/namespace"), text(role, "/metadata/name")), Arc::new(rules(role)))
            })
            .collect();
        for binding in objects.list(GROUP, "clusterrolebindings", None) {
            if let Some(rules) = cluster_roles.get(&text(&binding, "/roleRef/name")) {
                rbac.add(&binding, None, rules);
            }
        }
        for binding in objects.list(GROUP, "rolebindings", None) {
            let (namespace, role) = (text(&binding, "/metadata/namespace"), text(&binding, "/roleRef/name"));
            let rules = match text(&binding, "/roleRef/kind").as_str() {
                "ClusterRole" => cluster_roles.get(&role),
                _ => roles.get(&(namespace.clone(), role)),
            };
            if let Some(rules) = rules {
                rbac.add(&binding, Some(namespace), rules);
            }
        }
        rbac
    }

    fn add(&mut self, binding: &Value, namespace: Option<String>, rules: &Arc<Vec<Rule>>) {
        let kind = if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
        let name = match &namespace {
            Some(namespace) => format!("{}/{namespace}", text(binding, "/metadata/name")),
            None => text(binding, "/metadata/name"),
        };
        let role = format!("{} {:?}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let name_of = text(subject, "/name");
            let subject = match text(subject, "/kind").as_str() {
                "User" => Subject::User(name_of),
                "Group" => Subject::Group(name_of),
                "ServiceAccount" => {
                    let given = text(subject, "/namespace");
                    let of = if given.is_empty() { namespace.clone().unwrap_or_default() } else { given };
                    Subject::User(format!("system:serviceaccount:{of}:{name_of}"))
                }
                _ => continue,
            };
            self.grants.entry(subject).or_default().push(Grant {
                namespace: namespace.clone(),
                rules: rules.clone(),
                binding: format!("{kind} {name:?}"),
                role: role.clone(),
            });
        }
    }

    /// What allows the request, if anything does.
    pub(super) fn judge(&self, user: &User, attributes: &Attributes<'_>) -> Option<String> {
        let namespace = match attributes.target {
            Target::Resource(target) => target.namespace,
            Target::Path(_) => "",
        };
        self.of(user).find_map(|(subject, grant)| {
            let here = grant.namespace.as_deref().is_none_or(|n| n == namespace);
            (here && grant.rules.iter().any(|rule| rule.allows(attributes)))
                .then(|| format!("RBAC: allowed by {} of {} to {subject}", grant.binding, grant.role))
        })
    }

    /// The rules that hold for the user in the namespace (cluster-wide ones included).
    pub(super) fn rules_for<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Rule> {
        self.of(user)
            .filter(move |(_, grant)| grant.namespace.as_deref().is_none_or(|n| n == namespace))
            .flat_map(|(_, grant)| grant.rules.iter())
    }

    fn of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = (String, &'a Grant)> {
        let subjects = std::iter::once(Subject::User(user.name.clone()))
            .chain(user.groups.iter().cloned().map(Subject::Group));
        subjects.filter_map(|subject| self.grants.get_key_value(&subject)).flat_map(|(subject, grants)| {
            let text = match subject {
                Subject::User(name) => {
                    match name.strip_prefix("system:serviceaccount:").map(|s| s.split_once(':')) {
                        Some(Some((namespace, name))) => format!("ServiceAccount \"{name}/{namespace}\""),
                        _ => format!("User {name:?}"),
                    }
                }
                Subject::Group(name) => format!("Group {name:?}"),
            };
            grants.iter().map(move |grant| (text.clone(), grant))
        })
    }
}

/// The compiled form, with the revision it was made of.
#[derive(Default)]
pub(super) struct Cache(Mutex<Option<(u64, Arc<Rbac>)>>);

impl Cache {
    /// The compiled form of the present objects.
    pub(super) fn get(&self, objects: &dyn Objects) -> Arc<Rbac> {
        // Read first: objects that change in between are newer than the revision noted and compiled again next time.
        let revision = objects.rbac_revision();
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cache {
            Some((of, rbac)) if *of == revision => rbac.clone(),
            _ => {
                let rbac = Arc::new(Rbac::compile(objects));
                *cache = Some((revision, rbac.clone()));
                rbac
            }
        }
    }
}

/// The rules of an object of kind Role or ClusterRole; an unreadable rule grants nothing.
pub(super) fn rules(role: &Value) -> Vec<Rule> {
    let rules = role["rules"].as_array().into_iter().flatten();
    rules.filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

/// Whether a ClusterRole gathers the rules of others.
pub(super) fn is_aggregated(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|list| !list.is_empty())
}

/// ClusterRoles by name. One with an `aggregationRule` has the rules of those that it selects and none of its own,
/// which Kubernetes overwrites.
pub(super) fn cluster_roles(objects: &dyn Objects) -> HashMap<String, Arc<Vec<Rule>>> {
    let all = objects.list(GROUP, "clusterroles", None);
    all.iter().map(|role| (text(role, "/metadata/name"), Arc::new(gathered(&all, role)))).collect()
}

/// Aggregated ClusterRoles whose `rules` are not those that they gather, with the right ones: what people read there is
/// what holds.
pub(super) fn outdated_aggregates(objects: &dyn Objects) -> Vec<Value> {
    let all = objects.list(GROUP, "clusterroles", None);
    let outdated = |role: &Arc<Value>| {
        let mut found: Vec<Rule> = Vec::new();
        for rule in gathered(&all, role) {
            if !found.contains(&rule) {
                found.push(rule);
            }
        }
        let rules = serde_json::to_value(found).ok()?;
        (role["rules"] != rules).then(|| {
            let mut role = Value::clone(role);
            role["rules"] = rules;
            role
        })
    };
    all.iter().filter(|role| is_aggregated(role)).filter_map(outdated).collect()
}

fn gathered(all: &[Arc<Value>], role: &Value) -> Vec<Rule> {
    let (mut found, mut seen, mut pending) = (Vec::new(), HashSet::new(), vec![role]);
    // What is gathered can itself gather, in circles too.
    while let Some(role) = pending.pop() {
        if !seen.insert(text(role, "/metadata/name")) {
            continue;
        }
        if !is_aggregated(role) {
            found.extend(rules(role));
            continue;
        }
        let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
        for selector in selectors.map(Labels::from_object) {
            pending.extend(all.iter().map(|other| &**other).filter(|other| selector.matches(other)));
        }
    }
    found
}

pub(super) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
