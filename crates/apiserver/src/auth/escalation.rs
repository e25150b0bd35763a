// SPDX-License-Identifier: Apache-2.0
//! Nobody gives by a role or binding what they do not have: every atom of the rules must be allowed to the writer.

use serde_json::Value;

use super::rbac::{self, Rule, covers_path, covers_resource, text};
use super::{Attributes, Auth, ResourceTarget, Target, User, Verdict};
use crate::status::Refusal;

/// Refuses a write to `resource` that gives more than the writer has.
pub(super) fn admit(auth: &Auth, user: &User, resource: &str, object: &Value) -> Result<(), Refusal> {
    let namespace = text(object, "/metadata/namespace");
    let (rules, verb, of, name) = match resource {
        "roles" | "clusterroles" => {
            (rbac::rules(object), "escalate", resource.to_owned(), text(object, "/metadata/name"))
        }
        "rolebindings" | "clusterrolebindings" => {
            let (kind, name) = (text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
            let (rules, of) = if kind == "ClusterRole" {
                let roles = rbac::cluster_roles(&*auth.objects);
                (roles.get(&name).map(|r| r.to_vec()), "clusterroles")
            } else {
                let role = auth.objects.get(rbac::GROUP, "roles", &namespace, &name);
                (role.map(|r| rbac::rules(&r)), "roles")
            };
            // A role that does not exist yet may be anything later: only who may bind it may name it.
            (rules.unwrap_or_else(|| vec![everything()]), "bind", of.to_owned(), name)
        }
        _ => return Ok(()),
    };
    let target = ResourceTarget {
        group: rbac::GROUP,
        resource: &of,
        namespace: &namespace,
        name: &name,
        ..ResourceTarget::default()
    };
    if let Verdict::Allowed(_) = auth.judge(user, &Attributes { verb, target: Target::Resource(target) }) {
        return Ok(());
    }
    let rbac = auth.rbac.get(&*auth.objects);
    let own: Vec<&Rule> = rbac.rules_for(user, &namespace).collect();
    let missing: Vec<String> = rules
        .iter()
        .flat_map(atoms)
        .filter(|atom| !own.iter().any(|rule| atom.is_in(rule)))
        .map(|a| a.text())
        .collect();
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

fn everything() -> Rule {
    let any = || vec!["*".to_owned()];
    Rule { verbs: any(), api_groups: any(), resources: any(), ..Rule::default() }
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
