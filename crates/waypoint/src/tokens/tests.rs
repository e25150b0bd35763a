// SPDX-License-Identifier: Apache-2.0
use http::header::COOKIE;
use meltemi_model::l7::JwtRule;

use super::*;
use crate::headers::Changes;

fn facts(query: &str, headers: &[(&str, &str)]) -> RequestFacts {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    RequestFacts {
        source: None,
        source_ip: [10, 0, 0, 1].into(),
        to: ([10, 0, 0, 2], 80).into(),
        sni: None,
        http: true,
        detected: false,
        query: query.to_owned(),
        method: "GET".to_owned(),
        host: "a".to_owned(),
        paths: vec!["/".to_owned()],
        headers: map,
        changes: Changes::default(),
        aliases: Vec::new(),
        target: None,
        workload: None,
        gateway: NamespacedName::new("default", "gateway"),
        room: None,
    }
}

fn custom() -> JwtRule {
    JwtRule {
        from_headers: vec![
            ("x-jwt".into(), "".into()),
            ("X-Token".into(), "JWT ".into()),
            ("x-raw".into(), "v=".into()),
        ],
        from_params: vec!["t".into()],
        from_cookies: vec!["session".into()],
        ..JwtRule::default()
    }
}

fn tokens(rule: &JwtRule, facts: &RequestFacts) -> Vec<String> {
    places::places_of(rule).flat_map(|at| at.tokens(facts)).collect()
}

#[test]
fn tokens_are_seen_where_rules_look_for_them() {
    let (default, custom) = (JwtRule::default(), custom());
    for (rule, name, value, query, expected) in [
        (&default, "x", "y", "", &[][..]),
        (&default, "authorization", "Bearer x", "", &["x"]),
        (&default, "authorization", "bEARER\tx ", "", &["x"]),
        (&default, "authorization", "Bearer", "", &[""]),
        (&default, "authorization", "Bearerx", "", &["Bearerx"]),
        (&default, "authorization", "Bearer  a.b.c", "", &["a.b.c"]),
        (&default, "authorization", "Bearer a, Bearer b", "", &["a, Bearer b"]),
        (&default, "authorization", "Basic x, Bearer y", "", &["Basic x, Bearer y"]),
        (&default, "authorization", "Basic x", "", &[]),
        (&default, "authorization", "Basic eHhiZWFyZXJ4", "", &[]),
        (&default, "x", "y", "a=b&access_token=x", &["x"]),
        (&default, "x", "y", "access%5Ftoken=x", &["x"]),
        (&default, "x", "y", "access_token=%78%2e", &["x."]),
        (&default, "x", "y", "access_token=x;access_token=y&access_token", &["x", "y", ""]),
        (&default, "x", "y", "a=access_token", &[]),
        (&default, "x", "y", "ACCESS_TOKEN=x", &[]),
        (&default, "x-jwt", "x", "t=x", &[]),
        (&custom, "x-jwt", "x", "", &["x"]),
        (&custom, "x-jwt", "", "", &[]),
        (&custom, "x_jwt", "x", "", &["x"]),
        (&custom, "x_token", "JWT x", "", &["x"]),
        (&custom, "x-token", "jwt x", "", &["x"]),
        (&custom, "x-token", "x", "", &[]),
        (&custom, "x-raw", "v=x", "", &["x"]),
        (&custom, "cookie", "a=b; session=x", "", &["x"]),
        (&custom, "cookie", "session=\"x\";session=y", "", &["x", "y"]),
        (&custom, "cookie", "a=session", "", &[]),
        (&custom, "x", "y", "t=x", &["x"]),
        (&custom, "authorization", "Bearer x", "access_token=x", &[]),
    ] {
        let seen = tokens(rule, &facts(query, &[(name, value)]));
        assert_eq!(seen, expected, "{name}: {value}; {query}");
    }
}

/// A signature takes a thousand times what a byte of a head does: a request has one token judged, once by each rule.
#[test]
fn what_a_request_has_judged_does_not_grow_with_its_tokens() {
    let jwt = meltemi_model::l7::Jwt {
        name: NamespacedName::new("default", "users"),
        targets: Vec::new(),
        rules: vec![custom(), custom()],
    };
    let valid = Arc::new(ValidJwt::try_from(jwt).unwrap());
    let repeated = |text: &dyn Fn(usize) -> String| (0..5_000).map(text).collect::<String>();
    let same = repeated(&|_| "session=x;".into());
    let different = repeated(&|n| format!("session={n};"));
    let (same_query, different_query) = (same.replace("session", "t"), different.replace("session", "t"));
    for (cookies, query, tokens) in [
        (&*same, "", 1),
        ("", &*same_query, 1),
        (&*same, &*same_query, 2),
        (&*different, "", 2),
        ("", &*different_query, 2),
        (&*different, &*different_query, 2),
    ] {
        let facts = facts(query, &[("cookie", cookies)]);
        let found = find_tokens(&[&valid], &facts);
        let rules: usize = found.iter().map(|one| one.rules.len()).sum();
        assert!(found.len() == tokens && rules <= 2 * tokens, "{} tokens, {rules} rules", found.len());
    }
}

#[test]
fn tokens_are_removed_from_where_they_were_and_nothing_else_is() {
    let rule = custom();
    for (headers, target, left, left_target) in [
        (&[("x-jwt", "T"), ("x-other", "T")][..], "/a?b=c", &["x-other: T"][..], "/a?b=c"),
        (&[("x_token", "JWT T"), ("x-token", "Basic T")], "/", &["x-token: Basic T"], "/"),
        (&[("cookie", "a=b; session=T; c=d")], "/", &["cookie: a=b; c=d"], "/"),
        (&[("cookie", "session=\"T\"")], "/", &[], "/"),
        (&[], "/a?t=T", &[], "/a"),
        (&[], "/a?x=1&t=T&y=2", &[], "/a?x=1&y=2"),
        (&[], "/a?x=1;%74=%54", &[], "/a?x=1"),
        (&[], "http://h/a?t=T&t=T", &[], "http://h/a"),
    ] {
        let mut uri: Uri = target.parse().unwrap();
        let facts = facts(uri.query().unwrap_or_default(), headers);
        let mut kept = facts.headers.clone();
        for at in places::places_of(&rule).filter(|at| at.tokens(&facts).contains(&"T".to_owned())) {
            at.withhold("T", &mut kept, &mut uri).unwrap();
        }
        let seen: Vec<String> = kept.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(
            (&*seen, uri.to_string().as_str()),
            (&*left.iter().map(ToString::to_string).collect::<Vec<_>>(), left_target),
            "{headers:?} {target}"
        );
        let after =
            RequestFacts { query: uri.query().unwrap_or_default().to_owned(), headers: kept, ..facts };
        assert_eq!(tokens(&rule, &after), Vec::<String>::new());
    }
    let before = facts("", &[("cookie", "a=b; session=T")]);
    let at = places::places_of(&rule).find(|at| matches!(at, Place::Cookie(_))).unwrap();
    let old = at.withhold_header("T", &mut before.headers.clone());
    assert_eq!(old.get(COOKIE).unwrap(), "a=b; session=T");
}

#[test]
fn a_challenge_is_one_header_whatever_was_asked_for() {
    for (host, target, expected) in [
        ("a", "/x?access_token=secret", "Bearer realm=\"http://a/x\", error=\"invalid_token\""),
        ("a", "/x\"\\y", "Bearer realm=\"http://a/x%22%5Cy\", error=\"invalid_token\""),
        ("a\r\nb", "/", "Bearer error=\"invalid_token\""),
    ] {
        assert_eq!(bearer_challenge("http", host, target), expected);
    }
    assert!(bearer_challenge("http", "a", &"/x".repeat(10_000)).len() < 400);
}
