// SPDX-License-Identifier: Apache-2.0
//! External authorizers: what they are asked, what becomes of their answers, and of those that misbehave.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "providers/servers.rs"]
mod servers;
#[path = "hostile/world.rs"]
mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixtures::{FREE, OTHER};
use meltemi_model::authz::{Action, Attribute, Policy};
use meltemi_model::l7::{CheckedBody, HeaderMatch, HttpAuthorizer, Provider, ProviderProtocol, Target};
use meltemi_model::service::AppProtocol;
use meltemi_testkit::issuer::Issuer;
use meltemi_waypoint::Limits;
use meltemi_wire::proto::ext_authz as proto;
use serde_json::json;
use servers::{Asked, grpc_server, http_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use world::{World, answer, policy, service, status, write};

/// Ports of every Service that lead to authorizers.
const HTTP: u16 = 9000;
const GRPC: u16 = 9001;

fn provider(name: &str, protocol: ProviderProtocol) -> Provider {
    let port = if protocol == ProviderProtocol::Grpc { GRPC } else { HTTP };
    Provider {
        name: name.into(),
        service: service(OTHER),
        port,
        timeout_ms: 30_000,
        fail_open: false,
        status_on_error: 403,
        body: None,
        protocol,
    }
}

fn http_settings() -> HttpAuthorizer {
    let exact = |name: &str| vec![HeaderMatch::Exact(name.to_owned())];
    HttpAuthorizer {
        path_prefix: "/check".into(),
        include: vec![HeaderMatch::Prefix("x-in".into())],
        additional: vec![("x-in-own".into(), "mesh".into())],
        to_upstream: exact("x-user"),
        on_allow: exact("x-seen"),
        on_deny: Vec::new(),
    }
}

fn custom(name: &str, provider: &str, paths: &[&str]) -> Policy {
    policy(name, Action::Custom { provider: provider.into() }, &[(Attribute::Path, paths)])
}

async fn ask(world: &World, request: &str) -> String {
    let mut io = world.to_service(FREE).await;
    write(&mut io, request.as_bytes()).await;
    String::from_utf8_lossy(&answer(&mut io, &mut Vec::new()).await.unwrap()).into_owned()
}

fn get(path: &str, headers: &str, id: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app.example\r\nx-request-id: {id}\r\n{headers}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_over_http_decides_and_changes_headers() {
    let mut world = World::start(Limits::default()).await;
    let asked = Asked::default();
    world.add_port(HTTP, http_server(asked.clone()).await, AppProtocol::Http11);
    world.provider(provider("auth", ProviderProtocol::Http(http_settings())));
    world.policy(Target::Service(service(FREE)), custom("ask", "auth", &["/*"]));
    let bob = policy("bob", Action::Deny, &[(Attribute::Header("x-user".into()), &["bob"])]);
    world.policy(Target::Service(service(FREE)), bob);
    world.publish();
    let sent = "x-in-a: 1\r\nx-in-own: forged\r\nx-out: 2\r\nauthorization: Bearer t\r\nx-user: bob\r\n";
    let got = ask(&world, &get("/a/../ok?q=1", sent, "ok")).await;
    assert_eq!(status(got.as_bytes()), 200, "{got}");
    assert!(got.contains("x-seen: yes") && !got.contains("x-other"), "{got}");
    let question = asked.lock().unwrap().last().unwrap().clone();
    // It is asked about the path that is judged and forwarded.
    assert!(question.starts_with("GET /check/ok?q=1 HTTP/1.1\r\n"), "{question}");
    for (text, there) in [
        ("host: app.example", true),
        ("x-in-a: 1", true),
        ("authorization: Bearer t", true),
        ("x-in-own: mesh", true),
        ("forged", false),
        ("x-out", false),
        ("x-user", false),
    ] {
        assert_eq!(question.contains(text), there, "{text}: {question}");
    }
    // What the client said itself is replaced before DENY policies judge.
    let backend = world.seen("ok").concat();
    assert!(backend.contains("x-user: alice") && !backend.contains("bob"), "{backend}");
    for (path, expected, has) in [
        ("/deny", 401, "location: /login\r\n"),
        ("/deny", 401, "set-cookie: a=b\r\n"),
        ("/deny", 401, "login"),
        ("/moved", 302, "location: /login\r\n"),
        ("/broken", 403, ""),
        ("/half", 403, ""),
        ("/closed", 403, ""),
        ("/noise", 403, ""),
        ("/huge", 403, ""),
        // Headers of framing are not changed, and a policy judges what the authorizer has written.
        ("/smuggle", 403, ""),
    ] {
        let id = format!("http{path}.");
        let got = ask(&world, &get(path, "", &id)).await;
        assert_eq!(status(got.as_bytes()), expected, "{path}: {got}");
        assert!(got.contains(has), "{path}: {got}");
        assert!(world.seen(&id).is_empty(), "{path} has reached the backend");
    }
    let line = world.line("http/deny.").await;
    assert!(
        line.contains("ext_authz_denied") && line.contains("UAEX") && line.contains("policy=default/ask"),
        "{line}"
    );
    assert!(line.contains("provider auth denies it (401 Unauthorized)"), "{line}");
    let line = world.line("http/broken.").await;
    assert!(
        line.contains("ext_authz_error") && line.contains("provider auth cannot be asked: it answers 503"),
        "{line}"
    );
    // A client of gRPC gets gRPC's own status.
    let got = ask(&world, &get("/deny", "content-type: application/grpc\r\n", "g")).await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("grpc-status: 7"), "{got}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_asked_opens_nothing_unless_it_is_set_to() {
    let mut world = World::start(Limits::default()).await;
    world.add_port(HTTP, http_server(Asked::default()).await, AppProtocol::Http11);
    let grpc = grpc_server(Arc::default()).await;
    world.add_port(GRPC, grpc, AppProtocol::Grpc);
    let http = || ProviderProtocol::Http(http_settings());
    let slow = Provider { timeout_ms: 300, status_on_error: 504, ..provider("slow", http()) };
    let open = Provider { timeout_ms: 300, fail_open: true, ..provider("open", http()) };
    let open_grpc = Provider { fail_open: true, ..provider("open-grpc", ProviderProtocol::Grpc) };
    let gone = Provider { service: service(200), ..provider("gone", http()) };
    for one in [slow, open, open_grpc, gone] {
        world.provider(one);
    }
    for (name, paths) in [
        ("slow", &["/silent", "/slow"][..]),
        ("open", &["/open/silent", "/open/deny", "/silent/open"]),
        ("open-grpc", &["/grpc"]),
        ("gone", &["/gone"]),
        ("unknown", &["/unknown"]),
    ] {
        world.policy(Target::Service(service(FREE)), custom(name, name, paths));
    }
    world.publish();
    let raw = b"GET /grpc HTTP/1.1\r\nhost: a\r\nx-request-id: raw\r\nx-b: \xff\r\n\r\n";
    for (path, expected) in
        [("/silent", 504), ("/slow", 200), ("/gone", 403), ("/unknown", 403), ("/free", 200)]
    {
        let id = format!("who{path}.");
        let got = ask(&world, &get(path, "", &id)).await;
        assert_eq!(status(got.as_bytes()), expected, "{path}: {got}");
        assert_eq!(world.seen(&id).is_empty(), expected != 200, "{path}");
    }
    let line = world.line("who/unknown.").await;
    assert!(
        line.contains("policy=default/unknown") && line.contains("provider unknown is not configured"),
        "{line}"
    );
    let line = world.line("who/silent.").await;
    assert!(line.contains("provider slow cannot be asked: no answer within 300ms"), "{line}");
    // What the client can bring about opens nothing, whatever is set.
    let mut io = world.to_service(FREE).await;
    write(&mut io, raw).await;
    assert_eq!(status(&answer(&mut io, &mut Vec::new()).await.unwrap()), 403);
    assert!(world.seen("raw").is_empty());
    // An authorizer whose port answers nobody: its provider is set to let requests pass.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap();
    drop(closed);
    world.add_port(9002, port, AppProtocol::Http11);
    world.provider(Provider { port: 9002, fail_open: true, ..provider("open", http()) });
    world.publish();
    let got = ask(&world, &get("/open/silent", "", "opened")).await;
    assert_eq!(status(got.as_bytes()), 200, "{got}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authorizer_over_grpc_decides_and_half_an_answer_is_none() {
    let mut world = World::start(Limits::default()).await;
    let asked: Arc<Mutex<Vec<proto::CheckRequest>>> = Arc::default();
    world.add_port(GRPC, grpc_server(asked.clone()).await, AppProtocol::Grpc);
    world.provider(Provider { timeout_ms: 2_000, ..provider("auth", ProviderProtocol::Grpc) });
    world.policy(Target::Service(service(FREE)), custom("ask", "auth", &["/*"]));
    world.publish();
    let got = ask(&world, &get("/ok?q=1", "x-secret: s\r\nx-list: a\r\nx-user: bob\r\n", "ok")).await;
    assert!(status(got.as_bytes()) == 200 && got.contains("x-seen: yes"), "{got}");
    let backend = world.seen("ok").concat();
    for (text, there) in [
        ("x-user: alice", true),
        ("bob", false),
        ("x-list: a", true),
        ("x-list: b", true),
        ("x-secret", false),
    ] {
        assert_eq!(backend.contains(text), there, "{text}: {backend}");
    }
    let check = asked.lock().unwrap().last().unwrap().clone().attributes.unwrap();
    let source = check.source.unwrap();
    assert_eq!(source.principal, "spiffe://cluster.local/ns/default/sa/client");
    let question = check.request.unwrap().http.unwrap();
    assert_eq!((&*question.method, &*question.path, &*question.host), ("GET", "/ok?q=1", "app.example"));
    assert_eq!(question.headers.get("x-secret").unwrap(), "s");
    assert_eq!(question.headers.get(":path").unwrap(), "/ok?q=1");
    for (path, expected) in [
        ("/deny", 418),
        ("/plain", 403),
        ("/both", 403),
        ("/empty", 403),
        ("/nothing", 403),
        ("/half", 403),
        ("/two", 403),
        ("/garbage", 403),
        ("/failed", 403),
        ("/no-status", 403),
        ("/host", 403),
        ("/silent", 403),
    ] {
        let id = format!("grpc{path}.");
        let got = ask(&world, &get(path, "", &id)).await;
        assert_eq!(status(got.as_bytes()), expected, "{path}: {got}");
        assert!(world.seen(&id).is_empty(), "{path} has reached the backend");
        if path == "/deny" {
            assert!(got.contains("x-why: tea") && got.ends_with("teapot"), "{got}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_shown_and_forwarded_whole_or_refused() {
    let mut world = World::start(Limits::default()).await;
    let asked = Asked::default();
    world.add_port(HTTP, http_server(asked.clone()).await, AppProtocol::Http11);
    let body = |max_bytes, allow_partial| Some(CheckedBody { max_bytes, allow_partial, as_bytes: false });
    let http = || ProviderProtocol::Http(http_settings());
    world.provider(Provider { body: body(10, false), ..provider("whole", http()) });
    world.provider(Provider { body: body(10, true), ..provider("part", http()) });
    world.policy(Target::Service(service(FREE)), custom("whole", "whole", &["/whole"]));
    world.policy(Target::Service(service(FREE)), custom("part", "part", &["/part"]));
    world.publish();
    let long = "0123456789abcdef".repeat(5000);
    for (path, sent, expected, shown, partial) in [
        ("/whole", "0123456789", 200, "0123456789", "false"),
        ("/whole", "", 200, "", "false"),
        ("/whole", "0123456789a", 413, "", ""),
        ("/part", "short", 200, "short", "false"),
        ("/part", &long, 200, "0123456789", "true"),
    ] {
        for chunked in [false, true] {
            let id = format!("body{path}-{}-{chunked}.", sent.len());
            asked.lock().unwrap().clear();
            let (framing, text) = match chunked {
                true if sent.is_empty() => ("transfer-encoding: chunked".to_owned(), "0\r\n\r\n".to_owned()),
                true => (
                    "transfer-encoding: chunked".to_owned(),
                    format!("{:x}\r\n{sent}\r\n0\r\n\r\n", sent.len()),
                ),
                false => (format!("content-length: {}", sent.len()), sent.to_owned()),
            };
            let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n{framing}\r\n\r\n");
            let got = ask(&world, &format!("{head}{text}")).await;
            assert_eq!(status(got.as_bytes()), expected, "{id}: {got}");
            let (question, backend) = (asked.lock().unwrap().concat(), world.seen(&id).concat());
            assert_eq!((question.is_empty(), backend.is_empty()), (expected != 200, expected != 200), "{id}");
            if expected == 200 {
                assert!(question.ends_with(&format!("\r\n\r\n{shown}")), "{id}: {question}");
                assert!(
                    question.contains(&format!("x-envoy-auth-partial-body: {partial}")),
                    "{id}: {question}"
                );
                let body: String = match chunked {
                    // Frames may be cut otherwise than they came.
                    true => backend
                        .split_once("\r\n\r\n")
                        .unwrap()
                        .1
                        .chars()
                        .filter(|c| sent.contains(*c))
                        .collect(),
                    false => backend.split_once("\r\n\r\n").unwrap().1.to_owned(),
                };
                assert!(body.contains(sent) || chunked, "{id}: {} bytes of {}", body.len(), sent.len());
            }
        }
    }
}

/// The parts of a body are joined: each costs more than the byte that it may hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_single_bytes_costs_what_its_bytes_do() {
    let mut world = World::start(Limits::default()).await;
    let asked = Asked::default();
    world.add_port(HTTP, http_server(asked.clone()).await, AppProtocol::Http11);
    let body = Some(CheckedBody { max_bytes: 1024 * 1024, allow_partial: false, as_bytes: false });
    world.provider(Provider { body, ..provider("auth", ProviderProtocol::Http(http_settings())) });
    world.policy(Target::Service(service(FREE)), custom("ask", "auth", &["/*"]));
    world.publish();
    let count = 200_000;
    let chunks = format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(count));
    let head = "POST /x HTTP/1.1\r\nhost: a\r\nx-request-id: bytes\r\ntransfer-encoding: chunked\r\n\r\n";
    let got = ask(&world, &format!("{head}{chunks}")).await;
    assert_eq!(status(got.as_bytes()), 200, "{got}");
    let shown = asked.lock().unwrap().concat();
    assert!(shown.contains(&format!("content-length: {count}\r\n")), "{}", &shown[..300]);
    let backend = world.seen("bytes").concat();
    let (_, body) = backend.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.matches('x').count(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_an_authorizer_brings_is_verified_and_streams_go_on() {
    let mut world = World::start(Limits::default()).await;
    let issuer = Issuer::new("ES256");
    let token = issuer.token(&json!({}), &json!({"iss": "i", "sub": "alice"}));
    let answer = format!("HTTP/1.1 200 OK\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while world::message_end(&bytes).is_none() && matches!(stream.read_buf(&mut bytes).await, Ok(1..))
            {
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    world.add_port(HTTP, address, AppProtocol::Http11);
    let settings =
        HttpAuthorizer { to_upstream: vec![HeaderMatch::Exact("authorization".into())], ..http_settings() };
    world.provider(provider("auth", ProviderProtocol::Http(settings)));
    let target = Target::Service(service(FREE));
    let rule = meltemi_model::l7::JwtRule {
        issuer: Some("i".into()),
        jwks: Some(issuer.keys().into()),
        claim_headers: vec![("x-sub".into(), "sub".into())],
        ..Default::default()
    };
    let name = meltemi_model::NamespacedName::new("default", "users");
    world.tokens(meltemi_model::l7::Jwt { name, targets: vec![target.clone()], rules: vec![rule] });
    world.policy(target.clone(), custom("ask", "auth", &["/*"]));
    world.policy(
        target.clone(),
        policy("alice", Action::Allow, &[(Attribute::RequestPrincipal, &["i/alice"])]),
    );
    world.publish();
    let got = ask(&world, &get("/x", "cookie: session=1\r\n", "brought")).await;
    assert_eq!(status(got.as_bytes()), 200, "{got}");
    let backend = world.seen("brought").concat();
    assert!(backend.contains("x-sub: alice") && !backend.contains("authorization"), "{backend}");
    // A stream that its authorizer has allowed goes on after a change of policies, and ends when one asks another authorizer.
    let mut stream = world.to_service(FREE).await;
    write(&mut stream, get("/trickle", "", "stream").as_bytes()).await;
    let mut bytes = Vec::new();
    let mut read = async |until: usize| {
        while bytes.len() < until {
            match tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut bytes)).await.unwrap() {
                Ok(1..) => {}
                _ => return false,
            }
        }
        true
    };
    assert!(read(100).await);
    world.policy(target.clone(), policy("nobody", Action::Deny, &[(Attribute::Path, &["/never"])]));
    world.publish();
    assert!(read(400).await, "the stream goes on");
    world.policy(target, custom("late", "late", &["/trickle"]));
    world.publish();
    assert!(!read(usize::MAX).await);
}
