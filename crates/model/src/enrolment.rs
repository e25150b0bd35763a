// SPDX-License-Identifier: Apache-2.0
//! Which Pods belong into the mesh: the rule by which Istio's CNI agent enrols Pods. The agent of the node acts on it, and
//! whoever reads objects without a node predicts by it.

/// Label of Pods and Namespaces: `ambient` or `none`.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation of a Pod with `true`: connections to it are not captured; for gateways.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Annotation of a Pod that another implementation has given a sidecar.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// A Pod, as far as it decides whether it belongs into the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// It uses the node's network, where nothing can be captured.
    pub host_network: bool,
    /// It has [`SIDECAR_STATUS`].
    pub has_sidecar: bool,
    /// Its own [`DATAPLANE_MODE`].
    pub mode: Option<&'a str>,
}

impl Candidate<'_> {
    /// Whether it belongs into the mesh, where it decides that itself; `None` leaves it to its Namespace.
    pub fn decides(&self) -> Option<bool> {
        match self.mode {
            _ if self.host_network || self.has_sidecar => Some(false),
            Some("ambient") => Some(true),
            Some("none") => Some(false),
            _ => None,
        }
    }

    /// Whether it belongs into the mesh; `namespace` is the [`DATAPLANE_MODE`] of its Namespace.
    pub fn is_enrolled(&self, namespace: Option<&str>) -> bool {
        self.decides().unwrap_or(namespace == Some("ambient"))
    }
}

/// Whether connections to a Pod are left alone; `annotation` is the Pod's [`BYPASS_INBOUND`].
pub fn bypasses_inbound(annotation: Option<&str>) -> bool {
    annotation == Some("true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_comes_before_its_namespace() {
        let (ambient, none, other) = (Some("ambient"), Some("none"), Some("sidecar"));
        // Its own label, and whether it is enrolled by a Namespace that says nothing, `ambient`, `none` or something else.
        let table = [
            (None, [false, true, false, false]),
            (other, [false, true, false, false]),
            (ambient, [true, true, true, true]),
            (none, [false, false, false, false]),
        ];
        for (mode, expected) in table {
            for (namespace, expected) in [None, ambient, none, other].into_iter().zip(expected) {
                let pod = Candidate { mode, ..Candidate::default() };
                assert_eq!(pod.is_enrolled(namespace), expected, "{mode:?} {namespace:?}");
                assert!(!Candidate { host_network: true, ..pod }.is_enrolled(namespace));
                assert!(!Candidate { has_sidecar: true, ..pod }.is_enrolled(namespace));
            }
            let decides = (mode == ambient || mode == none).then_some(mode == ambient);
            assert_eq!(Candidate { mode, ..Candidate::default() }.decides(), decides);
            assert_eq!(Candidate { mode, host_network: true, has_sidecar: false }.decides(), Some(false));
        }
    }

    #[test]
    fn only_true_bypasses() {
        assert!(bypasses_inbound(Some("true")));
        assert!([None, Some(""), Some("false"), Some("True")].into_iter().all(|a| !bypasses_inbound(a)));
    }
}
