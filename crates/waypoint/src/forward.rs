// SPDX-License-Identifier: Apache-2.0
//! Forward: to an endpoint of the chosen service, through a tunnel with the proxy's own identity.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meltemi_model::{NamespacedHostname, Workload};
use meltemi_state::{Hop, Route};
use meltemi_tunnel::{Dial, TunnelIo};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::body::Body;
use crate::context::Context;
use crate::limits::{
    CONNECTION_WINDOW, MAX_BUFFER, MAX_HEAD_BYTES, MAX_HEADERS, MAX_SEND_BUFFER, STREAM_WINDOW,
};
use crate::upstream::Upstream;

const CONNECT: Duration = Duration::from_secs(10);

/// Why a request did not reach its backend.
#[derive(Clone, Debug)]
pub(crate) struct Unreached {
    /// Envoy's flag: `UH` (no healthy host) or `UF` (connection failure).
    pub(crate) flag: &'static str,
    /// For the log.
    pub(crate) reason: String,
}

fn failed(reason: impl ToString) -> Unreached {
    Unreached { flag: "UF", reason: reason.to_string() }
}

/// A way to a backend: bytes.
pub(crate) type Way = Either<TunnelIo, TcpStream>;

/// Chooses an endpoint of a service.
pub(crate) fn resolve(
    context: &Context,
    service: &NamespacedHostname,
    port: u16,
) -> Result<Route, Unreached> {
    let mesh = context.view.mesh();
    let own = context.own(&mesh);
    let mut random = |n: u32| rand::random::<u32>() % n;
    let none = |reason: String| Unreached { flag: "UH", reason };
    let found = mesh.snapshot.service(service).cloned();
    let service = found.ok_or_else(|| none(format!("service {service} is not known")))?;
    let to = service.addresses.first().map(|a| SocketAddr::new(a.ip, port));
    let route = match (&service.waypoint, to) {
        // A gateway goes through the waypoint where the Service asks for it; a waypoint is the waypoint.
        (Some(waypoint), Some(to)) if service.ingress_use_waypoint && !context.serves(&service) => {
            mesh.snapshot.through(waypoint, to, Some(service.key.clone()), &own, &mut random)
        }
        _ => mesh.snapshot.to_endpoint(&service, port, &own, &mut random),
    };
    route.map_err(|e| none(e.to_string()))
}

/// The Pod that is reached by a route, and its port; `None` when a waypoint comes first, which judges for itself.
pub(crate) fn endpoint(route: &Route) -> Option<(Arc<Workload>, u16)> {
    let (Route::Hbone(Hop { authority: to, .. }, destination) | Route::Plain(to, destination)) = route;
    let workload = destination.workload.clone().filter(|_| !destination.waypoint)?;
    Some((workload, to.port()))
}

/// Opens a way to the endpoint of a route; also tells which.
pub(crate) async fn reach(context: &Context, route: Route) -> Result<(Way, SocketAddr), Unreached> {
    match route {
        Route::Hbone(hop, _) => {
            let dial = Dial {
                svid: context.certificate().await.map_err(failed)?,
                address: hop.dial,
                expected: hop.expected,
                authority: hop.authority.to_string(),
                headers: HeaderMap::new(),
            };
            let dialled = context.pool.dial(&dial).await.map_err(failed)?;
            Ok((Either::Left(TunnelIo::holding(dialled.stream, dialled.lease)), hop.authority))
        }
        Route::Plain(to, _) => {
            let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await;
            let tcp = tcp
                .map_err(|_| failed(format!("{to} does not answer")))?
                .map_err(|e| failed(format!("{to}: {e}")))?;
            tcp.set_nodelay(true).map_err(failed)?;
            Ok((Either::Right(tcp), to))
        }
    }
}

/// Sends the request on; also tells whom it was sent to.
pub(crate) async fn forward(
    context: &Arc<Context>,
    route: Route,
    request: Request<Body>,
) -> Result<(Response<Incoming>, SocketAddr), Unreached> {
    let (way, upstream) = reach(context, route).await?;
    let changed = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(Upstream::new(way, changed.clone()));
    let response = send(context, io, request).await.map_err(failed)?;
    changed.store(response.status() == StatusCode::SWITCHING_PROTOCOLS, Ordering::Relaxed);
    Ok((response, upstream))
}

async fn send(
    context: &Context,
    io: TokioIo<Upstream<Way>>,
    request: Request<Body>,
) -> hyper::Result<Response<Incoming>> {
    if request.version() == Version::HTTP_2 {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .max_send_buf_size(MAX_SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (mut sender, connection) = builder.handshake(io).await?;
        context.tasks.spawn_job("upstream", connection);
        return sender.send_request(request).await;
    }
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
    let (mut sender, connection) = builder.handshake(io).await?;
    context.tasks.spawn_job("upstream", connection.with_upgrades());
    sender.send_request(request).await
}
