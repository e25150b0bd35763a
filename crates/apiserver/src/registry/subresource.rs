// SPDX-License-Identifier: Apache-2.0
//! The subresources that are served, with their verbs: the one list that discovery shows and that requests are held to.

use super::ResourceInfo;

/// A subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// The status of any kind that has one.
    Status,
    /// `autoscaling/v1 Scale`.
    Scale,
    /// `pods/attach`.
    Attach,
    /// `pods/binding`: the scheduler's decision.
    Binding,
    /// `pods/ephemeralcontainers`: containers that are added to a Pod that runs.
    EphemeralContainers,
    /// `pods/eviction`: a deletion that respects disruption budgets.
    Eviction,
    /// `pods/exec`.
    Exec,
    /// `pods/log`.
    Log,
    /// `pods/portforward`.
    PortForward,
    /// `serviceaccounts/token`.
    Token,
    /// `namespaces/finalize`: the finalizers of a namespace's specification.
    Finalize,
}

impl Subresource {
    /// Its name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Attach => "attach",
            Self::Binding => "binding",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Eviction => "eviction",
            Self::Exec => "exec",
            Self::Log => "log",
            Self::PortForward => "portforward",
            Self::Token => "token",
            Self::Finalize => "finalize",
        }
    }

    /// The verbs that are served.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::Scale | Self::EphemeralContainers => &["get", "patch", "update"],
            Self::Attach | Self::Exec | Self::PortForward => &["create", "get"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Log => &["get"],
            Self::Finalize => &["update"],
        }
    }

    /// Kind of the body; for [`Self::Status`], [`Self::EphemeralContainers`], [`Self::Log`] and [`Self::Finalize`] that of the
    /// resource.
    pub fn kind(self, info: &ResourceInfo) -> &str {
        match self {
            Self::Status | Self::EphemeralContainers | Self::Log | Self::Finalize => &info.kind,
            Self::Scale => "Scale",
            Self::Attach => "PodAttachOptions",
            Self::Binding => "Binding",
            Self::Eviction => "Eviction",
            Self::Exec => "PodExecOptions",
            Self::PortForward => "PodPortForwardOptions",
            Self::Token => "TokenRequest",
        }
    }

    /// Group and version of the body where they are not those of the resource.
    pub fn group_version(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Scale => Some(("autoscaling", "v1")),
            Self::Eviction => Some(("policy", "v1")),
            Self::Token => Some(("authentication.k8s.io", "v1")),
            _ => None,
        }
    }

    /// Whether it opens a stream into a Pod's containers, in which the client can act.
    pub fn acts_in_a_pod(self) -> bool {
        matches!(self, Self::Attach | Self::Exec | Self::PortForward)
    }
}

impl ResourceInfo {
    /// The subresources that are served.
    pub fn subresources(&self) -> Vec<Subresource> {
        let of_any = [(self.status, Subresource::Status), (self.scale.is_some(), Subresource::Scale)];
        let own: &[Subresource] = match (self.group.as_str(), self.plural.as_str()) {
            ("", "pods") => &[
                Subresource::Attach,
                Subresource::Binding,
                Subresource::EphemeralContainers,
                Subresource::Eviction,
                Subresource::Exec,
                Subresource::Log,
                Subresource::PortForward,
            ],
            ("", "serviceaccounts") => &[Subresource::Token],
            ("", "namespaces") => &[Subresource::Finalize],
            _ => &[],
        };
        let shared = of_any.into_iter().filter(|(served, _)| *served).map(|(_, sub)| sub);
        shared.chain(own.iter().copied()).collect()
    }

    /// The subresource of a path; `None` when this resource does not have it.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources().into_iter().find(|sub| sub.name() == name)
    }
}
