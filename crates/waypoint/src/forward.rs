// SPDX-License-Identifier: Apache-2.0
//! Forward: to an endpoint of the chosen service, through a tunnel with the proxy's own identity.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meltemi_state::Route;
use meltemi_tunnel::{Dial, TunnelIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::context::Context;
use crate::route::Chosen;

const CONNECT: Duration = Duration::from_secs(10);

/// Why a request did not reach its backend.
#[derive(Clone, Debug)]
pub(crate) struct Unreached {
    /// Envoy's flag: `UH` (no healthy host) or `UF` (connection failure).
    pub(crate) flag: &'static str,
    /// For the log.
    pub(crate) reason: String,
}

/// Sends the request on; also tells whom it was sent to.
pub(crate) async fn forward(
    context: &Arc<Context>,
    chosen: &Chosen,
    request: Request<Incoming>,
) -> Result<(Response<Incoming>, String), Unreached> {
    let failed = |reason: String| Unreached { flag: "UF", reason };
    let route = {
        let mesh = context.view.mesh();
        let own = context.own(&mesh);
        let mut random = |n: u32| rand::random::<u32>() % n;
        let none = |reason: String| Unreached { flag: "UH", reason };
        let service = mesh.snapshot.service(&chosen.service).cloned();
        let service = service.ok_or_else(|| none(format!("service {} is not known", chosen.service)))?;
        let to = service.addresses.first().map(|a| std::net::SocketAddr::new(a.ip, chosen.port));
        match (&service.waypoint, to) {
            // A gateway goes through the waypoint where the Service asks for it; a waypoint is the waypoint.
            (Some(waypoint), Some(to)) if service.ingress_use_waypoint && !context.serves(&service) => {
                let through =
                    mesh.snapshot.through(waypoint, to, Some(service.key.clone()), &own, &mut random);
                through.map_err(|e| none(e.to_string()))?
            }
            _ => mesh
                .snapshot
                .to_endpoint(&service, chosen.port, &own, &mut random)
                .map_err(|e| none(e.to_string()))?,
        }
    };
    match route {
        Route::Hbone(hop, _) => {
            let svid = context.certificate().await.map_err(failed)?;
            let dial = Dial {
                svid,
                address: hop.dial,
                expected: hop.expected,
                authority: hop.authority.to_string(),
                headers: HeaderMap::new(),
            };
            let dialled = context.pool.dial(&dial).await.map_err(|e| failed(e.to_string()))?;
            let lease = dialled.lease;
            let answer =
                send(context, TunnelIo::new(dialled.stream), request, lease).await.map_err(failed)?;
            Ok((answer, hop.authority.to_string()))
        }
        Route::Plain(to, _) => {
            let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await;
            let tcp = tcp
                .map_err(|_| failed(format!("{to} does not answer")))?
                .map_err(|e| failed(format!("{to}: {e}")))?;
            let answer = send(context, tcp, request, Arc::new(())).await.map_err(failed)?;
            Ok((answer, to.to_string()))
        }
    }
}

async fn send<IO>(
    context: &Context,
    io: IO,
    request: Request<Incoming>,
    lease: Arc<()>,
) -> Result<Response<Incoming>, String>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(io);
    if request.version() == Version::HTTP_2 {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
        context.tasks.spawn_job("upstream", async move {
            let ended = connection.await;
            drop(lease);
            ended
        });
        return sender.send_request(request).await.map_err(|e| e.to_string());
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    context.tasks.spawn_job("upstream", async move {
        let ended = connection.await;
        drop(lease);
        ended
    });
    sender.send_request(request).await.map_err(|e| e.to_string())
}
