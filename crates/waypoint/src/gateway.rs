// SPDX-License-Identifier: Apache-2.0
//! The listeners of an ingress gateway: opened and closed as the Gateway says. A port is opened as soon as one of its
//! listeners can be served, and is what all of them are: HTTP in the clear or in TLS, or TLS that ends here or at a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_model::l7::{Listener, Protocol};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};

use crate::certificates::Secured;
use crate::connection;
use crate::context::Context;
use crate::hello;
use crate::served::{Peer, Served};
use crate::streams;
use crate::tls::{self, NotSecured};
use crate::workers::Workers;

/// Pause before a port that somebody else has is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

pub(crate) async fn serve(context: Arc<Context>, workers: Arc<Workers>) -> std::io::Result<()> {
    let mut changes = context.view.changes();
    let (deserted, _serving) = (context.deserted(), context.view.serving());
    tokio::pin!(deserted);
    let mut open: BTreeMap<u16, (Protocol, tokio_util::sync::CancellationToken)> = BTreeMap::new();
    // Listeners that cannot be served, and were said so.
    let mut told = BTreeSet::new();
    loop {
        let mesh = context.view.mesh();
        let wanted: BTreeMap<u16, Arc<Listener>> = mesh
            .listeners
            .values()
            .filter(|l| l.gateway == context.config.gateway && l.protocol != Protocol::Hbone)
            .map(|l| (l.port, l.clone()))
            .collect();
        told.retain(|port| wanted.contains_key(port));
        context.certificates.retain(&mesh);
        open.retain(|port, (protocol, cancel)| {
            let keep = wanted.get(port).is_some_and(|listener| listener.protocol == *protocol);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        for (port, listener) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            let speaks = match listener.protocol {
                Protocol::Https | Protocol::Tls => {
                    let for_http = listener.protocol == Protocol::Https;
                    let config = tls::config(&context, port, for_http).map_err(std::io::Error::other)?;
                    if for_http { Speaks::Https(config) } else { Speaks::Tls(config) }
                }
                Protocol::TlsPassthrough => Speaks::Passthrough,
                Protocol::Http | Protocol::Hbone => Speaks::Http,
            };
            match TcpListener::bind(("0.0.0.0", port)).await {
                Ok(socket) => {
                    told.remove(&port);
                    let workers = workers.clone();
                    let cancel = tokio_util::sync::CancellationToken::new();
                    open.insert(port, (listener.protocol, cancel.clone()));
                    let of = context.clone();
                    let listening = Listening { socket, port, speaks };
                    context
                        .tasks
                        .spawn_job("listener", async move { accept(of, &workers, listening, cancel).await });
                }
                Err(error) => {
                    if told.insert(port) {
                        tracing::error!(port, %error, "listener cannot be opened");
                    }
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            // Whoever has the port may leave it.
            () = tokio::time::sleep(AGAIN), if !told.is_empty() => {}
            () = &mut deserted => {
                open.values().for_each(|(_, cancel)| cancel.cancel());
                return Ok(());
            }
        }
    }
}

/// An open port.
struct Listening {
    socket: TcpListener,
    port: u16,
    speaks: Speaks,
}

/// What the connections of a port are.
#[derive(Clone)]
enum Speaks {
    /// HTTP in the clear.
    Http,
    /// HTTP in TLS.
    Https(Arc<ServerConfig>),
    /// Anything in TLS.
    Tls(Arc<ServerConfig>),
    /// TLS that ends at a backend.
    Passthrough,
}

async fn accept(
    context: Arc<Context>,
    workers: &Workers,
    Listening { socket, port, speaks }: Listening,
    cancel: tokio_util::sync::CancellationToken,
) -> Result<(), std::convert::Infallible> {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = cancel.cancelled() => return Ok(()),
        };
        let Some((stream, from, place)) = context.place(accepted).await else { continue };
        // A client that is gone already: its connection says so when it is read.
        let _ = stream.set_nodelay(true);
        let to = stream.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], port)));
        let peer = Peer { identity: None, address: from };
        let place = Some(Arc::new(place));
        let served =
            Served { service: None, workload: None, to, listener: Some(port), peer, place, secured: None };
        let speaks = speaks.clone();
        let Ok(stream) = stream.into_std() else { continue };
        let serving = context.view.serving();
        workers.give(&context, move |own| async move {
            let _serving = serving;
            // On the worker's own runtime; it fails where that has no descriptors left.
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            if let Err(error) = carry(own, stream, served, speaks).await {
                tracing::debug!(client = %from, %error, "no TLS");
            }
        });
    }
}

/// Carries a connection to its end.
async fn carry(
    context: Arc<Context>,
    mut stream: TcpStream,
    mut served: Served,
    speaks: Speaks,
) -> Result<(), NotSecured> {
    if let Speaks::Http = speaks {
        connection::serve(context, stream, Vec::new(), served).await;
        return Ok(());
    }
    // Who has not shaken hands yet takes no more than his part of the places.
    let Some(handshake) = context.handshakes.take(served.peer.address.ip()) else {
        context.metrics.crowded_out();
        return Ok(());
    };
    match speaks {
        Speaks::Http => {}
        Speaks::Https(config) => {
            let (stream, client) = tls::accept(&context, stream, config).await?;
            drop(handshake);
            served.secured = Some(client);
            connection::serve(context, stream, Vec::new(), served).await;
        }
        Speaks::Tls(config) => {
            let (stream, client) = tls::accept(&context, stream, config).await?;
            drop(handshake);
            served.secured = Some(client);
            streams::serve(&context, stream, Vec::new(), &served).await;
        }
        Speaks::Passthrough => {
            let mut first = Vec::new();
            let hello = tokio::time::timeout(context.limits.head, hello::read(&mut stream, &mut first)).await;
            let sni = hello.map_err(|_| NotSecured::TooLong)??;
            drop(handshake);
            served.secured = Some(Secured { sni });
            streams::serve(&context, stream, first, &served).await;
        }
    }
    Ok(())
}
