// SPDX-License-Identifier: Apache-2.0
//! Quantities: `500m`, `1Gi`, `1e3`.

use serde_json::Value;

/// A quantity, for comparisons.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Quantity(f64);

impl Quantity {
    /// Nothing.
    pub(crate) const ZERO: Self = Self(0.0);

    /// Reads a text or a number; `None` for what is no quantity.
    pub(crate) fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_f64().map(Self),
            Value::String(text) => parse(text).map(Self),
            _ => None,
        }
    }

    pub(super) fn is_negative(self) -> bool {
        self.0 < 0.0
    }
}

fn parse(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 2_f64.powi(10),
        "Mi" => 2_f64.powi(20),
        "Gi" => 2_f64.powi(30),
        "Ti" => 2_f64.powi(40),
        "Pi" => 2_f64.powi(50),
        "Ei" => 2_f64.powi(60),
        _ => 10_f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities() {
        let cases = [
            (json!("500m"), Some(0.5)),
            (json!("1Gi"), Some(1_073_741_824.0)),
            (json!("1e3"), Some(1000.0)),
            (json!("1E"), Some(1e18)),
            (json!(".5"), Some(0.5)),
            (json!("-1"), Some(-1.0)),
            (json!(2), Some(2.0)),
            (json!("abc"), None),
            (json!("1gb"), None),
            (json!(""), None),
            (json!("1 Gi"), None),
            (json!("inf"), None),
            (json!("1e"), None),
            (json!(true), None),
        ];
        for (value, expected) in cases {
            assert_eq!(Quantity::parse(&value), expected.map(Quantity), "{value}");
        }
    }
}
