// SPDX-License-Identifier: Apache-2.0
//! Policies with their expressions read and their bindings beside them.

use std::sync::Arc;

use serde_json::Value;

use super::MAX_MESSAGE;
use crate::expression::{Expression, ExpressionError, Facts};

/// An expression, or why it cannot be evaluated: what came past the checks of a write still has a say.
type Read = Result<Expression, ExpressionError>;

/// A match condition that cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[error("match condition '{name}' resulted in error: {cause}")]
pub(super) struct ConditionError {
    name: String,
    cause: ExpressionError,
}

/// A policy in force.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// `matchConstraints`
    pub(super) constraints: Value,
    /// `apiVersion` and `kind` of its parameters.
    pub(super) param_kind: Option<(String, String)>,
    /// `failurePolicy: Ignore`
    pub(super) fails_open: bool,
    conditions: Vec<(String, Read)>,
    pub(super) variables: Vec<(String, Read)>,
    pub(super) validations: Vec<Validation>,
    pub(super) bindings: Vec<Binding>,
}

/// One rule of a policy.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) expression: Read,
    pub(super) reason: String,
    text: String,
    message: Option<String>,
    made_message: Option<Read>,
}

/// What puts a policy in force.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    /// `matchResources`
    pub(super) resources: Value,
    /// `paramRef`
    pub(super) param: Value,
    /// `validationActions`
    pub(super) actions: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn read(value: &Value) -> Read {
    Expression::compile(value.as_str().unwrap_or_default())
}

impl Policy {
    pub(super) fn of(policy: &Value, bindings: &[Arc<Value>]) -> Self {
        let (name, spec) = (text(&policy["metadata"]["name"]), &policy["spec"]);
        let named =
            |list: &[Value]| list.iter().map(|one| (text(&one["name"]), read(&one["expression"]))).collect();
        let kind = &spec["paramKind"];
        Self {
            constraints: spec["matchConstraints"].clone(),
            param_kind: kind.is_object().then(|| (text(&kind["apiVersion"]), text(&kind["kind"]))),
            fails_open: spec["failurePolicy"] == "Ignore",
            conditions: named(list(&spec["matchConditions"])),
            variables: named(list(&spec["variables"])),
            validations: list(&spec["validations"]).iter().map(Validation::of).collect(),
            bindings: bindings
                .iter()
                .filter(|binding| binding["spec"]["policyName"] == name.as_str())
                .map(|binding| Binding::of(binding))
                .collect(),
            name,
        }
    }

    /// Whether all match conditions hold. One that is false decides, whatever the others are.
    ///
    /// # Errors
    /// One cannot be evaluated, and none is false.
    pub(super) fn applies(&self, facts: &mut Facts) -> Result<bool, ConditionError> {
        let mut failure = None;
        for (name, condition) in &self.conditions {
            let holds = match condition {
                Ok(expression) => facts.is_true(expression),
                Err(why) => Err(why.clone()),
            };
            match holds {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(cause) => failure = Some(ConditionError { name: name.clone(), cause }),
            }
        }
        failure.map_or(Ok(true), Err)
    }
}

impl Validation {
    fn of(validation: &Value) -> Self {
        let made = &validation["messageExpression"];
        Self {
            expression: read(&validation["expression"]),
            reason: text(&validation["reason"]),
            text: text(&validation["expression"]),
            message: validation["message"].as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned),
            made_message: made.is_string().then(|| read(made)),
        }
    }

    /// What is said when it does not hold: what its expression makes, if that is a line; else its message, else itself.
    pub(super) fn message(&self, facts: &mut Facts) -> String {
        let made = self.made_message.as_ref().and_then(|read| facts.text(read.as_ref().ok()?).ok());
        let is_line = |text: &String| {
            !text.trim().is_empty() && text.len() <= MAX_MESSAGE && !text.contains(['\n', '\r'])
        };
        let otherwise = || format!("failed expression: {}", self.text.trim());
        made.filter(is_line).or_else(|| self.message.clone()).unwrap_or_else(otherwise)
    }
}

impl Binding {
    fn of(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: text(&binding["metadata"]["name"]),
            resources: spec["matchResources"].clone(),
            param: spec["paramRef"].clone(),
            actions: list(&spec["validationActions"]).iter().map(text).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_that_an_expression_makes_is_one_short_line_or_the_fixed_one() {
        let object = json!({"text": "x".repeat(MAX_MESSAGE - 1), "lines": "a\nb"});
        let message = |made: &str| {
            let validation =
                Validation::of(&json!({"expression": "false", "message": "no", "messageExpression": made}));
            validation.message(&mut Facts::new(&[("object", &object)]))
        };
        let (at_the_bound, beyond) = (message("'y' + object.text"), message("'yy' + object.text"));
        assert_eq!((at_the_bound.len(), beyond.as_str()), (MAX_MESSAGE, "no"));
        assert_eq!((message("object.lines").as_str(), message("object.missing").as_str()), ("no", "no"));
    }
}
