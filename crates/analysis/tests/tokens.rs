// SPDX-License-Identifier: Apache-2.0
//! RequestAuthentications: what `authz diff` says when one comes or goes, and claims that are lists between spaces.

#![expect(clippy::unwrap_used, reason = "a test")]

use meltemi_analysis::{Client, Differences, Request, To, Token, Verdict, World, diff, explain};
use meltemi_model::NamespacedName;
use meltemi_translate::MeshConfig;
use serde_json::{Value, json};

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn targeted(kind: &str, name: &str, rest: Value) -> Value {
    let mut spec = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}]});
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object(kind, name, &spec)
}

fn policy(name: &str, action: &str, rules: Value) -> Value {
    targeted("AuthorizationPolicy", name, json!({"action": action, "rules": rules}))
}

fn tokens(name: &str, rules: Value) -> Value {
    targeted("RequestAuthentication", name, json!({"jwtRules": rules}))
}

fn issuer(name: &str) -> Value {
    json!({"issuer": name, "jwks": "{\"keys\":[]}"})
}

fn world(objects: &[Value]) -> World {
    World::read(objects, MeshConfig::default()).whole().unwrap()
}

fn compared(old: &[Value], new: &[Value]) -> Differences {
    diff(&world(old), &world(new))
}

/// The signs of what is found, and all of it as text.
fn found(old: &[Value], new: &[Value]) -> (String, String) {
    let found = compared(old, new);
    let signs = ["+".repeat(found.newly_allowed.len()), "-".repeat(found.newly_denied.len())];
    let text = format!("{found:?}");
    (format!("{}{}{}", signs[0], signs[1], "?".repeat(found.unknown.len())), text)
}

#[test]
fn a_token_that_is_not_taken_is_refused_before_policies_are_asked() {
    let anybody = policy("p", "ALLOW", json!([{}]));
    let by_token = policy("p", "ALLOW", json!([{"from": [{"source": {"requestPrincipals": ["i/*"]}}]}]));
    let service = json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "wp"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 81}]}});
    let gateway = json!({"kind": "Gateway", "metadata": {"name": "wp", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "m", "port": 15008, "protocol": "HBONE"}]}});
    let both = tokens("ra", json!([issuer("i"), issuer("j")]));
    let other = tokens("other", json!([issuer("k")]));
    /// The policy, RequestAuthentications, the port, the token's principal, the verdict, and what is in the reason.
    type Case<'a> = (&'a Value, &'a [&'a Value], u16, Option<&'a str>, Verdict, &'a str);
    let cases: [Case<'_>; 9] = [
        (&by_token, &[&both], 80, Some("i/s"), Verdict::Allow, ""),
        (&by_token, &[&both], 80, Some("j/s"), Verdict::Deny, "allow policies exist"),
        (&anybody, &[&both], 80, Some("j/s"), Verdict::Allow, ""),
        (
            &anybody,
            &[&both],
            80,
            Some("x/s"),
            Verdict::Deny,
            "401: RequestAuthentication shop/ra takes no token",
        ),
        (&anybody, &[&both], 80, None, Verdict::Allow, ""),
        (&anybody, &[&both, &other], 80, Some("k/s"), Verdict::Allow, ""),
        (&anybody, &[&both, &other], 80, Some("x/s"), Verdict::Deny, "shop/other and shop/ra takes no token"),
        // Nobody looks for tokens.
        (&anybody, &[], 80, Some("x/s"), Verdict::Allow, ""),
        (&anybody, &[&both], 81, Some("x/s"), Verdict::Allow, ""),
    ];
    for (policy, looking, port, principal, verdict, reason) in cases {
        let mut objects = vec![policy.clone(), service.clone(), gateway.clone()];
        objects.extend(looking.iter().map(|tokens| (*tokens).clone()));
        let token = Token::told(principal, []).unwrap();
        let asker = Client::Principal("cluster.local/ns/shop/sa/default".into());
        let to = To::Service(NamespacedName::new("shop", "web"));
        let request = Request { port: Some(port), token, ..Request::new(asker, to) };
        let answer = explain(&world(&objects), &request).unwrap();
        let found = answer.verdict == verdict && answer.reason.contains(reason);
        assert!(found, "{policy} {looking:?} {port} {principal:?}: {answer:?}");
        let refused = answer.reason.contains("401");
        assert_eq!(refused, reason.contains("takes no"), "{answer:?}");
        assert!(!refused || answer.halves.last().is_some_and(|half| half.policy.is_some()), "{answer:?}");
    }
}

#[test]
fn what_comes_and_goes_is_said_exactly() {
    let get = policy("p", "ALLOW", json!([{"to": [{"operation": {"methods": ["GET"]}}]}]));
    let by_token = policy("p", "ALLOW", json!([{"from": [{"source": {"requestPrincipals": ["i/*"]}}]}]));
    let not_this_one =
        policy("p", "DENY", json!([{"from": [{"source": {"requestPrincipals": ["i/evil"]}}]}]));
    let only_with = policy("p", "DENY", json!([{"from": [{"source": {"notRequestPrincipals": ["*"]}}]}]));
    let nobody = policy("p", "ALLOW", json!([]));
    let ra = || tokens("ra", json!([issuer("i")]));
    // What it takes away, when it goes; and when it comes.
    let cases = [
        ("policies that look at no token", &get, "+", "-"),
        // Without a token nothing is allowed by these, whatever is refused.
        ("an ALLOW by token", &by_token, "", "?"),
        ("a DENY without token", &only_with, "", "?"),
        ("nothing is allowed", &nobody, "", ""),
        ("a DENY by token stops matching", &not_this_one, "+", "-?"),
    ];
    for (what, policy, gone, come) in cases {
        let (without, with) = ([policy.clone()], [policy.clone(), ra()]);
        let (signs, text) = found(&with, &without);
        assert_eq!(signs, gone, "{what}, gone: {text}");
        let (signs, text) = found(&without, &with);
        assert_eq!(signs, come, "{what}, come: {text}");
    }
    let gone = compared(&[not_this_one.clone(), ra()], &[not_this_one]);
    let one = &gone.newly_allowed[0];
    assert_eq!(one.policy.as_deref(), Some("shop/ra"));
    assert!(one.because.contains("DENY rules with request.auth of shop/p match as if there were none"));
    assert_eq!(one.witness.headers.get("authorization").map(String::as_str), Some("Bearer TOKEN"));
    assert!(one.plaintext);
}

#[test]
fn what_means_the_same_is_the_same() {
    let (a, b) = (issuer("a"), issuer("b"));
    let one = [tokens("x", json!([a, b]))];
    let same = [
        vec![tokens("x", json!([b, a]))],
        vec![tokens("y", json!([a])), tokens("z", json!([b]))],
        // Attached to nothing that reads tokens.
        vec![one[0].clone(), object("RequestAuthentication", "n", &json!({"jwtRules": [issuer("c")]}))],
        // Without rules it asks for nothing.
        vec![one[0].clone(), tokens("n", json!([]))],
    ];
    for other in same {
        let (signs, text) = found(&one, &other);
        assert_eq!(signs, "", "{text}");
    }
    let others = [
        vec![tokens("x", json!([a]))],
        vec![tokens("x", json!([a, b, issuer("c")]))],
        vec![tokens("x", json!([a, {"issuer": "b", "jwksUri": "https://k/"}]))],
        vec![tokens("x", json!([a, {"issuer": "b", "jwks": "{\"keys\":[]}", "audiences": ["c"]}]))],
    ];
    for other in others {
        let (signs, text) = found(&one, &other);
        assert_eq!(signs, "?", "{text}");
        assert!(
            text.contains("RequestAuthentication differs (shop/x on the") || text.contains("x on the new"),
            "{text}"
        );
    }
}

#[test]
fn where_a_token_is_looked_for_is_said() {
    let rule = json!([{"issuer": "i", "jwks": "{\"keys\":[]}", "fromHeaders": [{"name": "X-Token", "prefix": "JWT "}], "fromCookies": ["c"]}]);
    let found = compared(&[], &[tokens("ra", rule)]);
    let one = &found.newly_denied[0];
    assert_eq!(one.condition, "a token that is not taken, in cookie c or header x-token (JWT)");
    assert_eq!(one.witness.headers.get("x-token").map(String::as_str), Some("JWT TOKEN"));
}

#[test]
fn ports_without_requests_have_no_tokens() {
    let service = |port: Value| {
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop", "labels": {"istio.io/use-waypoint": "w"}},
            "spec": {"ports": [port]}})
    };
    let ra = tokens("ra", json!([issuer("i")]));
    for (name, signs) in [("tcp", ""), ("http", "-"), ("", "-")] {
        let service = service(json!({"name": name, "port": 80}));
        let (got, text) = found(std::slice::from_ref(&service), &[service.clone(), ra.clone()]);
        assert_eq!(got, signs, "{name}: {text}");
    }
}

/// A claim is read as the proxies read it: `scope` and `permission` always, others where a RequestAuthentication says so.
#[test]
fn claims_between_spaces_are_lists() {
    let lists = || {
        let rules = json!([
            {"issuer": "i", "jwks": "{\"keys\":[]}", "spaceDelimitedClaims": ["roles"]},
            {"issuer": "j", "jwks": "{\"keys\":[]}"}
        ]);
        tokens("ra", rules)
    };
    let asked = |objects: &[Value], principal: Option<&str>, claim: &str, path: Option<&str>| {
        let token = Token::told(principal, [(claim.to_owned(), "read write".to_owned())]).unwrap();
        let request = Request {
            token,
            method: Some("GET".into()),
            path: path.map(str::to_owned),
            ..Request::new(Client::Plaintext, To::Service(NamespacedName::new("shop", "web")))
        };
        explain(&world(objects), &Request { at: Some(meltemi_analysis::At::Waypoint), ..request }).unwrap()
    };
    let rule = |claim: &str| {
        let when = json!([{"when": [{"key": format!("request.auth.claims[{claim}]"), "values": ["write"]}]}]);
        policy("p", "ALLOW", when)
    };
    let cases = [
        ("scope", Some("i/s"), Verdict::Allow),
        ("permission", Some("j/s"), Verdict::Allow),
        ("roles", Some("i/s"), Verdict::Allow),
        // Another issuer's are texts.
        ("roles", Some("j/s"), Verdict::Deny),
        ("other", Some("i/s"), Verdict::Deny),
    ];
    for (claim, principal, expected) in cases {
        let answer = asked(&[rule(claim), lists()], principal, claim, Some("/"));
        assert_eq!(answer.verdict, expected, "{claim} {principal:?}: {answer:?}");
    }
    assert_eq!(asked(&[rule("roles")], Some("i/s"), "roles", Some("/")).verdict, Verdict::Deny);
    // Of an issuer that was not told it is assumed, and said.
    let answer = asked(&[rule("roles"), lists()], None, "roles", Some("/"));
    assert_eq!(answer.verdict, Verdict::Allow);
    assert!(answer.assumed.iter().any(|a| a.contains("takes roles for lists")), "{:?}", answer.assumed);
    // What was not told is asked with the list, too: the path matters to whom the claim admits.
    let when = json!([{"key": "request.auth.claims[scope]", "values": ["write"]}]);
    let both = policy("p", "ALLOW", json!([{"to": [{"operation": {"paths": ["/a"]}}], "when": when}]));
    assert_eq!(asked(&[both], None, "scope", None).verdict, Verdict::Unknown);
}
