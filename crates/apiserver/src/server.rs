// SPDX-License-Identifier: Apache-2.0
//! The process: opens the store, makes the credentials, listens, and carries each connection's requests to [`crate::rest`].

use std::collections::HashSet;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use meltemi_runtime::places::{PerSource, Place};
use meltemi_runtime::{DrainWatch, Tasks, silence};
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
    pub inert: Vec<Inert>,
    /// API groups whose custom resources may not have unknown fields, whatever the client asks for: where a typo
    /// weakens what the object is there for. Elsewhere unknown fields are pruned, as in Kubernetes.
    pub strict_groups: &'static [&'static str],
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
/// Longest time for the head of a request, and for the first bytes of a connection.
const HEADER_LIMIT: Duration = Duration::from_secs(15);
/// Shortest time between two warnings that nothing can be accepted.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time in which a client takes nothing of what is written to it.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Interval of pings over HTTP/2, and the time for their answers.
const PING: Duration = Duration::from_secs(30);
/// Connections of one source address, and of all.
const CONNECTIONS: (usize, usize) = (256, 2048);
/// Connections of one node or of loopback, and of all of these.
const OWN_CONNECTIONS: (usize, usize) = (1024, 4096);
/// Requests at once on one connection over HTTP/2.
const STREAMS: u32 = 1000;

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
    let api = Api {
        inert: config.inert.into(),
        strict_groups: config.strict_groups,
        ..Api::new(store, &pki, config.advertise, tasks)?
    };
    crate::bootstrap::ensure(&api).map_err(|refusal| ServerError::Bootstrap(refusal.message))?;
    tasks.spawn("disruption budgets", crate::disruption::status::keep(api.clone(), tasks.drain()));
    let acceptor = TlsAcceptor::from(pki.server_config()?);
    let sources = Sources::new(layout.nodes.iter().map(|node| node.address).chain([config.advertise]));
    for (index, listener) in config.listeners.into_iter().enumerate() {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accept = accept(listener, acceptor.clone(), api.clone(), tasks.clone(), sources.clone());
        tasks.spawn(&format!("listener-{index}"), accept);
    }
    Ok(api)
}

/// Places for connections. Nodes and loopback have their own, so that Pods cannot keep them out.
#[derive(Clone, Debug)]
struct Sources {
    own: Arc<HashSet<IpAddr>>,
    of_own: PerSource,
    of_others: PerSource,
}

impl Sources {
    fn new(own: impl Iterator<Item = IpAddr>) -> Self {
        Self {
            own: Arc::new(own.collect()),
            of_own: PerSource::new(OWN_CONNECTIONS.0, OWN_CONNECTIONS.1),
            of_others: PerSource::new(CONNECTIONS.0, CONNECTIONS.1),
        }
    }

    fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let own = source.is_loopback() || self.own.contains(&source);
        if own { self.of_own.take(source) } else { self.of_others.take(source) }
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    api: Api,
    tasks: Tasks,
    sources: Sources,
) -> std::io::Result<()> {
    let mut drain = tasks.drain();
    let mut warned: Option<Instant> = None;
    loop {
        let (stream, source) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer is gone already: neither ends the listener, nor fills the log.
                    if warned.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "accept");
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            () = drain.started() => return Ok(()),
        };
        // Refused at once, and not logged: under a flood, who waits here keeps everybody else waiting.
        let Some(place) = sources.take(source.ip()) else { continue };
        let (acceptor, api, drain) = (acceptor.clone(), api.clone(), tasks.drain());
        tasks.spawn_job("connection", serve(stream, place, acceptor, api, drain));
    }
}

/// Logs and sessions: people read them, and may stop to read for a while.
fn is_stream_of_pod(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("log" | "exec" | "attach" | "portforward"))
}

async fn serve(
    stream: TcpStream,
    place: Place,
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
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let limits = silence::Limits { first: HEADER_LIMIT, write: WRITE_LIMIT };
    let stream = silence::TimedStream::new(stream, limits, Some(place));
    let patience = stream.patience();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (api, peer, patience) = (api.clone(), peer.clone(), patience.clone());
        async move {
            let of_pod = is_stream_of_pod(request.uri().path());
            let response = crate::rest::handle(api, peer, request.map(Body::new)).await;
            let opened =
                response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if of_pod && opened {
                patience.grant();
            }
            Ok::<Response<Body>, std::convert::Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let builder = if is_http2 { builder.http2_only() } else { builder.http1_only() };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_fills_its_own_places_only_and_nodes_and_loopback_have_theirs() {
        let node = IpAddr::from([172, 30, 0, 11]);
        let sources = Sources::new([node].into_iter());
        let mut held = Vec::new();
        let mut fill = |source: IpAddr| {
            let before = held.len();
            held.extend(std::iter::from_fn(|| sources.take(source)));
            held.len() - before
        };
        let pod = |n: u8| IpAddr::from([10, 244, 1, n]);
        assert_eq!(fill(pod(1)), CONNECTIONS.0);
        assert_eq!(fill(pod(2)), CONNECTIONS.0);
        let rest: usize = (3..200).map(|n| fill(pod(n))).sum();
        assert_eq!(rest, CONNECTIONS.1 - 2 * CONNECTIONS.0);
        assert_eq!(fill(node), OWN_CONNECTIONS.0);
        assert_eq!(fill(IpAddr::from([127, 0, 0, 1])), OWN_CONNECTIONS.0);
        assert_eq!(fill("::ffff:127.0.0.1".parse().unwrap()), 0, "the same source in another notation");
    }
}
