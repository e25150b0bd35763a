// SPDX-License-Identifier: Apache-2.0
//! Tokens of users at a waypoint: what a client gets, what the backend gets, and what policies see.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fixtures::FREE;
use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Jwt, JwtRule, Target};
use meltemi_testkit::issuer::Issuer;
use meltemi_waypoint::Limits;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use world::{PATIENCE, World, answer, policy, service, status, write};

/// Makes each case's id another one.
static CASES: AtomicUsize = AtomicUsize::new(0);

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn rule(issuer: &str, keys: &Issuer) -> JwtRule {
    JwtRule { issuer: Some(issuer.into()), jwks: Some(keys.keys().into()), ..JwtRule::default() }
}

fn jwt(name: &str, targets: Vec<Target>, rules: Vec<JwtRule>) -> Jwt {
    Jwt { name: NamespacedName::new("default", name), targets, rules }
}

/// Asks for a path with these headers; the whole answer.
async fn ask(world: &World, number: u8, target: &str, headers: &[String], id: &str) -> String {
    let mut io = world.to_service(number).await;
    let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {target} HTTP/1.1\r\nhost: app.example\r\nx-request-id: {id}\r\n{lines}\r\n");
    write(&mut io, request.as_bytes()).await;
    String::from_utf8(answer(&mut io, &mut Vec::new()).await.unwrap()).unwrap()
}

struct Case<'a> {
    target: &'a str,
    headers: Vec<String>,
    status: u16,
    /// Text of the answer, or of what the backend got.
    has: &'a [&'a str],
    lacks: &'a [&'a str],
}

async fn check(world: &World, number: u8, cases: Vec<Case<'_>>) {
    for case in cases {
        let id = format!("case-{}.", CASES.fetch_add(1, Ordering::Relaxed));
        let what = format!("{id} {} {:?}", case.target, case.headers);
        let got = ask(world, number, case.target, &case.headers, &id).await;
        assert_eq!(status(got.as_bytes()), case.status, "{what}: {got}");
        let backend = world.seen(&id).concat();
        assert_eq!(backend.is_empty(), case.status != 200, "{what}: {backend}");
        let text = if case.status == 200 { backend } else { got };
        for wanted in case.has {
            assert!(text.contains(wanted), "{what} lacks {wanted:?}: {text}");
        }
        for unwanted in case.lacks {
            assert!(!text.contains(unwanted), "{what} has {unwanted:?}: {text}");
        }
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_judged_and_handed_on_as_their_rules_say() {
    let mut world = World::start(Limits::default()).await;
    let (one, two) = (Issuer::new("ES256"), Issuer::new("EdDSA"));
    let plain = JwtRule {
        payload_header: Some("x-payload".into()),
        claim_headers: vec![("x-sub".into(), "sub".into()), ("x-team".into(), "team.name".into())],
        audiences: vec!["app".into()],
        ..rule("one", &one)
    };
    let custom = JwtRule {
        from_headers: vec![("x-jwt".into(), "".into())],
        from_params: vec!["t".into()],
        from_cookies: vec!["session".into()],
        forward: true,
        ..rule("two", &two)
    };
    world.tokens(jwt("users", vec![Target::Service(service(FREE))], vec![plain, custom]));
    world.publish();
    let claims = |more: Value| {
        let mut claims =
            json!({"iss": "one", "sub": "alice", "aud": "app", "exp": now() + 600, "team": {"name": "red"}});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let good = one.token(&json!({}), &claims(json!({})));
    let other = one.token(&json!({}), &claims(json!({"sub": "bob"})));
    let second = two.token(&json!({}), &json!({"iss": "two", "sub": "carol"}));
    let of_one = |more: Value| one.token(&json!({}), &claims(more));
    let refused = |target, headers: Vec<String>, has| Case { target, headers, status: 401, has, lacks: &[] };
    let challenge = "www-authenticate: Bearer realm=\"http://app.example/x\", error=\"invalid_token\"";
    let in_query = format!("/x?a=1&access_token={good}&b=2");
    let escaped = format!("/x?access%5ftoken={}", good.replace('.', "%2e"));
    let twice = format!("/x?access_token={good}&access_token={other}");
    let bad_query = format!("/x?access_token={good}x");
    let (payload, forged) =
        (format!("x-payload: {}", good.split('.').nth(1).unwrap()), "x-sub: root".to_owned());
    let case = |target, headers, has, lacks| Case { target, headers, status: 200, has, lacks };
    let multiple: &[&str] = &["Found multiple Jwt tokens"];
    check(
        &world,
        FREE,
        vec![
            // Without a token nothing is said, whatever the client says itself.
            case(
                "/x",
                vec![forged.clone(), "X_Sub: root".into(), "x-payload: e30".into()],
                &[],
                &["root", "e30"],
            ),
            case("/x", vec!["authorization: Basic eDp5".into()], &["authorization: Basic eDp5"], &["x-sub"]),
            case(
                "/x",
                vec![bearer(&good), forged],
                &["x-sub: alice", "x-team: red", &payload],
                &["authorization", "root"],
            ),
            case("/x", vec![format!("Authorization: bearer {good}")], &["x-sub: alice"], &["uthorization"]),
            case(&in_query, vec![], &["GET /x?a=1&b=2 HTTP/1.1", "x-sub: alice"], &["access_token"]),
            case(&escaped, vec![], &["GET /x HTTP/1.1", "x-sub: alice"], &["access"]),
            case(&in_query, vec![bearer(&good)], &["GET /x?a=1&b=2 ", "x-sub: alice"], &["authorization"]),
            case("/x", vec![format!("x-jwt: {second}")], &["x-jwt: ey"], &["x-sub"]),
            case("/x", vec![format!("cookie: a=b; session={second}; c=d")], &["a=b; session=ey"], &[]),
            refused("/x", vec![bearer("x.y.z")], &[challenge, "Jwt header is an invalid"]),
            refused(
                "/x",
                vec![bearer("x")],
                &["Jwt is not in the form of Header.Payload.Signature with two dots"],
            ),
            refused("/x", vec![bearer(&format!("{good}x"))], &[challenge]),
            refused("/x", vec![bearer(&good), bearer(&other)], multiple),
            refused("/x", vec![format!("authorization: Bearer {good}, Bearer {other}")], &[challenge]),
            refused("/x", vec![format!("authorization: Basic eDp5, Bearer {good}")], &[challenge]),
            refused("/x", vec![bearer(&good), format!("x-jwt: {second}")], multiple),
            refused(&twice, vec![], multiple),
            refused(&bad_query, vec![], &[challenge]),
            refused("/x", vec![bearer(&of_one(json!({"exp": now() - 100})))], &["Jwt is expired", challenge]),
            refused("/x", vec![bearer(&of_one(json!({"nbf": now() + 600})))], &["Jwt not yet valid"]),
            refused("/x", vec![bearer(&of_one(json!({"iss": "three"})))], &["Jwt issuer is not configured"]),
            // A token at a place that is not for its issuer.
            refused("/x", vec![bearer(&second)], &["Jwt issuer is not configured"]),
            refused("/x", vec![format!("x-jwt: {good}")], &["Jwt issuer is not configured"]),
            refused(
                "/x",
                vec![bearer(&two.token(&json!({}), &claims(json!({}))))],
                &["Jwks doesn't have key to match"],
            ),
            refused("/x", vec![bearer(&of_one(json!({"sub": "a\r\nx-admin: 1"})))], &["cannot be a header"]),
            refused(
                "/x",
                vec![bearer(&format!("{}.", good.rsplit_once('.').unwrap().0))],
                &["Jwt verification fails"],
            ),
            Case {
                target: "/x",
                headers: vec![bearer(&of_one(json!({"aud": "other"})))],
                status: 403,
                has: &["Audiences in Jwt are not allowed"],
                lacks: &["www-authenticate"],
            },
        ],
    )
    .await;
    // gRPC tells failures in its own status.
    let grpc = vec!["content-type: application/grpc".to_owned(), bearer("x")];
    let got = ask(&world, FREE, "/x", &grpc, "grpc").await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("grpc-status: 16"), "{got}");
    // The log says why, and holds no token.
    ask(&world, FREE, &bad_query, &[], "logged").await;
    let line = world.line("logged").await;
    assert!(
        line.contains("jwt_authn_access_denied{Jwt_signature_is_an_invalid_Base64url_encoded}")
            || line.contains("jwt_authn_access_denied{Jwt_verification_fails}"),
        "{line}"
    );
    assert!(
        line.contains("RequestAuthentication default/users") && line.contains("GET /x HTTP/1.1"),
        "{line}"
    );
    assert!(!line.contains("eyJ"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_see_the_claims_of_the_token_that_was_verified() {
    let mut world = World::start(Limits::default()).await;
    let issuer = Issuer::new("RS256");
    let targets = vec![Target::Service(service(FREE))];
    let rules = vec![JwtRule { space_delimited_claims: vec!["roles".into()], ..rule("https://i", &issuer) }];
    world.tokens(jwt("users", targets.clone(), rules));
    let claim = |name: &str| Attribute::RequestAuthClaim(vec![name.into()].into());
    world.policy(
        targets[0].clone(),
        policy(
            "roles",
            Action::Allow,
            &[(Attribute::RequestPrincipal, &["https://i/*"]), (claim("roles"), &["admin"])],
        ),
    );
    world.policy(
        targets[0].clone(),
        policy("mallory", Action::Deny, &[(Attribute::RequestPrincipal, &["https://i/mallory"])]),
    );
    world.publish();
    let token = |claims: Value| vec![bearer(&issuer.token(&json!({}), &claims))];
    let case = |headers, status| Case { target: "/x", headers, status, has: &[], lacks: &[] };
    check(
        &world,
        FREE,
        vec![
            case(vec![], 403),
            case(token(json!({"iss": "https://i", "sub": "a", "roles": "user admin"})), 200),
            case(token(json!({"iss": "https://i", "sub": "a", "roles": ["admin"]})), 200),
            case(token(json!({"iss": "https://i", "sub": "a", "roles": "administrator"})), 403),
            case(token(json!({"iss": "https://i", "sub": "mallory", "roles": "admin"})), 403),
            case(token(json!({"iss": "https://i", "roles": "admin"})), 403),
            // Without keys every token is refused, with the reason.
            case(token(json!({"iss": "https://j", "sub": "a"})), 401),
        ],
    )
    .await;
    let keyless =
        JwtRule { jwks: None, jwks_uri: Some("https://i/keys".into()), ..rule("https://i", &issuer) };
    world.tokens(jwt("users", targets, vec![keyless]));
    world.publish();
    let headers = token(json!({"iss": "https://i", "sub": "a", "roles": "admin"}));
    let refused =
        Case { target: "/x", headers, status: 401, has: &["Jwks remote fetch is failed"], lacks: &[] };
    check(&world, FREE, vec![refused, case(vec![], 403)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_its_token_has_expired() {
    let mut world =
        World::start(Limits { token_check: Duration::from_millis(100), ..Limits::default() }).await;
    let issuer = Issuer::new("ES256");
    world.tokens(jwt("users", vec![Target::Service(service(FREE))], vec![rule("i", &issuer)]));
    world.publish();
    // Within the leeway of a minute, of which two seconds are left.
    let short = issuer.token(&json!({}), &json!({"iss": "i", "exp": now() - 58}));
    let long = issuer.token(&json!({}), &json!({"iss": "i", "exp": now() + 600}));
    let mut streams = Vec::new();
    for token in [&long, &short] {
        let mut io = world.to_service(FREE).await;
        let request = format!("GET /trickle HTTP/1.1\r\nhost: a\r\n{}\r\n\r\n", bearer(token));
        write(&mut io, request.as_bytes()).await;
        let mut begun = Vec::new();
        while !String::from_utf8_lossy(&begun).contains("event") {
            assert!(matches!(io.read_buf(&mut begun).await, Ok(1..)), "{}", String::from_utf8_lossy(&begun));
        }
        streams.push(io);
    }
    let mut ends = streams.pop().unwrap();
    let ended = async { while let Ok(1..) = ends.read_buf(&mut Vec::new()).await {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    let mut more = Vec::new();
    assert!(matches!(streams[0].read_buf(&mut more).await, Ok(1..)), "the other one goes on");
}
