// SPDX-License-Identifier: Apache-2.0
//! The places where tokens are looked for: headers, parameters of the query, cookies.

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use meltemi_model::l7::JwtRule;
use meltemi_view::Denial;

use crate::facts::RequestFacts;
use crate::headers::is_same;

/// Where a token is looked for by default (RFC 6750 §2).
const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";
const PARAMETER: &str = "access_token";

/// A place that a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// A header, after this prefix.
    Header(&'a str, &'a str),
    /// A parameter of the query.
    Parameter(&'a str),
    /// A cookie.
    Cookie(&'a str),
}

/// The places of a rule.
pub(super) fn places_of(rule: &JwtRule) -> impl Iterator<Item = Place<'_>> {
    let is_default =
        rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
    let default = [Place::Header(HEADER, SCHEME), Place::Parameter(PARAMETER)];
    let headers = rule.from_headers.iter().map(|(name, prefix)| Place::Header(name, prefix));
    let parameters = rule.from_params.iter().map(|name| Place::Parameter(name));
    let cookies = rule.from_cookies.iter().map(|name| Place::Cookie(name));
    default.into_iter().filter(move |_| is_default).chain(headers).chain(parameters).chain(cookies)
}

/// The value of a header after the prefix; `None` when the header carries no token. The scheme is compared without case, as
/// servers do, and what stands before it is part of the token, which is then none.
fn after_prefix(value: &str, prefix: &str) -> Option<String> {
    let value = value.trim();
    let scheme = prefix.trim_end();
    if scheme.is_empty() {
        return (!value.is_empty()).then(|| value.to_owned());
    }
    let lower = value.to_ascii_lowercase();
    let at = lower.find(&scheme.to_ascii_lowercase())?;
    let rest = &value[at + scheme.len()..];
    let spaced = scheme.len() < prefix.len();
    let token = rest.trim_start();
    // `BearerX` is no scheme `Bearer`; `Basic x, Bearer y` is one to a server that takes a list.
    let is_scheme = !spaced || token.is_empty() || token.len() < rest.len();
    match at {
        0 if is_scheme => Some(token.to_owned()),
        0 => Some(value.to_owned()),
        _ if is_scheme && lower[..at].ends_with([' ', ',', '\t', ';']) => Some(value.to_owned()),
        _ => None,
    }
}

/// Whether a parameter has this name once its escapes are decoded.
pub(super) fn is_named(parameter: &str, wanted: &str) -> bool {
    percent_encoding::percent_decode_str(parameter).eq(wanted.bytes())
}

/// A query without some of its parameters; `unwanted` gets name and value as they stand there.
pub(super) fn without_parameters(query: &str, unwanted: impl Fn(&str, &str) -> bool) -> String {
    let mut kept = String::new();
    let mut removed_last = false;
    for segment in query.split_inclusive(['&', ';']) {
        let parameter = segment.strip_suffix(['&', ';']).unwrap_or(segment);
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        removed_last = unwanted(name, value);
        if !removed_last {
            kept.push_str(segment);
        }
    }
    if removed_last && kept.ends_with(['&', ';']) {
        kept.pop();
    }
    kept
}

fn decode_value(value: &str) -> String {
    percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()
}

/// The value of a cookie; servers take it with or without quotes around.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value)
}

fn header_text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Whether some servers take one name for the other; neither has to be in lower case.
fn is_header(name: &HeaderName, wanted: &str) -> bool {
    is_same(name.as_str(), wanted) || is_same(name.as_str(), &wanted.to_ascii_lowercase())
}

impl<'a> Place<'a> {
    /// The tokens at this place, as sent; all of them, whichever a server would take.
    pub(super) fn tokens(self, facts: &RequestFacts) -> Vec<String> {
        match self {
            Self::Header(wanted, prefix) => {
                let sent = facts.headers.iter().chain(&facts.changes.withheld);
                let same = sent.filter(|(name, _)| is_header(name, wanted));
                same.filter_map(|(_, value)| after_prefix(&header_text(value), prefix)).collect()
            }
            Self::Parameter(wanted) => {
                let all = facts.query.split(['&', ';']).map(|p| p.split_once('=').unwrap_or((p, "")));
                all.filter(|(name, _)| is_named(name, wanted)).map(|(_, value)| decode_value(value)).collect()
            }
            Self::Cookie(wanted) => {
                let sent = facts.headers.get_all(COOKIE).iter().chain(facts.changes.withheld.get_all(COOKIE));
                sent.flat_map(|value| {
                    let value = header_text(value);
                    let all = value.split(';').filter_map(|one| one.split_once('='));
                    let named = all.filter(|(name, _)| name.trim() == wanted);
                    named.map(|(_, value)| unquoted(value).to_owned()).collect::<Vec<_>>()
                })
                .collect()
            }
        }
    }

    /// Removes the token from what is forwarded.
    ///
    /// # Errors
    /// What remains is no target of a request.
    pub(super) fn withhold(
        self,
        token: &str,
        headers: &mut HeaderMap,
        target: &mut Uri,
    ) -> Result<(), Denial> {
        let Self::Parameter(wanted) = self else {
            self.withhold_header(token, headers);
            return Ok(());
        };
        let query = without_parameters(target.query().unwrap_or_default(), |name, _| is_named(name, wanted));
        let text = match query.is_empty() {
            true => target.path().to_owned(),
            false => format!("{}?{query}", target.path()),
        };
        let ambiguous = || Denial::Ambiguous { reason: "no target is left without its token" };
        let path: PathAndQuery = text.parse().map_err(|_| ambiguous())?;
        let mut parts = target.clone().into_parts();
        parts.path_and_query = Some(path);
        *target = Uri::from_parts(parts).map_err(|_| ambiguous())?;
        Ok(())
    }

    /// Removes the token from headers; returns those that were changed, as they were.
    pub(super) fn withhold_header(self, token: &str, headers: &mut HeaderMap) -> HeaderMap {
        match self {
            Self::Header(wanted, prefix) => rewrite_headers(headers, |name, value| {
                let is_here = is_header(name, wanted);
                let carries = is_here && after_prefix(&header_text(value), prefix).as_deref() == Some(token);
                (!carries).then(|| value.clone())
            }),
            Self::Cookie(wanted) => rewrite_headers(headers, |name, value| {
                let all = header_text(value);
                let is_other = |one: &&str| one.split_once('=').is_none_or(|(name, _)| name.trim() != wanted);
                if name != COOKIE || all.split(';').all(|one| is_other(&one)) {
                    return Some(value.clone());
                }
                let others: Vec<&str> = all.split(';').filter(is_other).map(str::trim).collect();
                let others = others.join("; ");
                HeaderValue::from_bytes(others.as_bytes()).ok().filter(|value| !value.is_empty())
            }),
            Self::Parameter(_) => HeaderMap::new(),
        }
    }
}

/// Writes each header anew as `kept` says; returns the old values of those that were changed or removed.
fn rewrite_headers(
    headers: &mut HeaderMap,
    kept: impl Fn(&HeaderName, &HeaderValue) -> Option<HeaderValue>,
) -> HeaderMap {
    let mut old = HeaderMap::new();
    let mut new = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        let written = kept(name, value);
        if written.as_ref() != Some(value) {
            old.append(name.clone(), value.clone());
        }
        if let Some(written) = written {
            new.append(name.clone(), written);
        }
    }
    if !old.is_empty() {
        *headers = new;
    }
    old
}
