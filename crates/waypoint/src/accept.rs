// SPDX-License-Identifier: Apache-2.0
//! Accept: tunnels of the mesh's peers, and on them only what this proxy is the waypoint of.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use meltemi_identity::tls;
use meltemi_model::service::AppProtocol;
use meltemi_runtime::places::Place;
use meltemi_tunnel::{Connect, Target, TunnelIo, server};
use tokio::net::{TcpListener, TcpStream};

use crate::connection;
use crate::context::Context;
use crate::detect::{Speech, detect};
use crate::forward::declared_protocol;
use crate::limits::ACCEPT_PAUSE;
use crate::route::is_routed;
use crate::served::{BackendRef, Peer, Served};
use crate::tcp::{self, Client, Ended};
use crate::workers::Workers;

pub(crate) async fn serve(
    context: Arc<Context>,
    workers: Arc<Workers>,
    listener: TcpListener,
) -> std::io::Result<()> {
    let (deserted, _serving) = (context.deserted(), context.view.serving());
    tokio::pin!(deserted);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut deserted => return Ok(()),
        };
        let Some((stream, from, place)) = context.place(accepted).await else { continue };
        let Ok(stream) = stream.into_std() else { continue };
        let held = (place, context.view.serving());
        workers.give(&context, move |own| async move {
            let _held = held;
            // On the worker's own runtime; it fails where that has no descriptors left.
            let ended = match TcpStream::from_std(stream) {
                Ok(stream) => tunnel(own, stream, from).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel has failed");
            }
        });
    }
}

async fn tunnel(context: Arc<Context>, stream: TcpStream, from: SocketAddr) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    // Who has not proven anything yet takes no more than his part of the places.
    let Some(handshake) = context.handshakes.take(from.ip()) else {
        context.metrics.crowded_out();
        return Ok(());
    };
    let svid = context.certificate().await?;
    let config = Arc::new(tls::server(&svid).map_err(|e| e.to_string())?);
    let mut incoming = server::accept(stream, config).await.map_err(|e| format!("{from}: {e}"))?;
    drop(handshake);
    let keepalive = incoming.keepalive();
    tokio::pin!(keepalive);
    let mut drain = context.tasks.drain();
    let (deserted, _serving) = (context.deserted(), context.view.serving());
    tokio::pin!(deserted);
    let mut is_deserted = false;
    loop {
        let request = tokio::select! {
            request = incoming.next() => request.map_err(|e| e.to_string())?,
            error = &mut keepalive => return Err(error.to_string()),
            // What is open goes on: the tunnel ends with it.
            () = &mut deserted, if !is_deserted => {
                is_deserted = true;
                incoming.graceful_shutdown();
                continue;
            }
            () = drain.forced() => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        context.arrived();
        let (of, peer) = (context.clone(), incoming.peer.clone());
        context.tasks.spawn_job("connect", async move {
            connect(of, request, Peer { identity: Some(peer), address: from }).await;
            Ok::<(), std::convert::Infallible>(())
        });
    }
}

/// What a tunnel is for: the address of a Service or Pod that this proxy is the waypoint of. Nothing else is reached through
/// it.
fn destination(
    context: &Context,
    connect: &Connect,
) -> Result<(BackendRef, SocketAddr, AppProtocol), StatusCode> {
    if !connect.is_connect() {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Ok(Target::Address(to)) = Target::parse(connect.authority()) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let mesh = context.view.mesh();
    let own = context.own(&mesh);
    // As node proxies look it up: the Pod of an address first.
    if let Some(workload) = mesh.snapshot.workload_at(&own.network, to.ip().to_canonical()) {
        let workload = Some(workload).filter(|w| context.serves_workload(w)).ok_or(StatusCode::NOT_FOUND)?;
        return Ok((
            BackendRef::Workload(workload.uid.clone(), to),
            to,
            declared_protocol(workload, to.port()),
        ));
    }
    let service = mesh.snapshot.service_at(&own.network, to.ip(), &own.namespace);
    let service = service.filter(|s| context.serves(s)).ok_or(StatusCode::NOT_FOUND)?;
    let port = service.ports.iter().find(|p| p.service_port == to.port()).ok_or(StatusCode::NOT_FOUND)?;
    Ok((BackendRef::Service(service.key.clone(), to.port()), to, port.app_protocol))
}

async fn connect(context: Arc<Context>, connect: Connect, peer: Peer) {
    let (backend, to, protocol) = match destination(&context, &connect) {
        Ok(found) => found,
        Err(status) => return connect.refuse(status),
    };
    if matches!(protocol, AppProtocol::Tcp | AppProtocol::Tls) {
        tcp::serve(&context, Client::Asked(connect), &backend, to, &peer).await;
        return;
    }
    let Ok(stream) = connect.accept() else { return };
    let (mut io, mut begun) = (TunnelIo::new(stream), Vec::new());
    // A route says what happens to requests: its port speaks HTTP, declared or not.
    let is_routed = match &backend {
        BackendRef::Service(service, port) => is_routed(&context.view.mesh(), service, *port),
        BackendRef::Workload(..) => false,
    };
    if protocol == AppProtocol::Unknown && !is_routed {
        let detected = tokio::select! {
            detected = detect(&mut io, &mut begun, &context.limits) => detected,
            () = context.drained() => return,
        };
        match detected {
            Ok(Speech::Http) => {}
            Ok(Speech::Tcp) => {
                let client = Client::Begun { io, first: begun };
                match tcp::serve(&context, client, &backend, to, &peer).await {
                    Ended::Served => return,
                    Ended::IsHttp(client, first) => (io, begun) = (client, first),
                }
            }
            Err(error) => return tracing::debug!(%error, "a client's connection has failed"),
        }
    }
    let (service, workload) = match backend {
        BackendRef::Service(service, _) => (Some(service), None),
        BackendRef::Workload(uid, _) => (None, Some(uid)),
    };
    let served = Served { service, workload, to, listener: None, peer, place: None, secured: None };
    connection::serve(context, io, begun, served).await;
}

impl Context {
    /// A place among the connections for one that was accepted. None when there is no place, or nothing was accepted: a
    /// listener outlives clients that are gone again and a process that has no file descriptors left.
    pub(crate) async fn place(
        &self,
        accepted: std::io::Result<(TcpStream, SocketAddr)>,
    ) -> Option<(TcpStream, SocketAddr, Place)> {
        match accepted {
            Ok((stream, from)) => {
                self.arrived();
                let place = self.places.take(from.ip());
                if place.is_none() {
                    // Counted and not logged: it is for a flood.
                    self.metrics.crowded_out();
                }
                Some((stream, from, place?))
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}
