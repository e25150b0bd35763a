// SPDX-License-Identifier: Apache-2.0
//! Issues certificates and judges whether one that exists can stay.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{PkiError, files};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// A leaf that ends earlier than this is issued again: a cluster that runs for a year must not expire under it.
const LEAF_RENEW_BEFORE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a leaf certificate says.
#[derive(Debug)]
pub(super) struct Leaf {
    common_name: String,
    organizations: Vec<String>,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
}

impl Leaf {
    /// A client certificate: the user's name and groups.
    pub(super) fn client(common_name: &str, groups: &[&str]) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: groups.iter().map(|&g| g.to_owned()).collect(),
            names: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    /// A server certificate for names and addresses.
    pub(super) fn serving(common_name: &str, names: Vec<String>) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: Vec::new(),
            names,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        }
    }

    fn params(&self, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        for organization in &self.organizations {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![self.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - DAY).into();
        params.not_after = (now + LEAF_LIFE).into();
        Ok(params)
    }
}

/// A certificate with its key, both PEM.
pub(super) struct Pair {
    pub(super) cert: String,
    pub(super) key: String,
}

/// The cluster's CA.
pub(super) struct Authority {
    cert: String,
    issuer: Issuer<'static, KeyPair>,
    now: SystemTime,
}

impl Authority {
    /// Opens the CA, or makes it when neither half exists.
    pub(super) fn open(dir: &Path, now: SystemTime) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let pair = match (files::read(&cert_path)?, files::read(&key_path)?) {
            (Some(cert), Some(key)) => Pair { cert, key },
            // The certificate is written last, so a lone key is a first start that was interrupted.
            (None, _) => {
                let pair = new_ca(now).map_err(|source| PkiError::Issue { what: "the CA".into(), source })?;
                files::write(&key_path, pair.key.as_bytes())?;
                files::write(&cert_path, pair.cert.as_bytes())?;
                pair
            }
            (Some(_), None) => {
                return Err(PkiError::Damaged { path: key_path, reason: "the key is missing".into() });
            }
        };
        let damaged =
            |path: &Path, e: rcgen::Error| PkiError::Damaged { path: path.to_owned(), reason: e.to_string() };
        let key = KeyPair::from_pem(&pair.key).map_err(|e| damaged(&key_path, e))?;
        if !certifies(&pair.cert, &key) {
            let reason = "the certificate does not belong to the key beside it".to_owned();
            return Err(PkiError::Damaged { path: cert_path, reason });
        }
        let issuer = Issuer::from_ca_cert_pem(&pair.cert, key).map_err(|e| damaged(&cert_path, e))?;
        Ok(Self { cert: pair.cert, issuer, now })
    }

    /// Its certificate.
    pub(super) fn cert_pem(&self) -> &str {
        &self.cert
    }

    /// A new certificate on a new key.
    pub(super) fn issue(&self, leaf: &Leaf) -> Result<Pair, PkiError> {
        let make = || {
            let key = KeyPair::generate()?;
            let cert = leaf.params(self.now)?.signed_by(&key, &self.issuer)?;
            Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
        };
        make().map_err(|source| PkiError::Issue { what: leaf.common_name.clone(), source })
    }

    /// Whether an existing pair says what `leaf` says, is ours and lasts long enough.
    pub(super) fn accepts(&self, pair: &Pair, leaf: &Leaf) -> bool {
        self.judge(pair, leaf).unwrap_or(false)
    }

    fn judge(&self, pair: &Pair, leaf: &Leaf) -> Option<bool> {
        let ca = CertificateDer::from_pem_slice(self.cert.as_bytes()).ok()?;
        let (_, ca) = X509Certificate::from_der(&ca).ok()?;
        let der = CertificateDer::from_pem_slice(pair.cert.as_bytes()).ok()?;
        let (_, cert) = X509Certificate::from_der(&der).ok()?;
        let key = KeyPair::from_pem(&pair.key).ok()?;
        let now = self.now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let needed_until = i64::try_from((now + LEAF_RENEW_BEFORE).as_secs()).ok()?;
        let organizations: Vec<_> =
            cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
        let common_name = cert.subject().iter_common_name().next()?.as_str().ok()?;
        Some(
            cert.verify_signature(Some(ca.public_key())).is_ok()
                && cert.public_key().raw == key.subject_public_key_info()
                && cert.validity().not_after.timestamp() > needed_until
                && common_name == leaf.common_name
                && organizations == leaf.organizations
                && subject_names(&cert) == leaf.names.iter().cloned().collect(),
        )
    }
}

/// Keeps `<name>.crt` and `<name>.key` when they serve, makes them otherwise.
pub(super) fn ensure_pair(
    dir: &Path,
    name: &str,
    leaf: &Leaf,
    authority: &Authority,
) -> Result<(), PkiError> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if let (Some(cert), Some(key)) = (files::read(&cert_path)?, files::read(&key_path)?)
        && authority.accepts(&Pair { cert, key }, leaf)
    {
        return Ok(());
    }
    let pair = authority.issue(leaf)?;
    files::write(&key_path, pair.key.as_bytes())?;
    files::write(&cert_path, pair.cert.as_bytes())
}

/// Keeps or makes the key that signs ServiceAccount tokens, and its public half.
pub(super) fn ensure_token_key(dir: &Path) -> Result<(), PkiError> {
    let (key_path, public_path) = (dir.join("sa.key"), dir.join("sa.pub"));
    let key = match files::read(&key_path)? {
        Some(pem) => KeyPair::from_pem(&pem)
            .map_err(|e| PkiError::Damaged { path: key_path.clone(), reason: e.to_string() })?,
        None => {
            let key = KeyPair::generate()
                .map_err(|source| PkiError::Issue { what: "the token signing key".into(), source })?;
            files::write(&key_path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    files::write_if_changed(&public_path, key.public_key_pem().as_bytes())
}

fn new_ca(now: SystemTime) -> Result<Pair, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "meltemi-kubernetes-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::DnsName("kubernetes".try_into()?)];
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

fn certifies(cert: &str, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(cert.as_bytes()) else { return false };
    X509Certificate::from_der(&der).is_ok_and(|(_, c)| c.public_key().raw == key.subject_public_key_info())
}

fn subject_names(cert: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return BTreeSet::new() };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match *bytes {
                [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
                bytes => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::from(b).to_string()),
            },
            _ => None,
        })
        .collect()
}
