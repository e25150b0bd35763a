// SPDX-License-Identifier: Apache-2.0
//! What a client may send, take and leave unread; what the disk may do. After each of it the server is as before.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::client::{client, config_map, within};
use super::server::Server;

async fn send(client: &Client, method: &str, uri: &str, kind: &str, body: &str) -> (u16, Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header("content-type", kind)
        .body(body.as_bytes().to_vec().into())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({}), |inner, _| json!({"a": inner}))
}

/// Small documents that would be huge, deep or slow: each ended the server, or kept it from starting again.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_documents_are_refused_and_break_nothing() {
    let mut server = Server::start_at_fixed_port();
    server.kubectl(&["create", "configmap", "a", "--from-literal=x=1"]);
    let revision = r#"{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{"name":"r"},"revision":1,"data":{"x":{}}}"#;
    server.apply(revision);
    let client = client(&server).await;
    let (map, maps) = ("/api/v1/namespaces/default/configmaps/a", "/api/v1/namespaces/default/configmaps");
    let of_revision = "/apis/apps/v1/namespaces/default/controllerrevisions/r";
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let operation = |op: &str, from: &str, path: &str| json!({"op": op, "from": from, "path": path});
    let numbers = vec!["1"; 12_000].join(",");
    let aliases = format!("a: &a [{numbers}]\nb: [{}]", vec!["*a"; 12_000].join(","));
    let doubling: Vec<Value> = (0..26).map(|n| operation("copy", "", &format!("/x{n}"))).collect();
    let deeper: Vec<Value> = std::iter::repeat_with(|| {
        let below = format!("/data/y{}/b", "/a".repeat(60));
        [
            json!({"op": "add", "path": "/data/y", "value": nested(60)}),
            operation("move", "/data/x", &below),
            operation("move", "/data/y", "/data/x"),
        ]
    })
    .take(2)
    .flatten()
    .collect();
    let many = vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001];
    let deep =
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1, "data": nested(150)});
    let twice = "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"b\"}, data: {a: b}, data: {}}";
    let large = json!({"data": {"x": "x".repeat(1_600_000)}});
    let strict = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let (yaml, merge, patch) =
        ("application/yaml", "application/merge-patch+json", "application/json-patch+json");
    let (apply, json) = ("application/apply-patch+yaml", "application/json");
    let cases = [
        ("YAML aliases", "POST", review, yaml, aliases),
        ("YAML fields twice", "POST", strict, yaml, twice.to_owned()),
        ("YAML fields twice, applied", "PATCH", map, apply, "kind: ConfigMap\nkind: ConfigMap\n".to_owned()),
        ("deep JSON", "POST", maps, json, "[".repeat(200_000)),
        ("deep YAML", "POST", maps, yaml, "[".repeat(200_000)),
        ("many elements", "POST", maps, json, format!("{{\"a\":[{}1]}}", "1,".repeat(1_000_000))),
        ("copies that double", "PATCH", map, patch, json!(doubling).to_string()),
        ("moves that nest", "PATCH", of_revision, patch, json!(deeper).to_string()),
        ("many operations", "PATCH", map, patch, json!(many).to_string()),
        ("a deep merge", "PATCH", of_revision, merge, deep.to_string()),
        ("a deep apply", "PATCH", of_revision, apply, deep.to_string()),
        ("a large object", "PATCH", map, merge, large.to_string()),
        ("a large body", "POST", maps, json, "x".repeat(4_000_000)),
    ];
    for (name, method, uri, kind, body) in cases {
        let uri = if kind == apply { format!("{uri}?fieldManager=t") } else { uri.to_owned() };
        let (code, answer) = within(name, send(&client, method, &uri, kind, &body)).await;
        assert!(matches!(code, 400 | 413 | 422), "{name}: {code} {answer}");
    }
    // Within the bound each time, deeper each time: what is refused is what would be stored.
    let codes = nest_step_by_step(&client, of_revision).await;
    assert!(codes.contains(&413), "{codes:?}");
    server.kill_and_restart();
    assert_eq!(server.value("configmap/a", ".data.x"), "1");
    server.kubectl(&["get", "controllerrevision", "r"]);
}

async fn nest_step_by_step(client: &Client, uri: &str) -> Vec<u16> {
    let mut codes = Vec::new();
    for _ in 0..5 {
        let patch = json!([
            {"op": "add", "path": "/data/y", "value": nested(30)},
            {"op": "move", "from": "/data/x", "path": format!("/data/y{}/b", "/a".repeat(30))},
            {"op": "move", "from": "/data/y", "path": "/data/x"},
        ]);
        codes.push(send(client, "PATCH", uri, "application/json-patch+json", &patch.to_string()).await.0);
    }
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_a_list_are_of_one_revision_or_end_with_a_token_for_the_rest() {
    let mut server = Server::start_at_fixed_port();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
    for n in 0..9 {
        maps.create(&PostParams::default(), &config_map(&format!("m{n}"))).await.unwrap();
    }
    let page = |token: Option<String>| ListParams { continue_token: token, ..ListParams::default().limit(3) };
    let first = maps.list(&page(None)).await.unwrap();
    let mut names: Vec<String> = first.iter().map(ResourceExt::name_any).collect();
    let mut token = first.metadata.continue_.clone();
    let first_token = token.clone();
    let mut round = 0;
    while let Some(next) = token {
        // Before and behind the next page; deleted, made and changed.
        for name in [format!("m{round}"), "m8".into()] {
            let _ = maps.delete(&name, &Default::default()).await;
        }
        maps.create(&PostParams::default(), &config_map(&format!("m4-{round}"))).await.unwrap();
        round += 1;
        let list = maps.list(&page(Some(next))).await.unwrap();
        assert_eq!(list.metadata.resource_version, first.metadata.resource_version, "one list, one revision");
        names.extend(list.iter().map(ResourceExt::name_any));
        token = list.metadata.continue_;
    }
    assert_eq!(names, (0..9).map(|n| format!("m{n}")).collect::<Vec<_>>());
    // A watch from the list's revision sees everything that has happened since its first page.
    let params = WatchParams::default();
    let events = maps.watch(&params, first.metadata.resource_version.as_deref().unwrap());
    let mut events = std::pin::pin!(events.await.unwrap());
    let event = within("the first change", futures::StreamExt::next(&mut events)).await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Deleted(map) if map.name_any() == "m0"));
    // The history does not survive a restart, and says so.
    server.kill_and_restart();
    let client = client(&server).await;
    let uri = |token: &str| format!("/api/v1/namespaces/default/configmaps?limit=3&continue={token}");
    let (code, status) = send(&client, "GET", &uri(first_token.as_deref().unwrap()), "", "").await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")), "{status}");
    let (code, rest) =
        send(&client, "GET", &uri(status["metadata"]["continue"].as_str().unwrap()), "", "").await;
    assert_eq!((code, &rest["items"][0]["metadata"]["name"]), (200, &json!("m3")), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_mean_what_they_mean_in_kubernetes() {
    let server = Server::start();
    let client = client(&server).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let made = maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let then = made.resource_version().unwrap();
    maps.create(&PostParams::default(), &config_map("b")).await.unwrap();
    let (list, one) = ("/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/a");
    let exact = format!("resourceVersion={then}&resourceVersionMatch=Exact");
    let cases = [
        (list, exact.as_str(), 200, 1),
        (list, &format!("resourceVersion={then}&limit=5"), 200, 1),
        (list, &format!("resourceVersion={then}"), 200, 2),
        (list, &format!("resourceVersion={then}&resourceVersionMatch=NotOlderThan"), 200, 2),
        (list, "resourceVersion=0", 200, 2),
        (list, "resourceVersion=0&resourceVersionMatch=Exact", 422, 0),
        (list, "resourceVersionMatch=Exact", 422, 0),
        (list, &format!("resourceVersion={then}&resourceVersionMatch=Newest"), 422, 0),
        (list, "sendInitialEvents=true", 422, 0),
        (list, "resourceVersion=x", 400, 0),
        (list, "resourceVersion=-1", 400, 0),
        (list, "continue=x", 400, 0),
        (one, "resourceVersion=0", 200, 0),
        (one, "resourceVersion=x", 400, 0),
        (list, "watch=1&resourceVersion=x", 400, 0),
    ];
    for (path, query, code, items) in cases {
        let (got, answer) = send(&client, "GET", &format!("{path}?{query}"), "", "").await;
        assert_eq!(got, code, "{query}: {answer}");
        // kube-root-ca.crt and the like are made by controllers, which do not run here.
        assert_eq!(answer["items"].as_array().map_or(0, Vec::len), items, "{query}");
    }
    // By kubectl: kube-rs repeats what is answered with 504.
    for path in [list, one] {
        let said = server.refused(&["get", "--raw", &format!("{path}?resourceVersion=99999999")], "");
        assert!(said.contains("Too large resource version: 99999999"), "{said}");
    }
}

#[test]
fn head_over_http_2_has_no_body() {
    let server = Server::start();
    for version in ["--http1.1", "--http2"] {
        for path in ["healthz", "version", "nothing"] {
            let output = std::process::Command::new("curl")
                .args(["-sS", "-k", "-I", version, &format!("https://{}/{path}", server.address())])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{version} {path}: {text}");
        }
    }
}

#[test]
fn a_connection_that_says_nothing_is_ended_and_many_of_them_keep_nobody_out() {
    let server = Server::start();
    let address = server.address();
    // From another address: those of one source are counted together.
    let silent: Vec<TcpStream> = (0..1200)
        .filter_map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).ok()?;
            socket.connect(&address.into()).ok()?;
            Some(socket.into())
        })
        .collect();
    assert!(silent.len() > 100, "{}", silent.len());
    server.kubectl(&["get", "--raw", "/readyz"]);
    let begun = Instant::now();
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)));
        assert!(begun.elapsed() < Duration::from_secs(110), "it is still open");
    }
    // The same after a handshake.
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-alpn", "h2", "-connect", &address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while client.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(120) {
            let _ = client.kill();
            panic!("it is still open");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_server_without_descriptors_goes_on_when_there_are_some_again() {
    let server = Server::start();
    let (pid, address) = (server.pid(), server.address());
    let limited =
        std::process::Command::new("prlimit").args(["--pid", &pid.to_string(), "--nofile=64:"]).status();
    assert!(limited.unwrap().success());
    let connect = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).ok()?;
        socket.connect(&address.into()).ok()?;
        Some(TcpStream::from(socket))
    };
    let held: Vec<TcpStream> = (0..100).filter_map(connect).collect();
    let taken = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let begun = Instant::now();
    while taken() < 63 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it has {} of 64", taken());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(held);
    server.kubectl(&["create", "configmap", "after"]);
}

#[test]
fn a_row_that_cannot_be_read_is_set_aside_and_named() {
    let mut server = Server::start();
    for name in ["broken", "fine"] {
        server.kubectl(&["create", "configmap", name]);
    }
    server.restart_after(|database| {
        let rows = rusqlite::Connection::open(database).unwrap();
        let deep = "[".repeat(200) + &"]".repeat(200);
        let changed = rows.execute("UPDATE objects SET json = ?1 WHERE name = 'broken'", [deep]).unwrap();
        assert_eq!(changed, 1);
    });
    server.kubectl(&["get", "configmap", "fine"]);
    let said = server.refused(&["get", "configmap", "broken"], "");
    assert!(said.contains("cannot be read"), "{said}");
    let said = server.kubectl(&["get", "--raw", "/readyz?verbose"]);
    assert!(said.contains("configmaps default/broken"), "{said}");
    let said = server.refused(&["create", "configmap", "broken"], "");
    assert!(said.contains("cannot be read"), "its name is taken: {said}");
    server.kubectl(&["delete", "configmap", "broken"]);
    server.kubectl(&["create", "configmap", "broken"]);
    assert!(!server.kubectl(&["get", "--raw", "/readyz?verbose"]).contains("broken"));
}

/// Bytes of a small disk.
const DISK: u32 = 24 << 20;

#[test]
fn a_full_disk_refuses_writes_by_name_and_loses_nothing() {
    let server = Server::start_on_disk(DISK);
    server.kubectl(&["create", "configmap", "before", "--from-literal=x=1"]);
    let ballast = server.data().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    // Never more than the file system can hold, whatever is found at the path.
    for _ in 0..DISK >> 16 {
        if file.write_all(&[0; 1 << 16]).is_err() {
            break;
        }
    }
    let mut kept = Vec::new();
    let text = "x".repeat(50_000);
    let refused = loop {
        let name = format!("m{}", kept.len());
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": text}});
        let said = server.say(&["create", "-f", "-"], &map.to_string());
        if !said.ok {
            break said.err;
        }
        kept.push(name);
        assert!(kept.len() < 1000, "the disk is not full");
    };
    assert!(refused.contains("disk") && refused.contains("full"), "{refused}");
    assert_eq!(server.value("configmap/before", ".data.x"), "1", "it still reads");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    server.kubectl(&["create", "configmap", "after"]);
    for name in &kept {
        server.kubectl(&["get", "configmap", name]);
    }
    server.kubectl(&["delete", "configmap", "before"]);
}
