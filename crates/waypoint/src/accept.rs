// SPDX-License-Identifier: Apache-2.0
//! Accept: tunnels of the mesh's peers, and on them only what this proxy is the waypoint of.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use hyper_util::rt::TokioIo;
use meltemi_identity::tls;
use meltemi_model::NamespacedHostname;
use meltemi_model::net::ports;
use meltemi_tunnel::{Connect, TunnelIo, server};
use tokio::net::{TcpListener, TcpStream};

use crate::context::Context;
use crate::request::{self, Peer};

pub(crate) async fn serve(context: Arc<Context>) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", ports::HBONE)).await?;
    let mut drain = context.tasks.drain();
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = drain.started() => return Ok(()),
        };
        let of = context.clone();
        context.tasks.spawn_job("tunnel", async move { tunnel(of, stream, from).await });
    }
}

async fn tunnel(context: Arc<Context>, stream: TcpStream, from: SocketAddr) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let svid = context.certificate().await?;
    let config = Arc::new(tls::server(&svid).map_err(|e| e.to_string())?);
    let mut incoming = server::accept(stream, config).await.map_err(|e| format!("{from}: {e}"))?;
    let keepalive = incoming.keepalive();
    tokio::pin!(keepalive);
    let mut drain = context.tasks.drain();
    loop {
        let request = tokio::select! {
            request = incoming.next() => request.map_err(|e| e.to_string())?,
            error = &mut keepalive => return Err(error.to_string()),
            () = drain.forced() => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        let (of, peer) = (context.clone(), incoming.peer.clone());
        context.tasks.spawn_job("connect", async move {
            connect(of, request, Peer { identity: Some(peer), address: from }).await;
            Ok::<(), std::convert::Infallible>(())
        });
    }
}

/// What a tunnel is for: a service's address that this proxy is the waypoint of. Nothing else is reached through it.
fn destination(context: &Context, connect: &Connect) -> Result<(NamespacedHostname, SocketAddr), StatusCode> {
    if !connect.is_connect() {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let to: SocketAddr = connect.authority().parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let mesh = context.view.mesh();
    let own = context.own(&mesh);
    let service = mesh.snapshot.service_at(&own.network, to.ip().to_canonical(), &own.namespace);
    let service = service.filter(|s| context.serves(s)).ok_or(StatusCode::NOT_FOUND)?;
    if !service.ports.iter().any(|p| p.service_port == to.port()) {
        return Err(StatusCode::NOT_FOUND);
    }
    Ok((service.key.clone(), to))
}

async fn connect(context: Arc<Context>, connect: Connect, peer: Peer) {
    let (service, to) = match destination(&context, &connect) {
        Ok(found) => found,
        Err(status) => return connect.refuse(status),
    };
    let Ok(stream) = connect.accept() else { return };
    let served = request::Served { service: Some(service), to, listener: None, peer };
    request::connection(context, TokioIo::new(TunnelIo::new(stream)), served).await;
}
