// SPDX-License-Identifier: Apache-2.0
//! Failures of probes and hooks. Their texts go into the Pod's events.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Why a probe or hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("grpc probes are not supported on this machine: use httpGet, tcpSocket or exec")]
    GrpcNotSupported,
    #[error("timed out after {}s", .0.as_secs())]
    TimedOut(Duration),
    #[error("command exited with {0}")]
    Exited(i32),
    #[error("the Pod has no address")]
    NoAddress,
    #[error("host {0:?} is not an address")]
    InvalidHost(String),
    #[error("host {host:?} is not the Pod's own address {own}: probes and hooks reach their own Pod only")]
    ForeignHost { host: String, own: IpAddr },
    #[error("port {0} is not valid")]
    InvalidPort(i32),
    #[error("port {0:?} is not a port of the container")]
    UnknownPort(String),
    #[error("dial tcp {address}: {error}")]
    Dial { address: SocketAddr, error: io::Error },
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    TlsConfig(#[from] rustls::Error),
    #[error("Get \"{url}\": {error}")]
    Get { url: String, error: hyper::Error },
    #[error("HTTP probe failed with statuscode: {0}")]
    Status(u16),
    #[error(transparent)]
    InvalidRequest(#[from] http::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Join(#[from] tokio::task::JoinError),
}
