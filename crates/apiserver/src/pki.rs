// SPDX-License-Identifier: Apache-2.0
//! The cluster's keys and certificates: made on the first start, kept afterwards, completed when something is missing.
//!
//! Layout below the data directory:
//! - `pki/`: `ca`, `apiserver`, `apiserver-kubelet-client` (`.crt`, `.key`) and `sa` (`.key`, `.pub`); only the
//!   API server reads it.
//! - `kubeconfig`: the administrator's.
//! - `components/`: `controllers.kubeconfig`, `runner-<node>.kubeconfig`, `kubelet-<node>.{crt,key}`, `ca.crt`.
//!
//! Directories are 0700 and files 0600; a file appears whole or not at all. Everything but the CA and the token
//! key is issued again when it is damaged, was signed by another CA, lacks a name or nears its end.

mod files;
mod issue;
mod kubeconfig;
mod tls;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use issue::{Authority, Leaf};

pub use tls::Pki;

/// Name of the client certificate with which the API server calls a node's kubelet API.
pub const KUBELET_CLIENT_NAME: &str = "kube-apiserver-kubelet-client";
/// Address at which the components inside reach the API server.
pub const INTERNAL_SERVER: &str = "https://10.96.0.1:443";

/// A node that needs credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name, e.g. `node-1`.
    pub name: String,
    /// The address at which its kubelet API is served.
    pub address: IpAddr,
}

/// What [`ensure`] makes credentials for.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Name of the cluster, context and user in the kubeconfigs.
    pub cluster_name: String,
    /// Port on the host's 127.0.0.1 that the administrator's kubeconfig names.
    pub host_port: u16,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
}

/// Why the credentials could not be made or read. Never carries key material.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate could not be made.
    #[error("cannot make the certificate of {what}: {source}")]
    Issue {
        /// Whose.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A file that must not be replaced silently (CA, token key) cannot be used.
    #[error("{}: {reason}; restore it, or remove both halves of the pair to make new ones", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// rustls refused the material.
    #[error("TLS configuration: {0}")]
    Tls(String),
}

/// Makes what is missing and returns what the API server itself needs.
///
/// # Errors
/// A file cannot be read or written, or the CA or token key is damaged.
pub fn ensure(layout: &Layout, now: SystemTime) -> Result<Pki, PkiError> {
    let pki = layout.data_dir.join("pki");
    let components = layout.data_dir.join("components");
    for dir in [&layout.data_dir, &pki, &components] {
        files::private_dir(dir)?;
    }
    let authority = Authority::open(&pki, now)?;
    files::write_if_changed(&components.join("ca.crt"), authority.cert_pem().as_bytes())?;
    issue::ensure_pair(&pki, "apiserver", &Leaf::serving("kube-apiserver", serving_names()), &authority)?;
    let kubelet_client = Leaf::client(KUBELET_CLIENT_NAME, &[]);
    issue::ensure_pair(&pki, "apiserver-kubelet-client", &kubelet_client, &authority)?;
    issue::ensure_token_key(&pki)?;

    let kubeconfig = |path: PathBuf, server: String, leaf: Leaf| {
        kubeconfig::ensure(&path, &layout.cluster_name, &server, &leaf, &authority)
    };
    kubeconfig(
        layout.data_dir.join("kubeconfig"),
        format!("https://127.0.0.1:{}", layout.host_port),
        Leaf::client("kubernetes-admin", &["system:masters"]),
    )?;
    kubeconfig(
        components.join("controllers.kubeconfig"),
        INTERNAL_SERVER.to_owned(),
        Leaf::client("system:kube-controller-manager", &[]),
    )?;
    for node in &layout.nodes {
        kubeconfig(
            components.join(format!("runner-{}.kubeconfig", node.name)),
            INTERNAL_SERVER.to_owned(),
            Leaf::client(&format!("system:node:{}", node.name), &["system:nodes"]),
        )?;
        let names = vec![node.name.clone(), node.address.to_string()];
        let leaf = Leaf::serving(&format!("system:node:{}", node.name), names);
        issue::ensure_pair(&components, &format!("kubelet-{}", node.name), &leaf, &authority)?;
    }
    Pki::open(&pki)
}

fn serving_names() -> Vec<String> {
    [
        "127.0.0.1",
        "::1",
        "10.96.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |source| PkiError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
