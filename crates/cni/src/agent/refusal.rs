// SPDX-License-Identifier: Apache-2.0
//! Why a Pod may not start, or is not as it should be.

use std::io;

use crate::ask::VERSION;

/// The reason that the plugin is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the plugin speaks version {0} and the agent {VERSION}: one of them is of another release")]
    Version(u32),
    #[error("this is no question of a plugin")]
    NoQuestion,
    #[error("no network namespace came along")]
    NoNamespace,
    #[error("the network namespace cannot be looked at: {0}")]
    Namespace(#[source] io::Error),
    #[error("the network namespace is the node's")]
    NodesNamespace,
    #[error("the network namespace is that of Pod {0}")]
    OthersNamespace(String),
    #[error("the network namespace is not the one that was captured")]
    AnotherNamespace,
    #[error("the rules of the capture are not there")]
    RulesLost,
    #[error("the API has no such Pod")]
    NoPod,
    #[error("the Pod of this name is another one")]
    AnotherPod,
    #[error("the Pod cannot be asked for: {0}")]
    Api(#[source] kube::Error),
    #[error("the API server does not answer")]
    Silent,
    #[error(transparent)]
    Enrolment(#[from] meltemi_enrolment::Error),
    #[error(transparent)]
    Capture(#[from] meltemi_capture::Error),
}
