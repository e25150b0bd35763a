// SPDX-License-Identifier: Apache-2.0
//! Tokens: where a RequestAuthentication applies, every token that its rules look at has to be one that they take, and there
//! is one at most. A request without a token is allowed by the RequestAuthentication, and has no claims for policies.

mod places;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use meltemi_model::NamespacedName;
use meltemi_runtime::DrainWatch;
use meltemi_tokens::{Accepted, Invalid, Rule, accept_token};
use meltemi_view::mesh::ValidJwt;
use meltemi_view::{Denial, Mesh, View};

use crate::facts::RequestFacts;
use crate::headers::is_same;
use places::Place;

fn applying<'a>(mesh: &'a Mesh, facts: &RequestFacts) -> Vec<&'a Arc<ValidJwt>> {
    mesh.jwts.applying(facts.target.as_ref(), &facts.gateway).map(|(_, jwt)| jwt).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A token, where it is, and the rules that look there.
struct Found<'a> {
    at: Place<'a>,
    text: String,
    rules: Vec<&'a Arc<Rule>>,
    authentication: &'a NamespacedName,
}

/// Finds every token that a rule looks at; no further ones after a second, for which a request is refused. A token that
/// stands at one place a thousand times is one, and each rule judges it once.
fn find_tokens<'a>(applying: &[&'a Arc<ValidJwt>], facts: &RequestFacts) -> Vec<Found<'a>> {
    let mut found: Vec<Found<'a>> = Vec::new();
    for jwt in applying {
        for rule in &jwt.rules {
            for at in places::places_of(&rule.document) {
                for text in at.tokens(facts) {
                    let is_second = found.first().is_some_and(|first| first.text != text);
                    match found.iter_mut().find(|one| one.at == at && one.text == text) {
                        Some(known) if known.rules.iter().any(|of| Arc::ptr_eq(of, rule)) => {}
                        Some(known) => known.rules.push(rule),
                        None => {
                            found.push(Found { at, text, rules: vec![rule], authentication: &jwt.name });
                        }
                    }
                    if is_second {
                        return found;
                    }
                }
            }
        }
    }
    found
}

/// The tokens of a request, each with its place.
fn judge_all<'a>(mesh: &'a Mesh, facts: &RequestFacts) -> Result<Vec<(Accepted, Found<'a>)>, Denial> {
    if mesh.jwts.is_empty() {
        return Ok(Vec::new());
    }
    // A connection that is TCP by its client's first bytes alone may carry a token that nobody can see.
    if !facts.http {
        return match applying(mesh, facts).first().filter(|_| facts.detected) {
            Some(jwt) => Err(Denial::TokenNotReadable { authentication: jwt.name.clone() }),
            None => Ok(Vec::new()),
        };
    }
    let found = find_tokens(&applying(mesh, facts), facts);
    let denial =
        |one: &Found<'_>, reason| Denial::InvalidToken { authentication: one.authentication.clone(), reason };
    // Of two tokens policies would see the one and the application perhaps the other.
    if let Some(second) = found.iter().find(|one| one.text != found[0].text) {
        return Err(denial(second, Invalid::Multiple));
    }
    let now = now();
    let accepted =
        found.into_iter().map(|one| match accept_token(one.rules.iter().copied(), &one.text, now) {
            Ok(accepted) => Ok((accepted, one)),
            Err(reason) => Err(denial(&one, reason)),
        });
    accepted.collect()
}

/// The claims of a request's token; `None` when it has no token, or none that anybody looks at.
///
/// # Errors
/// It carries a token that is not taken.
pub(crate) fn judge(mesh: &Mesh, facts: &RequestFacts) -> Result<Option<Accepted>, Denial> {
    Ok(judge_all(mesh, facts)?.into_iter().next().map(|(accepted, _)| accepted))
}

/// Makes of a request what is forwarded: headers that only this proxy may write are removed, tokens too where their rule does
/// not forward them, and claims are written. Facts see what was sent and what is forwarded. Returns the headers with tokens
/// that are not forwarded so.
///
/// # Errors
/// It carries a token that is not taken.
pub(crate) fn admit(
    mesh: &Mesh,
    facts: &mut RequestFacts,
    headers: &mut HeaderMap,
    target: &mut Uri,
) -> Result<HeaderMap, Denial> {
    let mut withheld = HeaderMap::new();
    if mesh.jwts.is_empty() {
        return Ok(withheld);
    }
    remove_forged(mesh, facts, headers);
    let mut written: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (accepted, found) in judge_all(mesh, facts)? {
        let authentication = found.authentication;
        written.extend(
            written_headers(&accepted)
                .map_err(|reason| Denial::InvalidToken { authentication: authentication.clone(), reason })?,
        );
        if accepted.rule().document.forward {
            continue;
        }
        found.at.withhold(&found.text, headers, target)?;
        withheld.extend(found.at.withhold_header(&found.text, &mut facts.headers));
    }
    for (name, value) in &withheld {
        facts.changes.withheld.append(name.clone(), value.clone());
    }
    for (name, value) in written {
        facts.headers.insert(name.clone(), value.clone());
        headers.insert(name, value);
    }
    Ok(withheld)
}

/// What a rule hands on of a token: its payload and claims of it.
fn written_headers(accepted: &Accepted) -> Result<Vec<(HeaderName, HeaderValue)>, Invalid> {
    let rule = &accepted.rule().document;
    let header = |name: &str, value: &[u8]| {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Invalid::ClaimNotHeader)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Invalid::ClaimNotHeader)?;
        Ok((name, value))
    };
    let mut out = Vec::new();
    if let Some(name) = &rule.payload_header {
        out.push(header(name, accepted.payload().as_bytes())?);
    }
    for (name, claim) in &rule.claim_headers {
        if let Some(value) = accepted.header_text(claim)? {
            out.push(header(name, &value)?);
        }
    }
    Ok(out)
}

/// Removes the headers that only a proxy that has verified a token may write, under every name that some server takes for
/// theirs.
fn remove_forged(mesh: &Mesh, facts: &mut RequestFacts, forwarded: &mut HeaderMap) {
    let applying = applying(mesh, facts);
    let rules = applying.iter().flat_map(|jwt| &jwt.rules).map(|rule| &rule.document);
    let owned: Vec<Arc<str>> = rules
        .flat_map(|rule| {
            rule.payload_header.iter().chain(rule.claim_headers.iter().map(|(header, _)| header))
        })
        .cloned()
        .collect();
    if owned.is_empty() {
        return;
    }
    for headers in [&mut facts.headers, &mut facts.changes.withheld, forwarded] {
        let forged = |name: &&HeaderName| {
            owned.iter().any(|owned| is_same(&owned.to_ascii_lowercase(), name.as_str()))
        };
        let names: Vec<HeaderName> = headers.keys().filter(forged).cloned().collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
    }
}

/// The path and query of a request for the log: without tokens.
pub(crate) fn hide_tokens(mesh: &Mesh, facts: &RequestFacts, target: &str) -> Option<String> {
    let (path, query) = target.split_once('?').filter(|_| !mesh.jwts.is_empty())?;
    let names: Vec<&str> = applying(mesh, facts)
        .into_iter()
        .flat_map(|jwt| &jwt.rules)
        .flat_map(|rule| places::places_of(&rule.document))
        .filter_map(|at| if let Place::Parameter(name) = at { Some(name) } else { None })
        .collect();
    let hidden = places::without_parameters(query, |name, _| names.iter().any(|n| places::is_named(name, n)));
    let mark = if hidden.is_empty() { "" } else { "?" };
    (hidden != query).then(|| format!("{path}{mark}{hidden}"))
}

/// `WWW-Authenticate` of an answer that refuses a token (RFC 6750 §3), as Envoy writes it: the realm is what was asked for.
pub(crate) fn bearer_challenge(scheme: &str, host: &str, target: &str) -> HeaderValue {
    const LONGEST: usize = 256;
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let path = path.get(..path.floor_char_boundary(LONGEST)).unwrap_or_default();
    let realm = format!("{scheme}://{host}{path}").replace('\\', "%5C").replace('"', "%22");
    HeaderValue::from_str(&format!("Bearer realm=\"{realm}\", error=\"invalid_token\""))
        .unwrap_or(HeaderValue::from_static("Bearer error=\"invalid_token\""))
}

/// Judges what is open again as time goes by: a stream ends when its token has expired.
pub(crate) async fn watch_expiry(
    view: View,
    interval: Duration,
    drain: DrainWatch,
) -> Result<(), Infallible> {
    let last = view.last_served(drain);
    tokio::pin!(last);
    loop {
        tokio::select! {
            () = &mut last => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
        if !view.mesh().jwts.is_empty() {
            view.judge_again().await;
        }
    }
}

#[cfg(test)]
mod tests;
