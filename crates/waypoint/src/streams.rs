// SPDX-License-Identifier: Apache-2.0
//! Streams: connections to a gateway's listeners of protocol TLS. The host that the client names in its handshake decides which
//! TLSRoute carries it, whether TLS ends here or at the backend. Policies judge it without a request, as they judge TCP: what
//! they say of HTTP is not fulfilled where they allow, and is where they deny.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use meltemi_view::access_log::{Direction, L4Record, Side};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::authorize::{Subject, authorize};
use crate::context::Context;
use crate::forward::Way;
use crate::route::{Asked, choose};
use crate::served::{BackendRef, Served};
use crate::tcp;

/// A client's connection that can be cut off.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Makes the client see a reset: it must not take what was cut off for whole.
    fn cut(&self);
}

impl Stream for TcpStream {
    fn cut(&self) {
        meltemi_tunnel::copy::reset(self);
    }
}

impl Stream for TlsStream<TcpStream> {
    fn cut(&self) {
        meltemi_tunnel::copy::reset(self.get_ref().0);
    }
}

/// Why a connection was not carried to its end.
#[derive(Debug, thiserror::Error)]
enum NotCarried {
    #[error("{0}")]
    Denied(String),
    #[error("no TLSRoute is for the host {0:?}")]
    NoRoute(String),
    #[error("the TLSRoute of host {0:?} has no backend that can be used")]
    NoBackend(String),
    #[error("{0}")]
    Unreached(String),
    #[error("the proxy ends")]
    Draining,
    #[error("{0}")]
    Failed(#[from] std::io::Error),
}

/// Carries a connection of which `first` was read already, for its route's backend.
pub(crate) async fn serve<IO: Stream>(context: &Arc<Context>, io: IO, first: Vec<u8>, served: &Served) {
    let begun = Instant::now();
    let mut record = L4Record {
        source: Side { addr: Some(served.peer.address), ..Side::default() },
        destination: Side { addr: Some(served.to), ..Side::default() },
        direction: Direction::Inbound,
        bytes_sent: 0,
        bytes_recv: 0,
        duration: Duration::ZERO,
        reports: None,
        error: None,
    };
    record.error = carry(context, io, &first, served, &mut record).await.err().map(|error| error.to_string());
    record.duration = begun.elapsed();
    context.log.line(record.line(&crate::log::now(), context.log.format()));
}

async fn carry<IO: Stream>(
    context: &Arc<Context>,
    mut io: IO,
    first: &[u8],
    served: &Served,
    record: &mut L4Record,
) -> Result<(), NotCarried> {
    let sni = served.secured.as_ref().and_then(|secured| secured.sni.clone());
    let facts = tcp::facts(context, &served.peer, served.to, sni.clone());
    let subject = Subject::new(facts.clone());
    let permitted = authorize(context, &subject);
    let (permit, _guard) = permitted.map_err(|denied| {
        io.cut();
        NotCarried::Denied(crate::log::reason(&denied))
    })?;
    record.reports = subject.reported(&context.view.mesh());
    let backend = route(context, served, sni.as_deref().unwrap_or_default()).inspect_err(|_| io.cut())?;
    if let BackendRef::Service(service, _) = &backend {
        record.destination.service = service.hostname.clone();
    }
    let mut drain = context.tasks.drain();
    let opened = tokio::select! {
        opened = tcp::open(context, &subject, &backend, &facts) => {
            opened.map_err(|(_, reason)| NotCarried::Unreached(reason))
        }
        reason = permit.revoked() => Err(NotCarried::Denied(reason.to_string())),
    };
    let (mut way, upstream) = opened.inspect_err(|_| io.cut())?;
    record.destination.hbone_addr = Some(upstream);
    let copy = async {
        way.write_all(first).await?;
        tokio::io::copy_bidirectional(&mut io, &mut way).await
    };
    let copied = tokio::select! {
        copied = copy => copied.map_err(NotCarried::from),
        reason = permit.revoked() => Err(NotCarried::Denied(reason.to_string())),
        () = drain.forced() => Err(NotCarried::Draining),
    };
    let (sent, received) = copied.inspect_err(|_| {
        io.cut();
        cut(&way);
    })?;
    (record.bytes_sent, record.bytes_recv) = (sent + first.len() as u64, received);
    Ok(())
}

/// The server sees a reset too; a tunnel that is dropped is one.
fn cut(way: &Way) {
    if let Either::Right(tcp) = way {
        meltemi_tunnel::copy::reset(tcp);
    }
}

/// The backend of the route that has the host at the listener.
fn route(context: &Context, served: &Served, host: &str) -> Result<BackendRef, NotCarried> {
    let asked = Asked {
        method: &Method::CONNECT,
        host,
        path: "",
        query: "",
        headers: &HeaderMap::new(),
        service: None,
        listener: served.listener,
        secured: None,
    };
    let chosen = choose(context, &context.view.mesh(), &asked);
    let chosen = chosen.map_err(|_| NotCarried::NoRoute(host.to_owned()))?;
    chosen.backend.ok_or_else(|| NotCarried::NoBackend(host.to_owned()))
}
