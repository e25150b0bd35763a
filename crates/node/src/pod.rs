// SPDX-License-Identifier: Apache-2.0
//! An enrolled Pod: who it is, its namespace, and its listeners on one worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meltemi_identity::tls;
use meltemi_linux::diag::TcpConnection;
use meltemi_linux::netns::NetNs;
use meltemi_linux::sockopt;
use meltemi_model::net::{is_routable, ports};
use meltemi_model::{SpiffeId, Workload, WorkloadUid};
use meltemi_tunnel::Pool;
use meltemi_view::Mesh;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::places::Places;
use crate::sockets::{self, Kind};

/// How long a connection waits for the Pod's own workload and certificate: both come with the Pod's start.
pub(crate) const OWN: Duration = Duration::from_secs(5);
/// How long to wait for a client's first byte before resetting its connection. Reset earlier, and some clients report a send
/// error instead of "connection reset".
const REFUSAL: Duration = Duration::from_millis(500);

/// A Pod, as the node's agent names it: who it is comes from there and never from the network.
#[derive(Debug)]
pub(crate) struct Pod {
    pub workload: WorkloadUid,
    pub identity: SpiffeId,
    pub netns: NetNs,
    pub places: Places,
    /// Connections that are older than the enrolment.
    pub legacy: Vec<TcpConnection>,
    /// No further connections.
    pub closed: CancellationToken,
    /// Connections end.
    pub gone: CancellationToken,
}

/// A Pod on one worker.
#[derive(Debug)]
pub(crate) struct Served {
    pub context: Arc<Context>,
    pub pod: Arc<Pod>,
    pub pool: Pool,
    server: Mutex<Option<(String, Arc<ServerConfig>)>>,
}

/// Minimum interval between two warnings that connections cannot be accepted.
const ACCEPT_WARN_INTERVAL: Duration = Duration::from_secs(10);

impl Served {
    /// Serves listeners of the Pod on this worker.
    pub(crate) fn start(
        context: Arc<Context>,
        pod: Arc<Pod>,
        listeners: Vec<(Kind, std::net::TcpListener)>,
    ) -> io::Result<Arc<Self>> {
        let tokio = |(kind, listener)| Ok((kind, TcpListener::from_std(listener)?));
        let listeners = listeners.into_iter().map(tokio).collect::<io::Result<Vec<_>>>()?;
        let namespace = pod.clone();
        let connector = Arc::new(move |to| {
            let pod = namespace.clone();
            Box::pin(async move { sockets::connect(&pod.netns, to, None).await }) as _
        });
        let pool = Pool::new(connector, context.tasks.clone());
        let served = Arc::new(Self { context, pod, pool, server: Mutex::default() });
        for (kind, listener) in listeners {
            served.context.tasks.spawn_job("listener", served.clone().accept(kind, listener));
        }
        Ok(served)
    }

    async fn accept(self: Arc<Self>, kind: Kind, listener: TcpListener) -> io::Result<()> {
        let mut told: Option<Instant> = None;
        // A proxy that drains still accepts until its successor has taken over: it has to hear of changes as long.
        let _serving = self.context.view.serving();
        // What arrives before this proxy knows the mesh waits in the kernel, where a proxy before this one may take it.
        tokio::select! {
            _ = self.context.view.heard(OWN) => {}
            () = self.context.closing.cancelled() => return Ok(()),
        }
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.pod.closed.cancelled() => return Ok(()),
                () = self.context.closing.cancelled() => return Ok(()),
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a client that is gone already: not the end of the listener.
                    if told.is_none_or(|at| at.elapsed() > ACCEPT_WARN_INTERVAL) {
                        told = Some(Instant::now());
                        tracing::warn!(pod = %self.pod.workload, %error, "connections cannot be accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Some(place) = self.pod.places.connection(from.ip()) else {
                // Counted, not logged: under a flood the log would be the next victim.
                self.context.metrics.crowded_out.inc();
                meltemi_tunnel::copy::reset(&stream);
                continue;
            };
            let served = self.clone();
            let open = self.context.open.token();
            self.context.tasks.spawn_job("connection", async move {
                let _held = (open, place);
                sockets::prepare(&stream)?;
                let gone = served.pod.gone.clone();
                let mut drain = served.context.tasks.drain();
                let serving = async {
                    match kind {
                        Kind::Outbound => served.outbound(stream, from).await,
                        Kind::Plaintext => served.plaintext(stream, from).await,
                        Kind::Hbone => served.clone().hbone(stream, from).await,
                    }
                };
                tokio::select! {
                    served = serving => served,
                    () = gone.cancelled() => Ok(()),
                    () = drain.forced() => Ok(()),
                }
            });
        }
    }

    /// Where a redirected connection was going; none when it was dialled at the proxy itself, which would go round for ever.
    pub(crate) fn original(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        let original = sockopt::original_dst(stream)?;
        let dialled = original == stream.local_addr()?;
        Ok((!dialled && !is_ours(original.port())).then_some(original))
    }

    /// The Pod's own workload, once everything has been heard.
    pub(crate) async fn own(&self) -> Option<Arc<Workload>> {
        self.context.view.wait_for(OWN, |mesh| self.known(mesh)).await
    }

    /// The Pod's own workload as what was dialled at `ip`. A name may be used again: what is known of a Pod that had it
    /// before, with other labels, says nothing about this one.
    pub(crate) async fn own_at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        let ip = ip.to_canonical();
        let found = |mesh: &Mesh| self.known(mesh).filter(|w| w.addresses.contains(&ip));
        if is_routable(ip) { self.context.view.wait_for(OWN, found).await } else { None }
    }

    fn known(&self, mesh: &Mesh) -> Option<Arc<Workload>> {
        mesh.heard().ok()?;
        let own = mesh.snapshot.workload(&self.pod.workload)?;
        (own.identity().as_ref() == Ok(&self.pod.identity)).then(|| own.clone())
    }

    /// TLS of the accepting side, made once for each certificate.
    pub(crate) async fn tls(&self) -> io::Result<Arc<ServerConfig>> {
        let svid = self.context.certificates.get(&self.pod.identity, OWN).await.map_err(io::Error::other)?;
        let mut kept = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((serial, config)) if *serial == svid.serial => Ok(config.clone()),
            _ => {
                let config = Arc::new(tls::server(&svid).map_err(io::Error::other)?);
                *kept = Some((svid.serial.clone(), config.clone()));
                Ok(config)
            }
        }
    }
}

/// Ports of the proxy in the Pod: nothing is forwarded to them.
pub(crate) fn is_ours(port: u16) -> bool {
    matches!(port, ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::HBONE | ports::DNS)
}

/// Ends a client's connection with a reset.
pub(crate) async fn refuse(stream: TcpStream) {
    // Wake-ups can be spurious, so peek until a byte has really arrived.
    let _ = tokio::time::timeout(REFUSAL, stream.peek(&mut [0])).await;
    meltemi_tunnel::copy::reset(&stream);
}
