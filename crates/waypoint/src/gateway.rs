// SPDX-License-Identifier: Apache-2.0
//! The listeners of an ingress gateway: opened and closed as the Gateway says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_model::l7::{Listener, Protocol};
use tokio::net::{TcpListener, TcpStream};

use crate::connection;
use crate::context::Context;
use crate::served::{Peer, Served};
use crate::workers::Workers;

pub(crate) async fn serve(context: Arc<Context>, workers: Arc<Workers>) -> std::io::Result<()> {
    let mut changes = context.view.changes();
    let (deserted, _serving) = (context.deserted(), context.view.serving());
    tokio::pin!(deserted);
    let mut open: BTreeMap<u16, tokio_util::sync::CancellationToken> = BTreeMap::new();
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
        open.retain(|port, cancel| {
            let keep = wanted.contains_key(port);
            if !keep {
                cancel.cancel();
            }
            keep
        });
        for (port, listener) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            if listener.protocol == Protocol::Https {
                if told.insert(port) {
                    tracing::error!(listener = %listener.name, port, "HTTPS listeners are not served; nothing is opened on its port");
                }
                continue;
            }
            match TcpListener::bind(("0.0.0.0", port)).await {
                Ok(socket) => {
                    let workers = workers.clone();
                    let cancel = tokio_util::sync::CancellationToken::new();
                    open.insert(port, cancel.clone());
                    let of = context.clone();
                    context.tasks.spawn_job("listener", async move {
                        accept(of, &workers, socket, port, cancel).await
                    });
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
            () = &mut deserted => {
                open.values().for_each(tokio_util::sync::CancellationToken::cancel);
                return Ok(());
            }
        }
    }
}

async fn accept(
    context: Arc<Context>,
    workers: &Workers,
    socket: TcpListener,
    port: u16,
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
        let served = Served { service: None, workload: None, to, listener: Some(port), peer, place };
        let Ok(stream) = stream.into_std() else { continue };
        let serving = context.view.serving();
        workers.give(&context, move |own| async move {
            let _serving = serving;
            // On the worker's own runtime; it fails where that has no descriptors left.
            if let Ok(stream) = TcpStream::from_std(stream) {
                connection::serve(own, stream, Vec::new(), served).await;
            }
        });
    }
}
