// SPDX-License-Identifier: Apache-2.0
//! Kubeconfig files with embedded credentials: nothing else need be copied with them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::issue::{Authority, Leaf, Pair};
use super::{PkiError, files};

/// Keeps the certificate of an existing kubeconfig when it serves; the server's address is always the one given.
pub(super) fn ensure(
    path: &Path,
    cluster: &str,
    server: &str,
    leaf: &Leaf,
    authority: &Authority,
) -> Result<(), PkiError> {
    let kept =
        files::read(path)?.and_then(|text| embedded(&text)).filter(|pair| authority.accepts(pair, leaf));
    let pair = match kept {
        Some(pair) => pair,
        None => authority.issue(leaf)?,
    };
    files::write_if_changed(path, render(cluster, server, authority.cert_pem(), &pair).as_bytes())
}

fn render(cluster: &str, server: &str, ca: &str, pair: &Pair) -> String {
    let (ca, cert, key) = (STANDARD.encode(ca), STANDARD.encode(&pair.cert), STANDARD.encode(&pair.key));
    // The names go through JSON's quoting, which YAML reads as well.
    let name = Value::from(cluster);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: {name}
  cluster:
    certificate-authority-data: {ca}
    server: {server}
contexts:
- name: {name}
  context:
    cluster: {name}
    user: {name}
current-context: {name}
preferences: {{}}
users:
- name: {name}
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
"
    )
}

fn embedded(text: &str) -> Option<Pair> {
    let config: Value = crate::document::yaml(text.as_bytes()).unwrap_or(json!(null));
    let field = |name: &str| {
        let data = config["users"][0]["user"][name].as_str()?;
        String::from_utf8(STANDARD.decode(data).ok()?).ok()
    };
    Some(Pair { cert: field("client-certificate-data")?, key: field("client-key-data")? })
}
