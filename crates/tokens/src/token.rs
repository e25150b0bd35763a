// SPDX-License-Identifier: Apache-2.0
//! Tokens in compact form (RFC 7515 §7.1), read strictly and not yet verified.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::algorithm::Algorithm;
use crate::error::Invalid;
use crate::json;

/// Bytes of a token at most.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A token whose signature nobody has looked at.
pub(crate) struct Token<'a> {
    pub(crate) algorithm: (String, Algorithm),
    pub(crate) key_id: Option<String>,
    pub(crate) claims: Map<String, Value>,
    /// The payload as it stands in the token.
    pub(crate) payload: &'a str,
    /// What is signed.
    pub(crate) message: &'a [u8],
    pub(crate) signature: Vec<u8>,
    pub(crate) expires: Option<u64>,
    pub(crate) not_before: Option<u64>,
}

/// Decodes base64url in its one notation: no padding, no bits left over.
fn decode_part(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// A member that is a string, or not there.
fn text_member(map: &Map<String, Value>, name: &str, fault: Invalid) -> Result<Option<String>, Invalid> {
    match map.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(fault),
    }
}

/// A time in seconds since 1970, or not there.
fn time_member(
    claims: &Map<String, Value>,
    name: &str,
    (not_integer, not_positive): (Invalid, Invalid),
) -> Result<Option<u64>, Invalid> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let Value::Number(number) = value else { return Err(not_integer) };
    if let Some(seconds) = number.as_u64() {
        return Ok(Some(seconds));
    }
    match number.as_f64() {
        _ if number.is_i64() => Err(not_positive),
        Some(seconds) if seconds < 0.0 => Err(not_positive),
        // `1.7e9` is an integer of JSON; 1e308 is beyond every clock. The cast is exact below 2^53.
        Some(seconds) if seconds.fract() == 0.0 && seconds < 9_007_199_254_740_992.0 => {
            Ok(Some(seconds as u64))
        }
        _ => Err(not_integer),
    }
}

impl<'a> Token<'a> {
    pub(crate) fn read(token: &'a str) -> Result<Self, Invalid> {
        if token.len() > MAX_TOKEN {
            return Err(Invalid::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Invalid::BadFormat);
        };
        let message = token.get(..header.len() + 1 + payload.len()).unwrap_or_default().as_bytes();
        let header = json::read_object(&decode_part(header).ok_or(Invalid::HeaderBase64)?)
            .ok_or(Invalid::HeaderJson)?;
        if header.contains_key("crit") {
            return Err(Invalid::Critical);
        }
        let name = text_member(&header, "alg", Invalid::HeaderAlg)?.ok_or(Invalid::HeaderAlg)?;
        let algorithm = Algorithm::parse(&name).ok_or(Invalid::UnsupportedAlg)?;
        let key_id = text_member(&header, "kid", Invalid::HeaderKid)?.filter(|id| !id.is_empty());
        let claims = json::read_object(&decode_part(payload).ok_or(Invalid::PayloadBase64)?)
            .ok_or(Invalid::PayloadJson)?;
        text_member(&claims, "iss", Invalid::Iss)?;
        text_member(&claims, "sub", Invalid::Sub)?;
        let aud = claims.get("aud").into_iter().flat_map(|aud| match aud {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        });
        if !aud.into_iter().all(Value::is_string) {
            return Err(Invalid::Aud);
        }
        let expires = time_member(&claims, "exp", (Invalid::ExpNotInteger, Invalid::ExpNotPositive))?;
        let not_before = time_member(&claims, "nbf", (Invalid::NbfNotInteger, Invalid::NbfNotPositive))?;
        let signature = decode_part(signature).ok_or(Invalid::SignatureBase64)?;
        let algorithm = (name, algorithm);
        Ok(Self { algorithm, key_id, claims, payload, message, signature, expires, not_before })
    }

    pub(crate) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }
}
