// SPDX-License-Identifier: Apache-2.0
//! Handshakes in memory: who is let in, and who is not.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meltemi_model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
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

const A: &str = "spiffe://cluster.local/ns/default/sa/a";

/// A certificate of the mesh's CA with whatever was made of it.
fn forged(material: &CaMaterial, edit: impl FnOnce(&mut CertificateParams)) -> Svid {
    let issuer =
        Issuer::from_ca_cert_pem(&material.certificate, KeyPair::from_pem(&material.key).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![uri(A)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    edit(&mut params);
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // As it is: what rustls itself would refuse to present as well.
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Svid {
        identity: id(A),
        certified: Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key)),
        chain_pem: vec![leaf.pem()],
        roots_pem: material.root.clone(),
        serial: String::new(),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH,
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_certificate_that_can_be_read_in_two_ways_is_none() {
    let material = CaMaterial::generate("cluster.local", SystemTime::now()).unwrap();
    let ours = CaCore::new(&material).unwrap();
    let peer = svid(&ours, &id("spiffe://cluster.local/ns/default/sa/b"), SystemTime::now());
    type Edit = Box<dyn Fn(&mut CertificateParams)>;
    let named = |names: Vec<SanType>| -> Edit { Box::new(move |p| p.subject_alt_names = names.clone()) };
    let one = |text: &str| named(vec![uri(text)]);
    let usages = |usages: &[ExtendedKeyUsagePurpose]| -> Edit {
        let usages = usages.to_vec();
        Box::new(move |p| p.extended_key_usages = usages.clone())
    };
    let dns = || SanType::DnsName("spiffe.cluster.local".try_into().unwrap());
    // A second extension of names, with the same content as a good first one.
    let again = || {
        let content =
            [&[0x30, u8::try_from(A.len() + 2).unwrap(), 0x86, u8::try_from(A.len()).unwrap()], A.as_bytes()];
        CustomExtension::from_oid_content(&[2, 5, 29, 17], content.concat())
    };
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    // What it is; whether it may come as a client, and as a server.
    let cases: Vec<(&str, Edit, bool, bool)> = vec![
        ("as it should be", Box::new(|_| {}), true, true),
        ("a DNS name beside", named(vec![dns(), uri(A)]), true, true),
        ("no name", named(vec![]), false, false),
        ("a DNS name alone", named(vec![dns()]), false, false),
        ("two URIs", named(vec![uri(A), uri("spiffe://cluster.local/ns/default/sa/c")]), false, false),
        ("the same URI twice", named(vec![uri(A), uri(A)]), false, false),
        ("two extensions of names", Box::new(move |p| p.custom_extensions = vec![again()]), false, false),
        ("NUL", one("spiffe://cluster.local/ns/default/sa/a\0.evil"), false, false),
        ("dots", one("spiffe://cluster.local/ns/default/sa/b/../a"), false, false),
        ("scheme in capitals", one("SPIFFE://cluster.local/ns/default/sa/a"), false, false),
        ("trust domain in capitals", one("spiffe://Cluster.local/ns/default/sa/a"), false, false),
        ("a slash behind", one("spiffe://cluster.local/ns/default/sa/a/"), false, false),
        ("a query", one("spiffe://cluster.local/ns/default/sa/a?b"), false, false),
        ("a fragment", one("spiffe://cluster.local/ns/default/sa/a#b"), false, false),
        ("percent-encoded", one("spiffe://cluster.local/ns/default/sa/%61"), false, false),
        ("a port", one("spiffe://cluster.local:1/ns/default/sa/a"), false, false),
        ("user information", one("spiffe://x@cluster.local/ns/default/sa/a"), false, false),
        ("a wildcard", one("spiffe://cluster.local/ns/default/sa/*"), false, false),
        ("no account", one("spiffe://cluster.local/ns/default/sa/"), false, false),
        ("another trust domain", one("spiffe://other/ns/default/sa/a"), false, false),
        ("for clients", usages(std::slice::from_ref(&client)), true, false),
        ("for servers", usages(std::slice::from_ref(&server)), false, true),
        ("for code", usages(&[ExtendedKeyUsagePurpose::CodeSigning]), false, false),
        ("for anything", usages(&[ExtendedKeyUsagePurpose::Any]), false, false),
        ("it does not say what for", usages(&[]), false, false),
        ("an authority", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), false, false),
        ("not yet valid", Box::new(|p| p.not_before = rcgen::date_time_ymd(2300, 1, 1)), false, false),
        ("expired", Box::new(|p| p.not_after = rcgen::date_time_ymd(2000, 1, 1)), false, false),
    ];
    for (what, edit, as_client, as_server) in cases {
        let svid = forged(&material, edit);
        let came = shake(&peer, &svid, peer.identity.clone());
        assert_eq!(came.is_ok(), as_client, "{what}, as a client: {came:?}");
        let went = shake(&svid, &peer, id(A));
        assert_eq!(went.is_ok(), as_server, "{what}, as a server: {went:?}");
    }
}

#[test]
fn a_session_is_never_resumed() {
    let ca = ca();
    let a = svid(&ca, &id(A), SystemTime::now());
    let config = server(&a).unwrap();
    assert_eq!((config.max_early_data_size, config.send_tls13_tickets), (0, 0));
    assert!(!config.ticketer.enabled());
    // Twice with the same configurations, a client that would resume, and TLS's own word for it.
    let mut eager = client(&a, vec![id(A)]).unwrap();
    eager.resumption = rustls::client::Resumption::in_memory_sessions(8);
    eager.enable_early_data = true;
    let (eager, config) = (Arc::new(eager), Arc::new(config));
    for _ in 0..2 {
        let mut c = ClientConnection::new(eager.clone(), "127.0.0.1".try_into().unwrap()).unwrap();
        let mut s = ServerConnection::new(config.clone()).unwrap();
        assert!(c.early_data().is_none());
        for _ in 0..4 {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            c.write_tls(&mut up).unwrap();
            s.read_tls(&mut up.as_slice()).unwrap();
            s.process_new_packets().unwrap();
            s.write_tls(&mut down).unwrap();
            c.read_tls(&mut down.as_slice()).unwrap();
            c.process_new_packets().unwrap();
        }
        assert!(!s.is_handshaking() && c.tls13_tickets_received() == 0);
        assert_ne!(s.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
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
