// SPDX-License-Identifier: Apache-2.0
//! A CA of a test's own, and certificates of ServiceAccounts of the namespace `default`.

use std::time::SystemTime;

use meltemi_identity::svid::key_and_csr;
use meltemi_identity::{CaCore, CaMaterial, Svid};
use meltemi_model::{SpiffeId, TrustDomain};

/// A new CA of `cluster.local`.
///
/// # Panics
/// There is no randomness.
pub fn authority() -> CaCore {
    let material = CaMaterial::generate("cluster.local", SystemTime::now()).expect("a root can be made");
    CaCore::new(&material).expect("what was made can be used")
}

/// `spiffe://cluster.local/ns/default/sa/<account>`.
///
/// # Panics
/// The account is no name.
pub fn identity(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "default", account).expect("the account is a name")
}

/// A certificate for an identity, and its key as PEM.
///
/// # Panics
/// The CA does not sign.
pub fn issue(ca: &CaCore, identity: &SpiffeId) -> (Svid, String) {
    let (key, csr) = key_and_csr(identity).expect("a key can be made");
    let chain = ca.sign(&csr, identity, None, SystemTime::now()).expect("the CA signs");
    (Svid::new(&chain, &key, identity).expect("what was signed fits"), key.serialize_pem())
}
