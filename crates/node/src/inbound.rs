// SPDX-License-Identifier: Apache-2.0
//! Inbound tunnels: who may speak is proven by the handshake, what it may reach by the policies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use meltemi_model::{SpiffeId, Workload};
use meltemi_tunnel::{Connect, Target, accept, deliver};
use meltemi_view::access_log::Direction;
use meltemi_view::metrics::ResponseFlags;
use meltemi_view::{Denial, L4Request};
use tokio::net::TcpStream;

use crate::places::TunnelPlaces;
use crate::pod::{Served, is_ours};
use crate::record::{Recording, side};
use crate::sockets;

/// A tunnel's ends.
#[derive(Clone, Debug)]
struct Tunnel {
    peer: SpiffeId,
    from: SocketAddr,
    at: SocketAddr,
}

/// Why a stream does not reach the application.
enum Failed {
    Denied(Denial),
    Unreached(io::Error),
}

impl Served {
    /// Serves a tunnel.
    pub(crate) async fn hbone(self: Arc<Self>, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        let at = stream.local_addr()?;
        let Some(TunnelPlaces { handshake, tunnel: _place }) = self.pod.places.tunnel(from.ip()) else {
            self.context.metrics.crowded_out.inc();
            meltemi_tunnel::copy::reset(&stream);
            return Ok(());
        };
        let config = self.tls().await?;
        // In a box, as what follows: what it takes to open is not kept as long as it is open.
        let mut incoming = match Box::pin(accept(stream, config)).await {
            Ok(incoming) => incoming,
            Err(error) => {
                let destination = side(Some(at), None, Some(&self.pod.identity));
                let recording = Recording::new(
                    &self.context,
                    Direction::Inbound,
                    side(Some(from), None, None),
                    destination,
                );
                recording.failed(ResponseFlags::TlsFailure, error);
                return Ok(());
            }
        };
        drop(handshake);
        let tunnel = Tunnel { peer: incoming.peer.clone(), from, at };
        let mut keepalive = Box::pin(incoming.keepalive());
        let mut closing = false;
        loop {
            let next = tokio::select! {
                next = incoming.next() => next?,
                error = &mut keepalive => return Err(error),
                () = async { tokio::select! { () = self.pod.closed.cancelled() => {}, () = self.context.closing.cancelled() => {} } }, if !closing => {
                    closing = true;
                    incoming.graceful_shutdown();
                    continue;
                }
            };
            let Some(connect) = next else { return Ok(()) };
            let (served, tunnel, open) = (self.clone(), tunnel.clone(), self.context.open.token());
            self.context.tasks.spawn_job("stream", async move {
                let _open = open;
                served.stream(connect, &tunnel).await;
                Ok::<(), std::convert::Infallible>(())
            });
        }
    }

    async fn stream(&self, mut connect: Connect, tunnel: &Tunnel) {
        if !connect.is_connect() {
            return connect.refuse(StatusCode::METHOD_NOT_ALLOWED);
        }
        let Some(_place) = self.pod.places.connection(tunnel.from.ip()) else {
            self.context.metrics.crowded_out.inc();
            return connect.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        let Some(own) = connect.while_waited(self.own_at(tunnel.at.ip())).await else { return };
        let Some(own) = own else {
            return connect.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        let to = match target(connect.authority(), tunnel.at.ip(), &own) {
            Ok(to) => to,
            Err((status, why)) => {
                let recording =
                    self.inbound(tunnel.from, Some(&tunnel.peer), &own, tunnel.at, Some(tunnel.at));
                recording.failed(ResponseFlags::None, format!("{why}: {:?}", connect.authority()));
                return connect.refuse(status);
            }
        };
        let mut recording = self.inbound(tunnel.from, Some(&tunnel.peer), &own, to, Some(tunnel.at));
        let request = L4Request {
            source: Some(tunnel.peer.clone()),
            from: tunnel.from,
            to,
            workload: self.pod.workload.clone(),
        };
        let source = tunnel.from.ip().to_canonical();
        let work = Box::pin(async {
            let (permit, guard) = self.context.admit(request).await.map_err(Failed::Denied)?;
            let delivered = deliver(permit, sockets::connect(&self.pod.netns, to, Some(source))).await;
            delivered.map(|delivered| (delivered, guard)).map_err(Failed::Unreached)
        });
        let (delivered, guard) = match connect.while_waited(work).await {
            None => return recording.failed(ResponseFlags::None, "the client has given up"),
            Some(Ok(done)) => done,
            Some(Err(Failed::Denied(denied))) => {
                recording.denied(&denied);
                return connect.refuse(StatusCode::UNAUTHORIZED);
            }
            Some(Err(Failed::Unreached(error))) => {
                recording.failed(ResponseFlags::Connect, format!("{to}: {error}"));
                return connect.refuse(StatusCode::SERVICE_UNAVAILABLE);
            }
        };
        match connect.accept() {
            Ok(stream) => {
                recording.opened(&self.pod.workload);
                let copied = delivered.splice(stream).await;
                recording.ended(copied.from_tunnel, copied.to_tunnel, copied.error);
            }
            Err(error) => recording.failed(ResponseFlags::None, error),
        }
        drop(guard);
    }

    /// The record of an inbound connection. Who the client is, beyond what it has proven, comes from its address.
    pub(crate) fn inbound(
        &self,
        from: SocketAddr,
        peer: Option<&SpiffeId>,
        own: &Workload,
        to: SocketAddr,
        tunnel: Option<SocketAddr>,
    ) -> Recording<'_> {
        let mesh = self.context.view.mesh();
        let client = mesh.snapshot.workload_at(&own.network, from.ip().to_canonical());
        let client = client.filter(|w| peer.is_none() || w.identity().ok().as_ref() == peer);
        let mut destination = side(Some(to), Some(own), Some(&self.pod.identity));
        if let Some(tunnel) = tunnel {
            // As on the other side: what was dialled, then what was asked for.
            destination.addr = Some(tunnel);
            destination.hbone_addr = Some(to);
        }
        let mapped = own.services.iter().find(|(_, ports)| ports.iter().any(|p| p.target_port == to.port()));
        destination.service = mapped.map(|(key, _)| key.hostname.clone()).unwrap_or_default();
        Recording::new(
            &self.context,
            Direction::Inbound,
            side(Some(from), client.map(|w| &**w), peer),
            destination,
        )
    }
}

/// The real destination of a CONNECT: the address that the tunnel itself was dialled at, or a service of this workload by
/// name; and never a port of the proxy.
fn target(authority: &str, at: IpAddr, own: &Workload) -> Result<SocketAddr, (StatusCode, String)> {
    let at = at.to_canonical();
    let bad = |why: &str| Err((StatusCode::BAD_REQUEST, why.to_owned()));
    let to = match Target::parse(authority) {
        Ok(Target::Address(to)) if to.ip() == at => to,
        Ok(Target::Address(_)) => return bad("the destination is not the workload that was dialled"),
        Ok(Target::Name(host, port)) => {
            let mapped = own.services.iter().filter(|(key, _)| key.hostname.eq_ignore_ascii_case(&host));
            let mapped =
                mapped.flat_map(|(_, ports)| ports).find(|p| p.service_port == port && p.target_port != 0);
            let Some(mapping) = mapped else {
                let why = "the workload does not serve that name and port";
                return Err((StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
            };
            SocketAddr::new(at, mapping.target_port)
        }
        Err(invalid) => return bad(&invalid.to_string()),
    };
    if is_ours(to.port()) {
        return bad("the destination is the proxy itself");
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use meltemi_model::service::{AppProtocol, PortMapping};
    use meltemi_model::{NamespacedHostname, WorkloadUid};

    use super::*;

    #[test]
    fn what_a_tunnel_may_ask_for() {
        let mut own = Workload::empty(WorkloadUid::pod("c", "default", "p"), "default", "p");
        let key = NamespacedHostname::new("default", "productpage.default.svc.cluster.local");
        let mapping = PortMapping { service_port: 80, target_port: 9080, app_protocol: AppProtocol::Http11 };
        own.services.insert(key, vec![mapping]);
        for (authority, expected) in [
            ("10.0.0.2:9080", Ok("10.0.0.2:9080")),
            ("[::ffff:10.0.0.2]:9080", Ok("10.0.0.2:9080")),
            ("productpage.default.svc.cluster.local:80", Ok("10.0.0.2:9080")),
            ("productpage.default.svc.cluster.local:81", Err(503)),
            ("reviews.default.svc.cluster.local:80", Err(503)),
            ("10.0.0.3:9080", Err(400)),
            ("127.0.0.1:15000", Err(400)),
            ("169.254.169.254:80", Err(400)),
            ("10.0.0.2:15008", Err(400)),
            ("10.0.0.2:15001", Err(400)),
            ("10.0.0.2:15006", Err(400)),
            ("10.0.0.2:0", Err(400)),
            ("10.0.0.2", Err(400)),
            ("x@10.0.0.2:9080", Err(400)),
            ("productpage.default.svc.cluster.local.:80", Err(400)),
        ] {
            let got = target(authority, "10.0.0.2".parse().unwrap(), &own)
                .map(|to| to.to_string())
                .map_err(|(status, _)| status.as_u16());
            assert_eq!(got.as_deref().map_err(|e| *e), expected, "{authority}");
        }
    }
}
