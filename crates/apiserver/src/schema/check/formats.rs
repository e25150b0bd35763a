// SPDX-License-Identifier: Apache-2.0
//! The formats of strings that Kubernetes checks.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

/// Whether a text has the format; one that is not known here fits everything, as in Kubernetes.
pub(super) fn fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => is_duration(text),
        "byte" => STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<IpNet>().is_ok(),
        "uuid" => uuid::Uuid::try_parse(text).is_ok(),
        "hostname" => is_hostname(text),
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && is_hostname(host)),
        "uri" => text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme().is_some() || text.starts_with('/')),
        _ => true,
    }
}

/// As Go writes durations: `1h30m`, `-2.5s`, `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() || text.len() - rest.len() > 1 {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        // The longer ones first: a minute is no prefix of a millisecond.
        let units = ["ns", "us", "µs", "μs", "ms", "h", "m", "s"];
        let Some(next) = units.iter().find_map(|unit| after.strip_prefix(unit)) else { return false };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = next;
    }
    true
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "date-time",
                &["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456+02:00"],
                &["notadate", "2026-01-01"],
            ),
            ("date", &["2026-01-31"], &["2026-02-31", "x"]),
            ("duration", &["1h30m", "0", "-2.5s", "10ms"], &["", "5", "1x", "--1s", "h"]),
            ("byte", &["aGk="], &["a"]),
            ("ipv4", &["10.0.0.1"], &["10.0.0.256", "::1"]),
            ("ipv6", &["::1"], &["10.0.0.1"]),
            ("cidr", &["10.0.0.0/8"], &["10.0.0.0"]),
            ("uuid", &["01234567-89ab-cdef-0123-456789abcdef"], &["x"]),
            ("hostname", &["a.example.com"], &["-a", "a..b"]),
            ("email", &["a@example.com"], &["a", "@b"]),
            ("uri", &["https://example.com/x"], &["not a uri"]),
            ("unheard-of", &["anything"], &[]),
        ];
        for (format, right, wrong) in cases {
            right.iter().for_each(|text| assert!(fits(format, text), "{format} {text}"));
            wrong.iter().for_each(|text| assert!(!fits(format, text), "{format} {text}"));
        }
    }
}
