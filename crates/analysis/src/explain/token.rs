// SPDX-License-Identifier: Apache-2.0
//! A token as it is told: its principal and its claims.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_policy::Claims;
use meltemi_policy::facts::is_space_delimited;

use crate::error::QueryError;
use crate::witness::{claim_name, claim_path};

/// A verified token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// `<issuer>/<subject>`, and both apart.
    principal: Option<(String, String, String)>,
    /// Texts by name, as [`claim_name`] writes it.
    claims: BTreeMap<String, Vec<String>>,
}

impl Token {
    /// From `<issuer>/<subject>` and claims by name; `None` when nothing is told. The issuer and the subject are claims,
    /// too: of what is told once, the other follows.
    ///
    /// # Errors
    /// The principal is none, a name is none, or the principal and the claims `iss` and `sub` contradict each other.
    pub fn told(
        principal: Option<&str>,
        claims: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Option<Self>, QueryError> {
        let mut out = Self::default();
        for (name, text) in claims {
            let path = claim_path(&name);
            if path.iter().any(|part| part.is_empty()) {
                return Err(QueryError::NoClaimName(name));
            }
            out.claims.entry(claim_name(&path)).or_default().push(text);
        }
        let single = |name: &'static str| match out.claims.get(name).map(Vec::as_slice) {
            None => Ok(None),
            Some([one]) => Ok(Some(one.clone())),
            Some(_) => Err(QueryError::SeveralValues(name)),
        };
        let (iss, sub) = (single("iss")?, single("sub")?);
        let (iss, sub) = match (principal, iss, sub) {
            (None, Some(iss), Some(sub)) => (iss, sub),
            (None, _, _) => {
                return Ok((!out.claims.is_empty()).then_some(out));
            }
            (Some(text), iss, sub) => {
                // Both may hold a `/`: what is told apart says where to split.
                let split = match (&iss, &sub) {
                    (Some(iss), _) => {
                        text.strip_prefix(&**iss).and_then(|r| r.strip_prefix('/')).map(|s| (&**iss, s))
                    }
                    (None, Some(sub)) => {
                        text.strip_suffix(&**sub).and_then(|r| r.strip_suffix('/')).map(|i| (i, &**sub))
                    }
                    (None, None) => text.rsplit_once('/'),
                };
                let split = split.filter(|(i, s)| !i.is_empty() && !s.is_empty());
                let Some((i, s)) = split.filter(|(_, s)| sub.as_ref().is_none_or(|sub| sub == s)) else {
                    return Err(QueryError::NoRequestPrincipal(text.to_owned()));
                };
                (i.to_owned(), s.to_owned())
            }
        };
        for (name, text) in [("iss", &iss), ("sub", &sub)] {
            out.claims.entry(name.to_owned()).or_insert_with(|| vec![text.clone()]);
        }
        out.principal = Some((format!("{iss}/{sub}"), iss, sub));
        Ok(Some(out))
    }

    /// The token as a proxy reads it that takes claims of these names, beside those that always are, for lists between
    /// spaces.
    pub(crate) fn split(&self, names: &BTreeSet<Arc<str>>) -> Self {
        let is_list = |name: &str| match &*claim_path(name) {
            path if is_space_delimited(path) => true,
            [name] => names.contains(name),
            _ => false,
        };
        let words =
            |text: &String| text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let claims = self.claims.iter().map(|(name, texts)| {
            let texts = if is_list(name) { texts.iter().flat_map(words).collect() } else { texts.clone() };
            (name.clone(), texts)
        });
        Self { principal: self.principal.clone(), claims: claims.collect() }
    }

    /// The claims by name.
    pub(crate) fn claims(&self) -> &BTreeMap<String, Vec<String>> {
        &self.claims
    }
}

impl Claims for Token {
    fn each(&self, path: &[Arc<str>], with: &mut dyn FnMut(&str)) {
        self.claims.get(&claim_name(path)).into_iter().flatten().for_each(|text| with(text));
    }

    fn principal(&self) -> Option<&str> {
        self.principal.as_ref().map(|(text, _, _)| &**text)
    }

    fn issuer_and_subject(&self) -> Option<(&str, &str)> {
        self.principal.as_ref().map(|(_, iss, sub)| (&**iss, &**sub))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuer_and_subject_are_told_in_either_way() {
        let told = |principal: Option<&str>, claims: &[(&str, &str)]| {
            let claims = claims.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let token = Token::told(principal, claims).map_err(|e| e.to_string())?;
            Ok::<_, String>(token.map(|t| {
                let both = t.issuer_and_subject().map(|(i, s)| format!("{i} {s}"));
                let (mut iss, path) = (Vec::new(), [Arc::from("iss")]);
                t.each(&path, &mut |text| iss.push(text.to_owned()));
                (both, iss.join(","))
            }))
        };
        let both = |text: &str, iss: &str| Ok(Some((Some(text.to_owned()), iss.to_owned())));
        assert_eq!(told(None, &[]), Ok(None));
        assert_eq!(told(None, &[("groups", "a")]), Ok(Some((None, String::new()))));
        assert_eq!(told(Some("https://a/b/c"), &[]), both("https://a/b c", "https://a/b"));
        assert_eq!(told(None, &[("iss", "https://a"), ("sub", "b/c")]), both("https://a b/c", "https://a"));
        assert_eq!(told(Some("https://a/b/c"), &[("iss", "https://a")]), both("https://a b/c", "https://a"));
        assert_eq!(told(Some("https://a/b/c"), &[("sub", "b/c")]), both("https://a b/c", "https://a"));
        for (principal, claims) in [
            (Some("a"), &[][..]),
            (Some("/a"), &[]),
            (Some("a/"), &[]),
            (Some("a/b"), &[("sub", "c")]),
            (Some("a/b"), &[("iss", "a"), ("sub", "c")]),
            (None, &[("iss", "a"), ("iss", "b"), ("sub", "c")]),
            (None, &[("", "a")]),
            (None, &[("[a][]", "a")]),
        ] {
            assert!(told(principal, claims).is_err(), "{principal:?} {claims:?}");
        }
    }
}
