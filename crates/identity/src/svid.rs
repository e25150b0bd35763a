// SPDX-License-Identifier: Apache-2.0
//! A certificate with its key, and what can be read from certificates of peers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meltemi_model::SpiffeId;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate is not one of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSvid {
    /// Not a certificate, or not PEM.
    #[error("certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not exactly one URI SAN.
    #[error("certificate has {0} URI SANs instead of one")]
    UriSans(usize),
    /// The URI SAN is not an identity of the mesh's shape.
    #[error("{0}")]
    Identity(#[from] meltemi_model::identity::InvalidIdentity),
    /// Key or chain that rustls does not take.
    #[error("certificate cannot be used: {0}")]
    Unusable(String),
}

/// A new key and the CSR for it, both PEM; the key stays in memory.
///
/// # Errors
/// No randomness.
pub fn key_and_csr(identity: &SpiffeId) -> Result<(KeyPair, String), InvalidSvid> {
    let wrong = |e: rcgen::Error| InvalidSvid::Unusable(e.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(wrong)?)];
    let csr = params.serialize_request(&key).map_err(wrong)?.pem().map_err(wrong)?;
    Ok((key, csr))
}

/// A certificate of the mesh with its key.
#[derive(Clone)]
pub struct Svid {
    /// Who it says its holder is.
    pub identity: SpiffeId,
    /// For rustls.
    pub certified: Arc<CertifiedKey>,
    /// Chain, PEM, leaf first, without roots.
    pub chain_pem: Vec<String>,
    /// The roots, PEM.
    pub roots_pem: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

// By hand: the key must not reach a log.
impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Svid {
    /// From what a CA answered: leaf first, roots last.
    ///
    /// # Errors
    /// The leaf is not for the key, or names another identity than the one asked for.
    pub fn new(chain: &[String], key: &KeyPair, expected: &SpiffeId) -> Result<Self, InvalidSvid> {
        let unreadable = |e: &dyn std::fmt::Display| InvalidSvid::Unreadable(e.to_string());
        let (roots, certificates) = chain.split_last().ok_or_else(|| unreadable(&"the chain is empty"))?;
        if certificates.is_empty() {
            return Err(unreadable(&"the chain has no leaf"));
        }
        let der: Vec<CertificateDer<'static>> = certificates
            .iter()
            .flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|e| unreadable(&e))?;
        let leaf = der.first().ok_or_else(|| unreadable(&"the chain has no leaf"))?;
        let identity = identity_of(leaf)?;
        if identity != *expected {
            return Err(InvalidSvid::Unusable(format!(
                "the CA answered with {identity} instead of {expected}"
            )));
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| unreadable(&e))?;
        let serial = parsed.tbs_certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
        let (not_before, not_after) = (
            time_of(parsed.validity().not_before.timestamp()),
            time_of(parsed.validity().not_after.timestamp()),
        );
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified =
            CertifiedKey::from_der(der, key, &provider).map_err(|e| InvalidSvid::Unusable(e.to_string()))?;
        certified.keys_match().map_err(|e| InvalidSvid::Unusable(e.to_string()))?;
        Ok(Self {
            identity,
            certified: Arc::new(certified),
            chain_pem: certificates.to_vec(),
            roots_pem: roots.clone(),
            serial,
            not_before,
            not_after,
        })
    }

    /// When it is to be renewed: half of its life, by the wall clock.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        self.not_before + life / 2
    }

    /// Whether it may be used now.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn time_of(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether a certificate says that it is for this side of a connection. One that says nothing may be meant for anything.
pub(crate) fn is_for(certificate: &CertificateDer<'_>, client: bool) -> bool {
    let usage = |parsed: &X509Certificate<'_>| {
        let usage = parsed.extended_key_usage().ok()??.value;
        Some(if client { usage.client_auth } else { usage.server_auth })
    };
    X509Certificate::from_der(certificate).ok().and_then(|(_, parsed)| usage(&parsed)).unwrap_or(false)
}

/// The identity of a certificate: exactly one URI SAN, of the mesh's shape. Other kinds of names are ignored, a second
/// URI is not.
///
/// # Errors
/// See [`InvalidSvid`].
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<SpiffeId, InvalidSvid> {
    peer_of(certificate).map(|(identity, _)| identity)
}

/// [`identity_of`], and until when the certificate proves it.
///
/// # Errors
/// See [`InvalidSvid`].
pub fn peer_of(certificate: &CertificateDer<'_>) -> Result<(SpiffeId, SystemTime), InvalidSvid> {
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| InvalidSvid::Unreadable(e.to_string()))?;
    if !rest.is_empty() {
        return Err(InvalidSvid::Unreadable("bytes after the certificate".into()));
    }
    let names = parsed.subject_alternative_name().map_err(|e| InvalidSvid::Unreadable(e.to_string()))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] => Ok((SpiffeId::parse(uri)?, time_of(parsed.validity().not_after.timestamp()))),
        other => Err(InvalidSvid::UriSans(other.len())),
    }
}
