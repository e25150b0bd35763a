// SPDX-License-Identifier: Apache-2.0
//! Errors that stop the control plane.

/// An error that ends the control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API could not be used at all.
    #[error("Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    /// A port could not be opened.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate authority could not be loaded or made.
    #[error("certificate authority: {0}")]
    Ca(String),
    /// A task ended that must not.
    #[error(transparent)]
    Task(#[from] meltemi_runtime::TaskError),
}
