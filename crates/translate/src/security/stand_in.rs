// SPDX-License-Identifier: Apache-2.0
//! What is enforced of an AuthorizationPolicy that is not valid and came past admission.
//!
//! It is not taken for none. What can be read of it holds; a rule that cannot be read allows nothing in an ALLOW and
//! denies everything in a DENY or CUSTOM; a target that cannot be read is the whole namespace.

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Policy, Rule, Scope};
use meltemi_policy::ValidPolicy;
use meltemi_policy::check::MAX_RULES;
use meltemi_resources::policies::{self as api, AuthorizationPolicySpec, validate};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::authorization::{self, Authorization};
use crate::facts::Labels;
use crate::mesh::MeshConfig;

/// Fields of a spec; a typo of one of them could hide rules.
const FIELDS: &[&str] = &["selector", "targetRef", "targetRefs", "rules", "action", "provider"];

/// Reads what can be read of a spec; `fault` is why it is not valid.
pub fn read(
    name: &NamespacedName,
    spec: &Value,
    annotations: &Labels,
    mesh: &MeshConfig,
    fault: String,
) -> Authorization {
    let action = match part::<api::Action>(&spec["action"]) {
        Ok(action) => action.unwrap_or_default(),
        // An action that nobody knows lets nothing through.
        Err(()) => api::Action::Deny,
    };
    let known_action = part::<api::Action>(&spec["action"]).is_ok();
    let provider = spec["provider"]["name"].as_str().unwrap_or_default();
    let (selector, targets) = place(spec);
    let complete = spec.as_object().is_some_and(|s| s.keys().all(|k| FIELDS.contains(&k.as_str())));
    let mut read = Vec::new();
    let mut rules = Vec::new();
    let mut whole = complete && known_action;
    match &spec["rules"] {
        Value::Null => {}
        Value::Array(written) => {
            for one in written {
                match valid(one, action, provider).and_then(|api| Some((taken(&api, name, mesh)?, api))) {
                    Some((rule, api)) => {
                        rules.push(rule);
                        read.push(api);
                    }
                    None => whole = false,
                }
            }
        }
        _ => whole = false,
    }
    if rules.len() > MAX_RULES {
        rules.clear();
        whole = false;
    }
    if !whole && matches!(action, api::Action::Deny | api::Action::Custom) {
        rules.push(Rule::default());
    }
    let action = authorization::action(action, provider);
    // Nobody can be asked without a name: who is to be asked denies.
    let action = if matches!(&action, Action::Custom { provider } if provider.is_empty()) {
        Action::Deny
    } else {
        action
    };
    let scope = authorization::scope(&selector, &targets, name, mesh);
    let dry_run = authorization::dry_run(annotations);
    let policy = Policy { name: name.clone(), scope, action, dry_run, rules };
    Authorization {
        policy: ValidPolicy::new(policy)
            .unwrap_or_else(|_| ValidPolicy::deny_everything(name.clone(), scope)),
        selector,
        targets,
        http: authorization::http(read.iter()),
        aliased: authorization::aliased(read.iter(), mesh),
        faults: vec![fault],
    }
}

/// A part of a spec: absent, read, or not understood.
fn part<T: DeserializeOwned>(value: &Value) -> Result<Option<T>, ()> {
    serde_json::from_value(value.clone()).map_err(drop)
}

/// A rule that is valid by itself.
fn valid(rule: &Value, action: api::Action, provider: &str) -> Option<api::Rule> {
    let rule: api::Rule = serde_json::from_value(rule.clone()).ok()?;
    let provider = match (action, provider) {
        (api::Action::Custom, "") => Some("nobody"),
        (api::Action::Custom, name) => Some(name),
        _ => None,
    };
    let alone = AuthorizationPolicySpec {
        action: Some(action),
        provider: provider.map(|name| api::Provider { name: name.to_owned() }),
        rules: Some(vec![rule.clone()]),
        ..AuthorizationPolicySpec::default()
    };
    validate::authorization_policy(&alone).ok().map(|()| rule)
}

/// A rule that the engine takes.
fn taken(api: &api::Rule, name: &NamespacedName, mesh: &MeshConfig) -> Option<Rule> {
    let rule = authorization::rule(api, name, mesh).ok()?;
    let alone = Policy {
        name: name.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: false,
        rules: vec![rule],
    };
    let valid = ValidPolicy::new(alone).ok()?;
    valid.policy().rules.first().cloned()
}

/// Selector and targets; neither when one of them cannot be read, or both are there.
pub(super) fn place(spec: &Value) -> (Option<Labels>, Vec<authorization::Reference>) {
    let selector = part::<api::WorkloadSelector>(&spec["selector"]);
    let one = part::<api::TargetRef>(&spec["targetRef"]);
    let many = part::<Vec<api::TargetRef>>(&spec["targetRefs"]);
    let (Ok(selector), Ok(target_ref), Ok(target_refs)) = (selector, one, many) else {
        return (None, Vec::new());
    };
    let alone =
        AuthorizationPolicySpec { selector, target_ref, target_refs, ..AuthorizationPolicySpec::default() };
    if validate::authorization_policy(&alone).is_err() {
        return (None, Vec::new());
    }
    let targets: Vec<_> = alone
        .target_refs
        .iter()
        .flatten()
        .chain(alone.target_ref.as_ref())
        .map(authorization::reference)
        .collect();
    (alone.selector.map(|s| s.match_labels.unwrap_or_default()), targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand_in(yaml: &str) -> Authorization {
        let spec: Value = serde_yaml_ng::from_str(yaml).unwrap();
        let name = NamespacedName::new("default", "p");
        let mesh = MeshConfig::default();
        // Only what is not valid gets here.
        let typed = serde_json::from_value(spec.clone()).map_err(|e: serde_json::Error| e.to_string());
        let fault =
            typed.and_then(|spec| authorization::read(&name, &spec, &Labels::new(), &mesh)).unwrap_err();
        read(&name, &spec, &Labels::new(), &mesh, fault)
    }

    #[test]
    fn what_cannot_be_read_allows_nothing_and_denies_everything() {
        let good = "{from: [{source: {principals: [a]}}]}";
        let everything = Rule::default();
        let long = "a".repeat(10_000);
        let cases = [
            // (policy, action, rules, is one of them everything)
            (format!("{{rules: [{good}, {{from: []}}]}}"), Action::Allow, 1, false),
            ("{rulez: []}".to_owned(), Action::Allow, 0, false),
            (format!("{{action: DENY, rules: [{good}, {{form: []}}]}}"), Action::Deny, 2, true),
            ("{action: DENY, rulez: []}".to_owned(), Action::Deny, 1, true),
            ("{action: DENY}".to_owned(), Action::Deny, 0, false),
            (format!("{{action: DROP, rules: [{good}]}}"), Action::Deny, 2, true),
            ("{action: DENY, rules: all}".to_owned(), Action::Deny, 1, true),
            ("{action: CUSTOM, rules: [{}]}".to_owned(), Action::Deny, 1, true),
            ("{action: AUDIT, rules: [{from: []}]}".to_owned(), Action::Audit, 0, false),
            (
                format!("{{action: DENY, rules: [{{when: [{{key: source.namespace, values: [{long}]}}]}}]}}"),
                Action::Deny,
                1,
                true,
            ),
        ];
        for (yaml, action, rules, all) in cases {
            let got = stand_in(&yaml).policy;
            assert_eq!((&got.action, got.rules.len()), (&action, rules), "{yaml}");
            assert_eq!(got.rules.contains(&everything), all, "{yaml}");
        }
    }

    #[test]
    fn more_rules_than_the_engine_takes_let_nothing_through() {
        for (action, left) in [("ALLOW", 0), ("DENY", 1), ("AUDIT", 0)] {
            let rules = vec![serde_json::json!({}); MAX_RULES + 1];
            let spec = serde_json::json!({"action": action, "rules": rules});
            let (name, mesh) = (NamespacedName::new("default", "p"), MeshConfig::default());
            let got = read(&name, &spec, &Labels::new(), &mesh, "too many".to_owned());
            assert_eq!(got.policy.rules, vec![Rule::default(); left], "{action}");
        }
    }

    #[test]
    fn a_target_that_cannot_be_read_is_the_namespace() {
        let service = "{kind: Service, name: x}";
        let cases = [
            ("{selector: {matchLabels: {a: 'b*'}}}".to_owned(), Scope::Namespace, 0),
            (
                format!("{{selector: {{matchLabels: {{a: b}}}}, targetRefs: [{service}]}}"),
                Scope::Namespace,
                0,
            ),
            ("{targetRefs: [{kind: Pod, name: x}]}".to_owned(), Scope::Namespace, 0),
            (format!("{{targetRefs: [{service}], rules: [{{from: []}}]}}"), Scope::WorkloadSelector, 1),
            ("{selector: {matchLabels: {a: b}}, rules: [{from: []}]}".to_owned(), Scope::WorkloadSelector, 0),
        ];
        for (yaml, scope, targets) in cases {
            let got = stand_in(&yaml);
            assert_eq!((got.policy.scope, got.targets.len()), (scope, targets), "{yaml}");
        }
    }
}
