// SPDX-License-Identifier: Apache-2.0
//! The certificates of a gateway's listeners, read once each; and what a client has said in its handshake.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_identity::tls;
use meltemi_model::NamespacedName;
use meltemi_model::l7::TlsSecret;
use meltemi_view::Mesh;
use rustls::sign::CertifiedKey;

/// What a client has said of itself in its handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Secured {
    /// The host that it wants to reach (RFC 6066 §3); none when it named none.
    pub(crate) sni: Option<Arc<str>>,
}

/// Certificates that were read once; shared by all ports of a gateway.
#[derive(Debug, Default)]
pub(crate) struct Certificates(Mutex<HashMap<NamespacedName, Read>>);

/// A certificate, and the Secret that it was read from.
#[derive(Debug)]
struct Read {
    from: Arc<TlsSecret>,
    certified: Arc<CertifiedKey>,
}

impl Certificates {
    /// The certificate of a Secret; read again only when the Secret has changed.
    pub(crate) fn of(&self, secret: &Arc<TlsSecret>) -> Option<Arc<CertifiedKey>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = known.get(&secret.name).filter(|read| Arc::ptr_eq(&read.from, secret)) {
            return Some(read.certified.clone());
        }
        match tls::certified_key(&secret.certificate, &secret.key) {
            Ok(certified) => {
                let certified = Arc::new(certified);
                let read = Read { from: secret.clone(), certified: certified.clone() };
                known.insert(secret.name.clone(), read);
                Some(certified)
            }
            Err(error) => {
                // The control plane has read it before it sent it.
                tracing::error!(secret = %secret.name, %error, "certificate cannot be used");
                None
            }
        }
    }

    /// Forgets what no listener names any more: a key is not kept longer than it is needed.
    pub(crate) fn retain(&self, mesh: &Mesh) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| mesh.secrets.contains_key(&name.to_string()));
    }
}
