// SPDX-License-Identifier: Apache-2.0
//! Channels to the control plane: TLS with the mesh's roots, by DNS name, no client certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::tls::{provider, roots};

/// Where the control plane is and how it is trusted.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `host:port`, e.g. `istiod.istio-system.svc:15012`.
    pub address: String,
    /// The name its certificate must have.
    pub server_name: String,
    /// File with the mesh's roots, read for every connection: it may be written after the start and change.
    pub roots: PathBuf,
    /// File with the bearer token, read for every use: it is rotated.
    pub token: PathBuf,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[error("control plane {address}: {reason}")]
pub struct ChannelError {
    address: String,
    reason: String,
}

/// Longest time to connect. SYNs are sent again after 1 s.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Interval between two HTTP/2 pings, and how long the answer may take. A stream that has outlived a partition would wait
/// for a retransmission timer as long as the partition: a new one is faster.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(6);

impl ControlPlane {
    fn error(&self, reason: impl std::fmt::Display) -> ChannelError {
        ChannelError { address: self.address.clone(), reason: reason.to_string() }
    }

    /// The token to present, if there is one.
    pub fn read_token(&self) -> Option<String> {
        std::fs::read_to_string(&self.token).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
    }

    /// A new channel, connected.
    ///
    /// # Errors
    /// The roots cannot be read, or the server cannot be reached or is not the control plane.
    pub async fn connect(&self) -> Result<Channel, ChannelError> {
        let pem = std::fs::read_to_string(&self.roots)
            .map_err(|e| self.error(format!("{}: {e}", self.roots.display())))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| self.error(e))?
            .with_root_certificates(roots(&pem).map_err(|e| self.error(e))?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(self.server_name.clone()).map_err(|e| self.error(e))?;
        let address = self.address.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(&address).await?;
                tcp.set_nodelay(true)?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        });
        Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|e| self.error(e))?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_timeout(CONNECT_LIMIT)
            .connect_with_connector(dial)
            .await
            .map_err(|e| {
                let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                self.error(cause)
            })
    }
}
