// SPDX-License-Identifier: Apache-2.0
//! Captured outbound connections: where they were going decides whether a tunnel carries them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use meltemi_model::Workload;
use meltemi_model::net::is_routable;
use meltemi_state::{Destination, Hop, Route};
use meltemi_tunnel::client::Dialled;
use meltemi_tunnel::{Dial, DialError, Patience, relay_outbound, splice_outbound};
use meltemi_view::access_log::Direction;
use meltemi_view::metrics::ResponseFlags;
use tokio::net::TcpStream;

use crate::pod::{OWN, Served, refuse};
use crate::record::{Recording, side};
use crate::sockets;

/// How often an endpoint is drawn to find another one than the one that failed.
const DRAWS: usize = 16;

/// A connection of the Pod's, before it goes anywhere.
struct Captured {
    stream: TcpStream,
    from: SocketAddr,
    /// Where the application was going.
    to: SocketAddr,
    /// The Pod's own workload.
    own: Arc<Workload>,
}

impl Served {
    /// Serves a captured outbound connection.
    pub(crate) async fn outbound(&self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        let Some(to) = Self::original(&stream)?.filter(|to| is_routable(to.ip())) else {
            let source = side(Some(from), None, Some(&self.pod.identity));
            Recording::new(
                &self.context,
                Direction::Outbound,
                source,
                side(stream.local_addr().ok(), None, None),
            )
            .failed(
                ResponseFlags::None,
                "a connection to the proxy itself, or to an address that is nobody else's",
            );
            refuse(stream).await;
            return Ok(());
        };
        let unresolved = |own: Option<&Workload>| {
            let source = side(Some(from), own, Some(&self.pod.identity));
            Recording::new(&self.context, Direction::Outbound, source, side(Some(to), None, None))
        };
        let Some(own) = self.own().await else {
            unresolved(None)
                .failed(ResponseFlags::None, format!("workload {} is not known yet", self.pod.workload));
            refuse(stream).await;
            return Ok(());
        };
        let mut random = |n: u32| rand::random_range(0..n);
        // The mesh as it is now is not kept as long as the connection.
        let route = self.context.view.mesh().snapshot.resolve(to, &own, &mut random);
        match route {
            Ok(Route::Hbone(hop, destination)) => {
                let captured = Captured { stream, from, to, own };
                self.tunnelled(captured, hop, destination).await;
            }
            Ok(Route::Plain(to, destination)) => self.passed(stream, from, &own, to, destination).await,
            Err(refused) => {
                unresolved(Some(&own)).failed(ResponseFlags::None, refused);
                refuse(stream).await;
            }
        }
        Ok(())
    }

    fn recording(
        &self,
        from: SocketAddr,
        own: &Workload,
        to: SocketAddr,
        hop: Option<&Hop>,
        destination: &Destination,
    ) -> Recording<'_> {
        let source = side(Some(from), Some(own), Some(&self.pod.identity));
        let workload = destination.workload.as_deref();
        let mut target = side(Some(to), workload, hop.and_then(|h| h.expected.first()));
        target.service = destination.service.as_ref().map(|s| s.hostname.clone()).unwrap_or_default();
        if let Some(hop) = hop {
            target.addr = Some(hop.dial);
            target.hbone_addr = Some(hop.authority);
        }
        Recording::new(&self.context, Direction::Outbound, source, target)
    }

    async fn tunnelled(&self, captured: Captured, hop: Hop, destination: Destination) {
        // In a box: what it takes to open a tunnel is not kept while the tunnel is used.
        let (mut recording, opened) = Box::pin(self.open(&captured, hop, destination)).await;
        match opened {
            Ok(dialled) => {
                recording.opened(&self.pod.workload);
                let copied = splice_outbound(dialled.stream, captured.stream).await;
                drop(dialled.lease);
                recording.ended(copied.to_tunnel, copied.from_tunnel, copied.error);
            }
            Err((flags, error)) => {
                recording.failed(flags, error);
                refuse(captured.stream).await;
            }
        }
    }

    /// Opens a stream for a connection. Who was dialled at last is in the record; an error comes with its flags.
    async fn open(
        &self,
        captured: &Captured,
        hop: Hop,
        destination: Destination,
    ) -> (Recording<'_>, Result<Dialled, (ResponseFlags, String)>) {
        let Captured { from, to, own, .. } = captured;
        let recording = self.recording(*from, own, hop.authority, Some(&hop), &destination);
        let svid = match self.context.certificates.get(&self.pod.identity, OWN).await {
            Ok(svid) => svid,
            Err(error) => return (recording, Err((ResponseFlags::IdentityError, error.to_string()))),
        };
        let has_alternative = destination.has_alternative;
        let mut dial = Dial {
            svid,
            address: hop.dial,
            expected: hop.expected,
            authority: hop.authority.to_string(),
            headers: headers(*from, own, &destination),
            patience: if has_alternative { Patience::Short } else { Patience::Full },
        };
        let first = self.pool.dial(&dial).await;
        // No byte of the client has been sent yet: another endpoint of the same service can take the connection.
        if let Err(error) = &first
            && has_alternative
            && !matches!(error, DialError::Status(_))
            && let Some((hop, destination)) = self.other_endpoint(*to, own, dial.address)
        {
            tracing::debug!(pod = %self.pod.workload, %error, other = %hop.dial, "another endpoint is dialled");
            let recording = self.recording(*from, own, hop.authority, Some(&hop), &destination);
            dial.headers = headers(*from, own, &destination);
            (dial.address, dial.expected, dial.authority) =
                (hop.dial, hop.expected, hop.authority.to_string());
            dial.patience = Patience::Full;
            return (recording, self.pool.dial(&dial).await.map_err(flagged));
        }
        (recording, first.map_err(flagged))
    }

    /// Another endpoint for a connection, to be dialled after the one at `failed`.
    fn other_endpoint(
        &self,
        to: SocketAddr,
        own: &Workload,
        failed: SocketAddr,
    ) -> Option<(Hop, Destination)> {
        let mesh = self.context.view.mesh();
        let mut random = |n: u32| rand::random_range(0..n);
        (0..DRAWS).find_map(|_| match mesh.snapshot.resolve(to, own, &mut random) {
            Ok(Route::Hbone(hop, destination)) if hop.dial != failed => Some((hop, destination)),
            _ => None,
        })
    }

    async fn passed(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        own: &Workload,
        to: SocketAddr,
        destination: Destination,
    ) {
        let mut recording = self.recording(from, own, to, None, &destination);
        let connecting = Box::pin(sockets::connect(&self.pod.netns, to, None));
        match tokio::time::timeout(sockets::CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        {
            Ok(upstream) => {
                recording.opened(&self.pod.workload);
                let copied = relay_outbound(stream, upstream).await;
                recording.ended(copied.to_tunnel, copied.from_tunnel, copied.error);
            }
            Err(error) => {
                recording.failed(ResponseFlags::Connect, format!("{to}: {error}"));
                refuse(stream).await;
            }
        }
    }
}

/// An error with its flags.
fn flagged(error: DialError) -> (ResponseFlags, String) {
    let flags = match &error {
        DialError::Status(StatusCode::UNAUTHORIZED) => ResponseFlags::Deny,
        DialError::Tls { .. } => ResponseFlags::TlsFailure,
        DialError::Tunnel { .. } => ResponseFlags::H2HandshakeFailure,
        DialError::Connect { .. } | DialError::Silent { .. } | DialError::Status(_) => ResponseFlags::Connect,
    };
    (flags, error.to_string())
}

fn headers(from: SocketAddr, own: &Workload, destination: &Destination) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let host = destination.service.as_ref().map(|s| format!(";host={}", s.hostname)).unwrap_or_default();
    let baggage = format!(
        "k8s.cluster.name={},k8s.namespace.name={},k8s.pod.name={},service.name={},service.version={}",
        own.cluster_id, own.namespace, own.name, own.canonical_name, own.canonical_revision
    );
    let trace = format!("00-{:032x}-{:016x}-00", rand::random::<u128>(), rand::random::<u64>());
    for (name, value) in
        [("forwarded", format!("for=\"{from}\"{host}")), ("baggage", baggage), ("traceparent", trace)]
    {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}
