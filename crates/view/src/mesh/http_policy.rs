// SPDX-License-Identifier: Apache-2.0
//! A layer 7 policy after its check: what a proxy keeps and enforces.

use meltemi_model::authz::Action;
use meltemi_model::l7::{HttpPolicy, Target};
use meltemi_policy::{InvalidPolicy, ValidPolicy};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::mesh::targeted::Attached;

/// An [`HttpPolicy`] that the engine accepts. Its check happens once, when the control plane sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidHttpPolicy {
    /// The policy.
    pub policy: ValidPolicy,
    /// The traffic that it applies to; never empty.
    pub targets: Vec<Target>,
}

impl TryFrom<HttpPolicy> for ValidHttpPolicy {
    type Error = InvalidPolicy;

    fn try_from(document: HttpPolicy) -> Result<Self, InvalidPolicy> {
        Ok(Self { policy: ValidPolicy::new(document.policy)?, targets: document.targets })
    }
}

/// The same form as that of the document.
impl Serialize for ValidHttpPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("HttpPolicy", 2)?;
        document.serialize_field("policy", &*self.policy)?;
        document.serialize_field("targets", &self.targets)?;
        document.end()
    }
}

impl Attached for ValidHttpPolicy {
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }

    fn only_reports(&self) -> bool {
        self.policy.only_reports()
    }

    fn asks(&self) -> bool {
        matches!(self.policy.action, Action::Custom { .. })
    }
}
