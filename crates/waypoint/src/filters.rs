// SPDX-License-Identifier: Apache-2.0
//! Filters: what a rule does to a request that was judged: headers, another host or path, an answer that sends elsewhere.
//! Semantics are those of the Gateway API (HTTPRoute v1).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use meltemi_model::l7::{Filter, HeaderChanges, PathChange};

/// Where a request was going when it is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Going<'a> {
    /// `http` or `https`.
    pub(crate) scheme: &'a str,
    /// Host, perhaps with a port.
    pub(crate) host: &'a str,
    /// Port of the listener or Service.
    pub(crate) port: u16,
    /// Path, normalised.
    pub(crate) path: &'a str,
    /// The query.
    pub(crate) query: Option<&'a str>,
    /// The prefix that the rule matched; none when it matched otherwise.
    pub(crate) prefix: Option<&'a str>,
}

/// A rule that asks for what cannot be done: 500, as for a reference that cannot be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impossible(pub(crate) &'static str);

/// The changes of headers; [`Filter::check`] has found that all of them are headers.
pub(crate) fn apply(headers: &mut HeaderMap, changes: &HeaderChanges) {
    let pair = |(name, value): &(String, String)| {
        Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?))
    };
    for (name, value) in changes.set.iter().filter_map(pair) {
        headers.insert(name, value);
    }
    for (name, value) in changes.add.iter().filter_map(pair) {
        headers.append(name, value);
    }
    for name in &changes.remove {
        headers.remove(name.as_str());
    }
}

/// The redirect that is the answer, if there is one: its status and `Location`.
pub(crate) fn redirect<'a>(
    mut filters: impl Iterator<Item = &'a Filter>,
    going: Going<'_>,
) -> Option<Result<(StatusCode, HeaderValue), Impossible>> {
    let found = filters.find_map(|filter| match filter {
        Filter::Redirect { scheme, host, port, path, code } => Some((scheme, host, port, path, code)),
        _ => None,
    });
    let (scheme, host, port, path, code) = found?;
    let answer = || {
        let code = StatusCode::from_u16(*code).ok().filter(StatusCode::is_redirection);
        let code = code.ok_or(Impossible("the redirect's status is no 3xx"))?;
        // A scheme brings its own port; without one the port stays that of the listener.
        let well_known = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        let port = port.unwrap_or_else(|| scheme.as_deref().map_or(going.port, well_known));
        let scheme = scheme.as_deref().unwrap_or(going.scheme);
        let host = host.as_deref().unwrap_or_else(|| without_port(going.host));
        let port = if port == well_known(scheme) { String::new() } else { format!(":{port}") };
        let path = change(path.as_ref(), going)?;
        let query = going.query.map_or_else(String::new, |query| format!("?{query}"));
        let location = HeaderValue::from_str(&format!("{scheme}://{host}{port}{path}{query}"))
            .map_err(|_| Impossible("the redirect's target is no header"))?;
        Ok((code, location))
    };
    Some(answer())
}

/// Host and path for the backend, after all rewrites; none where nothing is rewritten. Of two rewrites, one of the rule and
/// one of its backend, the latter says more; each of them is of the path as it came.
pub(crate) fn rewrite<'a>(
    filters: impl Iterator<Item = &'a Filter>,
    going: Going<'_>,
) -> Result<Rewritten, Impossible> {
    let mut rewritten = Rewritten::default();
    for filter in filters {
        let Filter::Rewrite { host, path } = filter else { continue };
        if let Some(host) = host {
            rewritten.host = Some(host.clone());
        }
        if let Some(path) = path {
            rewritten.path = Some(change(Some(path), going)?);
        }
    }
    Ok(rewritten)
}

/// What a backend gets in the place of what the client sent; none where nothing is rewritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) host: Option<String>,
    pub(crate) path: Option<String>,
}

fn change(to: Option<&PathChange>, going: Going<'_>) -> Result<String, Impossible> {
    let path = match to {
        None => return Ok(going.path.to_owned()),
        Some(PathChange::Full(path)) => path.clone(),
        Some(PathChange::Prefix(new)) => {
            let prefix =
                going.prefix.ok_or(Impossible("a prefix is replaced that the rule does not match"))?;
            let rest = going.path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix));
            let rest = rest.ok_or(Impossible("a prefix is replaced that the path does not have"))?;
            let new = new.strip_suffix('/').unwrap_or(new);
            format!("{new}{rest}")
        }
    };
    Ok(if path.starts_with('/') { path } else { format!("/{path}") })
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if !host.ends_with(']') => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn going<'a>(host: &'a str, path: &'a str, prefix: Option<&'a str>) -> Going<'a> {
        Going { scheme: "http", host, port: 8080, path, query: Some("q=1"), prefix }
    }

    #[test]
    fn prefixes_are_replaced_as_the_gateway_api_says() {
        for (path, prefix, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
        ] {
            let filter = Filter::Rewrite { host: None, path: Some(PathChange::Prefix(new.into())) };
            let seen = rewrite([&filter].into_iter(), going("a", path, Some(prefix))).unwrap().path;
            assert_eq!(seen.as_deref(), Some(expected), "{path}: {prefix} by {new}");
        }
    }

    #[test]
    fn redirects_say_scheme_host_port_and_path() {
        let redirect_to = |scheme: Option<&str>, host: Option<&str>, port, path, asked| {
            let filter = Filter::Redirect {
                scheme: scheme.map(Into::into),
                host: host.map(Into::into),
                port,
                path,
                code: 301,
            };
            let going = going(asked, "/a/b", Some("/a"));
            let (code, location) = redirect([&filter].into_iter(), going).unwrap().unwrap();
            assert_eq!(code, 301);
            location.to_str().unwrap().to_owned()
        };
        let prefix = || Some(PathChange::Prefix("/c".into()));
        for (seen, expected) in [
            (redirect_to(None, None, None, None, "h:9"), "http://h:8080/a/b?q=1"),
            (redirect_to(Some("https"), None, None, None, "h:9"), "https://h/a/b?q=1"),
            (redirect_to(None, Some("x"), Some(80), None, "h"), "http://x/a/b?q=1"),
            (redirect_to(Some("https"), None, Some(8443), prefix(), "[::1]:9"), "https://[::1]:8443/c/b?q=1"),
            (redirect_to(None, None, None, Some(PathChange::Full("/z".into())), "h"), "http://h:8080/z?q=1"),
        ] {
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let prefix = Filter::Rewrite { host: None, path: Some(PathChange::Prefix("/c".into())) };
        assert!(rewrite([&prefix].into_iter(), going("a", "/a", None)).is_err());
        let split = Filter::Redirect {
            scheme: None,
            host: Some("a\r\nset-cookie: b".into()),
            port: None,
            path: None,
            code: 302,
        };
        assert!(redirect([&split].into_iter(), going("a", "/a", None)).unwrap().is_err());
    }

    #[test]
    fn what_a_backend_rewrites_says_more_than_its_rule() {
        let of_rule =
            Filter::Rewrite { host: Some("rule".into()), path: Some(PathChange::Full("/rule".into())) };
        let of_backend = Filter::Rewrite { host: None, path: Some(PathChange::Prefix("/backend".into())) };
        let seen = rewrite([&of_rule, &of_backend].into_iter(), going("a", "/a/b", Some("/a"))).unwrap();
        assert_eq!(seen, Rewritten { host: Some("rule".into()), path: Some("/backend/b".into()) });
    }
}
