// SPDX-License-Identifier: Apache-2.0
//! Restart policies of Pods and containers.

use k8s_openapi::api::core::v1::Pod;

/// After which end a container runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// Reads the value of `restartPolicy`; its default is `Always`.
    pub(crate) fn read(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// The policy of a Pod.
    pub(crate) fn of_pod(pod: &Pod) -> Self {
        Self::read(pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()))
    }

    /// The policy of init containers in a Pod of this policy: none of them runs again after success.
    pub(crate) fn of_init_container(self) -> Self {
        if self == Self::Never { Self::Never } else { Self::OnFailure }
    }

    /// Whether a container that has ended runs again.
    pub(crate) fn runs_again(self, succeeded: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !succeeded,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_again() {
        for (text, main, init) in [
            (None, [true, true], [false, true]),
            (Some("Always"), [true, true], [false, true]),
            (Some("OnFailure"), [false, true], [false, true]),
            (Some("Never"), [false, false], [false, false]),
        ] {
            let policy = RestartPolicy::read(text);
            let of_init = policy.of_init_container();
            assert_eq!([true, false].map(|succeeded| policy.runs_again(succeeded)), main, "{text:?}");
            assert_eq!([true, false].map(|succeeded| of_init.runs_again(succeeded)), init, "{text:?}");
        }
    }
}
