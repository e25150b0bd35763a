// SPDX-License-Identifier: Apache-2.0
//! The CA: a root of its own or one that is plugged in; signs what an authenticated caller may be, not what a CSR says.

use std::time::{Duration, SystemTime};

use meltemi_model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::OffsetDateTime;

/// Lifetime of a certificate when the request names none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest lifetime of a workload's certificate (Istio's default bound).
pub const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Lifetime of a root that is made here.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin a little in the past, for clocks that differ.
const BACKDATE: Duration = Duration::from_secs(120);

/// Why the CA refuses.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Key or certificate material that cannot be used.
    #[error("CA material: {0}")]
    Material(String),
    /// A CSR that is not one, or whose signature is wrong.
    #[error("CSR: {0}")]
    Csr(String),
    /// Signing failed.
    #[error("signing: {0}")]
    Sign(String),
}

/// What a CA is made of, all PEM.
#[derive(Clone)]
pub struct CaMaterial {
    /// Certificate that signs.
    pub certificate: String,
    /// Its private key (PKCS#8).
    pub key: String,
    /// Chain from the certificate that signs to the root, without either; empty for a self-signed root.
    pub intermediates: String,
    /// The root, or several.
    pub root: String,
}

// By hand: the key must not reach a log.
impl std::fmt::Debug for CaMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaMaterial").field("root", &self.root).finish_non_exhaustive()
    }
}

impl CaMaterial {
    /// A new self-signed root, ECDSA P-256.
    ///
    /// # Errors
    /// No randomness, or a time that a certificate cannot hold.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| CaError::Material(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + ROOT_TTL);
        params.serial_number = Some(serial());
        let certificate = params.self_signed(&key).map_err(|e| CaError::Material(e.to_string()))?.pem();
        let root = certificate.clone();
        Ok(Self { certificate, key: key.serialize_pem(), intermediates: String::new(), root })
    }
}

/// A CA that signs.
pub struct CaCore {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<String>,
    root: String,
}

impl std::fmt::Debug for CaCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaCore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl CaCore {
    /// A CA from its material.
    ///
    /// # Errors
    /// A certificate or key that cannot be read.
    pub fn new(material: &CaMaterial) -> Result<Self, CaError> {
        let wrong = |e: rcgen::Error| CaError::Material(e.to_string());
        let key = KeyPair::from_pem(&material.key).map_err(wrong)?;
        let issuer = Issuer::from_ca_cert_pem(&material.certificate, key).map_err(wrong)?;
        let own = if material.certificate.trim() == material.root.trim() {
            Vec::new()
        } else {
            blocks(&material.certificate)
        };
        let chain = own.into_iter().chain(blocks(&material.intermediates)).collect();
        Ok(Self { issuer, chain, root: material.root.clone() })
    }

    /// The roots, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root
    }

    /// Signs the key of a CSR for an identity. Nothing else of the CSR is used: who asked says who it is.
    /// Returns the chain, leaf first, roots last, one PEM block an element.
    ///
    /// # Errors
    /// The CSR cannot be read or is not signed by its own key.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        let mut csr =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| CaError::Csr(e.to_string()))?;
        let uri = identity.as_str().try_into().map_err(|e: rcgen::Error| CaError::Sign(e.to_string()))?;
        csr.params = leaf(vec![SanType::URI(uri)], ttl, now);
        let certificate = csr.signed_by(&self.issuer).map_err(|e| CaError::Sign(e.to_string()))?;
        Ok(self.with_chain(certificate.pem()))
    }

    /// A certificate with key for a server of the control plane, by DNS names.
    ///
    /// # Errors
    /// A name that is not one, or no randomness.
    pub fn server(
        &self,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<String>, String), CaError> {
        let sign = |e: rcgen::Error| CaError::Sign(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)?;
        let names = names
            .iter()
            .map(|name| Ok(SanType::DnsName(name.as_str().try_into().map_err(sign)?)))
            .collect::<Result<_, CaError>>()?;
        let certificate = leaf(names, Some(ttl), now).signed_by(&key, &self.issuer).map_err(sign)?;
        Ok((self.with_chain(certificate.pem()), key.serialize_pem()))
    }

    fn with_chain(&self, leaf: String) -> Vec<String> {
        [leaf].into_iter().chain(self.chain.iter().cloned()).chain([self.root.clone()]).collect()
    }
}

fn leaf(names: Vec<SanType>, ttl: Option<Duration>, now: SystemTime) -> CertificateParams {
    let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL).min(MAX_TTL);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = names;
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + ttl);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    params
}

/// 127 random bits: positive and within the 20 bytes of RFC 5280 §4.1.2.2.
fn serial() -> SerialNumber {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn blocks(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END)
        .filter(|block| block.contains(END))
        .map(|block| format!("{}\n", block.trim()))
        .collect()
}
