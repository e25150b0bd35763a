// SPDX-License-Identifier: Apache-2.0
//! The node proxy with real Pods' namespaces, real capture, real certificates. Each case in a world of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "node/mesh.rs"]
mod mesh;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::HeaderMap;
use meltemi_linux::netns::NetNs;
use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Scope};
use meltemi_state::Delta;
use meltemi_testkit::namespaces;
use meltemi_tunnel::{Dial, DialError, Patience, Pool};

use crate::mesh::{A, B, Mesh, dial, greeting, id, issue, policy, workload};

const APP: &str = "10.244.1.3:9080";
const PRINCIPAL_A: &str = "cluster.local/ns/default/sa/a";

fn main() {
    let cases: [(&str, fn()); 12] = [
        ("bytes, half-close and addresses through a tunnel, nothing in the clear", || run(tunnel())),
        ("a denied client sees a reset", || run(denied())),
        ("a change closes what it forbids and nothing else", || run(changed())),
        ("plaintext is judged without an identity", || run(plaintext())),
        ("a policy that is named and not known denies, in either order", || run(missing())),
        ("nothing is let in before everything has been heard", || run(unheard())),
        ("what is known of another Pod of the same name does not let in", || run(stale())),
        ("without certificates it is not ready", || run(uncertified())),
        ("a flood at one Pod leaves the others theirs", || run(flood())),
        ("what a hostile peer may ask for", || run(hostile())),
        ("a drain ends when the last connection has", || run(drained())),
        ("openssl sees the identity, and is refused without a certificate of the mesh", || run(openssl())),
    ];
    namespaces::run(&cases, || {});
}

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(case);
}

async fn tunnel() {
    let mesh = Mesh::start().await;
    let wire = mesh::Wire::tap();
    let mut client = dial(&mesh.a, APP);
    // The application sees the client's own address, not the proxy's.
    assert_eq!(greeting(&mut client).unwrap(), A);
    let sent: Vec<u8> = b"a marker that must not be seen ".iter().copied().cycle().take(3_000_000).collect();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    // To the end: the application closes after the client's half-close has arrived.
    client.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    std::thread::sleep(Duration::from_millis(500));
    let seen = wire.seen();
    assert!(seen.len() > 1_000_000, "the tap saw {} bytes", seen.len());
    assert!(!seen.windows(16).any(|w| w == b"marker that must"), "plaintext on the wire");
    assert_eq!(mesh.view.registry.len(), 0, "the connection has left the registry");
}

fn is_reset(result: std::io::Result<String>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn denied() {
    let mut mesh = Mesh::start().await;
    mesh.policy(policy("only-c", Action::Allow, Scope::Namespace, &["cluster.local/ns/default/sa/c"], &[]));
    // The first opens the tunnel, the second finds it open.
    for _ in 0..2 {
        is_reset(greeting(&mut dial(&mesh.a, APP)));
    }
    let curl =
        mesh.a.run(|| Command::new("curl").args(["-s", "-m", "5", &format!("http://{APP}/")]).status());
    assert_eq!(curl.unwrap().code(), Some(56));
    mesh.policy(policy("only-c", Action::Allow, Scope::Namespace, &[PRINCIPAL_A], &[]));
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
}

async fn changed() {
    let mut mesh = Mesh::start().await;
    let node = NetNs::current().unwrap();
    let (mut one, mut two) = (dial(&mesh.a, APP), dial(&node, APP));
    assert_eq!(greeting(&mut one).unwrap(), A);
    assert_eq!(greeting(&mut two).unwrap(), mesh::NODE);
    mesh.policy(policy("no-plaintext", Action::Deny, Scope::Namespace, &[], &["*"]));
    let begun = Instant::now();
    assert_eq!(two.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    one.write_all(b"still here").unwrap();
    let mut echoed = [0; 10];
    one.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"still here");
    // The same through the tunnel: by a policy that the workload comes to name.
    let mut named = workload("b", B);
    named.authorization_policies = vec![NamespacedName::new("default", "not-a")];
    let deny = policy("not-a", Action::Deny, Scope::WorkloadSelector, &[PRINCIPAL_A], &[]);
    mesh.apply([Delta::Policy(Box::new(deny)), Delta::Workload(Box::new(named))]);
    let begun = Instant::now();
    assert_eq!(one.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

async fn plaintext() {
    let mut mesh = Mesh::start().await;
    let node = NetNs::current().unwrap();
    assert_eq!(greeting(&mut dial(&node, APP)).unwrap(), mesh::NODE);
    mesh.policy(policy("strict", Action::Deny, Scope::Namespace, &[], &["*"]));
    is_reset(greeting(&mut dial(&node, APP)));
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
    // Out of the mesh: to the node, in the clear, as an address that nobody knows.
    let outside = std::net::TcpListener::bind((mesh::NODE, 7070)).unwrap();
    let mut client = dial(&mesh.a, "172.30.0.11:7070");
    let (mut server, from) = outside.accept().unwrap();
    assert_eq!(from.ip().to_string(), A);
    server.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    // A reset on one side is a reset on the other.
    meltemi_linux::sockopt::reset_on_close(&server).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn missing() {
    let mut mesh = Mesh::start().await;
    let mut named = workload("b", B);
    named.authorization_policies = vec![NamespacedName::new("default", "late")];
    let deny =
        || policy("late", Action::Deny, Scope::WorkloadSelector, &["cluster.local/ns/default/sa/c"], &[]);
    // The reference first: a new connection waits for the policy, and then is judged by it.
    mesh.apply([Delta::Workload(Box::new(named.clone()))]);
    let client = mesh.a.try_clone().unwrap();
    let waiting = std::thread::spawn(move || greeting(&mut dial(&client, APP)));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    mesh.policy(deny());
    assert_eq!(waiting.join().unwrap().unwrap(), A);
    // It never comes: denied after a second.
    mesh.apply([Delta::PolicyGone(NamespacedName::new("default", "late"))]);
    let begun = Instant::now();
    is_reset(greeting(&mut dial(&mesh.a, APP)));
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    // The policy first.
    mesh.policy(deny());
    mesh.apply([Delta::Workload(Box::new(named))]);
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
}

async fn unheard() {
    let mut mesh = Mesh::start().await;
    let node = NetNs::current().unwrap();
    mesh.known.unheard = ["policies".to_owned()].into();
    mesh.publish();
    // Nothing that is known forbids it; yet who waits is let in only when the rest is there, and it is judged by it.
    let clients = [mesh.a.try_clone().unwrap(), node].map(|netns| {
        std::thread::spawn(move || {
            let begun = Instant::now();
            (greeting(&mut dial(&netns, APP)), begun.elapsed())
        })
    });
    std::thread::sleep(Duration::from_millis(500));
    mesh.known.unheard.clear();
    mesh.policy(policy("strict", Action::Deny, Scope::Namespace, &[], &["*"]));
    let [(enrolled, waited), (outside, _)] = clients.map(|client| client.join().unwrap());
    assert_eq!(enrolled.unwrap(), A);
    assert!(waited > Duration::from_millis(400), "{waited:?}");
    is_reset(outside);
}

async fn stale() {
    let mut mesh = Mesh::start().await;
    let node = NetNs::current().unwrap();
    let (mut moved, mut other) = (workload("b", "10.244.1.9"), workload("b", B));
    other.service_account = "somebody-else".into();
    moved.authorization_policies.clear();
    for known in [moved, other] {
        mesh.apply([Delta::Workload(Box::new(known))]);
        let begun = Instant::now();
        is_reset(greeting(&mut dial(&node, APP)));
        // As long as that of a Pod that nothing is known of.
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    }
    mesh.apply([Delta::Workload(Box::new(workload("b", B)))]);
    assert_eq!(greeting(&mut dial(&node, APP)).unwrap(), mesh::NODE);
}

async fn uncertified() {
    let silent = Arc::new(AtomicBool::new(true));
    let mesh = Mesh::start_with(silent.clone()).await;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(mesh.readiness.pending(), ["zds"]);
    silent.store(false, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(10), mesh.readiness.wait()).await.unwrap();
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
}

async fn flood() {
    let mesh = Mesh::start().await;
    let node = NetNs::current().unwrap();
    let (svid, _) = issue(&mesh.ca, &id("a"));
    let pool =
        Pool::new(Arc::new(|to| Box::pin(tokio::net::TcpStream::connect(to)) as _), mesh.tasks.clone());
    let ask = Dial {
        svid: Arc::new(svid),
        address: "10.244.1.3:15008".parse().unwrap(),
        expected: vec![id("b")],
        authority: APP.to_owned(),
        headers: HeaderMap::new(),
        patience: Patience::Full,
    };
    let _tunnel = pool.dial(&ask).await.unwrap();
    // Handshakes that do not go on: those of one address leave room for those of another.
    let silent: Vec<_> = (0..100).filter_map(|_| mesh::try_dial(&node, "10.244.1.3:15008").ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    let ended = |mut stream: &std::net::TcpStream| {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    assert_eq!(silent.iter().filter(|stream| !ended(stream)).count(), 64);
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
    drop(silent);
    // As many connections as a Pod may have, and more: the others have theirs.
    let many: Vec<_> = (0..400).filter_map(|_| mesh::try_dial(&node, APP).ok()).collect();
    let answered = |stream: &std::net::TcpStream| greeting(&mut stream.try_clone().unwrap()).is_ok();
    let served = many.iter().filter(|stream| answered(stream)).count();
    // Three quarters of 300; some places may still be held by what came before.
    assert!((200..=225).contains(&served), "{served} were served");
    // On a tunnel that is there already it is refused as well.
    let refused = pool.dial(&ask).await.map(|_| ());
    assert!(matches!(refused, Err(DialError::Status(status)) if status.as_u16() == 503), "{refused:?}");
    // Another client of the same Pod, and another Pod.
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
    let outside = std::net::TcpListener::bind((mesh::NODE, 7070)).unwrap();
    let mut client = dial(&mesh.a, "172.30.0.11:7070");
    outside.accept().unwrap().0.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    drop(many);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(greeting(&mut dial(&node, APP)).unwrap(), mesh::NODE);
}

async fn hostile() {
    let mesh = Mesh::start().await;
    let (svid, _) = issue(&mesh.ca, &id("a"));
    let connector = Arc::new(|to| Box::pin(tokio::net::TcpStream::connect(to)) as _);
    let pool = Pool::new(connector, mesh.tasks.clone());
    let ask = |authority: &str, expected: &str| Dial {
        svid: Arc::new(svid.clone()),
        address: "10.244.1.3:15008".parse().unwrap(),
        expected: vec![id(expected)],
        authority: authority.to_owned(),
        headers: HeaderMap::new(),
        patience: Patience::Full,
    };
    for (authority, status) in [
        ("10.244.1.3:15001", 400),
        ("10.244.1.3:15006", 400),
        ("10.244.1.3:15008", 400),
        ("10.244.1.3:15053", 400),
        ("10.244.1.3:0", 400),
        ("[::ffff:10.244.1.3]:15008", 400),
        ("10.244.1.3:015008", 400),
        ("127.0.0.1:9080", 400),
        ("[::1]:9080", 400),
        ("[::ffff:127.0.0.1]:9080", 400),
        ("0.0.0.0:9080", 400),
        ("172.30.0.11:15000", 400),
        ("169.254.1.1:80", 400),
        ("169.254.169.254:80", 400),
        ("localhost:9080", 503),
        ("b:9080", 503),
        ("x@10.244.1.3:9080", 400),
        ("10.244.1.3:9080@evil:80", 400),
        ("0x0af40103:9080", 400),
        ("10.244.003.3:9080", 400),
        ("10.244.1.3", 400),
        ("10.244.1.3:+9080", 400),
        ("10.244.1.2:9080", 400),
        ("169.254.7.127:80", 400),
        ("b.default.svc.cluster.local:80", 503),
        ("10.244.1.3:1", 503),
    ] {
        match pool.dial(&ask(authority, "b")).await {
            Err(DialError::Status(got)) => assert_eq!(got.as_u16(), status, "{authority}"),
            other => panic!("{authority}: {other:?}"),
        }
    }
    assert!(pool.dial(&ask(APP, "b")).await.is_ok());
    // A server that is somebody else is not spoken to.
    assert!(matches!(pool.dial(&ask(APP, "c")).await, Err(DialError::Tls { .. })));
    // The proxy's own ports, dialled directly: no loop, a reset.
    for port in ["15001", "15006"] {
        let to = format!("{B}:{port}");
        is_reset(mesh::try_dial(&mesh.b, &to).and_then(|mut stream| greeting(&mut stream)));
    }
}

async fn drained() {
    let mut mesh = Mesh::start().await;
    let mut client = dial(&mesh.a, APP);
    assert_eq!(greeting(&mut client).unwrap(), A);
    let stopping = mesh.stop();
    std::thread::sleep(Duration::from_millis(300));
    // Until another proxy has taken over, new connections are served as well.
    assert_eq!(greeting(&mut dial(&mesh.a, APP)).unwrap(), A);
    mesh.succeed().await;
    // No further connections; the open one goes on.
    while mesh::try_dial(&mesh.a, APP).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    client.write_all(b"still here").unwrap();
    let mut echoed = [0; 10];
    client.read_exact(&mut echoed).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    let begun = Instant::now();
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
}

async fn openssl() {
    let mesh = Mesh::start().await;
    let folder = tempfile::tempdir().unwrap();
    let connect = |certificate: Option<(String, String)>| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", "10.244.1.3:15008", "-alpn", "h2", "-showcerts", "-ign_eof"]);
        if let Some((chain, key)) = certificate {
            for (name, text, flag) in [("chain.pem", chain, "-cert"), ("key.pem", key, "-key")] {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                command.arg(flag).arg(path);
            }
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let alive = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        let out = child.wait_with_output().unwrap();
        (alive, String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };
    let (own, foreign) = (issue(&mesh.ca, &id("a")), issue(&mesh::authority(), &id("a")));
    let (alive, text) = connect(Some((own.0.chain_pem.concat(), own.1)));
    assert!(alive, "{text}");
    assert!(text.contains("TLSv1.3") && text.contains("ALPN protocol: h2"), "{text}");
    let pem = &text[text.find("-----BEGIN").unwrap()..text.find("-----END").unwrap() + 25];
    let path = folder.path().join("peer.pem");
    std::fs::write(&path, pem).unwrap();
    let mut show = Command::new("openssl");
    let shown = show.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&path).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("URI:spiffe://cluster.local/ns/default/sa/b"), "{shown}");
    for (certificate, alert) in [
        (None, "certificate required"),
        // The other CA bears the same name: its signature is what is wrong.
        (Some((foreign.0.chain_pem.concat(), foreign.1)), "alert decrypt error"),
    ] {
        let (alive, text) = connect(certificate);
        assert!(!alive && text.contains(alert), "{text}");
    }
}
