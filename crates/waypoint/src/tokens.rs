// SPDX-License-Identifier: Apache-2.0
//! Tokens: this proxy verifies none. Where a RequestAuthentication applies, a request with a token is refused, since a
//! backend would take the token for verified. One without is what it is in Istio: allowed by the RequestAuthentication,
//! and without claims for the policies that ask for them.

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use meltemi_model::l7::{Jwt, JwtRule};
use meltemi_view::{Denial, Mesh};

use crate::facts::RequestFacts;
use crate::headers::is_same;

/// Where a token is looked for by default (RFC 6750 §2).
const SCHEME: &str = "bearer";
const PARAMETER: &str = "access_token";

fn applying<'a>(mesh: &'a Mesh, facts: &'a RequestFacts) -> impl Iterator<Item = &'a Jwt> {
    mesh.jwts.applying(facts.target.as_ref(), &facts.gateway).map(|(_, jwt)| &**jwt)
}

/// The refusal of a request that carries a token that had to be verified. A connection that is TCP by its client's first
/// bytes alone is refused too, since nobody can tell whether it carries one.
pub(crate) fn unverified(mesh: &Mesh, facts: &RequestFacts) -> Option<Denial> {
    let unread = !facts.http && facts.detected;
    let carries =
        |jwt: &&Jwt| unread || jwt.rules.iter().any(|rule| carries(rule, &facts.headers, &facts.query));
    let jwt = applying(mesh, facts).find(carries)?;
    let authentication = jwt.name.clone();
    Some(if unread {
        Denial::TokenNotReadable { authentication }
    } else {
        Denial::TokenNotVerified { authentication }
    })
}

/// Removes the headers that only a proxy that has verified a token may write, under every name that some server takes for
/// theirs.
pub(crate) fn sanitize(mesh: &Mesh, facts: &mut RequestFacts, forwarded: &mut HeaderMap) {
    let written = |rule: &JwtRule| {
        let claims = rule.claim_headers.iter().map(|(header, _)| header.to_ascii_lowercase());
        let payload = rule.payload_header.iter().map(|header| header.to_ascii_lowercase());
        payload.chain(claims).collect::<Vec<String>>()
    };
    let owned: Vec<String> = applying(mesh, facts).flat_map(|jwt| &jwt.rules).flat_map(written).collect();
    if owned.is_empty() {
        return;
    }
    for headers in [&mut facts.headers, &mut facts.changes.withheld, forwarded] {
        let forged = |name: &&HeaderName| owned.iter().any(|owned| is_same(owned, name.as_str()));
        let names: Vec<HeaderName> = headers.keys().filter(forged).cloned().collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
    }
}

/// Whether there is a token where the rule looks for one.
fn carries(rule: &JwtRule, headers: &HeaderMap, query: &str) -> bool {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let in_header = |name: &str, prefix: &str| {
        let name = name.to_ascii_lowercase();
        let same = headers.iter().filter(|(other, _)| is_same(other.as_str(), &name));
        same.map(|(_, value)| text(value)).any(|value| {
            let value = value.trim_start();
            let begins = value.get(..prefix.len()).is_some_and(|b| b.eq_ignore_ascii_case(prefix));
            begins && !value.is_empty()
        })
    };
    let in_query = |wanted: &str| {
        query.split(['&', ';']).any(|parameter| {
            let name = parameter.split('=').next().unwrap_or_default();
            percent_encoding::percent_decode_str(name).eq(wanted.bytes())
        })
    };
    let in_cookie = |wanted: &str| {
        let cookies = headers.get_all(COOKIE).iter().map(text);
        cookies.into_iter().any(|all| all.split(';').any(|one| one.trim().split('=').next() == Some(wanted)))
    };
    if rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty() {
        return in_header(AUTHORIZATION.as_str(), SCHEME) || in_query(PARAMETER);
    }
    rule.from_headers.iter().any(|(name, prefix)| in_header(name, prefix.trim_end()))
        || rule.from_params.iter().any(|name| in_query(name))
        || rule.from_cookies.iter().any(|name| in_cookie(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_seen_where_rules_look_for_them() {
        let default = JwtRule::default();
        let custom = JwtRule {
            from_headers: vec![("x-jwt".into(), "".into()), ("x-token".into(), "JWT ".into())],
            from_params: vec!["t".into()],
            from_cookies: vec!["session".into()],
            ..JwtRule::default()
        };
        let cases: [(&JwtRule, &str, &str, &str, bool); 18] = [
            (&default, "x", "y", "", false),
            (&default, "authorization", "Bearer x", "", true),
            (&default, "authorization", "bEARER\tx", "", true),
            (&default, "authorization", "Basic x", "", false),
            (&default, "x", "y", "a=b&access_token=x", true),
            (&default, "x", "y", "access%5Ftoken=x", true),
            (&default, "x", "y", "a=access_token", false),
            (&default, "x-jwt", "x", "t=x", false),
            (&custom, "x-jwt", "x", "", true),
            (&custom, "x-jwt", "", "", false),
            (&custom, "x_jwt", "x", "", true),
            (&custom, "x_token", "JWT x", "", true),
            (&custom, "x-token", "jwt x", "", true),
            (&custom, "x-token", "x", "", false),
            (&custom, "cookie", "a=b; session=x", "", true),
            (&custom, "cookie", "a=session", "", false),
            (&custom, "x", "y", "t=x", true),
            (&custom, "authorization", "Bearer x", "access_token=x", false),
        ];
        for (rule, name, value, query, expected) in cases {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(carries(rule, &headers, query), expected, "{name}: {value}; {query}");
        }
    }
}
