// SPDX-License-Identifier: Apache-2.0
//! A layer 4 request with its facts, owned, so that it can be judged again when something changes.

use std::net::SocketAddr;

use meltemi_model::{SpiffeId, WorkloadUid};
use meltemi_policy::{Facts, Permit, PolicySet, Revoker, admit, explain};
use meltemi_state::Snapshot;

use crate::denied::Denied;
use crate::mesh::Mesh;

/// Judges facts by a set; a denial is explained.
///
/// # Errors
/// The denial.
pub fn judge(set: &PolicySet, facts: &Facts<'_>, generation: u64) -> Result<(Permit, Revoker), Denied> {
    admit(set, facts, generation).map_err(|_| Denied::from(explain(set, facts)))
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
    pub fn judge(&self, mesh: &Mesh) -> Result<(Permit, Revoker), Denied> {
        mesh.heard()?;
        let snapshot = &mesh.snapshot;
        let Some(workload) = snapshot.workload(&self.workload) else {
            let text = format!("workload {} is not known yet", self.workload);
            return Err(Denied { text, policy: None, rule: None, clause: None, missing: true });
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
        judge(&set, &facts, snapshot.generation()).map_err(|denied| refused(denied, snapshot))
    }
}

/// Says why a policy is not known, where it was refused. Nothing is gained by waiting for it.
fn refused(denied: Denied, snapshot: &Snapshot) -> Denied {
    let reason = denied.policy.as_ref().filter(|_| denied.missing).and_then(|name| snapshot.refused(name));
    match (reason, &denied.policy) {
        (Some(reason), Some(name)) => {
            let text = format!("policy {name} was refused by this proxy and is not known: {reason}");
            Denied { text, missing: false, ..denied }
        }
        _ => denied,
    }
}
