// SPDX-License-Identifier: Apache-2.0
//! rustls configurations of the mesh: TLS 1.3 only, X25519MLKEM768 first, AES-128-GCM first, ALPN h2, no resumption.

use std::sync::Arc;

use meltemi_model::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;

use crate::svid::{Svid, identity_of, is_for};

/// Why a configuration cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TLS configuration: {0}")]
pub struct TlsError(String);

fn wrong(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// The cryptography of the mesh.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
    ];
    Arc::new(provider)
}

/// The roots of a PEM text.
///
/// # Errors
/// No certificate in it, or one that cannot be read.
pub fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store.add(certificate.map_err(wrong)?).map_err(wrong)?;
    }
    if store.is_empty() {
        return Err(TlsError("no root certificate".into()));
    }
    Ok(store)
}

/// Certificate and key of a server outside of the mesh's trust, as a Secret of type `kubernetes.io/tls` has them.
///
/// # Errors
/// What of the two cannot be read, or that the key is another certificate's.
pub fn certified_key(chain: &str, key: &str) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| TlsError(format!("certificate: {e}")))?;
    if chain.is_empty() {
        return Err(TlsError("certificate: there is none".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| TlsError(format!("key: {e}")))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(wrong)
}

/// Whether the first certificate of a chain is for a host name (RFC 6125).
pub fn is_certificate_for(certified: &CertifiedKey, host: &str) -> bool {
    let Some(Ok(certificate)) = certified.cert.first().map(ParsedCertificate::try_from) else { return false };
    ServerName::try_from(host).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
}

/// The TLS of a gateway's clients, which are of no mesh: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
///
/// # Errors
/// The library has none of these versions.
pub fn edge_server(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(wrong)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A resolver that always presents one certificate.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The server side of HBONE: a client certificate of the same trust domain is demanded.
///
/// # Errors
/// Roots that cannot be used.
pub fn server(svid: &Svid) -> Result<ServerConfig, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&svid.roots_pem)?), provider())
        .build()
        .map_err(wrong)?;
    let verifier = MeshClients { inner, trust_domain: svid.identity.trust_domain().to_owned() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Always(svid.certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Our order of cipher suites, whatever a peer likes best.
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The client side of HBONE: the server must be exactly one of these identities.
///
/// # Errors
/// Roots that cannot be used.
pub fn client(svid: &Svid, expected: Vec<SpiffeId>) -> Result<ClientConfig, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&svid.roots_pem)?), provider())
        .build()
        .map_err(wrong)?;
    let verifier = ExactServer { inner, expected };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Always(svid.certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn refused(why: impl std::fmt::Display) -> Error {
    #[derive(Debug)]
    struct Why(String);
    impl std::fmt::Display for Why {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }
    impl std::error::Error for Why {}
    Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(Why(why.to_string())))))
}

/// Chain, validity and purpose by webpki; then the identity.
#[derive(Debug)]
struct MeshClients {
    inner: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl ClientCertVerifier for MeshClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if !is_for(end_entity, true) {
            return Err(refused("the certificate is not one for clients"));
        }
        let identity = identity_of(end_entity).map_err(refused)?;
        if identity.trust_domain() != self.trust_domain {
            return Err(refused(format!("trust domain of {identity} is not {}", self.trust_domain)));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Chain, validity and purpose by webpki (whose check of a DNS name cannot apply to SPIFFE ids); then the exact identity.
#[derive(Debug)]
struct ExactServer {
    inner: Arc<WebPkiServerVerifier>,
    expected: Vec<SpiffeId>,
}

impl ServerCertVerifier for ExactServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The last step, after chain, validity and purpose have held.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        if !is_for(end_entity, false) {
            return Err(refused("the certificate is not one for servers"));
        }
        let identity = identity_of(end_entity).map_err(refused)?;
        if !self.expected.contains(&identity) {
            let expected: Vec<&str> = self.expected.iter().map(SpiffeId::as_str).collect();
            return Err(refused(format!("peer is {identity}, expected one of [{}]", expected.join(", "))));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
