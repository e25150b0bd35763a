// SPDX-License-Identifier: Apache-2.0
//! Why a Pod's volume, variable or limit cannot be had as its manifest asks; the texts are those that Kubernetes shows.

use std::io;

use crate::configs::Kind;

/// Why a container gets no environment, or a volume no content, yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: Kind, name: String },
    #[error("references non-existent key: {key}")]
    NoKey { key: String },
    #[error("couldn't find key {key} in {kind:?} {namespace}/{name}")]
    NoVariable { key: String, kind: Kind, namespace: String, name: String },
    #[error("{kind} {name:?}: the API server does not answer")]
    NoAnswer { kind: Kind, name: String },
    #[error("services have not yet been read at least once, cannot construct envvars")]
    NoServices,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("failed to fetch token: {0}")]
    Token(kube::Error),
    #[error("failed to fetch token: the API gave none")]
    NoToken,
    #[error("hostPath volumes are only for Pods of istio-system: a Pod sees nothing of the host")]
    HostPath,
    #[error(
        "this kind of volume is not supported on this machine (emptyDir, persistentVolumeClaim, configMap, secret, \
         projected, downwardAPI are)"
    )]
    UnsupportedVolume,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a field or a resource of a Pod has no value (downward API, `resources`).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("fieldPath {path:?} is not supported")]
    UnsupportedField { path: String },
    #[error("container {name:?} not found")]
    NoContainer { name: String },
    #[error("resource {name:?} is not supported")]
    UnsupportedResource { name: String },
    #[error("quantity {quantity:?} is not valid")]
    MalformedQuantity { quantity: String },
    #[error("limit {name} {quantity:?} is out of range")]
    OutOfRange { name: String, quantity: String },
}

/// Why a volume cannot be shown in a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountError {
    #[error("volume {name:?} of a mount does not exist")]
    NoVolume { name: String },
    #[error("hostPath {path:?} is not absolute")]
    RelativeHostPath { path: String },
    #[error("hostPath {path:?} must not contain ..")]
    HostPathLeadsUp { path: String },
    #[error("subPath {path:?} must be relative and without ..")]
    SubPathLeadsOut { path: String },
}

/// Why a claim cannot be mounted (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("persistentvolumeclaim {name:?} not found")]
    NotFound { name: String },
    #[error("the claim has no uid")]
    NoUid,
    #[error("persistentvolumeclaim {name:?} is being deleted")]
    Deleted { name: String },
    #[error("persistentvolumeclaim {name:?} is not bound")]
    NotBound { name: String },
    #[error("{folder}: {error}")]
    Folder { folder: String, error: io::Error },
}
