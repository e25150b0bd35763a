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

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;
    use crate::svid::identity_of;
    use rustls_pki_types::pem::PemObject as _;

    /// 1024 bits.
    const WEAK: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBSzCBtQIBADAMMQowCAYDVQQDDAF4MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCB\n\
iQKBgQCkEsh/KwawP5u0jtLUTEmWHC/9kCoJFCyTPRFJ/KLPisnTa3YIMUd7s6Kl\n\
yeBl+4EISN4XZuyBf4sRCoDnyMbJWz9peoYSBCGTV4mWSQ5vsskvrMDT5EZ/Gtdi\n\
ltGylTbcWbpJ4EOoQkfH58QL216XZkLMfoEKqiSeuY/d4zjkbwIDAQABoAAwDQYJ\n\
KoZIhvcNAQELBQADgYEAWyqltzGKO0vPD5xCBm8+aodd06fWfewdMWiGok23U2B9\n\
pyqChX0DzOX5ZAC9jhhNH1NV6xy3C0VktxHoZOH14/N2JWE/P/9/7UODYew4p1vm\n\
70MJI/yJzFrdjHpT48jrUTTak5m7KId+dCLxdq1sU1cmK4XQBuADJai2pK3NSL8=\n\
-----END CERTIFICATE REQUEST-----\n\
";

    fn csr(edit: impl FnOnce(&mut CertificateParams)) -> String {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        edit(&mut params);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn nothing_of_a_request_but_its_key_is_signed() {
        let now = SystemTime::now();
        let ca = CaCore::new(&CaMaterial::generate("cluster.local", now).unwrap()).unwrap();
        let caller = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/caller").unwrap();
        let other = || SanType::URI("spiffe://cluster.local/ns/istio-system/sa/ztunnel".try_into().unwrap());
        let greedy = csr(|params| {
            params.subject_alt_names =
                vec![other(), other(), SanType::DnsName("istiod.istio-system.svc".try_into().unwrap())];
            params.distinguished_name.push(DnType::CommonName, "istiod");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        });
        // As long as it may be, and no longer.
        for (asked, seconds) in
            [(None, 24 * 3600), (Some(Duration::MAX), 90 * 24 * 3600), (Some(Duration::ZERO), 24 * 3600)]
        {
            let chain = ca.sign(&greedy, &caller, asked, now).unwrap();
            let der = rustls::pki_types::CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
            assert_eq!(identity_of(&der).unwrap(), caller);
            let (_, leaf) = X509Certificate::from_der(&der).unwrap();
            assert!(!leaf.is_ca() && leaf.subject().iter().count() == 0);
            assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
            assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
            let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
            assert_eq!(life, seconds + 120);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let now = SystemTime::now();
        let ca = CaCore::new(&CaMaterial::generate("cluster.local", now).unwrap()).unwrap();
        let caller = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/caller").unwrap();
        let good = csr(|_| {});
        let body = good.find("\n").unwrap() + 1;
        // Another key's signature: one bit of the request is another.
        let flipped = |at: usize| {
            let mut text = good.clone().into_bytes();
            let at = if at == 0 { good.rfind("\n-----END").unwrap() - 12 } else { body + at };
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).unwrap()
        };
        assert!(ca.sign(&good, &caller, None, now).is_ok());
        for (what, text) in [
            ("nothing", String::new()),
            ("no PEM", "x".repeat(60_000)),
            ("a certificate", ca.root_pem().to_owned()),
            ("cut off", good[..body + 40].to_owned()),
            ("another signature", flipped(0)),
            ("another key", flipped(60)),
            ("a key that is too weak", WEAK.to_owned()),
        ] {
            assert!(ca.sign(&text, &caller, None, now).is_err(), "{what}");
        }
    }
}
