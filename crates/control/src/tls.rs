// SPDX-License-Identifier: Apache-2.0
//! Listeners under TLS, with a serving certificate that is replaced while they run.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use meltemi_runtime::Tasks;
use meltemi_runtime::places::{PerSource, Place};
use meltemi_runtime::silence::{Limits, TimedStream};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes at the same time, of one address and of all, and how long one may take: a peer that says nothing costs
/// little, and takes no place from the others.
const HANDSHAKES: (usize, usize) = (512, 4096);
/// Connections of one address, and of all. A node's address is that of its proxy and of whatever else uses the node's network.
const CONNECTIONS: (usize, usize) = (1024, 16_384);
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client may take for a head.
const SILENCE: Duration = Duration::from_secs(30);
/// Interval of HTTP/2 pings to a client, and how long it may take to answer one. A proxy behind a network that is gone
/// holds up `Enforced` for no longer than both.
const PING: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(6));

/// The certificate in use; cheap to clone.
#[derive(Clone, Debug)]
pub struct Serving(Arc<RwLock<Arc<CertifiedKey>>>);

impl Serving {
    /// Serves with `key` until it is replaced.
    pub fn new(key: Arc<CertifiedKey>) -> Self {
        Self(Arc::new(RwLock::new(key)))
    }

    /// Replaces the certificate; connections that stand keep theirs.
    pub fn replace(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// A configuration without client certificates that offers the given protocols.
    ///
    /// # Errors
    /// The provider supports no usable version.
    pub fn config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Binds an address.
///
/// # Errors
/// It cannot be bound.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, crate::Error> {
    TcpListener::bind(address).await.map_err(|source| crate::Error::Listen { address, source })
}

/// Accepts connections under TLS and hands each on, until a drain starts.
pub fn accept(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    handle: impl Fn(TlsStream<TcpStream>, Place) + Clone + Send + Sync + 'static,
) {
    accept_within(tasks, name, listener, config, &Places::default(), handle);
}

/// Places of a listener.
struct Places {
    handshakes: PerSource,
    connections: PerSource,
}

impl Default for Places {
    fn default() -> Self {
        let [handshakes, connections] =
            [HANDSHAKES, CONNECTIONS].map(|(of_one, of_all)| PerSource::new(of_one, of_all));
        Self { handshakes, connections }
    }
}

fn accept_within(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    places: &Places,
    handle: impl Fn(TlsStream<TcpStream>, Place) + Clone + Send + Sync + 'static,
) {
    let mut drain = tasks.drain();
    let jobs = tasks.clone();
    let acceptor = TlsAcceptor::from(config);
    let (handshakes, connections) = (places.handshakes.clone(), places.connections.clone());
    tasks.spawn(name, async move {
        loop {
            let accepted = tokio::select! {
                () = drain.started() => return Ok::<(), io::Error>(()),
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                // Out of descriptors, most likely: give others time to close.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            // Not logged: it is for a flood.
            let (Some(shaking), Some(place)) = (handshakes.take(peer.ip()), connections.take(peer.ip()))
            else {
                continue;
            };
            let (acceptor, handle) = (acceptor.clone(), handle.clone());
            jobs.spawn_job(name, async move {
                let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                drop(shaking);
                match shaken {
                    Ok(Ok(stream)) => handle(stream, place),
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
                }
                Ok::<(), io::Error>(())
            });
        }
    });
}

/// Serves HTTP routes under TLS.
pub fn serve_http(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    routes: Router,
) {
    serve_http_within(tasks, name, listener, config, routes, SILENCE);
}

fn serve_http_within(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    routes: Router,
    silence: Duration,
) {
    let jobs = tasks.clone();
    accept(tasks, name, listener, config, move |stream, place| {
        let service = TowerToHyperService::new(routes.clone());
        let mut drain = jobs.drain();
        jobs.spawn_job(name, async move {
            let limits = Limits { first: silence, write: silence };
            let stream = TimedStream::new(stream, limits, Some(place));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(silence);
            // Who is gone without a word is found out.
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = drain.started() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            result.map_err(|e| e.to_string())
        });
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use meltemi_identity::{CaCore, CaMaterial};
    use meltemi_runtime::drain;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A serving certificate, its CA's certificate, and a client that trusts it.
    fn credentials() -> (Serving, tokio_rustls::TlsConnector) {
        let now = std::time::SystemTime::now();
        let core = CaCore::new(&CaMaterial::generate("cluster.local", now).unwrap()).unwrap();
        let key = crate::ca::serving(&core, &["istiod.x.svc".to_owned()], Duration::from_secs(3600)).unwrap();
        let mut client = rustls::ClientConfig::builder()
            .with_root_certificates(meltemi_identity::tls::roots(core.root_pem()).unwrap())
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        (Serving::new(key), tokio_rustls::TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test]
    async fn who_says_nothing_after_the_handshake_is_ended() {
        let (serving, connector) = credentials();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let (config, silence) = (serving.config(&[b"h2"]).unwrap(), Duration::from_secs(1));
        serve_http_within(&tasks, "test", listener, config, Router::new(), silence);
        // Silence, and silence in the middle of HTTP/2's preface.
        for said in [&b""[..], b"PRI * HTTP/2.0"] {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect("istiod.x.svc".try_into().unwrap(), stream).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, said).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(60), async {
                while let Ok(1..) = stream.read(&mut [0; 64]).await {}
            });
            assert!(ended.await.is_ok(), "{said:?}");
        }
    }

    async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        socket.connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn one_source_fills_its_own_connections_only_and_there_is_a_bound_for_all() {
        let (serving, connector) = credentials();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let places = Places { connections: PerSource::new(2, 3), ..Places::default() };
        // Held until the client ends it.
        let jobs = tasks.clone();
        accept_within(
            &tasks,
            "test",
            listener,
            serving.config(&[b"h2"]).unwrap(),
            &places,
            move |mut io, place| {
                jobs.spawn_job("held", async move {
                    let _place = place;
                    let _ = io.read(&mut [0]).await;
                    Ok::<(), io::Error>(())
                });
            },
        );
        let shake = async |source: &str| {
            let stream = connect_from(source, address).await;
            connector.connect("istiod.x.svc".try_into().unwrap(), stream).await.ok()
        };
        let mut held = vec![shake("127.0.0.2").await.unwrap(), shake("127.0.0.2").await.unwrap()];
        assert!(shake("127.0.0.2").await.is_none(), "it has its part");
        held.push(shake("127.0.0.3").await.expect("another source"));
        assert!(shake("127.0.0.4").await.is_none(), "there is none left");
        held.clear();
        while shake("127.0.0.2").await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn who_says_nothing_takes_no_place_from_others() {
        let (serving, connector) = credentials();
        let config = serving.config(&[b"h2"]).unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, shaken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (_trigger, watch) = drain::channel();
        let (tasks, _supervisor) = Tasks::new("test", watch);
        let count = shaken.clone();
        accept(&tasks, "test", listener, config, move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES.0 + 8 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Those that are too many are closed at once.
        let last = silent.last_mut().unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(5), last.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)));
        let stream = connect_from("127.0.0.2", address).await;
        let connecting = connector.connect("istiod.x.svc".try_into().unwrap(), stream);
        tokio::time::timeout(Duration::from_secs(5), connecting).await.unwrap().unwrap();
        while shaken.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
}
