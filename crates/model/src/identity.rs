// SPDX-License-Identifier: Apache-2.0
//! SPIFFE identities, parsed into their segments and never matched as text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The trust domain that a mesh has when nothing else is configured (Istio's default).
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Longest SPIFFE id that is accepted, in bytes (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_LEN: usize = 2048;

/// Why a text is not an identity of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// The text is longer than [`MAX_SPIFFE_ID_LEN`].
    #[error("SPIFFE id is {0} bytes long; at most {MAX_SPIFFE_ID_LEN} are allowed")]
    TooLong(usize),
    /// The scheme is not exactly `spiffe://` (upper case included).
    #[error("SPIFFE id {0:?} does not start with \"spiffe://\"")]
    Scheme(String),
    /// The trust domain is empty or has a character outside `[a-z0-9.-_]` (SPIFFE-ID §2.1).
    #[error("trust domain {0:?} is not valid: expected one or more of [a-z0-9.-_]")]
    TrustDomain(String),
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error(
        "SPIFFE id {0:?} does not have the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    Path(String),
}

/// The name of a trust domain: lower-case letters, digits, `.`, `-` and `_`; at most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain (SPIFFE-ID §2.1).
    ///
    /// # Errors
    /// [`InvalidIdentity::TrustDomain`] when it is empty, too long or has another character.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        let ok = !text.is_empty()
            && text.len() <= 255
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if ok { Ok(Self(text.into())) } else { Err(InvalidIdentity::TrustDomain(text.to_owned())) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(DEFAULT_TRUST_DOMAIN.into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidIdentity;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: who a workload is.
///
/// Cheap to clone. Equality is exact over all three segments.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The whole id as text, so that `Display` and `principal` cost nothing.
    text: Arc<str>,
    trust_domain_end: u32,
    namespace_end: u32,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Builds the identity of a service account.
    ///
    /// # Errors
    /// [`InvalidIdentity::Path`] when namespace or service account is empty or has a character outside
    /// `[A-Za-z0-9.-_]` (SPIFFE-ID §2.2).
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidIdentity> {
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(InvalidIdentity::Path(text));
        }
        if text.len() > MAX_SPIFFE_ID_LEN {
            return Err(InvalidIdentity::TooLong(text.len()));
        }
        let trust_domain_end = SCHEME.len() + trust_domain.as_str().len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self {
            text: text.into(),
            trust_domain_end: trust_domain_end as u32,
            namespace_end: namespace_end as u32,
        })
    }

    /// Parses a SPIFFE id of the mesh's shape; nothing else is partially accepted.
    ///
    /// # Errors
    /// See [`InvalidIdentity`].
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        if text.len() > MAX_SPIFFE_ID_LEN {
            return Err(InvalidIdentity::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| InvalidIdentity::Scheme(text.to_owned()))?;
        let mut parts = rest.split('/');
        let (td, ns_word, ns, sa_word, sa, end) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        match (td, ns_word, ns, sa_word, sa, end) {
            (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) => {
                Self::new(&TrustDomain::parse(td)?, ns, sa)
            }
            _ => Err(InvalidIdentity::Path(text.to_owned())),
        }
    }

    /// The whole id, `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole id, shared: nothing is copied.
    pub fn text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The id without its scheme, as AuthorizationPolicy principals are written: `<td>/ns/<ns>/sa/<sa>`.
    #[inline]
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    /// The trust domain segment.
    #[inline]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.trust_domain_end as usize]
    }

    /// The namespace segment.
    #[inline]
    pub fn namespace(&self) -> &str {
        &self.text[self.trust_domain_end as usize + "/ns/".len()..self.namespace_end as usize]
    }

    /// The service account segment.
    #[inline]
    pub fn service_account(&self) -> &str {
        &self.text[self.namespace_end as usize + "/sa/".len()..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidIdentity;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_the_mesh_shape() {
        let cases: &[(&str, bool)] = &[
            ("spiffe://cluster.local/ns/default/sa/curl", true),
            ("SPIFFE://cluster.local/ns/default/sa/curl", false),
            ("spiffe://cluster.local/ns/default/sa/curl/", false),
            ("spiffe://cluster.local/ns/default/sa/b/../c", false),
            ("spiffe://cluster.local/ns//sa/curl", false),
            ("spiffe://cluster.local/ns/default/sa/", false),
            ("spiffe:///ns/default/sa/curl", false),
            ("spiffe://Cluster.local/ns/default/sa/curl", false),
            ("spiffe://cluster.local/ns/default/sa/b\0.evil", false),
            ("spiffe://cluster.local/sa/default/ns/curl", false),
            ("spiffe://cluster.local/ns/../sa/curl", false),
            ("spiffe://cluster.local:80/ns/a/sa/b", false),
            ("https://cluster.local/ns/a/sa/b", false),
        ];
        for (text, ok) in cases {
            assert_eq!(SpiffeId::parse(text).is_ok(), *ok, "{text:?}");
        }
    }

    #[test]
    fn segments_are_read_back() {
        let id = SpiffeId::parse("spiffe://td.example/ns/a-ns/sa/b.sa").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("td.example", "a-ns", "b.sa"));
        assert_eq!(id.principal(), "td.example/ns/a-ns/sa/b.sa");
    }

    #[test]
    fn length_is_bounded() {
        let long = format!("spiffe://cluster.local/ns/{}/sa/x", "a".repeat(2048));
        assert!(matches!(SpiffeId::parse(&long), Err(InvalidIdentity::TooLong(_))));
    }
}
