// SPDX-License-Identifier: Apache-2.0
//! Errors that keep a container from starting.

/// What kept an instance from being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartReason {
    /// Its specification, or something that it names. The runner tries again, since that can be put right.
    Config,
    /// The start itself: the instance has ended.
    Run,
}

impl StartReason {
    /// The reason as the kubelet writes it into statuses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Config => "CreateContainerConfigError",
            Self::Run => "RunContainerError",
        }
    }
}

/// Why an instance could not be started.
#[derive(Debug)]
pub(crate) struct StartError {
    pub reason: StartReason,
    pub message: String,
}
