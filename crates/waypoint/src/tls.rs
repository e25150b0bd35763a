// SPDX-License-Identifier: Apache-2.0
//! TLS of a gateway's clients: the certificate of the listener that the client names (SNI), as it stands at the moment of the
//! handshake. A rotated certificate needs no new listener, and ends no connection.

use std::sync::Arc;

use meltemi_identity::tls;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificates::Secured;
use crate::context::Context;
use crate::hello;

/// Chooses by the listener, then by the host.
struct ByHost {
    context: Arc<Context>,
    port: u16,
}

impl std::fmt::Debug for ByHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByHost").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ByHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mesh = self.context.view.mesh();
        let host = hello.server_name().unwrap_or_default();
        let listener = mesh.listeners.find(&self.context.config.gateway, self.port, host)?;
        let secrets = listener.secrets.iter().filter_map(|name| mesh.secrets.get(&name.to_string()));
        let mut certificates = secrets.filter_map(|secret| self.context.certificates.of(secret)).peekable();
        let first = certificates.peek().cloned();
        certificates.find(|certified| tls::is_certificate_for(certified, host)).or(first)
    }
}

/// The TLS configuration of a port. One that is not `for_http` takes whatever protocol a client has in TLS (ALPN).
pub(crate) fn config(
    context: &Arc<Context>,
    port: u16,
    for_http: bool,
) -> Result<Arc<ServerConfig>, tls::TlsError> {
    let mut config = tls::edge_server(Arc::new(ByHost { context: context.clone(), port }))?;
    if !for_http {
        config.alpn_protocols.clear();
    }
    Ok(Arc::new(config))
}

/// Why a client's connection is not secured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSecured {
    #[error("the handshake takes too long")]
    TooLong,
    #[error("{0}")]
    Failed(#[from] std::io::Error),
}

/// Makes a client's connection secure, within the time that a request's head may take.
pub(crate) async fn accept<IO>(
    context: &Context,
    io: IO,
    config: Arc<ServerConfig>,
) -> Result<(TlsStream<IO>, Secured), NotSecured>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let accepted = tokio::time::timeout(context.limits.head, TlsAcceptor::from(config).accept(io)).await;
    let stream = accepted.map_err(|_| NotSecured::TooLong)??;
    let sni = stream.get_ref().1.server_name().map(hello::normal);
    Ok((stream, Secured { sni }))
}
