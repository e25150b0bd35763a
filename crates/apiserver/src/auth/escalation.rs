// SPDX-License-Identifier: Apache-2.0
//! RBAC escalation check: users can only grant permissions they hold. A grant is split into single permissions, each
//! of which one of the writer's own rules must cover.

use serde_json::Value;

use super::rbac::{self, Rule, covers_path, covers_resource, text};
use super::{Attributes, Auth, ResourceTarget, Target, User, Verdict};
use crate::status::Refusal;

/// Refuses a write to `resource` that gives more than the writer has.
pub(super) fn admit(
    auth: &Auth,
    user: &User,
    (resource, request_name): (&str, &str),
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Refusal> {
    if old.is_some_and(|old| only_collects_garbage(old, object)) {
        return Ok(());
    }
    let namespace = text(object, "/metadata/namespace");
    let may = |verb, resource, name| {
        let target = ResourceTarget {
            group: rbac::GROUP,
            resource,
            namespace: &namespace,
            name,
            ..ResourceTarget::default()
        };
        matches!(
            auth.judge(user, &Attributes { verb, target: Target::Resource(target) }),
            Verdict::Allowed(_)
        )
    };
    let given = match resource {
        "roles" | "clusterroles" => {
            if may("escalate", resource, request_name) {
                return Ok(());
            }
            let mut rules = rbac::rules(object);
            // It gathers whatever roles come to have its labels.
            if rbac::is_aggregated(object) || old.is_some_and(rbac::is_aggregated) {
                rules.extend(everything());
            }
            rules
        }
        "rolebindings" | "clusterrolebindings" => {
            let (kind, name) = (text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
            let of = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if may("bind", of, name.as_str()) {
                return Ok(());
            }
            // A role that does not exist yet may be anything later: only who may bind it may name it.
            rules_of(auth, of, &namespace, &name).unwrap_or_else(everything)
        }
        _ => return Ok(()),
    };
    let missing = missing(auth, user, &namespace, &given);
    if missing.is_empty() {
        return Ok(());
    }
    let object_name = text(object, "/metadata/name");
    Err(Refusal::forbidden(format!(
        "{resource}.{} {object_name:?} is forbidden: user {:?} (groups={:?}) is attempting to grant RBAC permissions \
         not currently held:\n{}",
        rbac::GROUP,
        user.name,
        user.groups,
        missing.join("\n"),
    )))
}

/// Whether a write changes nothing but what garbage collection needs to: its collector need not hold every right.
fn only_collects_garbage(old: &Value, new: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for key in ["ownerReferences", "finalizers", "managedFields", "generation", "resourceVersion"] {
                metadata.remove(key);
            }
        }
        object
    };
    without(old) == without(new)
}

/// The rules of a role as they hold now.
fn rules_of(auth: &Auth, resource: &str, namespace: &str, name: &str) -> Option<Vec<Rule>> {
    if resource == "clusterroles" {
        return rbac::cluster_roles(&*auth.objects).get(name).map(|rules| rules.to_vec());
    }
    auth.objects.get(rbac::GROUP, "roles", namespace, name).map(|role| rbac::rules(&role))
}

/// What the user does not hold of what is given, as text.
fn missing(auth: &Auth, user: &User, namespace: &str, given: &[Rule]) -> Vec<String> {
    // Members of this group hold everything, without a rule that says so.
    if user.is_in("system:masters") {
        return Vec::new();
    }
    let rbac = auth.rbac.get(&*auth.objects);
    let own: Vec<&Rule> = rbac.rules_for(user, namespace).collect();
    let lacks = |atom: &Atom<'_>| !own.iter().any(|rule| atom.is_in(rule));
    given.iter().flat_map(atoms).filter(lacks).map(|atom| atom.text()).collect()
}

/// Every verb on every resource and path.
fn everything() -> Vec<Rule> {
    let any = || vec!["*".to_owned()];
    vec![
        Rule { verbs: any(), api_groups: any(), resources: any(), ..Rule::default() },
        Rule { verbs: any(), non_resource_urls: any(), ..Rule::default() },
    ]
}

/// One verb on one thing.
enum Atom<'a> {
    Resource { verb: &'a str, group: &'a str, resource: &'a str, name: Option<&'a str> },
    Path { verb: &'a str, path: &'a str },
}

fn atoms(rule: &Rule) -> Vec<Atom<'_>> {
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom = |name| Atom::Resource { verb, group, resource, name };
                if rule.resource_names.is_empty() {
                    atoms.push(atom(None));
                }
                atoms.extend(rule.resource_names.iter().map(|name| atom(Some(name))));
            }
        }
        atoms.extend(rule.non_resource_urls.iter().map(|path| Atom::Path { verb, path }));
    }
    atoms
}

impl Atom<'_> {
    fn is_in(&self, rule: &Rule) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|have| have == "*" || have == wanted);
        match *self {
            Self::Resource { verb, group, resource, name } => {
                let (of, sub) = resource.split_once('/').unwrap_or((resource, ""));
                has(&rule.verbs, verb)
                    && has(&rule.api_groups, group)
                    && rule.resources.iter().any(|have| have == resource || covers_resource(have, of, sub))
                    && (rule.resource_names.is_empty()
                        || name.is_some_and(|name| rule.resource_names.iter().any(|have| have == name)))
            }
            Self::Path { verb, path } => {
                has(&rule.verbs, verb)
                    && rule.non_resource_urls.iter().any(|have| have == path || covers_path(have, path))
            }
        }
    }

    fn text(&self) -> String {
        match *self {
            Self::Resource { verb, group, resource, name: None } => {
                format!("{{APIGroups:[{group:?}], Resources:[{resource:?}], Verbs:[{verb:?}]}}")
            }
            Self::Resource { verb, group, resource, name: Some(name) } => format!(
                "{{APIGroups:[{group:?}], Resources:[{resource:?}], ResourceNames:[{name:?}], Verbs:[{verb:?}]}}"
            ),
            Self::Path { verb, path } => format!("{{NonResourceURLs:[{path:?}], Verbs:[{verb:?}]}}"),
        }
    }
}
