// SPDX-License-Identifier: Apache-2.0
//! Policies and webhooks of admission: rules that name something, and expressions that can be evaluated. What cannot be
//! evaluated would deny or let through every request that it matches.

use std::collections::HashSet;

use serde_json::Value;

use super::{duplicate, is_qualified_name, one_of};
use crate::expression::Expression;
use crate::stack;
use crate::status::Cause;

/// Most variables, conditions and validations of one policy.
const MAX_EXPRESSIONS: usize = 64;

fn list(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

/// A ValidatingAdmissionPolicy.
pub(super) fn policy(spec: &Value, faults: &mut Vec<Cause>) {
    let has_params = spec["paramKind"].is_object();
    one_of(&spec["failurePolicy"], "spec.failurePolicy", &["Fail", "Ignore"], faults);
    for field in ["apiVersion", "kind"] {
        if has_params && spec["paramKind"][field].as_str().is_none_or(str::is_empty) {
            faults.push(Cause::required(format!("spec.paramKind.{field}")));
        }
    }
    let constraints = &spec["matchConstraints"];
    if constraints.is_null() {
        faults.push(Cause::required("spec.matchConstraints"));
    } else if list(&constraints["resourceRules"]).next().is_none() {
        faults.push(Cause::required("spec.matchConstraints.resourceRules"));
    }
    resources(constraints, "spec.matchConstraints", faults);
    conditions(&spec["matchConditions"], "spec.matchConditions", has_params, faults);
    for field in ["validations", "variables", "matchConditions"] {
        if spec[field].as_array().is_some_and(|all| all.len() > MAX_EXPRESSIONS) {
            let message = format!("Too many: must have at most {MAX_EXPRESSIONS} items");
            faults.push(Cause { field: format!("spec.{field}"), reason: "FieldValueTooMany", message });
        }
    }
    let mut names = HashSet::new();
    for (index, variable) in list(&spec["variables"]) {
        let path = format!("spec.variables[{index}]");
        let name = variable["name"].as_str().unwrap_or_default();
        let is_identifier = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !is_identifier(name) {
            let why = "name is not a valid CEL identifier";
            faults.push(Cause::invalid(format!("{path}.name"), &variable["name"], why));
        } else if !names.insert(name) {
            faults.push(duplicate(format!("{path}.name"), &variable["name"]));
        }
        expression(&variable["expression"], format!("{path}.expression"), has_params, true, faults);
    }
    let audits = list(&spec["auditAnnotations"]).next().is_some();
    if list(&spec["validations"]).next().is_none() && !audits {
        let mut cause = Cause::required("spec.validations");
        cause.message += ": validations or auditAnnotations must contain at least one item";
        faults.push(cause);
    }
    for (index, validation) in list(&spec["validations"]) {
        let path = format!("spec.validations[{index}]");
        expression(&validation["expression"], format!("{path}.expression"), has_params, true, faults);
        let made = &validation["messageExpression"];
        if !made.is_null() {
            expression(made, format!("{path}.messageExpression"), has_params, true, faults);
        }
        let reasons = ["Unauthorized", "Forbidden", "Invalid", "RequestEntityTooLarge"];
        one_of(&validation["reason"], &format!("{path}.reason"), &reasons, faults);
    }
}

/// A ValidatingAdmissionPolicyBinding.
pub(super) fn binding(spec: &Value, faults: &mut Vec<Cause>) {
    if spec["policyName"].as_str().is_none_or(str::is_empty) {
        faults.push(Cause::required("spec.policyName"));
    }
    resources(&spec["matchResources"], "spec.matchResources", faults);
    let path = "spec.validationActions";
    let mut seen = HashSet::new();
    for (index, action) in list(&spec["validationActions"]) {
        one_of(action, &format!("{path}[{index}]"), &["Deny", "Warn", "Audit"], faults);
        if !seen.insert(action.as_str().unwrap_or_default()) {
            faults.push(duplicate(format!("{path}[{index}]"), action));
        }
    }
    if seen.is_empty() {
        faults.push(Cause::required(path));
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        faults.push(Cause::invalid(path, &spec["validationActions"], why));
    }
    let param = &spec["paramRef"];
    if param.is_object() {
        let (path, named) = ("spec.paramRef", param["name"].is_string());
        if named == param["selector"].is_object() {
            let why = "one of name or selector must be specified, and not both";
            faults.push(Cause::invalid(path, &Value::Null, why));
        }
        let action = format!("{path}.parameterNotFoundAction");
        if param["parameterNotFoundAction"].is_null() {
            faults.push(Cause::required(action));
        } else {
            one_of(&param["parameterNotFoundAction"], &action, &["Allow", "Deny"], faults);
        }
    }
}

/// A webhook configuration: only the conditions, which are evaluated here.
pub(super) fn webhooks(object: &Value, faults: &mut Vec<Cause>) {
    for (index, webhook) in list(&object["webhooks"]) {
        conditions(&webhook["matchConditions"], &format!("webhooks[{index}].matchConditions"), false, faults);
    }
}

fn resources(resources: &Value, path: &str, faults: &mut Vec<Cause>) {
    one_of(&resources["matchPolicy"], &format!("{path}.matchPolicy"), &["Exact", "Equivalent"], faults);
    for key in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in list(&resources[key]) {
            let path = format!("{path}.{key}[{index}]");
            for field in ["apiGroups", "apiVersions", "operations", "resources"] {
                if list(&rule[field]).next().is_none() {
                    faults.push(Cause::required(format!("{path}.{field}")));
                }
            }
            for (index, operation) in list(&rule["operations"]) {
                let all = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
                one_of(operation, &format!("{path}.operations[{index}]"), &all, faults);
            }
            one_of(&rule["scope"], &format!("{path}.scope"), &["*", "Cluster", "Namespaced"], faults);
        }
    }
}

fn conditions(all: &Value, path: &str, has_params: bool, faults: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (index, condition) in list(all) {
        let (path, name) = (format!("{path}[{index}]"), &condition["name"]);
        let text = name.as_str().unwrap_or_default();
        if text.is_empty() {
            faults.push(Cause::required(format!("{path}.name")));
        } else if !is_qualified_name(text) {
            faults.push(Cause::invalid(format!("{path}.name"), name, "must be a qualified name"));
        } else if !names.insert(text) {
            faults.push(duplicate(format!("{path}.name"), name));
        }
        expression(&condition["expression"], format!("{path}.expression"), has_params, false, faults);
    }
}

fn expression(text: &Value, path: String, has_params: bool, has_variables: bool, faults: &mut Vec<Cause>) {
    let given = text.as_str().unwrap_or_default();
    if given.trim().is_empty() {
        let mut cause = Cause::required(path);
        cause.message += ": expression is not specified";
        return faults.push(cause);
    }
    let read = stack::with_room(|| Expression::compile(given));
    let why = match read {
        None => Some("it cannot be read now".to_owned()),
        Some(Ok(read)) if !has_params && read.has_variable("params") => {
            Some("compilation failed: undeclared reference to 'params'".to_owned())
        }
        Some(Ok(read)) if !has_variables && read.has_variable("variables") => {
            Some("compilation failed: undeclared reference to 'variables'".to_owned())
        }
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(why.to_string()),
    };
    faults.extend(why.map(|why| Cause::invalid(path, text, why)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(check: fn(&Value, &mut Vec<Cause>), spec: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        check(spec, &mut faults);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_could_not_be_evaluated_is_refused_when_it_is_written() {
        let rules = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["pods"]}]});
        let right = json!({"matchConstraints": rules, "validations": [{"expression": "object.spec.x == 1"}]});
        assert_eq!(fields(policy, &right), [""; 0]);
        let cases = [
            ("/matchConstraints", Value::Null, "spec.matchConstraints"),
            ("/matchConstraints/resourceRules", json!([]), "spec.matchConstraints.resourceRules"),
            (
                "/matchConstraints/resourceRules/0/operations/0",
                json!("create"),
                "spec.matchConstraints.resourceRules[0].operations[0]",
            ),
            (
                "/matchConstraints/resourceRules/0/resources",
                json!([]),
                "spec.matchConstraints.resourceRules[0].resources",
            ),
            ("/validations", json!([]), "spec.validations"),
            ("/validations/0/expression", json!("object.spec.x =="), "spec.validations[0].expression"),
            ("/validations/0/expression", json!("params.x == 1"), "spec.validations[0].expression"),
            (
                "/validations/0/expression",
                json!("authorizer.path('/').check('get').allowed()"),
                "spec.validations[0].expression",
            ),
            ("/validations/0/expression", json!(""), "spec.validations[0].expression"),
        ];
        for (pointer, value, expected) in cases {
            let mut wrong = right.clone();
            *wrong.pointer_mut(pointer).unwrap() = value.clone();
            assert_eq!(fields(policy, &wrong), [expected], "{pointer} {value}");
        }
        let validations = |count: usize| json!(vec![json!({"expression": "true"}); count]);
        for (count, expected) in [(MAX_EXPRESSIONS, &[][..]), (MAX_EXPRESSIONS + 1, &["spec.validations"])] {
            let mut many = right.clone();
            many["validations"] = validations(count);
            assert_eq!(fields(policy, &many), expected, "{count}");
        }
        for (field, value, expected) in [
            ("failurePolicy", json!("ignore"), "spec.failurePolicy"),
            ("paramKind", json!({"kind": "ConfigMap"}), "spec.paramKind.apiVersion"),
            ("variables", json!([{"name": "a-b", "expression": "1"}]), "spec.variables[0].name"),
            (
                "variables",
                json!([{"name": "a", "expression": "1"}, {"name": "a", "expression": "1"}]),
                "spec.variables[1].name",
            ),
            (
                "matchConditions",
                json!([{"name": "x", "expression": "variables.a"}]),
                "spec.matchConditions[0].expression",
            ),
            ("matchConditions", json!([{"expression": "true"}]), "spec.matchConditions[0].name"),
        ] {
            let mut wrong = right.clone();
            wrong[field] = value;
            assert_eq!(fields(policy, &wrong), [expected], "{field}");
        }
    }

    #[test]
    fn a_binding_says_what_happens() {
        assert_eq!(
            fields(binding, &json!({"policyName": "p", "validationActions": ["Deny", "Audit"]})),
            [""; 0]
        );
        for (wrong, expected) in [
            (json!({"validationActions": ["Deny"]}), "spec.policyName"),
            (json!({"policyName": "p"}), "spec.validationActions"),
            (json!({"policyName": "p", "validationActions": ["deny"]}), "spec.validationActions[0]"),
            (json!({"policyName": "p", "validationActions": ["Warn", "Deny"]}), "spec.validationActions"),
            (json!({"policyName": "p", "validationActions": ["Warn", "Warn"]}), "spec.validationActions[1]"),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"parameterNotFoundAction": "Deny"}}),
                "spec.paramRef",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "x"}}),
                "spec.paramRef.parameterNotFoundAction",
            ),
        ] {
            assert_eq!(fields(binding, &wrong), [expected], "{wrong}");
        }
    }
}
