// SPDX-License-Identifier: Apache-2.0
//! The accepting side: a TLS connection of a known peer, and the CONNECTs on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, RecvStream};
use http::{Method, Request, Response, StatusCode};
use meltemi_identity::svid::identity_of;
use meltemi_model::SpiffeId;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::copy::Stream;
use crate::{CONNECTION_WINDOW, FRAME, MAX_HEADERS, MAX_STREAMS, STREAM_WINDOW};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams that a peer may reset before they were answered; more ends the connection with ENHANCE_YOUR_CALM.
const MAX_RESETS: usize = 128;
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_LIMIT: Duration = Duration::from_secs(20);

/// An accepted tunnel.
pub struct Incoming {
    connection: h2::server::Connection<TlsStream<TcpStream>, Bytes>,
    ping: Option<PingPong>,
    /// Who the peer has proven to be.
    pub peer: SpiffeId,
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
        let peer = identity_of(leaf).map_err(|e| wrong(e.to_string()))?;
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_frame_size(FRAME)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(Some(MAX_RESETS));
        let mut connection = builder.handshake(tls).await.map_err(io::Error::other)?;
        let ping = connection.ping_pong();
        Ok(Incoming { connection, ping, peer })
    };
    tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl Incoming {
    /// The next request; none when the peer has closed. Drives the connection: must be called until it ends.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn next(&mut self) -> io::Result<Option<Connect>> {
        match self.connection.accept().await {
            None => Ok(None),
            Some(Err(error)) => Err(io::Error::other(error)),
            Some(Ok((request, response))) => Ok(Some(Connect { request, response })),
        }
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

/// Asks the peer every [`PING_EVERY`] whether it is there; resolves when it is not. Progresses only while its connection does.
pub(crate) async fn keepalive(ping: Option<PingPong>) -> io::Error {
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
    request: Request<RecvStream>,
    response: SendResponse<Bytes>,
}

impl Connect {
    /// Whether it is a CONNECT; anything else is refused with 405.
    pub fn is_connect(&self) -> bool {
        self.request.method() == Method::CONNECT
    }

    /// The destination asked for, `ip:port` or `host:port`.
    pub fn authority(&self) -> &str {
        self.request.uri().authority().map_or("", http::uri::Authority::as_str)
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// Answers 200 and opens the stream.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn accept(mut self) -> io::Result<Stream> {
        let send = self.response.send_response(Response::new(()), false).map_err(io::Error::other)?;
        Ok(Stream { send, recv: self.request.into_body() })
    }

    /// Refuses with a status.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = self.response.send_response(response, true);
    }
}
