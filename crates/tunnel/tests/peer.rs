// SPDX-License-Identifier: Apache-2.0
//! Tunnels with the `h2` crate at the other end, which nobody here wrote: whatever sizes, windows and ends, what is sent
//! arrives, in both directions and on either side.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use meltemi_identity::svid::Svid;
use meltemi_identity::tls;
use meltemi_runtime::{Tasks, drain};
use meltemi_testkit::ca::{authority, identity, issue};
use meltemi_tunnel::{Dial, DialError, Patience, Pool, TunnelIo, accept};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What one stream says, in pieces, and what the `h2` side is like.
#[derive(Clone, Debug)]
struct Plan {
    streams: Vec<Vec<usize>>,
    window: u32,
    connection_window: u32,
    frame: u32,
}

fn plan() -> impl Strategy<Value = Plan> {
    let piece = prop_oneof![3 => 1..200usize, 2 => 1..40_000usize, 1 => 1..400_000usize];
    let streams = prop::collection::vec(prop::collection::vec(piece, 0..6), 1..12);
    let window = prop_oneof![Just(65_535u32), 1000..100_000u32, Just(4 << 20)];
    (streams, window, 65_535..1_000_000u32, 16_384..200_000u32).prop_map(
        |(streams, window, connection_window, frame)| Plan { streams, window, connection_window, frame },
    )
}

/// What is said at a place: no two pieces are alike.
fn said(stream: usize, pieces: &[usize]) -> Vec<u8> {
    let length: usize = pieces.iter().sum();
    (0..length)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ stream.wrapping_mul(7)).to_le_bytes()[0])
        .collect()
}

fn authority_of(stream: usize) -> String {
    format!("10.0.0.1:{}", stream + 1)
}

fn certificates() -> (Arc<Svid>, Arc<Svid>) {
    let ca = authority();
    let [client, server] = ["client", "server"].map(|name| Arc::new(issue(&ca, &identity(name)).0));
    (client, server)
}

fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), future).await.unwrap() });
}

/// Sends by `h2`, never more than there is capacity for.
async fn send(stream: &mut h2::SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let granted = granted.ok_or(Reason::CANCEL)??;
        stream.send_data(data.split_to(granted.min(data.len())), false)?;
    }
    Ok(())
}

/// Says back what it hears, then ends.
async fn echo(mut body: h2::RecvStream, mut to: h2::SendStream<Bytes>) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        send(&mut to, data).await?;
    }
    to.send_data(Bytes::new(), true)
}

/// A server by `h2`: echoes, refuses port 1000 with 503, resets port 1001, goes away gracefully after port 1002, and at once
/// when it is asked for port 1003.
async fn h2_server(svid: Arc<Svid>, plan: Plan) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (config, plan) = (Arc::new(tls::server(&svid).unwrap()), plan.clone());
            tokio::spawn(async move {
                let tls = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await.unwrap();
                let mut builder = h2::server::Builder::new();
                builder
                    .initial_window_size(plan.window)
                    .initial_connection_window_size(plan.connection_window)
                    .max_frame_size(plan.frame);
                let mut connection = builder.handshake::<_, Bytes>(tls).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.method(), Method::CONNECT);
                    assert_eq!(request.headers()["baggage"], "a=b");
                    match request.uri().authority().unwrap().port_u16().unwrap() {
                        1000 => {
                            let answer = Response::builder().status(503).body(()).unwrap();
                            respond.send_response(answer, true).unwrap();
                        }
                        1001 => respond.send_reset(Reason::INTERNAL_ERROR),
                        1003 => connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
                        port => {
                            if port == 1002 {
                                connection.graceful_shutdown();
                            }
                            let to = respond.send_response(Response::new(()), false).unwrap();
                            tokio::spawn(echo(request.into_body(), to));
                        }
                    }
                }
            });
        }
    });
    address
}

struct Dialler {
    pool: Pool,
    ask: Dial,
    _held: (drain::DrainTrigger, meltemi_runtime::tasks::Supervisor),
}

impl Dialler {
    fn new(client: &Arc<Svid>, server: &Svid, address: SocketAddr) -> Self {
        let (trigger, watch) = drain::channel();
        let (tasks, supervisor) = Tasks::new("test", watch);
        let pool = Pool::new(Arc::new(|to| Box::pin(TcpStream::connect(to)) as _), tasks);
        let mut headers = HeaderMap::new();
        headers.insert("baggage", "a=b".parse().unwrap());
        let expected = vec![server.identity.clone()];
        let ask = Dial {
            svid: client.clone(),
            address,
            expected,
            authority: String::new(),
            headers,
            patience: Patience::Full,
        };
        Self { pool, ask, _held: (trigger, supervisor) }
    }

    async fn to(&self, authority: String) -> Result<TunnelIo, DialError> {
        let dialled = self.pool.dial(&Dial { authority, ..self.ask.clone() }).await?;
        Ok(TunnelIo::holding(dialled.stream, dialled.lease))
    }
}

async fn dial(plan: Plan) {
    let (client, server) = certificates();
    let address = h2_server(server.clone(), plan.clone()).await;
    let dialler = Arc::new(Dialler::new(&client, &server, address));
    let mut all = tokio::task::JoinSet::new();
    for (index, pieces) in plan.streams.into_iter().enumerate() {
        let dialler = dialler.clone();
        all.spawn(async move {
            let io = dialler.to(authority_of(index)).await.unwrap();
            let text = said(index, &pieces);
            let (mut read, mut write) = tokio::io::split(io);
            let writing = async {
                let mut rest = text.as_slice();
                for piece in &pieces {
                    let (now, later) = rest.split_at(*piece);
                    write.write_all(now).await.unwrap();
                    rest = later;
                }
                write.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let ((), read) = tokio::join!(writing, read.read_to_end(&mut heard));
            read.unwrap();
            assert!(heard == text, "stream {index}: {} of {} bytes", heard.len(), text.len());
        });
    }
    all.join_all().await;
    let refused = dialler.to(authority_of(999)).await;
    assert!(matches!(refused, Err(DialError::Status(StatusCode::SERVICE_UNAVAILABLE))), "{refused:?}");
    assert!(matches!(dialler.to(authority_of(1000)).await, Err(DialError::Tunnel { .. })));
    // Why a peer goes away is said.
    // A reset of the connection may overtake what was to be read: not every time.
    let mut told = Vec::new();
    while !told.iter().any(|error: &String| error.ends_with("closed the tunnel: ENHANCE_YOUR_CALM")) {
        assert!(told.len() < 10, "{told:?}");
        told.push(dialler.to(authority_of(1002)).await.unwrap_err().to_string());
    }
    // What is open on a tunnel that goes away goes on; what is asked for meanwhile has another one.
    let mut last = dialler.to(authority_of(1001)).await.unwrap();
    let mut next = dialler.to(authority_of(0)).await.unwrap();
    for io in [&mut last, &mut next] {
        io.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        io.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
    }
}

/// A server of ours: echoes, refuses port 1000 with 503, and drops what asks for port 1001.
async fn our_server(svid: Arc<Svid>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let config = Arc::new(tls::server(&svid).unwrap());
            tokio::spawn(async move {
                let mut incoming = accept(tcp, config).await.unwrap();
                while let Ok(Some(connect)) = incoming.next().await {
                    if !connect.is_connect() {
                        connect.refuse(StatusCode::METHOD_NOT_ALLOWED);
                        continue;
                    }
                    match connect.authority() {
                        "10.0.0.1:1000" => connect.refuse(StatusCode::SERVICE_UNAVAILABLE),
                        "10.0.0.1:1001" => drop(connect),
                        _ => {
                            let (mut read, mut write) =
                                tokio::io::split(TunnelIo::new(connect.accept().unwrap()));
                            tokio::spawn(async move {
                                tokio::io::copy(&mut read, &mut write).await.unwrap();
                                write.shutdown().await.unwrap();
                            });
                        }
                    }
                }
            });
        }
    });
    address
}

fn ask(method: Method, uri: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap();
    request.headers_mut().insert("x-a-long-name", "and a value".parse().unwrap());
    request
}

async fn serve(plan: Plan) {
    let (client, server) = certificates();
    let address = our_server(server.clone()).await;
    let config = Arc::new(tls::client(&client, vec![server.identity.clone()]).unwrap());
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(plan.window)
        .initial_connection_window_size(plan.connection_window)
        .max_frame_size(plan.frame);
    let (sender, connection) = builder.handshake::<_, Bytes>(tls).await.unwrap();
    let ended = tokio::spawn(connection);
    let mut all = tokio::task::JoinSet::new();
    for (index, pieces) in plan.streams.into_iter().enumerate() {
        let sender = sender.clone();
        all.spawn(async move {
            let mut sender = sender.ready().await.unwrap();
            let (response, mut to) =
                sender.send_request(ask(Method::CONNECT, &authority_of(index)), false).unwrap();
            let text = said(index, &pieces);
            let writing = async {
                let mut rest = Bytes::from(text.clone());
                for piece in &pieces {
                    send(&mut to, rest.split_to(*piece)).await.unwrap();
                }
                to.send_data(Bytes::new(), true).unwrap();
            };
            let reading = async {
                let mut body = response.await.unwrap().into_body();
                let mut heard = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    heard.extend_from_slice(&data);
                }
                heard
            };
            let ((), heard) = tokio::join!(writing, reading);
            assert!(heard == text, "stream {index}: {} of {} bytes", heard.len(), text.len());
        });
    }
    all.join_all().await;
    for (method, uri, expected) in [
        (Method::CONNECT, "10.0.0.1:1000", Ok(StatusCode::SERVICE_UNAVAILABLE)),
        (Method::CONNECT, "10.0.0.1:1001", Err(Reason::CANCEL)),
        (Method::GET, "https://10.0.0.1/x", Ok(StatusCode::METHOD_NOT_ALLOWED)),
    ] {
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, _to) = sender.send_request(ask(method, uri), false).unwrap();
        let status = response.await.map(|response| response.status());
        assert_eq!(status.map_err(|error| error.reason().unwrap()), expected, "{uri}");
    }
    // Idle tunnels end in good order.
    drop(sender);
    ended.await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn what_we_dial(plan in plan()) {
        run(dial(plan));
    }

    #[test]
    fn what_we_accept(plan in plan()) {
        run(serve(plan));
    }
}
