// SPDX-License-Identifier: Apache-2.0
//! Handshakes in memory: who is let in, and who is not.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meltemi_model::SpiffeId;
use rustls::{ClientConnection, ServerConnection};

use super::{client, server};
use crate::ca::{CaCore, CaMaterial};
use crate::svid::{Svid, key_and_csr};

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn ca() -> CaCore {
    CaCore::new(&CaMaterial::generate("cluster.local", SystemTime::now()).unwrap()).unwrap()
}

fn svid(ca: &CaCore, identity: &SpiffeId, now: SystemTime) -> Svid {
    let (key, csr) = key_and_csr(identity).unwrap();
    let chain = ca.sign(&csr, identity, Some(Duration::from_secs(3600)), now).unwrap();
    Svid::new(&chain, &key, identity).unwrap()
}

/// Runs a handshake and one byte each way; the first error of either side.
fn shake(server_svid: &Svid, client_svid: &Svid, expected: SpiffeId) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let config = Arc::new(client(client_svid, vec![expected]).unwrap());
    let mut c = ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
    let mut s = ServerConnection::new(Arc::new(server(server_svid).unwrap())).unwrap();
    c.writer().write_all(b"x").unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        c.write_tls(&mut wire).unwrap();
        s.read_tls(&mut wire.as_slice()).unwrap();
        s.process_new_packets().map_err(|e| text(&e))?;
        let mut wire = Vec::new();
        s.write_tls(&mut wire).unwrap();
        c.read_tls(&mut wire.as_slice()).unwrap();
        c.process_new_packets().map_err(|e| text(&e))?;
    }
    let mut byte = [0];
    s.reader().read_exact(&mut byte).map_err(|e| text(&e))
}

#[test]
fn only_the_expected_identity_of_the_same_mesh_is_let_in() {
    let (ours, theirs) = (ca(), ca());
    let now = SystemTime::now();
    let a = id("spiffe://cluster.local/ns/default/sa/a");
    let b = id("spiffe://cluster.local/ns/default/sa/b");
    let foreign = id("spiffe://other.domain/ns/default/sa/a");
    let old = now - Duration::from_secs(7200);
    let good = svid(&ours, &a, now);
    let cases = [
        ("both fine", svid(&ours, &b, now), &b, ""),
        ("another server identity", svid(&ours, &b, now), &a, "expected one of"),
        ("server of another CA", svid(&theirs, &b, now), &b, "invalid peer certificate"),
        ("expired server", svid(&ours, &b, old), &b, "expired"),
    ];
    for (what, server_svid, expected, error) in cases {
        // The client's trust is in its own roots.
        let seen = shake(&server_svid, &good, expected.clone()).err().unwrap_or_default();
        assert!(seen.contains(error) && seen.is_empty() == error.is_empty(), "{what}: {seen}");
    }
    let server_svid = svid(&ours, &b, now);
    let cases = [
        ("client of another CA", svid(&theirs, &a, now)),
        ("expired client", svid(&ours, &a, old)),
        ("client of another trust domain", svid(&ours, &foreign, now)),
    ];
    for (what, client_svid) in cases {
        let mut client_svid = client_svid;
        client_svid.roots_pem = ours.root_pem().to_owned();
        assert!(shake(&server_svid, &client_svid, b.clone()).is_err(), "{what}");
    }
}

#[test]
fn the_answer_of_a_ca_is_checked() {
    let ca = ca();
    let (a, b) = (id("spiffe://cluster.local/ns/default/sa/a"), id("spiffe://cluster.local/ns/default/sa/b"));
    let (key, csr) = key_and_csr(&a).unwrap();
    let (other_key, _) = key_and_csr(&a).unwrap();
    // The CSR asks for a; the authenticated caller is b: b is signed.
    let chain = ca.sign(&csr, &b, None, SystemTime::now()).unwrap();
    assert_eq!(Svid::new(&chain, &key, &b).unwrap().identity, b);
    assert!(Svid::new(&chain, &key, &a).is_err());
    assert!(Svid::new(&chain, &other_key, &b).is_err());
}
