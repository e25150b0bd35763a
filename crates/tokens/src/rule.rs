// SPDX-License-Identifier: Apache-2.0
//! Rules: which tokens of which issuer are taken.

use std::collections::BTreeSet;
use std::sync::Arc;

use meltemi_model::l7::JwtRule;

use crate::claims::{Accepted, Verified};
use crate::error::Invalid;
use crate::keys::KeySet;
use crate::token::Token;

/// Seconds by which clocks may differ: `exp` and `nbf` are judged with it, as by Envoy's default.
pub const LEEWAY: u64 = 60;

/// One issuer, with its keys read.
#[derive(Debug)]
pub struct Rule {
    /// As the control plane sends it.
    pub document: JwtRule,
    keys: Result<KeySet, Invalid>,
    pub(crate) space_delimited: BTreeSet<Arc<str>>,
}

impl Rule {
    /// Reads the keys of a rule. Without keys that can be used it takes no token.
    pub fn new(document: JwtRule) -> Self {
        let keys = match &document.jwks {
            None => Err(Invalid::NoKeys),
            Some(text) => KeySet::parse(text).map_err(|_| Invalid::NoValidKeys),
        };
        let space_delimited = document.space_delimited_claims.iter().cloned().collect();
        Self { document, keys, space_delimited }
    }

    /// Issuer, times and audience, in the order in which Envoy looks at them.
    fn check<'a>(
        &self,
        issuer: Option<&str>,
        mut audiences: impl Iterator<Item = &'a str>,
        (not_before, expires): (Option<u64>, Option<u64>),
        now: u64,
    ) -> Result<(), Invalid> {
        if self.document.issuer.as_deref().is_some_and(|wanted| Some(wanted) != issuer) {
            return Err(Invalid::UnknownIssuer);
        }
        if not_before.is_some_and(|at| at > now.saturating_add(LEEWAY)) {
            return Err(Invalid::NotYetValid);
        }
        if expires.is_some_and(|at| at.saturating_add(LEEWAY) < now) {
            return Err(Invalid::Expired);
        }
        let wanted = &self.document.audiences;
        let is_wanted =
            |audience: &str| wanted.iter().any(|one| without_scheme(one) == without_scheme(audience));
        if !wanted.is_empty() && !audiences.any(is_wanted) {
            return Err(Invalid::AudienceNotAllowed);
        }
        Ok(())
    }

    fn check_verified(&self, verified: &Verified, now: u64) -> Result<(), Invalid> {
        let times = (verified.not_before, verified.expires);
        self.check(verified.issuer(), verified.audiences(), times, now)
    }
}

/// An audience without its scheme and without the slash at its end: Envoy compares them so.
fn without_scheme(audience: &str) -> &str {
    let rest = audience.strip_prefix("https://").or_else(|| audience.strip_prefix("http://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// Takes a token if one of the rules does; `now` in seconds since 1970. One that was verified before costs a look-up.
///
/// # Errors
/// What the first rule for its issuer says, or that there is none.
pub fn accept_token<'a>(
    rules: impl Iterator<Item = &'a Arc<Rule>> + Clone,
    token: &str,
    now: u64,
) -> Result<Accepted, Invalid> {
    for rule in rules.clone() {
        let Ok(keys) = &rule.keys else { continue };
        if let Some(verified) = keys.cache.get(token)
            && rule.check_verified(&verified, now).is_ok()
        {
            return Ok(Accepted { verified, rule: rule.clone() });
        }
    }
    let read = Token::read(token)?;
    let mut fault = Invalid::UnknownIssuer;
    for rule in rules {
        match verify_by(rule, &read, now) {
            Ok(()) => {
                let verified = Arc::new(Verified::new(read));
                if let Ok(keys) = &rule.keys {
                    keys.cache.put(token, verified.clone());
                }
                return Ok(Accepted { verified, rule: rule.clone() });
            }
            // Another issuer's rule says nothing of this token.
            Err(new) if fault == Invalid::UnknownIssuer => fault = new,
            Err(_) => {}
        }
    }
    Err(fault)
}

fn verify_by(rule: &Rule, token: &Token<'_>, now: u64) -> Result<(), Invalid> {
    let claims = &token.claims;
    let audiences = claims.get("aud").into_iter().flat_map(|aud| match aud {
        serde_json::Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    });
    let audiences = audiences.filter_map(serde_json::Value::as_str);
    rule.check(token.issuer(), audiences, (token.not_before, token.expires), now)?;
    let keys = rule.keys.as_ref().map_err(|fault| *fault)?;
    let (name, algorithm) = &token.algorithm;
    keys.verify((name, *algorithm), token.key_id.as_deref(), token.message, &token.signature)
}
