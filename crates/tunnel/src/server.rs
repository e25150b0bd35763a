// SPDX-License-Identifier: Apache-2.0
//! The accepting side: a TLS connection of a known peer, and the CONNECTs on it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use meltemi_identity::svid::peer_of;
use meltemi_model::SpiffeId;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::copy::Stream;
use crate::inbox::{Inbox, Inboxes};
use crate::{CONNECTION_WINDOW, FRAME, MAX_HEADERS, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams that a peer may reset before they were answered; more ends the connection with ENHANCE_YOUR_CALM.
const MAX_RESETS: usize = 128;
/// CONNECTs of one tunnel that wait for their answer; a further one is refused. A peer that resets what it asked for does
/// not make room for more at once: what was begun for it must have ended.
const MAX_UNANSWERED: usize = MAX_STREAMS as usize;
/// CONNECTs that a peer may abandon before their answer at once, and each second: for more the tunnel ends with
/// ENHANCE_YOUR_CALM. Clients that give up early are no attack, at a pace of clients.
const ABANDONED: u32 = 256;
const ABANDONED_A_SECOND: u32 = 100;
/// How often it is looked whether the peer's certificate has expired.
const LOOK: Duration = Duration::from_secs(30);
pub(crate) const PING_EVERY: Duration = Duration::from_secs(10);
pub(crate) const PING_LIMIT: Duration = Duration::from_secs(20);

/// An accepted tunnel.
pub struct Incoming {
    connection: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
    ping: Option<PingPong>,
    inboxes: Inboxes,
    unanswered: Arc<Semaphore>,
    calm: Arc<Calm>,
    told: bool,
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
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_frame_size(FRAME)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(Some(MAX_RESETS));
        let mut connection = builder.handshake(tls).await.map_err(io::Error::other)?;
        let ping = connection.ping_pong();
        let unanswered = Arc::new(Semaphore::new(MAX_UNANSWERED));
        let inboxes = Inboxes::default();
        Ok(Incoming {
            connection,
            ping,
            inboxes,
            unanswered,
            calm: Arc::default(),
            told: false,
            peer,
            expires,
        })
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
            let driven = std::future::poll_fn(|cx| {
                let accepted = self.connection.poll_accept(cx);
                self.inboxes.gather();
                accepted
            });
            let accepted = tokio::select! {
                accepted = driven => accepted,
                () = self.calm.exceeded.notified(), if !self.told => {
                    self.told = true;
                    self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                    continue;
                }
                () = tokio::time::sleep(LOOK), if !self.told => {
                    if self.is_expired() {
                        self.told = true;
                        self.connection.graceful_shutdown();
                    }
                    continue;
                }
            };
            let (request, mut response) = match accepted {
                None => return Ok(None),
                Some(Err(error)) => return Err(io::Error::other(error)),
                Some(Ok(accepted)) => accepted,
            };
            match self.unanswered.clone().try_acquire_owned() {
                Ok(place) if !self.is_expired() => {
                    let calm = self.calm.clone();
                    let (request, body) = request.into_parts();
                    let body = self.inboxes.inbox(body);
                    return Ok(Some(Connect { request, body, response, calm, _place: place }));
                }
                _ => response.send_reset(Reason::REFUSED_STREAM),
            }
        }
    }

    /// By the wall clock: a machine that slept finds it so when it wakes.
    fn is_expired(&self) -> bool {
        SystemTime::now() >= self.expires
    }

    /// The keepalive of this tunnel: fails when the peer no longer answers. Taken once.
    pub fn keepalive(&mut self) -> impl Future<Output = io::Error> + Send + use<> {
        keepalive(self.ping.take())
    }

    /// Says that no further request is taken; what is open goes on.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }
}

/// What a peer has abandoned: a bucket that fills with each, and empties with time.
#[derive(Debug, Default)]
struct Calm {
    level: Mutex<Option<(f64, Instant)>>,
    exceeded: Notify,
}

impl Calm {
    fn abandoned(&self) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = level.map_or(0.0, |(level, at)| {
            (level - now.duration_since(at).as_secs_f64() * f64::from(ABANDONED_A_SECOND)).max(0.0)
        });
        *level = Some((before + 1.0, now));
        if before + 1.0 > f64::from(ABANDONED) {
            self.exceeded.notify_one();
        }
    }
}

/// Asks the peer every [`PING_EVERY`] whether it is there; resolves when it is not. Progresses only while its connection does.
async fn keepalive(ping: Option<PingPong>) -> io::Error {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PING_LIMIT, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return io::Error::other(error),
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer no longer answers"),
        }
    }
}

/// A request on a tunnel.
#[derive(Debug)]
pub struct Connect {
    request: Parts,
    body: Inbox,
    response: SendResponse<Bytes>,
    calm: Arc<Calm>,
    _place: OwnedSemaphorePermit,
}

impl Connect {
    /// Whether it is a CONNECT; anything else is refused with 405.
    pub fn is_connect(&self) -> bool {
        self.request.method == Method::CONNECT
    }

    /// The destination asked for, `ip:port` or `host:port`.
    pub fn authority(&self) -> &str {
        self.request.uri.authority().map_or("", http::uri::Authority::as_str)
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Does what has to be done before the answer, as long as the peer waits for it; none when it has given up.
    pub async fn while_waited<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _ = std::future::poll_fn(|cx| self.response.poll_reset(cx)) => {
                self.calm.abandoned();
                None
            }
            done = work => Some(done),
        }
    }

    /// Answers 200 and opens the stream.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn accept(mut self) -> io::Result<Stream> {
        let send = self.response.send_response(Response::new(()), false).map_err(io::Error::other)?;
        Ok(Stream { send, recv: self.body })
    }

    /// Refuses with a status.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = self.response.send_response(response, true);
    }
}
