// SPDX-License-Identifier: Apache-2.0
//! The process: opens the store, makes the credentials, listens, and carries each connection's requests to [`crate::rest`].

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use meltemi_runtime::{DrainWatch, Tasks};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Inert};
use crate::auth::{self, User};
use crate::pki::{self, NodeSpec, PkiError};
use crate::store::{Store, StoreError};

/// What the API server is started with.
#[derive(Debug)]
pub struct Config {
    /// Listening sockets, TLS is spoken on all of them.
    pub listeners: Vec<TcpListener>,
    /// Where objects, keys and kubeconfigs are kept.
    pub data_dir: PathBuf,
    /// Name of the cluster in the kubeconfigs.
    pub cluster_name: String,
    /// Port on the host's 127.0.0.1, for the administrator's kubeconfig.
    pub host_port: u16,
    /// The nodes that get credentials.
    pub nodes: Vec<NodeSpec>,
    /// Address of the Service `kubernetes`, and of the endpoint behind it.
    pub advertise: IpAddr,
    /// Built-in kinds that nobody acts on in this cluster.
    pub inert: &'static [Inert],
}

/// Why the API server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The database.
    #[error("opening the store: {0}")]
    Store(#[from] StoreError),
    /// The credentials.
    #[error("credentials: {0}")]
    Pki(#[from] PkiError),
    /// A listener.
    #[error("listening: {0}")]
    Listen(#[from] std::io::Error),
    /// An object that every cluster has could not be stored.
    #[error("bootstrap: {0}")]
    Bootstrap(String),
}

/// Longest time for a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the head of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(15);
/// Connections served at once.
const MAX_CONNECTIONS: usize = 4096;

/// Opens everything; the listeners are served by `tasks` from then on.
///
/// # Errors
/// See [`ServerError`].
pub async fn start(config: Config, tasks: &Tasks) -> Result<Api, ServerError> {
    let layout = pki::Layout {
        data_dir: config.data_dir.clone(),
        cluster_name: config.cluster_name,
        host_port: config.host_port,
        nodes: config.nodes,
    };
    let pki = pki::ensure(&layout, SystemTime::now())?;
    let store = Store::open(&config.data_dir.join("db.sqlite"))?;
    let api = Api { inert: config.inert.into(), ..Api::new(store, &pki, config.advertise, tasks)? };
    crate::bootstrap::ensure(&api).map_err(|refusal| ServerError::Bootstrap(refusal.message))?;
    let acceptor = TlsAcceptor::from(pki.server_config()?);
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    for (index, listener) in config.listeners.into_iter().enumerate() {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accept = accept(listener, acceptor.clone(), api.clone(), tasks.clone(), slots.clone());
        tasks.spawn(&format!("listener-{index}"), accept);
    }
    Ok(api)
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    api: Api,
    tasks: Tasks,
    slots: Arc<tokio::sync::Semaphore>,
) -> std::io::Result<()> {
    let mut drain = tasks.drain();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer is gone already: neither ends the listener.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            () = drain.started() => return Ok(()),
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let (acceptor, api, drain) = (acceptor.clone(), api.clone(), tasks.drain());
        tasks.spawn_job("connection", async move {
            let served = serve(stream, acceptor, api, drain).await;
            drop(slot);
            served
        });
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    api: Api,
    mut drain: DrainWatch,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .map_err(|_| "TLS handshake took too long".to_owned())?
        .map_err(|e| format!("TLS: {e}"))?;
    let peer: Option<Arc<User>> =
        stream.get_ref().1.peer_certificates().and_then(auth::peer_user).map(Arc::new);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (api, peer) = (api.clone(), peer.clone());
        async move {
            let request = request.map(Body::new);
            Ok::<Response<Body>, std::convert::Infallible>(crate::rest::handle(api, peer, request).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended.map_err(|e| e.to_string()),
        () = drain.started() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended.map_err(|e| e.to_string()),
                () = drain.forced() => Ok(()),
            }
        }
    }
}
