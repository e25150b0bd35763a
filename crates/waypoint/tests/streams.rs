// SPDX-License-Identifier: Apache-2.0
//! TLS listeners of a gateway: connections by the host that the client names, ended here or at the backend, and the policies of
//! the Gateway for them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
#![expect(dead_code, reason = "the world is another test's too")]

#[path = "hostile/backend.rs"]
mod backend;
#[path = "hostile/certified.rs"]
mod certified;
#[path = "hostile/fixtures.rs"]
mod fixtures;
#[path = "hostile/world.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certified::{Made, connect, handshake, made, trusting};
use meltemi_model::authz::{Action, Attribute};
use meltemi_model::l7::{Protocol, Target};
use meltemi_model::service::AppProtocol;
use meltemi_waypoint::Limits;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use world::{PATIENCE, World, gateway_name, policy};

/// A port that declares TCP.
const PORT: u16 = 7000;

/// A server that repeats what it gets, in TLS by a certificate or in the clear.
async fn echo(certificate: Option<&Made>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = certificate.map(|made| {
        let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.der.clone()], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => repeat(acceptor.accept(stream).await.unwrap()).await,
                    None => repeat(stream).await,
                }
            });
        }
    });
    address
}

async fn repeat<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = io.read(&mut buffer).await {
        if io.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn is_repeated<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) -> bool {
    let said = b"hello over there";
    let mut heard = [0; 16];
    let exchange = async {
        io.write_all(said).await?;
        io.read_exact(&mut heard).await
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap().is_ok() && heard == *said
}

/// Waits until a client that trusts the certificate is served, or is not any more.
async fn until(port: u16, host: &str, trusted: &Made, served: bool) {
    let begun = Instant::now();
    loop {
        let is_served = match connect(port, host, trusted).await {
            Ok(mut stream) => is_repeated(&mut stream).await,
            Err(_) => false,
        };
        if is_served == served {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{host} served: {is_served}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_carried_to_its_backend_and_no_other_is() {
    let port = world::reserve_port().port();
    let mut world = World::start(Limits { head: Duration::from_secs(5), ..Limits::default() }).await;
    let own = made(&["a.example", "A.example", "b.example", "a.other", "10.0.0.1"]);
    world.add_port(PORT, echo(Some(&own)).await, AppProtocol::Tcp);
    world.listener("through", port, Protocol::TlsPassthrough, Some("*.example"), &[]);
    world.tls_route("through", "through", &["a.example", "*.wild.example"], PORT);
    world.no_policy("no-gate");
    world.publish();
    until(port, "a.example", &own, true).await;
    // The backend's certificate is shown, so TLS ends there; a name is one in any case.
    assert!(is_repeated(&mut connect(port, "A.example", &own).await.unwrap()).await);
    for host in ["b.example", "a.other", "10.0.0.1"] {
        assert!(connect(port, host, &own).await.is_err(), "{host}");
    }
    let line = world.line("no TLSRoute is for the host").await;
    assert!(line.contains(&format!(":{port}")) && line.contains("b.example"), "{line}");
    // What is not TLS is carried nowhere.
    let mut clear = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(!is_repeated(&mut clear).await);
    // A client that says nothing is let go.
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 1])).await.unwrap();
    assert!(read.is_err() || read.unwrap() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_of_the_gateway_judge_what_is_carried() {
    let port = world::reserve_port().port();
    let mut world = World::start(Limits::default()).await;
    let own = made(&["a.example", "b.example"]);
    world.add_port(PORT, echo(Some(&own)).await, AppProtocol::Tcp);
    world.listener("through", port, Protocol::TlsPassthrough, None, &[]);
    world.tls_route("through", "through", &["a.example", "b.example"], PORT);
    world.publish();
    // A DENY that asks for HTTP denies what has none, by its name.
    world.wait_for_port(port).await;
    assert!(connect(port, "a.example", &own).await.is_err());
    let line = world.line("no-gate").await;
    assert!(line.contains("default/no-gate"), "{line}");
    world.no_policy("no-gate");
    // An ALLOW that asks for HTTP allows nothing here.
    let gateway = || Target::Gateway(gateway_name());
    let get = [(Attribute::Method, &["GET"][..]), (Attribute::ConnectionSni, &["a.example"])];
    world.policy(gateway(), policy("rule", Action::Allow, &get));
    world.publish();
    until(port, "a.example", &own, false).await;
    world.policy(gateway(), policy("rule", Action::Allow, &get[1..]));
    world.publish();
    until(port, "a.example", &own, true).await;
    assert!(connect(port, "b.example", &own).await.is_err(), "the host is not allowed");
    // A connection ends with its permit, and not as if it were whole.
    let mut open = connect(port, "a.example", &own).await.unwrap();
    assert!(is_repeated(&mut open).await);
    world.policy(gateway(), policy("revoked", Action::Deny, &[(Attribute::ConnectionSni, &["a.example"])]));
    world.publish();
    let ended = tokio::time::timeout(PATIENCE, open.read(&mut [0; 1])).await.unwrap();
    assert_eq!(ended.map_err(|e| e.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_here_goes_on_in_the_clear() {
    let port = world::reserve_port().port();
    let mut world = World::start(Limits::default()).await;
    let (a, b) = (made(&["a.example"]), made(&["b.example"]));
    world.secret("a", a.pem.clone(), a.key.clone());
    world.secret("b", b.pem.clone(), b.key.clone());
    world.add_port(PORT, echo(None).await, AppProtocol::Tcp);
    world.listener("a", port, Protocol::Tls, Some("a.example"), &["a"]);
    world.listener("b", port, Protocol::Tls, Some("b.example"), &["b"]);
    world.tls_route("a", "a", &["a.example"], PORT);
    world.no_policy("no-gate");
    world.publish();
    until(port, "a.example", &a, true).await;
    // Whatever protocol the client has in TLS.
    let mut other = trusting(&a);
    other.alpn_protocols = vec![b"mqtt".to_vec()];
    assert!(is_repeated(&mut handshake(port, "a.example", other).await.unwrap()).await);
    // Its listener has no route.
    let mut lost = connect(port, "b.example", &b).await.unwrap();
    assert!(!is_repeated(&mut lost).await);
    world.line("no TLSRoute is for the host").await;
}
