// SPDX-License-Identifier: Apache-2.0
//! What peers say of themselves and ask for: certificates, requests for them, the targets of tunnels.

use std::sync::OnceLock;
use std::time::SystemTime;

use meltemi_identity::svid::{identity_of, peer_of};
use meltemi_identity::{CaCore, CaMaterial};
use meltemi_model::SpiffeId;
use meltemi_tunnel::Target;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// The authority of a CONNECT: what is read is written in one way, and read again as the same.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(target) = Target::parse(text) else { return };
    let written = match &target {
        Target::Address(to) => {
            assert_eq!(to.ip(), to.ip().to_canonical());
            to.to_string()
        }
        Target::Name(name, port) => {
            // What any other reader might take for an address is no name.
            assert!(name.parse::<std::net::IpAddr>().is_err() && !name.contains(['@', '/', '%', ':', '[']));
            format!("{name}:{port}")
        }
    };
    assert_eq!(Target::parse(&written), Ok(target));
    assert!(written == text || text.starts_with('[') || written.eq_ignore_ascii_case(text));
}

/// The certificate of a peer, DER: it has one identity, written as it stands in it, or none.
pub fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data);
    let Ok((identity, _)) = peer_of(&der) else { return };
    assert_eq!(identity_of(&der).as_ref(), Ok(&identity));
    assert_eq!(SpiffeId::parse(identity.as_str()).as_ref(), Ok(&identity));
    let text = identity.as_str().as_bytes();
    assert!(data.windows(text.len()).any(|window| window == text), "{identity} is not in the certificate");
}

/// A request for a certificate, DER: whatever it asks for, what is signed is who was authenticated.
pub fn csr(data: &[u8]) {
    static CA: OnceLock<CaCore> = OnceLock::new();
    let now = SystemTime::now();
    let make = || CaMaterial::generate("cluster.local", now).and_then(|m| CaCore::new(&m)).expect("a CA");
    let ca = CA.get_or_init(make);
    let caller = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/caller").expect("an identity");
    let text = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", data));
    let Ok(chain) = ca.sign(&text, &caller, None, now) else { return };
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).expect("a certificate");
    assert_eq!(identity_of(&leaf), Ok(caller));
}

/// The frames of a tunnel's peer, among what users of its streams do: nothing panics, and no stream, queue or window is more
/// than its bound. The first octet says which side we are.
pub fn tunnel(data: &[u8]) {
    if let Some((side, rest)) = data.split_first() {
        meltemi_tunnel::probe(side & 1 == 1, rest);
    }
}
