// SPDX-License-Identifier: Apache-2.0
//! Which workloads are in the mesh, by the rule by which Istio's CNI agent enrols Pods.

use meltemi_translate::labels::DATAPLANE_MODE;

use super::{Workload, World};

impl World {
    /// Whether a workload is in the mesh; `None` when its Namespace is not among the objects and its own labels do not
    /// decide.
    pub fn is_enrolled(&self, workload: &Workload) -> Option<bool> {
        if workload.host_network || workload.has_sidecar {
            return Some(false);
        }
        match workload.labels.get(DATAPLANE_MODE).map(String::as_str) {
            Some("ambient") => return Some(true),
            Some("none") => return Some(false),
            _ => {}
        }
        let namespace = self.namespaces.get(&*workload.name.namespace)?;
        Some(namespace.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient"))
    }

    /// Whether a node proxy sees the connections to a workload; `None` as for [`World::is_enrolled`].
    pub fn captures_inbound(&self, workload: &Workload) -> Option<bool> {
        if workload.bypasses_inbound { Some(false) } else { self.is_enrolled(workload) }
    }
}
