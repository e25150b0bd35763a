// SPDX-License-Identifier: Apache-2.0
//! The kubelet's API for the API server: logs, exec, attach, port-forward, over TLS with a client certificate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use meltemi_linux::sockopt::{self, Keepalive};
use meltemi_runtime::places::Place;
use meltemi_runtime::silence;
use nix::sys::resource::{Resource, getrlimit};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::Error;
use crate::context::{Context, PodEntry, ServingFiles};

mod channels;
mod forward;
mod logs;
mod query;
mod session;
mod sources;

use query::Query;
use sources::Sources;

const PORT: u16 = 10250;
/// The only client: the API server.
const CLIENT: &str = "kube-apiserver-kubelet-client";

/// Longest time for a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the head of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(15);

/// Longest time in which a client that is not the API server takes nothing of its answer.
const WRITE_LIMIT: Duration = Duration::from_secs(15);

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// Why a request is not served.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: &str) -> Self {
        Self { status, message: message.to_owned() }
    }
}

/// Binds and serves.
pub(crate) async fn start(ctx: &Arc<Context>) -> Result<(), Error> {
    let acceptor = tls(&ctx.config.serving)?;
    let address = SocketAddr::from((ctx.config.address, PORT));
    let listener = TcpListener::bind(address).await.map_err(|e| Error::Server(format!("{address}: {e}")))?;
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Error::Server(e.to_string()))?;
    let sources = Sources::new(descriptors);
    let ctx = ctx.clone();
    ctx.clone().tasks.spawn("kubelet API", async move {
        let mut drain = ctx.tasks.drain();
        loop {
            let (stream, source) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = drain.started() => return Ok::<(), Infallible>(()),
            };
            // Refused at once, and not logged: it is for a flood.
            let Some(place) = sources.take(source.ip()) else { continue };
            let (ctx2, acceptor, sources) = (ctx.clone(), acceptor.clone(), sources.clone());
            ctx.job("kubelet API connection", async move {
                serve(ctx2, acceptor, stream, |place| sources.prove(source.ip(), place), place).await
            });
        }
    });
    Ok(())
}

fn tls(files: &ServingFiles) -> Result<TlsAcceptor, Error> {
    let failed = |path: &std::path::Path, e: String| Error::Server(format!("{}: {e}", path.display()));
    let certificates = |path: &std::path::Path| {
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        found.map_err(|e| failed(path, e.to_string()))
    };
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| failed(&files.key, e.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&files.client_ca)? {
        roots.add(certificate).map_err(|e| failed(&files.client_ca, e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| Error::Server(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Server(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| Error::Server(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves a connection. `prove` changes the place of a client that is the API server for one of its own.
async fn serve(
    ctx: Arc<Context>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    prove: impl FnOnce(Place) -> Option<Place>,
    place: Place,
) -> Result<(), String> {
    let keepalive =
        Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(10), retries: 3 };
    let _ = sockopt::set_nodelay(&stream);
    let _ = sockopt::set_keepalive(&stream, keepalive);
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
    let stream = handshake.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let allowed = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).is_some_and(is_client);
    let place = if allowed { prove(place).ok_or("too many connections")? } else { place };
    let service = hyper::service::service_fn(move |request| {
        let ctx = ctx.clone();
        async move {
            let response = if allowed {
                route(&ctx, request).await
            } else {
                text(StatusCode::FORBIDDEN, "only the API server may ask")
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let limits = silence::Limits { first: HEADER_LIMIT, write: WRITE_LIMIT };
    let stream = silence::TimedStream::new(stream, limits, Some(place));
    if allowed {
        // The API server waits for its own clients.
        stream.patience().grant();
    }
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    connection.with_upgrades().await.map_err(|e| e.to_string())
}

fn is_client(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let mut names = certificate.subject().iter_common_name();
    names.next().and_then(|n| n.as_str().ok()) == Some(CLIENT) && names.next().is_none()
}

async fn route(ctx: &Arc<Context>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let found = |ns: &str, pod: &str| {
        ctx.pod(ns, pod).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, &format!("pod \"{pod}\" not found on this node"))
        })
    };
    let result = match (request.method().clone(), parts.as_slice()) {
        (Method::GET, ["healthz"]) => Ok(text(StatusCode::OK, "ok")),
        (Method::GET, ["containerLogs", ns, pod, container]) => match found(ns, pod) {
            Ok(entry) => logs::read(ctx, &entry, container, &query),
            Err(refusal) => Err(refusal),
        },
        (Method::POST, [verb @ ("exec" | "attach"), ns, pod, container]) => match found(ns, pod) {
            Ok(entry) => session::open(ctx, &entry, container, &query, *verb == "exec", request).await,
            Err(refusal) => Err(refusal),
        },
        (Method::POST, ["portForward", ns, pod]) => match found(ns, pod) {
            Ok(entry) => forward::open(ctx, &entry, &query, request).await,
            Err(refusal) => Err(refusal),
        },
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
    };
    result.unwrap_or_else(|refusal| text(refusal.status, &refusal.message))
}

/// Whether a Pod has a container of this name.
pub(crate) fn has_container(entry: &PodEntry, name: &str) -> bool {
    let mut state = entry.state();
    state.container(name).is_some()
}

pub(crate) fn text(status: StatusCode, message: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{message}\n"))).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// A 101 for this protocol, if it was asked for.
pub(crate) fn switching(
    request: &Request<Incoming>,
    protocol: &'static str,
) -> Result<Response<Body>, Refusal> {
    let asked = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok());
    if !asked.is_some_and(|a| a.eq_ignore_ascii_case(protocol)) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, &format!("expected Upgrade: {protocol}")));
    }
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    *response.body_mut() = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(protocol));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    /// How far a client goes before it says nothing more.
    #[derive(Clone, Copy, Debug)]
    enum Silence {
        BeforeTls,
        AfterTls,
        InTheHead,
    }

    /// A certificate for the server, and a client that trusts it.
    fn credentials() -> (TlsAcceptor, tokio_rustls::TlsConnector) {
        let key = rcgen::generate_simple_self_signed(["node-1".to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        (TlsAcceptor::from(Arc::new(server)), tokio_rustls::TlsConnector::from(Arc::new(client)))
    }

    /// After how many seconds the connection of such a client ends.
    async fn ends_after(silence: Silence, sources: &Sources) -> u64 {
        let (acceptor, connector) = credentials();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let place = sources.take(from.ip()).unwrap();
        let ctx = crate::context::tests::context(std::net::Ipv4Addr::LOCALHOST);
        let serving = serve(ctx, acceptor, stream, Some, place);
        let shaking = async {
            if matches!(silence, Silence::BeforeTls) {
                tokio::time::pause();
                let _ = client.read(&mut [0]).await;
                return;
            }
            let mut client = connector.connect("node-1".try_into().unwrap(), client).await.unwrap();
            if matches!(silence, Silence::InTheHead) {
                client.write_all(b"GET /healthz HTTP/1.1\r\nhost: node-1\r\n").await.unwrap();
            }
            tokio::time::pause();
            let _ = client.read(&mut [0]).await;
        };
        let begun = Instant::now();
        tokio::join!(async { drop(serving.await) }, shaking);
        tokio::time::resume();
        begun.elapsed().as_secs()
    }

    #[tokio::test]
    async fn who_says_nothing_is_ended_and_leaves_its_place() {
        let sources = Sources::new(4000);
        for (silence, limit) in [
            (Silence::BeforeTls, HANDSHAKE_LIMIT),
            (Silence::AfterTls, HEADER_LIMIT),
            (Silence::InTheHead, HEADER_LIMIT),
        ] {
            // The clock may have gone on before the client fell silent.
            let took = ends_after(silence, &sources).await;
            assert!((limit.as_secs()..limit.as_secs() + 9).contains(&took), "{silence:?}: {took} s");
        }
        let free = std::iter::from_fn(|| sources.take([127, 0, 0, 1].into())).collect::<Vec<_>>();
        assert_eq!(free.len(), 16);
    }
}
