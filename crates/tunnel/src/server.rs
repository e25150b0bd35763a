// SPDX-License-Identifier: Apache-2.0
//! The accepting side: a TLS connection of a known peer, and the CONNECTs on it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use meltemi_identity::svid::peer_of;
use meltemi_model::SpiffeId;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, interval};
use tokio_rustls::TlsAcceptor;

use crate::MAX_STREAMS;
use crate::framing::Reason;
use crate::framing::conn::{Role, Shared, lock};
use crate::framing::driver::Driver;
use crate::framing::head::Request;
use crate::framing::ping::ping;
use crate::framing::stream::Stream;
use crate::tls::Tls;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// CONNECTs of one tunnel that wait for their answer; a further one is refused. A peer that resets what it asked for does
/// not make room for more at once: what was begun for it must have ended.
const MAX_UNANSWERED: usize = MAX_STREAMS as usize;
/// Interval between two checks of whether the peer's certificate has expired.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_secs(30);
pub(crate) const PING_EVERY: Duration = Duration::from_secs(10);
pub(crate) const PING_LIMIT: Duration = Duration::from_secs(20);

/// An accepted tunnel.
pub struct Incoming {
    driver: Driver,
    unanswered: Arc<Semaphore>,
    expiry: Interval,
    /// Who the peer has proven to be.
    pub peer: SpiffeId,
    /// End of the validity of what proves it; nothing is accepted after that.
    pub expires: SystemTime,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Accepts a tunnel: TLS with a client certificate of the mesh, then HTTP/2.
///
/// # Errors
/// The handshake fails: no certificate, one of another mesh, or no HTTP/2.
pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Incoming> {
    let handshake = async {
        let tls = TlsAcceptor::from(config).accept(stream).await?;
        let wrong = |e: String| io::Error::new(io::ErrorKind::PermissionDenied, e);
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().ok_or_else(|| wrong("the peer has no certificate".into()))?;
        let (peer, expires) = peer_of(leaf).map_err(|e| wrong(e.to_string()))?;
        let (tcp, tls) = tls.into_inner();
        let mut driver = Driver::new(Role::Server, Tls::new(tcp, tls));
        // Until it has said that it speaks HTTP/2.
        std::future::poll_fn(|cx| driver.poll_begun(cx)).await?;
        let unanswered = Arc::new(Semaphore::new(MAX_UNANSWERED));
        Ok(Incoming { driver, unanswered, expiry: interval(EXPIRY_CHECK_INTERVAL), peer, expires })
    };
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl Incoming {
    /// The next request; none when the peer has closed. Drives the connection: must be called until it ends.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn next(&mut self) -> io::Result<Option<Connect>> {
        loop {
            let next = std::future::poll_fn(|cx| self.poll_next(cx)).await?;
            let Some((stream, request)) = next else { return Ok(None) };
            match self.unanswered.clone().try_acquire_owned() {
                Ok(place) if !self.is_expired() => {
                    return Ok(Some(Connect { request, stream, _place: place }));
                }
                _ => stream.reset(Reason::REFUSED_STREAM),
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<(Stream, Request)>>> {
        if let Some(next) = Stream::accepted(&self.driver.shared) {
            return Poll::Ready(Ok(Some(next)));
        }
        while self.expiry.poll_tick(cx).is_ready() {
            if self.is_expired() {
                self.graceful_shutdown();
            }
        }
        let driven = self.driver.poll(cx);
        match Stream::accepted(&self.driver.shared) {
            Some(next) => Poll::Ready(Ok(Some(next))),
            None => driven.map_ok(|()| None),
        }
    }

    /// By the wall clock: a machine that slept finds it so when it wakes.
    fn is_expired(&self) -> bool {
        SystemTime::now() >= self.expires
    }

    /// The keepalive of this tunnel: fails when the peer no longer answers. Taken once.
    pub fn keepalive(&mut self) -> impl Future<Output = io::Error> + Send + use<> {
        keepalive(self.driver.shared.clone())
    }

    /// Says that no further request is taken; what is open goes on.
    pub fn graceful_shutdown(&mut self) {
        lock(&self.driver.shared).leave();
    }
}

/// Asks the peer every [`PING_EVERY`] whether it is there; resolves when it is not. Progresses only while its connection does.
async fn keepalive(shared: Shared) -> io::Error {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PING_LIMIT, ping(&shared)).await {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => return broken.into(),
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer no longer answers"),
        }
    }
}

/// A request on a tunnel.
#[derive(Debug)]
pub struct Connect {
    request: Request,
    stream: Stream,
    _place: OwnedSemaphorePermit,
}

impl Connect {
    /// Whether it is a CONNECT; anything else is refused with 405.
    pub fn is_connect(&self) -> bool {
        self.request.is_connect
    }

    /// The destination asked for, `ip:port` or `host:port`.
    pub fn authority(&self) -> &str {
        &self.request.authority
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.header(name)
    }

    /// Does what has to be done before the answer, as long as the peer waits for it; none when it has given up.
    pub async fn while_waited<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stream.given_up() => {
                self.stream.abandon();
                None
            }
            done = work => Some(done),
        }
    }

    /// Answers 200 and opens the stream.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn accept(self) -> io::Result<Stream> {
        self.stream.respond(StatusCode::OK.as_u16(), false)?;
        Ok(self.stream)
    }

    /// Refuses with a status.
    pub fn refuse(self, status: StatusCode) {
        // In vain where the peer is gone.
        let _ = self.stream.respond(status.as_u16(), true);
    }
}
