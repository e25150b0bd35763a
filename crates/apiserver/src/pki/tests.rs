// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Layout, NodeSpec, PkiError, ensure};

fn layout(dir: &Path, port: u16, nodes: &[&str]) -> Layout {
    let node = |(i, name): (usize, &&str)| NodeSpec {
        name: (*name).to_owned(),
        address: [172, 30, 0, 11 + u8::try_from(i).unwrap()].into(),
    };
    Layout {
        data_dir: dir.to_owned(),
        cluster_name: "meltemi".into(),
        host_port: port,
        nodes: nodes.iter().enumerate().map(node).collect(),
    }
}

fn snapshot(dir: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for sub in ["", "pki", "components"] {
        for entry in fs::read_dir(dir.join(sub)).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let name = format!("{sub}/{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                assert_eq!(mode, 0o700, "{name}");
            } else {
                assert_eq!(mode, 0o600, "{name}");
                files.insert(name, fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    files
}

#[test]
fn what_exists_is_kept_and_what_is_missing_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let pki = ensure(&layout(dir.path(), 6443, &["node-1"]), now).unwrap();
    pki.server_config().unwrap();
    pki.kubelet_client_config().unwrap();
    let first = snapshot(dir.path());
    assert!(first["/kubeconfig"].contains("server: https://127.0.0.1:6443\n"));
    assert!(!format!("{pki:?}").contains("BEGIN"), "no key in a debug print");

    // More nodes and another port: only the new files appear and only the address changes.
    ensure(&layout(dir.path(), 7443, &["node-1", "node-2"]), now + Duration::from_secs(60)).unwrap();
    let second = snapshot(dir.path());
    let new: Vec<_> = second.keys().filter(|k| !first.contains_key(*k)).map(String::as_str).collect();
    let expected = [
        "components/kubelet-node-2.crt",
        "components/kubelet-node-2.key",
        "components/runner-node-2.kubeconfig",
    ];
    assert_eq!(new, expected);
    for (name, text) in &first {
        let expected = text.replace("127.0.0.1:6443", "127.0.0.1:7443");
        assert_eq!(&second[name], &expected, "{name}");
    }
}

#[test]
fn a_leaf_is_issued_again_when_it_cannot_serve() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = layout(dir.path(), 6443, &["node-1"]);
    ensure(&first, now).unwrap();
    let before = snapshot(dir.path());

    // Another address of the node, a damaged certificate, a certificate on another key.
    let mut moved = first.clone();
    moved.nodes[0].address = [172, 30, 0, 99].into();
    fs::write(dir.path().join("pki/apiserver.crt"), "nonsense").unwrap();
    fs::copy(dir.path().join("pki/apiserver.key"), dir.path().join("pki/apiserver-kubelet-client.key"))
        .unwrap();
    ensure(&moved, now).unwrap();
    let after = snapshot(dir.path());
    let changed: Vec<_> = after.keys().filter(|k| before[*k] != after[*k]).map(String::as_str).collect();
    let expected = [
        "components/kubelet-node-1.crt",
        "components/kubelet-node-1.key",
        "pki/apiserver-kubelet-client.crt",
        "pki/apiserver-kubelet-client.key",
        "pki/apiserver.crt",
        "pki/apiserver.key",
    ];
    assert_eq!(changed, expected);

    // After more than a year the leaves are renewed, the CA and the token key stay.
    ensure(&moved, now + Duration::from_secs(400 * 24 * 3600)).unwrap();
    let later = snapshot(dir.path());
    for name in ["pki/ca.crt", "pki/ca.key", "pki/sa.key", "pki/sa.pub", "components/ca.crt"] {
        assert_eq!(later[name], after[name], "{name}");
    }
    for name in ["/kubeconfig", "pki/apiserver.crt", "components/runner-node-1.kubeconfig"] {
        assert_ne!(later[name], after[name], "{name}");
    }
}

#[test]
fn a_lost_ca_key_is_an_error_and_never_a_new_ca() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let layout = layout(dir.path(), 6443, &[]);
    ensure(&layout, now).unwrap();
    fs::remove_file(dir.path().join("pki/ca.key")).unwrap();
    let error = ensure(&layout, now).unwrap_err();
    assert!(matches!(&error, PkiError::Damaged { path, .. } if path.ends_with("pki/ca.key")), "{error}");
}
