// SPDX-License-Identifier: Apache-2.0
//! Bounds that a schema sets to numbers and texts.

use serde_json::Value;

use super::{Found, formats, shortened};
use crate::schema::pattern;
use crate::status::Cause;

/// Bounds of a number.
pub(super) fn number(schema: &Value, value: &Value, path: &str, found: &mut Found) {
    let number = value.as_f64().unwrap_or_default();
    let mut refuse = |why: String| found.fault(Cause::invalid(path, value, format!("{path} in body {why}")));
    if let Some(min) = schema["minimum"].as_f64() {
        if schema["exclusiveMinimum"] == true && number <= min {
            refuse(format!("should be greater than {min}"));
        } else if number < min {
            refuse(format!("should be greater than or equal to {min}"));
        }
    }
    if let Some(max) = schema["maximum"].as_f64() {
        if schema["exclusiveMaximum"] == true && number >= max {
            refuse(format!("should be less than {max}"));
        } else if number > max {
            refuse(format!("should be less than or equal to {max}"));
        }
    }
    if let Some(factor) = schema["multipleOf"].as_f64().filter(|factor| *factor > 0.0) {
        let quotient = number / factor;
        if (quotient - quotient.round()).abs() > 1e-9 * quotient.abs().max(1.0) {
            refuse(format!("should be a multiple of {factor}"));
        }
    }
    if schema["format"] == "int32" && !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number) {
        refuse("must be of type integer with format int32".to_owned());
    }
}

/// Length, format and pattern of a text.
pub(super) fn text(schema: &Value, text: &str, path: &str, found: &mut Found) {
    let length = text.chars().count() as u64;
    if let Some(max) = schema["maxLength"].as_u64().filter(|max| length > *max) {
        let message = format!("Too long: may not be more than {max} bytes");
        found.fault(Cause { field: path.to_owned(), reason: "FieldValueTooLong", message });
    }
    if let Some(min) = schema["minLength"].as_u64().filter(|min| length < *min) {
        let why = format!("{path} in body should be at least {min} chars long");
        found.fault(Cause::invalid(path, &shortened(text).into(), why));
    }
    if let Some(format) = schema["format"].as_str()
        && !formats::fits(format, text)
    {
        found.fault(Cause::invalid(
            path,
            &shortened(text).into(),
            format!("{path} in body must be of type {format}: {:?}", shortened(text)),
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        // Linear-time; a pattern that cannot be compiled matches nothing rather than everything.
        let matches = pattern::compiled(pattern).is_some_and(|regex| regex.is_match(text));
        if !matches {
            found.fault(Cause::invalid(
                path,
                &shortened(text).into(),
                format!("{path} in body should match '{pattern}'"),
            ));
        }
    }
}
