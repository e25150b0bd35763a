// SPDX-License-Identifier: Apache-2.0
//! Forward: to an endpoint of the chosen service, through a tunnel with the proxy's own identity.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use meltemi_model::Workload;
use meltemi_model::service::AppProtocol;
use meltemi_state::{Hop, Route};
use meltemi_tunnel::{Dial, Patience, TunnelIo};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::body::{Body, full};
use crate::context::Context;
use crate::metrics::ResponseFlag;
use crate::pool::{Endpoint, HttpVersion, Lease};
use crate::served::BackendRef;

const CONNECT: Duration = Duration::from_secs(10);
/// Why a request did not reach its backend.
#[derive(Clone, Debug)]
pub(crate) struct Unreached {
    /// For the log and the metrics.
    pub(crate) flag: ResponseFlag,
    /// For the log.
    pub(crate) reason: String,
}

impl Unreached {
    /// A connection that failed (`UF`).
    pub(crate) fn failed(reason: impl ToString) -> Self {
        Self { flag: ResponseFlag::UpstreamConnectionFailure, reason: reason.to_string() }
    }
}

/// A way to a backend: bytes.
pub(crate) type Way = Either<TunnelIo, TcpStream>;

/// Draws an endpoint of a service by its capacity, among those that the service's preferences leave. A Pod that was dialled
/// is its only endpoint.
pub(crate) fn resolve(
    context: &Context,
    backend: &BackendRef,
    random: &mut dyn FnMut(u32) -> u32,
) -> Result<Route, Unreached> {
    let mesh = context.view.mesh();
    let own = context.own(&mesh);
    let none = |reason: String| Unreached { flag: ResponseFlag::NoHealthyUpstream, reason };
    let (service, port) = match backend {
        BackendRef::Service(service, port) => (service, *port),
        BackendRef::Workload(uid, to) => {
            let workload =
                mesh.snapshot.workload(uid).filter(|w| w.addresses.contains(&to.ip().to_canonical()));
            let workload = workload.ok_or_else(|| none(format!("no Pod {} has the address {to}", uid.0)))?;
            return mesh.snapshot.directly(workload, *to).map_err(|e| none(e.to_string()));
        }
    };
    let found = mesh.snapshot.service(service).cloned();
    let service = found.ok_or_else(|| none(format!("service {service} is not known")))?;
    let to = service.addresses.first().map(|a| SocketAddr::new(a.ip, port));
    let route = match (&service.waypoint, to) {
        // A gateway goes through the waypoint where the Service asks for it; a waypoint is the waypoint.
        (Some(waypoint), Some(to)) if service.ingress_use_waypoint && !context.serves(&service) => {
            mesh.snapshot.through(waypoint, to, Some(service.key.clone()), &own, random)
        }
        _ => mesh.snapshot.to_endpoint(&service, port, &own, random),
    };
    route.map_err(|e| none(e.to_string()))
}

/// The Pod that is reached by a route, and its port; `None` when a waypoint comes first, which judges for itself.
pub(crate) fn endpoint(route: &Route) -> Option<(Arc<Workload>, u16)> {
    let (Route::Hbone(Hop { authority: to, .. }, destination) | Route::Plain(to, destination)) = route;
    let workload = destination.workload.clone().filter(|_| !destination.waypoint)?;
    Some((workload, to.port()))
}

/// The address of what a route leads to: the endpoint, or a waypoint's proxy.
pub(crate) fn host(route: &Route) -> SocketAddr {
    match route {
        Route::Hbone(hop, destination) if destination.waypoint => hop.dial,
        Route::Hbone(hop, _) => hop.authority,
        Route::Plain(to, _) => *to,
    }
}

/// Opens a way to the endpoint of a route, for what is not HTTP. Returns the endpoint's address too.
pub(crate) async fn reach(
    context: &Context,
    route: Route,
    patience: Patience,
) -> Result<(Way, SocketAddr), Unreached> {
    let (Route::Hbone(Hop { authority: address, .. }, _) | Route::Plain(address, _)) = route;
    Ok((connect(context, route, patience).await?, address))
}

/// How long to wait for the tunnel of a first attempt: another endpoint may be there for a second one. A second attempt waits
/// as long as a busy endpoint may need, since all of them may be busy.
pub(crate) fn patience(route: &Route, is_first: bool) -> Patience {
    let (Route::Hbone(_, destination) | Route::Plain(_, destination)) = route;
    if is_first && destination.has_alternative { Patience::Short } else { Patience::Full }
}

/// The pool of a route's endpoint.
pub(crate) fn pool_key(route: &Route, version: HttpVersion) -> Endpoint {
    match route {
        Route::Hbone(hop, _) => {
            Endpoint { address: hop.authority, tunnel: Some((hop.dial, hop.expected.clone())), version }
        }
        Route::Plain(to, _) => Endpoint { address: *to, tunnel: None, version },
    }
}

async fn connect(context: &Context, route: Route, patience: Patience) -> Result<Way, Unreached> {
    match route {
        Route::Hbone(hop, _) => {
            let dial = Dial {
                svid: context.certificate().await.map_err(Unreached::failed)?,
                address: hop.dial,
                expected: hop.expected,
                authority: hop.authority.to_string(),
                headers: HeaderMap::new(),
                patience,
            };
            let dialled = context.pool.dial(&dial).await.map_err(Unreached::failed)?;
            Ok(Either::Left(TunnelIo::holding(dialled.stream, dialled.lease)))
        }
        Route::Plain(to, _) => {
            let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await;
            let tcp = tcp
                .map_err(|_| Unreached::failed(format!("{to} does not answer")))?
                .map_err(|e| Unreached::failed(format!("{to}: {e}")))?;
            tcp.set_nodelay(true).map_err(Unreached::failed)?;
            Ok(Either::Right(tcp))
        }
    }
}

/// The HTTP version for a backend: what its port declares, else the client's. A change to WebSocket is asked for in
/// HTTP/1.1 only.
pub(crate) fn backend_version(
    context: &Context,
    backend: &BackendRef,
    client: Version,
    websocket: bool,
) -> HttpVersion {
    let mesh = context.view.mesh();
    let declared = match backend {
        BackendRef::Service(service, port) => mesh.snapshot.service(service).and_then(|service| {
            service.ports.iter().find(|p| p.service_port == *port).map(|p| p.app_protocol)
        }),
        BackendRef::Workload(uid, to) => mesh.snapshot.workload(uid).map(|w| declared_protocol(w, to.port())),
    };
    match declared {
        _ if websocket => HttpVersion::Http1,
        Some(AppProtocol::Http11) => HttpVersion::Http1,
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => HttpVersion::Http2,
        _ if client == Version::HTTP_2 => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    }
}

/// What the Services of a Pod declare of one of its ports; unknown when none does, or not all the same.
pub(crate) fn declared_protocol(workload: &Workload, port: u16) -> AppProtocol {
    let mut all = workload.services.values().flatten().filter(|p| p.target_port == port);
    let first = all.next().map_or(AppProtocol::Unknown, |p| p.app_protocol);
    if all.all(|p| p.app_protocol == first) { first } else { AppProtocol::Unknown }
}

/// Writes a request that is ready to be sent in the form of `version`; nothing that was judged changes by it.
fn convert(request: &mut Request<Body>, version: HttpVersion) -> Result<(), Unreached> {
    match (request.version(), version) {
        (Version::HTTP_2, HttpVersion::Http1) => {
            let authority = request.uri().authority().map(|a| HeaderValue::from_str(a.as_str())).transpose();
            if let Some(host) = authority.map_err(Unreached::failed)? {
                request.headers_mut().insert(HOST, host);
            }
            // HTTP/1.1 wants it to be named in `Connection` (RFC 9110 §10.1.4); trailers come without being asked for.
            request.headers_mut().remove(TE);
            let target = request.uri().path_and_query().cloned();
            *request.uri_mut() = target.map_or_else(|| Uri::from_static("/"), Uri::from);
            *request.version_mut() = Version::HTTP_11;
        }
        (version, HttpVersion::Http2) if version != Version::HTTP_2 => {
            let host = request.headers_mut().remove(HOST).unwrap_or(HeaderValue::from_static(""));
            let target = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
            let uri = Uri::builder().scheme("http").authority(host.as_bytes()).path_and_query(target);
            *request.uri_mut() = uri.build().map_err(Unreached::failed)?;
            *request.version_mut() = Version::HTTP_2;
        }
        _ => {}
    }
    Ok(())
}

/// What a backend answered.
pub(crate) struct Exchanged {
    /// Its response.
    pub(crate) response: Response<Incoming>,
    /// The connection, to be kept after the response's end.
    pub(crate) lease: Lease,
    /// The endpoint's address.
    pub(crate) upstream: SocketAddr,
}

/// An attempt that brought no answer.
pub(crate) struct Failed {
    pub(crate) unreached: Unreached,
    /// The request, if it may be sent to another endpoint: no application has got it, or it may get it twice.
    pub(crate) request: Option<Request<Body>>,
}

/// Sends a request to the endpoint of a route, and once more where it went to a kept connection that had ended. `patience` is
/// for a tunnel that has to be opened.
///
/// # Errors
/// See [`Unreached::flag`].
pub(crate) async fn attempt(
    context: &Arc<Context>,
    route: &Route,
    mut request: Request<Body>,
    version: HttpVersion,
    patience: Patience,
) -> Result<Exchanged, Failed> {
    if let Err(unreached) = convert(&mut request, version) {
        return Err(Failed { unreached, request: None });
    }
    let endpoint = pool_key(route, version);
    let mut only_new = false;
    loop {
        let connecting = connect(context, route.clone(), patience);
        let lease = context.upstreams.lease(&endpoint, only_new, connecting).await;
        let mut lease = match lease {
            Ok(lease) => lease,
            Err(unreached) => {
                // Nothing was sent. Too many requests are not less at another endpoint.
                let request = (unreached.flag != ResponseFlag::UpstreamOverflow).then_some(request);
                return Err(Failed { unreached, request });
            }
        };
        let (is_reused, copy) = (lease.is_reused, copy_without_body(&request));
        let mut failed = match lease.send(request).await {
            Ok(response) => return Ok(Exchanged { response, lease, upstream: endpoint.address }),
            Err(failed) => failed,
        };
        // The backend may have closed a kept connection at the moment it was used: that is not the client's fault.
        let is_repeatable = |copy: &Request<Body>| {
            is_refused(failed.error())
                || is_reused && is_ended(failed.error()) && is_idempotent(copy.method())
        };
        let copy = copy.filter(is_repeatable);
        let again = failed.take_message().or(copy);
        match again {
            Some(whole) if is_reused && !only_new => (request, only_new) = (whole, true),
            request => {
                let reason = failed.into_error().to_string();
                return Err(Failed {
                    unreached: Unreached { flag: ResponseFlag::UpstreamConnectionTermination, reason },
                    request,
                });
            }
        }
    }
}

/// Whether the backend has said that it has not looked at the request (RFC 9113 §8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Whether the connection ended before it brought a response.
fn is_ended(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || !error.is_parse() && !error.is_user()
}

/// Whether a method permits to send a request twice (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    idempotent.contains(method)
}

/// A copy of a request that has no body.
fn copy_without_body(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(full(""));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
