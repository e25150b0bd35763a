// SPDX-License-Identifier: Apache-2.0
//! Layer 4 policies as JSON: rules, clauses, matches.

use meltemi_model::authz::{Action, Attribute, Match, Policy, Scope, StringMatch, ValueMatch};
use serde_json::{Map, Value, json};

pub(super) fn policy(policy: &Policy) -> Value {
    let scope = match policy.scope {
        Scope::Global => "Global",
        Scope::Namespace => "Namespace",
        Scope::WorkloadSelector => "WorkloadSelector",
    };
    let action = match policy.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Audit => "Audit",
        Action::Custom { .. } => "Custom",
    };
    let rules: Vec<Vec<Vec<Value>>> = policy
        .rules
        .iter()
        .map(|rule| rule.clauses.iter().map(|clause| clause.matches.iter().map(one).collect()).collect())
        .collect();
    json!({
        "name": policy.name.name, "namespace": policy.name.namespace, "scope": scope, "action": action,
        "rules": rules, "dryRun": policy.dry_run,
    })
}

fn one(one: &Match) -> Value {
    let mut all = Map::new();
    for predicate in &one.predicates {
        let (name, not) = match &predicate.attribute {
            Attribute::SourcePrincipal => ("principals", "notPrincipals"),
            Attribute::SourceNamespace => ("namespaces", "notNamespaces"),
            Attribute::SourceServiceAccount => ("serviceAccounts", "notServiceAccounts"),
            Attribute::SourceIp => ("sourceIps", "notSourceIps"),
            Attribute::DestinationIp => ("destinationIps", "notDestinationIps"),
            Attribute::DestinationPort => ("destinationPorts", "notDestinationPorts"),
            _ => ("unsupported", "notUnsupported"),
        };
        for (name, values) in [(name, &predicate.values), (not, &predicate.not_values)] {
            if !values.is_empty() {
                all.insert(name.to_owned(), values.iter().map(value).collect());
            }
        }
    }
    Value::Object(all)
}

fn value(value: &ValueMatch) -> Value {
    match value {
        ValueMatch::String(StringMatch::Exact(text)) => json!({ "Exact": text }),
        ValueMatch::String(StringMatch::Prefix(text)) => json!({ "Prefix": text }),
        ValueMatch::String(StringMatch::Suffix(text)) => json!({ "Suffix": text }),
        ValueMatch::String(StringMatch::Presence) => json!({ "Presence": {} }),
        ValueMatch::Cidr(net) => json!(net.to_string()),
        ValueMatch::Port(port) => json!(port),
        ValueMatch::ServiceAccount { namespace, name } => json!(format!("{namespace}/{name}")),
        ValueMatch::PathTemplate(template) => json!(template.0),
    }
}
