// SPDX-License-Identifier: Apache-2.0
//! Which workloads are in the mesh, as far as the objects say: by the rule on which the agent of a node acts.

use meltemi_model::enrolment::{Candidate, DATAPLANE_MODE};

use super::{Workload, World};

impl World {
    /// Whether a workload is in the mesh; `None` when its Namespace is not among the objects and its own labels do not
    /// decide.
    pub fn is_enrolled(&self, workload: &Workload) -> Option<bool> {
        let pod = Candidate {
            host_network: workload.host_network,
            has_sidecar: workload.has_sidecar,
            mode: workload.labels.get(DATAPLANE_MODE).map(String::as_str),
        };
        pod.decides().or_else(|| {
            let namespace = self.namespaces.get(&*workload.name.namespace)?;
            Some(pod.is_enrolled(namespace.get(DATAPLANE_MODE).map(String::as_str)))
        })
    }

    /// Whether a node proxy sees the connections to a workload; `None` as for [`World::is_enrolled`].
    pub fn captures_inbound(&self, workload: &Workload) -> Option<bool> {
        if workload.bypasses_inbound { Some(false) } else { self.is_enrolled(workload) }
    }
}
