// SPDX-License-Identifier: Apache-2.0
//! Checks of a RequestAuthentication.

use serde_json::Value;

use super::super::{JwtRule, RequestAuthenticationSpec};
use super::values::{Check, list};
use super::{Review, targets};

const MOST_RULES: usize = 4096;
const MOST_CLAIMS: usize = 64;
const LONGEST_URI: usize = 2048;

pub(super) fn review(spec: &RequestAuthenticationSpec) -> Review {
    let mut review = Review::default();
    let RequestAuthenticationSpec { selector, target_ref, target_refs, jwt_rules } = spec;
    targets::review(selector.as_ref(), target_ref.as_ref(), target_refs.as_ref(), &mut review);
    let rules = jwt_rules.as_deref().unwrap_or_default();
    if rules.len() > MOST_RULES {
        review.fault(format!("`jwtRules` must have at most {MOST_RULES} items"));
    }
    rules.iter().for_each(|one| rule(one, &mut review));
    review
}

fn rule(rule: &JwtRule, review: &mut Review) {
    let JwtRule {
        issuer,
        audiences,
        jwks_uri: uri,
        jwks,
        from_headers,
        from_params,
        from_cookies,
        output_payload_to_header,
        forward_original_token: _,
        output_claim_to_headers,
        timeout,
        space_delimited_claims,
    } = rule;
    let given = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    let any_empty = |values: &super::super::Values| list(values).iter().any(String::is_empty);
    if any_empty(audiences) {
        review.fault("audience must be non-empty string");
    }
    if !given(issuer) && !given(uri) {
        review.fault("issuer or jwksUri must be non-empty string");
    }
    if given(uri) && given(jwks) {
        review.fault("only one of jwks or jwksUri can be set");
    }
    if let Some(uri) = uri.as_deref().filter(|u| !u.is_empty()) {
        review.take(jwks_uri(uri));
    }
    if let Some(keys) = jwks.as_deref().filter(|k| !k.is_empty()) {
        key_set(keys, review);
    }
    if from_headers.iter().flatten().any(|header| header.name.is_empty()) {
        review.fault("location header name must be non-empty string");
    }
    if any_empty(from_params) {
        review.fault("location query must be non-empty string");
    }
    if any_empty(from_cookies) {
        review.fault("cookie name must be non-empty string");
    }
    for claim in output_claim_to_headers.iter().flatten() {
        if claim.header.is_empty() || claim.claim.is_empty() {
            review.fault("outputClaimToHeaders header and claim value must be non-empty string");
        } else {
            review.take(header_name(&claim.header));
        }
    }
    if let Some(header) = output_payload_to_header.as_deref().filter(|h| !h.is_empty()) {
        review.take(header_name(header));
    }
    if let Some(timeout) = timeout {
        review.take(duration_ms(timeout).map(drop));
    }
    if any_empty(space_delimited_claims) {
        review.fault("spaceDelimitedClaims must be non-empty strings");
    }
    if list(space_delimited_claims).len() > MOST_CLAIMS {
        review.fault(format!("`spaceDelimitedClaims` must have at most {MOST_CLAIMS} items"));
    }
}

fn header_name(name: &str) -> Check {
    match name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        true => Ok(()),
        false => Err(format!("header name {name} is not a valid header name")),
    }
}

/// Checks where keys are to be fetched: `http` or `https`, a host, a port that is one.
///
/// # Errors
/// In the words of Istio.
pub fn jwks_uri(uri: &str) -> Result<(), String> {
    if uri.len() > LONGEST_URI {
        return Err(format!("jwksUri must not be longer than {LONGEST_URI} characters"));
    }
    let parsed = url::Url::parse(uri).map_err(|e| format!("parse {uri:?}: {e}"))?;
    match parsed.scheme() {
        "http" | "https" if parsed.has_host() => Ok(()),
        "http" | "https" => Err(format!("parse {uri:?}: no host")),
        other => Err(format!("URI scheme {other:?} is not supported")),
    }
}

/// A JWK set, or a single key.
fn key_set(text: &str, review: &mut Review) {
    let bad = |why: String| format!("jwks parse error: {why}");
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return review.fault(bad(error.to_string())),
    };
    let single = [value.clone()];
    let keys = match &value["keys"] {
        Value::Array(keys) => keys.as_slice(),
        Value::Null if value["kty"].is_string() => &single,
        _ => return review.fault(bad("neither a set of keys nor a key".to_owned())),
    };
    for (index, key) in keys.iter().enumerate() {
        match key["kty"].as_str() {
            None => review.fault(bad(format!("key at index {index} has no kty"))),
            // `d` is the private part of RSA, EC and OKP keys; a symmetric key has no public one.
            Some(kind) if kind == "oct" || !key["d"].is_null() => review.warn(format!(
                "jwks key at index {index} contains private key material; only public keys are used for verification"
            )),
            Some(_) => {}
        }
    }
}

/// A duration as the API writes it (`5s`, `1.5s`, `1m30s`, `500ms`), in milliseconds.
///
/// # Errors
/// It is none, shorter than a millisecond, or finer than that.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let nanos = duration_ns(text).ok_or_else(|| format!("invalid duration {text:?}"))?;
    if nanos < 1_000_000 {
        return Err("duration must be greater than 1ms".to_owned());
    }
    if nanos % 1_000_000 != 0 {
        return Err("only durations to ms precision are supported".to_owned());
    }
    u64::try_from(nanos / 1_000_000).map_err(|_| format!("invalid duration {text:?}"))
}

fn duration_ns(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut total: u128 = 0;
    if rest.is_empty() || rest.len() > 64 {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let length = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let scale: u128 = match &unit[..length] {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && part.is_empty()) || part.contains('.') || whole.len() > 15 || part.len() > 9 {
            return None;
        }
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
        total = total.checked_add(digits(whole)?.checked_mul(scale)?)?;
        total = total.checked_add(digits(part)? * scale / 10u128.pow(u32::try_from(part.len()).ok()?))?;
        rest = &unit[length..];
    }
    Some(total)
}
