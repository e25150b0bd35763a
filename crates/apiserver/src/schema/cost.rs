// SPDX-License-Identifier: Apache-2.0
//! An upper bound of the work of CEL rules on an object, before they are evaluated: kube-cel has no limit of its own.
//!
//! A macro (`all`, `exists`, `map`, …) visits each element of a list, and macros are nested in the text of a rule. So a
//! rule takes at most as many steps as the longest list or map in its object has elements, to the power of its nesting,
//! each as long as the texts that it may look at.

use serde_json::Value;

use crate::bounds::{OverBound, Work};

/// Bytes of text that are looked at in the time of one step.
const TEXT_PER_STEP: usize = 64;
/// Macros that visit the elements of a list.
const MACROS: [&str; 7] =
    [".all(", ".exists(", ".exists_one(", ".existsOne(", ".map(", ".filter(", ".sortBy("];

/// Takes the work of all rules of a schema on an object.
///
/// # Errors
/// It is more than one request may cause.
pub(super) fn spend(schema: &Value, object: &Value, work: &mut Work) -> Result<Size, OverBound> {
    let mut size = Size::default();
    match object {
        Value::Object(map) => {
            size.longest = map.len();
            for (key, value) in map {
                let inner = schema["properties"].get(key).unwrap_or(&schema["additionalProperties"]);
                size = size.with(spend(inner, value, work)?);
                size.text += key.len();
            }
        }
        Value::Array(list) => {
            size.longest = list.len();
            for value in list {
                size = size.with(spend(&schema["items"], value, work)?);
            }
        }
        Value::String(text) => size.text = text.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let nesting = nesting(rule["rule"].as_str().unwrap_or_default());
        let steps = (0..nesting).fold(1_usize, |steps, _| steps.saturating_mul(size.longest.max(1)));
        // Most of the text belongs to one of the elements: it is looked at once for each element of the other lists.
        let repeated = (1..nesting).fold(1_usize, |steps, _| steps.saturating_mul(size.longest.max(1)));
        work.spend(steps)?;
        work.spend((size.text / TEXT_PER_STEP).saturating_mul(repeated))?;
    }
    work.spend(1)?;
    Ok(size)
}

/// What decides the work of a rule on a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Elements of the longest list or map in it.
    pub(crate) longest: usize,
    /// Bytes of all texts in it.
    pub(crate) text: usize,
}

impl Size {
    /// The size of a value.
    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Object(map) => {
                map.iter().fold(Self { longest: map.len(), text: 0 }, |size, (key, value)| {
                    let inner = Self::of(value);
                    size.with(Self { text: inner.text + key.len(), ..inner })
                })
            }
            Value::Array(list) => list
                .iter()
                .fold(Self { longest: list.len(), text: 0 }, |size, value| size.with(Self::of(value))),
            Value::String(text) => Self { longest: 0, text: text.len() },
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::default(),
        }
    }

    /// Both together.
    pub(crate) fn with(self, inner: Self) -> Self {
        Self { longest: self.longest.max(inner.longest), text: self.text + inner.text }
    }
}

/// The steps of an expression that may look at values of a size. Each `+` may copy all text once for each element that
/// is visited.
pub(crate) fn expression_steps(text: &str, size: Size) -> usize {
    let nesting = nesting(text);
    let power = |exponent| (0..exponent).fold(1_usize, |steps, _| steps.saturating_mul(size.longest.max(1)));
    let texts = size.text / TEXT_PER_STEP;
    let copies = text.bytes().filter(|byte| *byte == b'+').count();
    let copied = texts.saturating_mul(power(nesting)).saturating_mul(copies);
    let looked_at = texts.saturating_mul(power(nesting.saturating_sub(1)));
    1_usize.saturating_add(power(nesting)).saturating_add(looked_at).saturating_add(copied)
}

/// How deep the macros of a rule are nested. Parentheses in texts may be counted as well: that only makes it larger.
fn nesting(rule: &str) -> usize {
    let (mut open, mut deepest) = (Vec::new(), 0);
    for (at, byte) in rule.bytes().enumerate() {
        match byte {
            b'(' => {
                let head = rule.get(..=at).unwrap_or_default();
                open.push(MACROS.iter().any(|name| head.ends_with(name)));
                deepest = deepest.max(open.iter().filter(|is_macro| **is_macro).count());
            }
            b')' => {
                open.pop();
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn macros_are_counted_as_they_are_nested() {
        for (rule, expected) in [
            ("self.a == 1", 0),
            ("self.all(x, x.b > 0) && self.exists(y, y.b < 9)", 1),
            ("self.all(x, self.exists_one(y, y.name == x.name))", 2),
            ("size(self.filter(x, (x.a).all(y, self.map(z, z).size() > y))) > 0", 3),
        ] {
            assert_eq!(nesting(rule), expected, "{rule}");
        }
    }

    #[test]
    fn a_rule_on_long_lists_is_refused_before_it_runs() {
        let schema = |rule: &str| json!({"properties": {"list": {"items": {}, "x-kubernetes-validations": [{"rule": rule}]}}});
        let object = |n: usize| json!({"list": vec![json!({"name": "abc"}); n]});
        let (once, twice) =
            ("self.all(x, x.name != 'a')", "self.all(x, self.exists_one(y, y.name == x.name))");
        for (rule, elements, fits) in [
            (once, 100_000, true),
            (twice, 1_000, true),
            (twice, 10_000, false),
            ("self.size() > 0", 100_000, true),
        ] {
            let spent = spend(&schema(rule), &object(elements), &mut Work::default());
            assert_eq!(spent.is_ok(), fits, "{rule} on {elements}");
        }
        let long =
            json!({"list": (0..1_000).map(|n| "x".repeat(1_000) + &n.to_string()).collect::<Vec<_>>()});
        assert_eq!(
            spend(
                &schema("self.all(x, self.all(y, self.all(z, x.contains(y))))"),
                &long,
                &mut Work::default()
            ),
            Err(OverBound::Work)
        );
    }
}
