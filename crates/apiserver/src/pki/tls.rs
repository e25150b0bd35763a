// SPDX-License-Identifier: Apache-2.0
//! The API server's own credentials as rustls configurations and the token key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::ClientConfig;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{PkiError, io_error};

/// What the API server itself uses of the credentials.
#[derive(Clone)]
pub struct Pki {
    dir: PathBuf,
    ca: String,
    token_key: String,
    token_public: String,
}

// By hand: the token key must not reach a log.
impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pki {
    pub(super) fn open(dir: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|e| io_error(&path)(e))
        };
        Ok(Self {
            dir: dir.to_owned(),
            ca: read("ca.crt")?,
            token_key: read("sa.key")?,
            token_public: read("sa.pub")?,
        })
    }

    /// The CA's certificate (PEM): what clients trust, and `ca.crt` of the ConfigMap `kube-root-ca.crt`.
    pub fn ca_pem(&self) -> &str {
        &self.ca
    }

    /// The private key of tokens (PEM, PKCS#8, P-256).
    pub(crate) fn token_key_pem(&self) -> &str {
        &self.token_key
    }

    /// The public key of tokens (PEM).
    pub(crate) fn token_public_pem(&self) -> &str {
        &self.token_public
    }

    /// The API server's listener: asks for a client certificate of the CA, accepts none; HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// The files cannot be read or do not fit together.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| PkiError::Tls(e.to_string()))?;
        let (chain, key) = self.pair("apiserver")?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|b| b.with_client_cert_verifier(verifier).with_single_cert(chain, key))
            .map_err(|e| PkiError::Tls(e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For calls to a node's kubelet API: presents [`super::KUBELET_CLIENT_NAME`], HTTP/1.1 only (upgrades).
    ///
    /// # Errors
    /// The files cannot be read or do not fit together.
    pub fn kubelet_client_config(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let (chain, key) = self.pair("apiserver-kubelet-client")?;
        let roots = self.roots()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|b| b.with_root_certificates(roots).with_client_auth_cert(chain, key))
            .map_err(|e| PkiError::Tls(e.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        let ca =
            CertificateDer::from_pem_slice(self.ca.as_bytes()).map_err(|e| PkiError::Tls(e.to_string()))?;
        roots.add(ca).map_err(|e| PkiError::Tls(e.to_string()))?;
        Ok(roots)
    }

    fn pair(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let tls = |e: rustls_pki_types::pem::Error| PkiError::Tls(format!("{name}: {e}"));
        let cert = CertificateDer::from_pem_file(self.dir.join(format!("{name}.crt"))).map_err(tls)?;
        let key = PrivateKeyDer::from_pem_file(self.dir.join(format!("{name}.key"))).map_err(tls)?;
        Ok((vec![cert], key))
    }
}
