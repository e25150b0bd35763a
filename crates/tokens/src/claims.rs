// SPDX-License-Identifier: Apache-2.0
//! Claims of a verified token, as policies and headers see them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meltemi_policy::Claims;
use serde_json::{Map, Value};

use crate::error::Invalid;
use crate::rule::Rule;
use crate::token::Token;

/// A token whose signature an issuer's key has made. Its times are judged at each use.
pub struct Verified {
    claims: Map<String, Value>,
    payload: Box<str>,
    principal: Option<Box<str>>,
    pub(crate) expires: Option<u64>,
    pub(crate) not_before: Option<u64>,
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").field("principal", &self.principal).finish_non_exhaustive()
    }
}

impl Verified {
    pub(crate) fn new(token: Token<'_>) -> Self {
        let text = |name: &str| token.claims.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
        let principal = text("iss").zip(text("sub")).map(|(iss, sub)| format!("{iss}/{sub}").into());
        Self {
            payload: token.payload.into(),
            principal,
            expires: token.expires,
            not_before: token.not_before,
            claims: token.claims,
        }
    }

    pub(crate) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    pub(crate) fn audiences(&self) -> impl Iterator<Item = &str> {
        texts(self.claims.get("aud"))
    }

    /// Bytes that it holds: an estimate.
    pub(crate) fn size(&self) -> usize {
        // Decoded claims take their text and, for each, what a map needs.
        self.payload.len() * 4
    }
}

/// A text, or the texts of a list.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let all = value.into_iter().flat_map(|value| match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    });
    all.filter_map(Value::as_str)
}

/// A verified token, with the rule that has taken it.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub(crate) verified: Arc<Verified>,
    pub(crate) rule: Arc<Rule>,
}

impl Accepted {
    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The payload as it stands in the token.
    pub fn payload(&self) -> &str {
        &self.verified.payload
    }

    /// When it is no longer taken, in seconds since 1970; `None` when it does not say.
    pub fn expires(&self) -> Option<u64> {
        self.verified.expires.map(|at| at.saturating_add(crate::LEEWAY))
    }

    /// The text of a claim in a header, with `.` between the names of its path: numbers and truth values as JSON writes them,
    /// lists and objects as base64 of their JSON. `None` for a claim that is not there or empty.
    ///
    /// # Errors
    /// It has characters that no header has.
    pub fn header_text(&self, claim: &str) -> Result<Option<Vec<u8>>, Invalid> {
        let claims = &self.verified.claims;
        let nested = || {
            let mut names = claim.split('.');
            let first = claims.get(names.next()?)?;
            names.try_fold(first, |value, name| value.as_object()?.get(name))
        };
        let text = match claims.get(claim).or_else(nested) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            Some(value) => STANDARD.encode(value.to_string()),
        };
        if text.chars().any(char::is_control) {
            return Err(Invalid::ClaimNotHeader);
        }
        Ok(Some(text.into_bytes()).filter(|text| !text.is_empty()))
    }
}

impl Claims for Accepted {
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
        let Some((first, rest)) = path.split_first() else { return };
        let claims = &self.verified.claims;
        let found = claims.get(&**first);
        let found =
            found.and_then(|f| rest.iter().try_fold(f, |value, name| value.as_object()?.get(&**name)));
        let split = rest.is_empty() && self.rule.space_delimited.contains(first);
        for text in texts(found) {
            match split {
                true => text.split(' ').filter(|one| !one.is_empty()).for_each(&mut *with),
                false => with(text),
            }
        }
    }

    fn principal(&self) -> Option<&str> {
        self.verified.principal.as_deref()
    }

    fn issuer_and_subject(&self) -> Option<(&str, &str)> {
        let principal = self.principal()?;
        let issuer = self.verified.issuer()?;
        Some((issuer, principal.get(issuer.len() + 1..)?))
    }
}
