// SPDX-License-Identifier: Apache-2.0
//! Listeners under TLS, with a serving certificate that is replaced while they run.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use meltemi_runtime::Tasks;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes at the same time, and how long one may take: a peer that says nothing costs little.
const HANDSHAKES: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);

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
    handle: impl Fn(TlsStream<TcpStream>) + Clone + Send + Sync + 'static,
) {
    let mut drain = tasks.drain();
    let jobs = tasks.clone();
    let acceptor = TlsAcceptor::from(config);
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
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
            let (acceptor, handle, permits) = (acceptor.clone(), handle.clone(), permits.clone());
            jobs.spawn_job(name, async move {
                let _permit = permits.acquire_owned().await;
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => handle(stream),
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
    let jobs = tasks.clone();
    accept(tasks, name, listener, config, move |stream| {
        let service = TowerToHyperService::new(routes.clone());
        let mut drain = jobs.drain();
        jobs.spawn_job(name, async move {
            let builder = auto::Builder::new(TokioExecutor::new());
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
