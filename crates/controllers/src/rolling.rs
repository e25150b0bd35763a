// SPDX-License-Identifier: Apache-2.0
//! `maxSurge` and `maxUnavailable` as numbers.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number or percentage of `total`; a percentage is rounded up or down. What is no number counts as zero.
pub(crate) fn resolve(value: Option<&IntOrString>, default: &str, total: i32, up: bool) -> i32 {
    let percent = |text: &str| {
        let percent: i64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
        let product = percent.max(0) * i64::from(total.max(0));
        i32::try_from(if up { (product + 99) / 100 } else { product / 100 }).ok()
    };
    let read = |text: &str| percent(text).or_else(|| text.parse().ok()).unwrap_or(0);
    let number = match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => read(text),
        None => read(default),
    };
    number.max(0)
}

/// Surge and unavailability of a rolling update; never both zero, or nothing could move.
pub(crate) fn bounds(surge: i32, unavailable: i32, total: i32) -> (i32, i32) {
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(total.max(0))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_in_the_safe_direction() {
        let text = |s: &str| IntOrString::String(s.to_owned());
        let cases = [
            (Some(IntOrString::Int(3)), 10, true, 3),
            (Some(text("25%")), 10, true, 3),
            (Some(text("25%")), 10, false, 2),
            (Some(text("0%")), 10, true, 0),
            (Some(text("x")), 10, true, 0),
            (None, 1, true, 1),
            (None, 1, false, 0),
        ];
        for (value, total, up, expected) in cases {
            assert_eq!(resolve(value.as_ref(), "25%", total, up), expected, "{value:?} of {total}");
        }
        assert_eq!(bounds(0, 0, 5), (0, 1));
        assert_eq!(bounds(1, 9, 5), (1, 5));
    }
}
