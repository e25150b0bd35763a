// SPDX-License-Identifier: Apache-2.0
//! Certificates, and clients that trust them.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::PATIENCE;

/// A certificate that signs itself, for these hosts.
pub(crate) struct Made {
    /// The certificate.
    pub(crate) pem: String,
    /// Its key.
    pub(crate) key: String,
    /// The certificate.
    pub(crate) der: CertificateDer<'static>,
}

pub(crate) fn made(hosts: &[&str]) -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap();
    Made { pem: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
}

/// A client that trusts this certificate.
pub(crate) fn trusting(trusted: &Made) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Shakes hands with a server that has to be this host.
pub(crate) async fn handshake(
    port: u16,
    host: &str,
    client: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::new(client)).connect(name, stream)).await.unwrap()
}

/// [`handshake`] with a client that trusts this certificate.
pub(crate) async fn connect(port: u16, host: &str, trusted: &Made) -> std::io::Result<TlsStream<TcpStream>> {
    handshake(port, host, trusting(trusted)).await
}
