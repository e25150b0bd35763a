// SPDX-License-Identifier: Apache-2.0
//! Why a node may not do something; the texts are those of Kubernetes' node authorizer and NodeRestriction.

/// Why a request of a node is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::auth) enum NodeDenial {
    /// Nothing of what nodes do.
    #[error("")]
    NotForNodes,
    #[error("the user's name does not name a node")]
    NoNode,
    #[error("node {node:?} cannot modify node {other:?}")]
    OtherNode { node: String, other: String },
    #[error("no relationship found between node {node:?} and this object")]
    NoRelationship { node: String },
    #[error("can only list/watch {resource} with {field}={value} as a field selector")]
    NoSelector { resource: String, field: &'static str, value: String },
    #[error("can only {verb} {resource} one by one or with metadata.name as a field selector")]
    NoName { verb: String, resource: String },
    #[error("a node may not create pods")]
    CreatesPod,
    #[error("node {node:?} cannot update labels through pod status")]
    LabelsByStatus { node: String },
    #[error("is not allowed to modify the label {key:?} of nodes")]
    NodeLabel { key: String },
    #[error("is not allowed to modify {field}")]
    NodeField { field: &'static str },
    #[error("is not allowed to change spec.{field}")]
    PodRange { field: &'static str },
    #[error("node requested token not bound to a pod")]
    UnboundToken,
    #[error("node requested token bound to a pod that does not exist")]
    TokenOfNoPod,
    #[error("node requested token bound to a pod scheduled on a different node")]
    TokenOfOtherNode,
    #[error("node requested token for the audience {audience:?}, which the pod does not mount")]
    Audience { audience: String },
    #[error("node {node:?} does not exist")]
    UnknownNode { node: String },
    #[error("node {node:?} cannot give a pod the address {address}, which is not of its range")]
    ForeignAddress { node: String, address: String },
}

/// Whether a node may; the denial says why not.
pub(super) type Permission = Result<(), NodeDenial>;

impl NodeDenial {
    pub(super) fn no_relationship(node: &str) -> Self {
        Self::NoRelationship { node: node.to_owned() }
    }
}
