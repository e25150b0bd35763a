// SPDX-License-Identifier: Apache-2.0
//! The reasons for which a proxy denies a connection or a request.

use std::sync::Arc;

use meltemi_model::{NamespacedHostname, NamespacedName, WorkloadUid};
use meltemi_policy::{Decision, Explanation};

/// Why a connection or a request is denied. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The policies in force deny it, or one that applies is not known yet.
    #[error("{}", .0.text)]
    Policy(Box<Explanation>),
    /// A policy asks an external authorizer, which has not allowed it.
    #[error("{}", .why.text)]
    NotAllowed {
        /// The authorizer.
        provider: Arc<str>,
        /// The policy and its rule.
        why: Box<Explanation>,
    },
    /// Not every type of resource has been received since the start.
    #[error("the control plane has not said everything yet: {waiting_for} is missing")]
    NotSynced {
        /// Type URL of the first of them.
        waiting_for: String,
    },
    /// The destination workload is not known yet.
    #[error("workload {0} is not known yet")]
    WorkloadNotKnown(WorkloadUid),
    /// This proxy rejected a layer 4 policy that applies, and has no earlier version of it.
    #[error("policy {policy} was refused by this proxy and is not known: {reason}")]
    PolicyRejected {
        /// Its name.
        policy: NamespacedName,
        /// What is wrong with it.
        reason: String,
    },
    /// This proxy rejected a layer 7 policy or token rule, so that what it applies to is not known.
    #[error("policy {resource} was refused by this proxy and is not known: {reason}")]
    ResourceRejected {
        /// `<namespace>/<name>`, after its kind where it is not a policy.
        resource: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request carries a token that is not taken.
    #[error("RequestAuthentication {authentication}: {reason}")]
    InvalidToken {
        /// The first RequestAuthentication that looks at the place where it was.
        authentication: NamespacedName,
        /// What is wrong with it.
        reason: meltemi_tokens::Invalid,
    },
    /// The connection is not HTTP by its first bytes alone, so that nobody can tell whether it carries a token.
    #[error("RequestAuthentication {authentication} looks for tokens in HTTP")]
    TokenNotReadable {
        /// The RequestAuthentication that applies.
        authentication: NamespacedName,
    },
    /// The Service that is addressed has another waypoint, or none, or is gone.
    #[error("{gateway} is no longer the waypoint of {service}{}", if *.exists { "" } else { ", which does not exist any more" })]
    ServiceNotServed {
        /// This proxy.
        gateway: NamespacedName,
        /// The Service.
        service: NamespacedHostname,
        /// Whether the Service exists.
        exists: bool,
    },
    /// The Pod that is addressed has another waypoint, or none.
    #[error("{gateway} is no longer the waypoint of {}", .workload.0)]
    WorkloadNotServed {
        /// This proxy.
        gateway: NamespacedName,
        /// The Pod.
        workload: WorkloadUid,
    },
    /// The Pod that is addressed is gone from its address.
    #[error("{} does not exist any more at {address}", .workload.0)]
    WorkloadGone {
        /// The Pod.
        workload: WorkloadUid,
        /// The address.
        address: std::net::SocketAddr,
    },
    /// A Service of the Pod was closed after the request had been opened, whose facts were not kept.
    #[error("service {service} was closed to other Services' requests while this one was open")]
    ClosedMeanwhile {
        /// The Service.
        service: NamespacedHostname,
    },
    /// A filter of a route makes an ambiguous request of it.
    #[error("the request as it is forwarded: {reason}")]
    Ambiguous {
        /// What is ambiguous.
        reason: &'static str,
    },
    /// Too many connections and requests are open.
    #[error("{limit} connections are open")]
    OverCapacity {
        /// The bound.
        limit: usize,
    },
}

impl Denial {
    /// Whether the verdict may change by itself soon: what a policy or workload says that is still on its way.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Policy(why) => matches!(why.decision, Decision::Undecided { .. }),
            Self::NotSynced { .. } | Self::WorkloadNotKnown(_) | Self::ResourceRejected { .. } => true,
            _ => false,
        }
    }

    /// The policy that decided or came closest, or the RequestAuthentication.
    pub fn policy(&self) -> Option<NamespacedName> {
        match self {
            Self::Policy(why) | Self::NotAllowed { why, .. } => why.policy.clone(),
            Self::PolicyRejected { policy, .. } => Some(policy.clone()),
            Self::ResourceRejected { resource, .. } => resource.parse().ok(),
            Self::InvalidToken { authentication, .. } | Self::TokenNotReadable { authentication } => {
                Some(authentication.clone())
            }
            _ => None,
        }
    }

    /// Index of the rule that decided or came closest.
    pub fn rule(&self) -> Option<u32> {
        if let Self::Policy(why) | Self::NotAllowed { why, .. } = self { why.rule } else { None }
    }

    /// The clauses that matched, or the one that failed.
    pub fn clause(&self) -> Option<&str> {
        if let Self::Policy(why) | Self::NotAllowed { why, .. } = self { why.clause.as_deref() } else { None }
    }

    /// The rule of a DENY policy that matched; `None` for any other reason.
    pub fn denying_rule(&self) -> Option<(&NamespacedName, u32)> {
        match self {
            Self::Policy(why) if matches!(why.decision, Decision::Deny { by: Some(_) }) => {
                Some((why.policy.as_ref()?, why.rule?))
            }
            _ => None,
        }
    }
}

impl From<Explanation> for Denial {
    fn from(why: Explanation) -> Self {
        Self::Policy(Box::new(why))
    }
}
