// SPDX-License-Identifier: Apache-2.0
//! Quantities of resources: `500m`, `1Gi`, `1e3`.

use serde_json::Value;

/// A quantity, for comparisons.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Quantity(f64);

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self(0.0);

    /// Reads a field of an object, a text or a number; `None` for what is no quantity.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_f64().map(Self),
            Value::String(text) => parse(text).map(Self),
            _ => None,
        }
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.0 < 0.0
    }
}

/// The number that a quantity means; `None` for what is no quantity.
pub fn parse(text: &str) -> Option<f64> {
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
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("500m", Some(0.5)),
            ("1Gi", Some(1_073_741_824.0)),
            ("1e3", Some(1000.0)),
            ("1E", Some(1e18)),
            (".5", Some(0.5)),
            ("-1", Some(-1.0)),
            ("abc", None),
            ("1gb", None),
            ("", None),
            ("1 Gi", None),
            ("inf", None),
            ("1e", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
            assert_eq!(Quantity::of(&text.into()), expected.map(Quantity), "{text}");
        }
        assert_eq!(Quantity::of(&2.into()), Some(Quantity(2.0)));
        assert_eq!(Quantity::of(&true.into()), None);
        assert!(Quantity(-0.5).is_negative() && !Quantity::ZERO.is_negative());
    }
}
