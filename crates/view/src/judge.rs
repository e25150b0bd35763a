// SPDX-License-Identifier: Apache-2.0
//! A layer 4 request with its facts, owned, so that it can be judged again when something changes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use meltemi_model::authz::Action;
use meltemi_model::{SpiffeId, WorkloadUid};
use meltemi_policy::{
    Decision, Facts, Permit, PolicySet, Revoker, admit, admit_after, explain, explain_decision,
};
use meltemi_state::Snapshot;

use crate::denial::Denial;
use crate::mesh::Mesh;

/// Judges facts by a set; a denial is explained.
///
/// # Errors
/// The denial.
pub fn judge(set: &PolicySet, facts: &Facts<'_>, generation: u64) -> Result<(Permit, Revoker), Denial> {
    admit(set, facts, generation).map_err(|_| Denial::from(explain(set, facts)))
}

/// Judges facts by a set, after some external authorizers have allowed them.
///
/// # Errors
/// The denial; [`Denial::NotAllowed`] names the next authorizer that is to be asked.
pub fn judge_after(
    set: &PolicySet,
    facts: &Facts<'_>,
    allowed: &BTreeSet<Arc<str>>,
    generation: u64,
) -> Result<(Permit, Revoker), Denial> {
    let mut outcome = admit(set, facts, generation);
    // Every provider is asked once, so this ends.
    while let Err(decision @ Decision::Ask { by }) = outcome {
        let action = set.policy(by.policy).map(|policy| &policy.action);
        let Some(Action::Custom { provider }) = action else { break };
        if !allowed.contains(provider) {
            let why = Box::new(explain_decision(set, facts, decision));
            return Err(Denial::NotAllowed { provider: provider.clone(), why });
        }
        outcome = admit_after(set, facts, by, generation);
    }
    outcome.map_err(|decision| Denial::from(explain_decision(set, facts, decision)))
}

/// A connection to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Request {
    /// Who the peer has proven to be; none for plaintext.
    pub source: Option<SpiffeId>,
    /// Where it comes from.
    pub from: SocketAddr,
    /// The real destination.
    pub to: SocketAddr,
    /// The destination workload.
    pub workload: WorkloadUid,
}

impl L4Request {
    /// Judges by what the mesh says now: of the workload, its labels and its policies. A workload that is not known is
    /// refused, as is one whose policies are not; and everything, while not everything has been heard: policies of a whole
    /// namespace or mesh are named by nobody, so that nobody would miss them.
    ///
    /// # Errors
    /// The denial.
    pub fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denial> {
        mesh.heard()?;
        let snapshot = &mesh.snapshot;
        let Some(workload) = snapshot.workload(&self.workload) else {
            return Err(Denial::WorkloadNotKnown(self.workload.clone()));
        };
        let set = snapshot.policies_for(workload);
        let facts = Facts {
            source: self.source.as_ref(),
            source_ip: self.from.ip().to_canonical(),
            destination_ip: self.to.ip().to_canonical(),
            destination_port: self.to.port(),
            sni: None,
            http: None,
        };
        judge(&set, &facts, snapshot.generation()).map_err(|denial| name_rejected(denial, snapshot))
    }
}

/// Says why a policy is not known, where this proxy rejected it. Nothing is gained by waiting for it.
fn name_rejected(denial: Denial, snapshot: &Snapshot) -> Denial {
    if !denial.is_transient() {
        return denial;
    }
    let Some(policy) = denial.policy() else { return denial };
    match snapshot.refused(&policy) {
        Some(reason) => Denial::PolicyRejected { policy, reason: reason.to_string() },
        None => denial,
    }
}
