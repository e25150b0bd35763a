// SPDX-License-Identifier: Apache-2.0
//! Tables of tokens: which are taken, and what is said of those that are not.

use std::sync::Arc;

use meltemi_model::l7::JwtRule;
use meltemi_policy::Claims;
use meltemi_testkit::issuer::{Issuer, b64};
use meltemi_tokens::{
    Accepted, Invalid, InvalidKeys, KeySet, MAX_KEYS, MAX_SET, MAX_TOKEN, Rule, accept_token,
};
use serde_json::json;

const NOW: u64 = 1_800_000_000;

fn rule(issuer: &str, keys: &str) -> JwtRule {
    JwtRule { issuer: Some(issuer.into()), jwks: Some(keys.into()), ..JwtRule::default() }
}

fn take(document: &JwtRule, token: &str) -> Result<Accepted, Invalid> {
    accept_token([Arc::new(Rule::new(document.clone()))].iter(), token, NOW)
}

#[test]
fn every_algorithm_is_verified_by_its_own_kind_of_key() {
    let issuers = Issuer::all();
    for signer in &issuers {
        let token = signer.token(&json!({}), &json!({"iss": "i", "sub": "s"}));
        for holder in &issuers {
            let seen = take(&rule("i", &holder.keys()), &token).map(drop);
            // Algorithms of RSA share their kind of key; a key that does not say its algorithm serves for each.
            let expected = match (signer.name == holder.name, signer.kind() == holder.kind()) {
                (true, _) => Ok(()),
                (false, true) if signer.kind() != "EC" => Err(Invalid::BadSignature),
                _ => Err(Invalid::NoMatchingKey),
            };
            assert_eq!(seen, expected, "{} by the keys of {}", signer.name, holder.name);
        }
        // A changed bit anywhere is another token.
        let changed = format!("{}A{}", &token[..token.len() - 8], &token[token.len() - 7..]);
        if changed != token {
            assert!(take(&rule("i", &signer.keys()), &changed).is_err(), "{}", signer.name);
        }
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let rsa = Issuer::new("RS256");
    for secret in [rsa.keys(), rsa.modulus()] {
        let forged = Issuer::secret("HS256", secret.as_bytes());
        let token = forged.token(&json!({}), &json!({"iss": "i", "sub": "admin"}));
        assert_eq!(take(&rule("i", &rsa.keys()), &token).unwrap_err(), Invalid::NoMatchingKey);
    }
}

#[test]
fn headers_that_could_be_read_otherwise_are_refused() {
    let issuer = Issuer::new("ES256");
    let rule = rule("i", &issuer.keys());
    let claims = json!({"iss": "i", "sub": "s"});
    for (header, expected) in [
        (json!({"kid": issuer.id()}), Ok(())),
        (json!({"kid": ""}), Ok(())),
        (json!({"typ": "JWT", "cty": "JWT"}), Ok(())),
        // Keys that a token brings along are nobody's.
        (
            json!({"jku": "http://127.0.0.1/keys", "x5u": "http://a", "jwk": {"kty": "oct", "k": "YQ"}}),
            Ok(()),
        ),
        (json!({"kid": "../../etc/passwd"}), Err(Invalid::NoMatchingKey)),
        (json!({"kid": 1}), Err(Invalid::HeaderKid)),
        (json!({"alg": "none"}), Err(Invalid::UnsupportedAlg)),
        (json!({"alg": "NONE"}), Err(Invalid::UnsupportedAlg)),
        (json!({"alg": "es256"}), Err(Invalid::UnsupportedAlg)),
        (json!({"alg": "ES256K"}), Err(Invalid::UnsupportedAlg)),
        (json!({"alg": "ES384"}), Err(Invalid::NoMatchingKey)),
        (json!({"alg": null}), Err(Invalid::HeaderAlg)),
        (json!({"alg": ["ES256"]}), Err(Invalid::HeaderAlg)),
        (json!({"crit": ["exp"]}), Err(Invalid::Critical)),
        (json!({"crit": ["b64"], "b64": false}), Err(Invalid::Critical)),
    ] {
        assert_eq!(take(&rule, &issuer.token(&header, &claims)).map(drop), expected, "{header}");
    }
    let signed = |header: &str, claims: &str| issuer.sign(&format!("{}.{}", b64(header), b64(claims)));
    let (good, no_alg) = (r#"{"alg":"ES256"}"#, r#"{"typ":"JWT"}"#);
    let payload = r#"{"iss":"i","sub":"s"}"#;
    let whole = signed(good, payload);
    let (front, signature) = whole.rsplit_once('.').unwrap();
    for (token, expected) in [
        (whole.clone(), Ok(())),
        (signed(no_alg, payload), Err(Invalid::HeaderAlg)),
        (signed(r#"{"alg":"none","alg":"ES256"}"#, payload), Err(Invalid::HeaderJson)),
        (signed("[]", payload), Err(Invalid::HeaderJson)),
        (signed(good, r#"{"iss":"i","sub":"s","sub":"admin"}"#), Err(Invalid::PayloadJson)),
        (signed(good, r#"{"iss":"i","a":{"b":1,"b":2}}"#), Err(Invalid::PayloadJson)),
        (signed(good, "\"text\""), Err(Invalid::PayloadJson)),
        (signed(good, &format!("{}1{}", "[".repeat(5000), "]".repeat(5000))), Err(Invalid::PayloadJson)),
        (format!("{front}.{signature}="), Err(Invalid::SignatureBase64)),
        (format!("{front}.{signature}\n"), Err(Invalid::SignatureBase64)),
        (format!(" {whole}"), Err(Invalid::HeaderBase64)),
        (format!("{whole}.x"), Err(Invalid::BadFormat)),
        (front.to_owned(), Err(Invalid::BadFormat)),
        (format!("{front}."), Err(Invalid::BadSignature)),
        (format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(payload)), Err(Invalid::UnsupportedAlg)),
        (format!("{}=.{}.{signature}", b64(good), b64(payload)), Err(Invalid::HeaderBase64)),
        (format!("{}.{}%.{signature}", b64(good), b64(payload)), Err(Invalid::PayloadBase64)),
        ("..".to_owned(), Err(Invalid::HeaderJson)),
        (String::new(), Err(Invalid::BadFormat)),
        ("x".repeat(1024 * 1024), Err(Invalid::TooLong)),
        (".".repeat(MAX_TOKEN), Err(Invalid::BadFormat)),
    ] {
        let shown = &token[..token.len().min(120)];
        assert_eq!(take(&rule, &token).map(drop), expected, "{shown}");
    }
}

#[test]
fn issuer_times_and_audiences_are_judged() {
    let issuer = Issuer::new("EdDSA");
    let any_issuer = JwtRule { issuer: None, ..rule("i", &issuer.keys()) };
    let audience = JwtRule { audiences: vec!["a".into(), "https://b/".into()], ..rule("i", &issuer.keys()) };
    let plain = rule("i", &issuer.keys());
    let with = |more: serde_json::Value| {
        let mut claims = json!({"iss": "i", "sub": "s"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    for (rule, claims, expected) in [
        (&plain, json!({"iss": "j"}), Err(Invalid::UnknownIssuer)),
        (&plain, json!({"iss": "I"}), Err(Invalid::UnknownIssuer)),
        (&plain, json!({}), Err(Invalid::UnknownIssuer)),
        (&plain, json!({"iss": ["i"]}), Err(Invalid::Iss)),
        (&any_issuer, json!({"iss": "j"}), Ok(())),
        (&any_issuer, json!({}), Ok(())),
        (&plain, with(json!({"sub": 1})), Err(Invalid::Sub)),
        (&plain, with(json!({"exp": NOW + 1})), Ok(())),
        (&plain, with(json!({"exp": NOW - 60})), Ok(())),
        (&plain, with(json!({"exp": NOW - 61})), Err(Invalid::Expired)),
        (&plain, with(json!({"exp": 0})), Err(Invalid::Expired)),
        (&plain, with(json!({"exp": u64::MAX})), Ok(())),
        (&plain, with(json!({"exp": 1e10})), Ok(())),
        (&plain, with(json!({"exp": 1e308})), Err(Invalid::ExpNotInteger)),
        (&plain, with(json!({"exp": 1.5})), Err(Invalid::ExpNotInteger)),
        (&plain, with(json!({"exp": "1900000000"})), Err(Invalid::ExpNotInteger)),
        (&plain, with(json!({"exp": null})), Err(Invalid::ExpNotInteger)),
        (&plain, with(json!({"exp": -1})), Err(Invalid::ExpNotPositive)),
        (&plain, with(json!({"exp": -1.5e300})), Err(Invalid::ExpNotPositive)),
        (&plain, with(json!({"nbf": NOW + 60})), Ok(())),
        (&plain, with(json!({"nbf": NOW + 61})), Err(Invalid::NotYetValid)),
        (&plain, with(json!({"nbf": u64::MAX})), Err(Invalid::NotYetValid)),
        (&plain, with(json!({"nbf": true})), Err(Invalid::NbfNotInteger)),
        (&plain, with(json!({"aud": "whatever"})), Ok(())),
        (&audience, with(json!({"aud": "a"})), Ok(())),
        (&audience, with(json!({"aud": ["x", "a"]})), Ok(())),
        (&audience, with(json!({"aud": "http://b"})), Ok(())),
        (&audience, with(json!({"aud": ["x"]})), Err(Invalid::AudienceNotAllowed)),
        (&audience, with(json!({"aud": []})), Err(Invalid::AudienceNotAllowed)),
        (&audience, with(json!({"aud": "A"})), Err(Invalid::AudienceNotAllowed)),
        (&audience, with(json!({})), Err(Invalid::AudienceNotAllowed)),
        (&audience, with(json!({"aud": [1]})), Err(Invalid::Aud)),
        (&audience, with(json!({"aud": {"a": "a"}})), Err(Invalid::Aud)),
    ] {
        let token = issuer.token(&json!({}), &claims);
        assert_eq!(take(rule, &token).map(drop), expected, "{claims}");
    }
    assert_eq!([Invalid::AudienceNotAllowed.status(), Invalid::Expired.status()], [403, 401]);
}

#[test]
fn a_token_that_was_verified_is_judged_by_the_clock_at_each_use() {
    let issuer = Issuer::new("RS256");
    let rules = [Arc::new(Rule::new(rule("i", &issuer.keys())))];
    let token = issuer.token(&json!({}), &json!({"iss": "i", "nbf": NOW, "exp": NOW + 100}));
    for (now, expected) in [
        (NOW, Ok(())),
        (NOW, Ok(())),
        (NOW + 161, Err(Invalid::Expired)),
        (NOW - 61, Err(Invalid::NotYetValid)),
        (NOW + 160, Ok(())),
    ] {
        assert_eq!(accept_token(rules.iter(), &token, now).map(drop), expected, "{now}");
    }
    // Another rule with other keys does not take it for verified.
    let other = [Arc::new(Rule::new(rule("i", &Issuer::new("RS256").keys())))];
    assert_eq!(accept_token(other.iter(), &token, NOW).unwrap_err(), Invalid::BadSignature);
}

#[test]
fn each_issuer_has_its_own_keys() {
    let (one, two) = (Issuer::new("ES256"), Issuer::new("ES384"));
    let rules =
        [rule("one", &one.keys()), rule("two", &two.keys()), JwtRule { jwks: None, ..rule("three", "") }];
    let rules = rules.map(|document| Arc::new(Rule::new(document)));
    let token = |signer: &Issuer, issuer: &str| signer.token(&json!({}), &json!({"iss": issuer, "sub": "s"}));
    for (token, expected) in [
        (token(&one, "one"), Ok("one/s")),
        (token(&two, "two"), Ok("two/s")),
        (token(&one, "two"), Err(Invalid::NoMatchingKey)),
        (token(&two, "one"), Err(Invalid::NoMatchingKey)),
        (token(&one, "three"), Err(Invalid::NoKeys)),
        (token(&one, "four"), Err(Invalid::UnknownIssuer)),
    ] {
        let seen = accept_token(rules.iter(), &token, NOW);
        let seen = seen.as_ref().map(|accepted| accepted.principal().unwrap()).map_err(|e| *e);
        assert_eq!(seen, expected);
    }
}

#[test]
fn key_sets_are_bounded_and_their_useless_keys_left_out() {
    let issuer = Issuer::new("ES256");
    let key = issuer.key();
    let with = |more: serde_json::Value| {
        let mut key = key.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"keys": [{"kty": "XYZ"}, 1, key]}).to_string()
    };
    for (text, expected) in [
        (with(json!({})), Ok(())),
        (with(json!({"use": "sig", "key_ops": ["verify"], "alg": "ES256", "d": "private"})), Ok(())),
        (key.to_string(), Ok(())),
        (with(json!({"use": "enc"})), Err(InvalidKeys::NoValidKeys)),
        (with(json!({"key_ops": ["sign"]})), Err(InvalidKeys::NoValidKeys)),
        (with(json!({"alg": "RS256"})), Err(InvalidKeys::NoValidKeys)),
        (with(json!({"alg": "ES384"})), Err(InvalidKeys::NoValidKeys)),
        (with(json!({"x": "AAAA"})), Err(InvalidKeys::NoValidKeys)),
        (with(json!({"kid": 7})), Err(InvalidKeys::NoValidKeys)),
        (
            json!({"keys": [{"kty": "RSA", "n": b64("x".repeat(128)), "e": "AQAB"}]}).to_string(),
            Err(InvalidKeys::NoValidKeys),
        ),
        (json!({"keys": [{"kty": "oct", "k": ""}]}).to_string(), Err(InvalidKeys::NoValidKeys)),
        (json!({"keys": []}).to_string(), Err(InvalidKeys::NoValidKeys)),
        ("{}".into(), Err(InvalidKeys::NoKeys)),
        (r#"{"keys":{}}"#.into(), Err(InvalidKeys::NoKeys)),
        (r#"{"keys":[],"keys":[]}"#.into(), Err(InvalidKeys::Json)),
        ("<html>".into(), Err(InvalidKeys::Json)),
        (json!({"keys": vec![key.clone(); MAX_KEYS]}).to_string(), Ok(())),
        (json!({"keys": vec![key.clone(); MAX_KEYS + 1]}).to_string(), Err(InvalidKeys::TooMany)),
        (format!("{}{}", with(json!({})), " ".repeat(MAX_SET)), Err(InvalidKeys::TooLong)),
    ] {
        assert_eq!(KeySet::parse(&text).map(drop), expected, "{}", &text[..text.len().min(200)]);
    }
    // A set that cannot be used takes no token; one that says its algorithm takes no other.
    let token = issuer.token(&json!({}), &json!({"iss": "i"}));
    assert_eq!(take(&rule("i", "{}"), &token).unwrap_err(), Invalid::NoValidKeys);
    let rsa = Issuer::new("RS256");
    let mut only = rsa.key();
    only["alg"] = json!("RS512");
    let token = rsa.token(&json!({}), &json!({"iss": "i"}));
    assert_eq!(take(&rule("i", &only.to_string()), &token).unwrap_err(), Invalid::NoMatchingKey);
}

#[test]
fn what_is_handed_on_of_a_fetched_set_is_public() {
    for issuer in Issuer::all() {
        let public = KeySet::parse(&issuer.keys()).unwrap().public();
        if issuer.kind() == "oct" {
            assert_eq!(public.unwrap_err(), InvalidKeys::NoValidKeys);
            continue;
        }
        let mut private = issuer.key();
        private["d"] = json!("c2VjcmV0");
        let public = KeySet::parse(&private.to_string()).unwrap().public().unwrap();
        assert!(!public.contains("c2VjcmV0"), "{public}");
        let token = issuer.token(&json!({"kid": issuer.id()}), &json!({"iss": "i"}));
        assert_eq!(take(&rule("i", &public), &token).map(drop), Ok(()), "{}", issuer.name);
    }
}

#[test]
fn claims_are_seen_by_policies_and_headers() {
    let issuer = Issuer::new("ES512");
    let document =
        JwtRule { space_delimited_claims: vec!["roles".into()], ..rule("https://i/x", &issuer.keys()) };
    let claims = json!({
        "iss": "https://i/x", "sub": "a/b", "roles": "r1 r2", "other": "r1 r2", "list": ["x", 1, "y"], "empty": "",
        "n": 5, "big": 1e3, "yes": true, "nested": {"a": {"b": "deep"}, "roles": "n1 n2"}, "a.b": "dotted",
        "evil": "x\r\nx-admin: 1", "name": "José", "nul": null,
    });
    let accepted = take(&document, &issuer.token(&json!({}), &claims)).unwrap();
    assert_eq!(accepted.principal(), Some("https://i/x/a/b"));
    assert_eq!(accepted.issuer_and_subject(), Some(("https://i/x", "a/b")));
    for (path, expected) in [
        (&["roles"][..], &["r1", "r2"][..]),
        (&["other"], &["r1 r2"]),
        (&["list"], &["x", "y"]),
        (&["nested", "a", "b"], &["deep"]),
        (&["nested", "roles"], &["n1 n2"]),
        (&["nested", "a"], &[]),
        (&["n"], &[]),
        (&["missing", "a"], &[]),
        (&[], &[]),
    ] {
        let path: Vec<Arc<str>> = path.iter().map(|name| Arc::from(*name)).collect();
        let mut seen = Vec::new();
        accepted.each(&path, &mut |text| seen.push(text.to_owned()));
        assert_eq!(seen, expected, "{path:?}");
    }
    for (claim, expected) in [
        ("sub", Ok(Some("a/b"))),
        ("nested.a.b", Ok(Some("deep"))),
        ("a.b", Ok(Some("dotted"))),
        ("n", Ok(Some("5"))),
        ("yes", Ok(Some("true"))),
        ("list", Ok(Some("WyJ4IiwxLCJ5Il0="))),
        ("name", Ok(Some("José"))),
        ("empty", Ok(None)),
        ("nul", Ok(None)),
        ("missing", Ok(None)),
        ("nested.a.b.c", Ok(None)),
        ("evil", Err(Invalid::ClaimNotHeader)),
    ] {
        let seen = accepted.header_text(claim).map(|text| text.map(|t| String::from_utf8(t).unwrap()));
        assert_eq!(seen, expected.map(|text| text.map(str::to_owned)), "{claim}");
    }
    // Without issuer or subject there is no principal.
    let any = JwtRule { issuer: None, ..document };
    for claims in [json!({"sub": "s"}), json!({"iss": "i"}), json!({"iss": "i", "sub": ""})] {
        assert_eq!(take(&any, &issuer.token(&json!({}), &claims)).unwrap().principal(), None, "{claims}");
    }
}
