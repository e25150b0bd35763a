// SPDX-License-Identifier: Apache-2.0
//! Pods into the mesh and out of it, as the agent of a node does it: who belongs, capture, what the node proxies know, and
//! the annotation that reports it.
//!
//! A Pod that should be captured starts captured or not at all. One that already runs is captured as soon as a node proxy
//! serves it; what fails is tried again by time. A Pod that leaves keeps the proxy's listeners and open connections for a
//! while, since clients learn of it with a delay.
//!
//! Whoever runs the Pods (the runner on one machine, the CNI agent on Kubernetes) implements [`Host`] for each of them and
//! drives a [`Member`]; both share the [`Enrolment`] of the node.

mod member;
mod ports;
mod shared;
pub mod zds;

use std::collections::BTreeMap;
use std::io;

use k8s_openapi::api::core::v1::Pod;
use meltemi_capture::Options;
use meltemi_linux::netns::NetNs;
use meltemi_model::enrolment::{BYPASS_INBOUND, Candidate, DATAPLANE_MODE, SIDECAR_STATUS, bypasses_inbound};

pub use member::{Member, Subject};
pub use shared::{Enrolment, Labels, Rules};

/// The annotation of an enrolled Pod, by which Istio's tools know it.
pub const ANNOTATION: &str = "ambient.istio.io/redirection";

/// Type of the condition that says whether a Pod's traffic passes the node proxy. The control plane reads it: what it says
/// cannot be written by whoever may change the Pod's labels and annotations.
pub const CAPTURED: &str = "meltemi.dev/Captured";

/// Whether a Pod's traffic passes the node proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// It does not belong into the mesh; no condition.
    Outside,
    /// Captured, and a node proxy serves it.
    Captured,
    /// It should be, and is not: why.
    Not {
        /// Reason of the condition.
        reason: &'static str,
        /// Its message.
        message: String,
    },
}

/// Why a Pod is not enrolled, or has not left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whether the Pod belongs into the mesh cannot be decided.
    #[error("the labels of namespace {0} are not known")]
    UnknownNamespace(String),
    /// The kernel refuses.
    #[error(transparent)]
    Capture(#[from] meltemi_capture::Error),
    /// The annotation could not be written.
    #[error("annotation {ANNOTATION}: {0}")]
    Annotation(String),
}

/// A Pod, as whoever runs it shows it to its [`Member`].
pub trait Host: Send + Sync + 'static {
    /// The Pod's network namespace. `None` when the Pod has ended: the member then ends too.
    ///
    /// # Errors
    /// It cannot be opened now; it is tried again.
    fn netns(&self) -> io::Result<Option<NetNs>>;

    /// Reports in the Pod's status whether it is captured.
    fn show(&self, capture: Capture);

    /// Writes an event that somebody should look at.
    fn warn(&self, reason: &'static str, message: String);
}

/// Whether a Pod belongs into the mesh, by its own labels and those of its namespace.
pub fn is_eligible(pod: &Pod, namespace: Option<&Labels>) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let mode = |labels: Option<&BTreeMap<String, String>>| labels?.get(DATAPLANE_MODE).cloned();
    let (own, of_namespace) = (mode(pod.metadata.labels.as_ref()), mode(namespace));
    let candidate = Candidate {
        host_network: pod.spec.as_ref().and_then(|s| s.host_network) == Some(true),
        has_sidecar: annotations.is_some_and(|a| a.contains_key(SIDECAR_STATUS)),
        mode: own.as_deref(),
    };
    candidate.is_enrolled(of_namespace.as_deref())
}

/// Whether the Pod's annotation says that it is enrolled.
fn has_annotation(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ANNOTATION))
}

/// A Pod's own choices, under the rules of its node.
fn options(pod: &Pod, rules: &Rules) -> Options {
    let annotation =
        |name: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str);
    Options {
        dns_capture: annotation("ambient.istio.io/dns-capture") != Some("false"),
        bypass_inbound: bypasses_inbound(annotation(BYPASS_INBOUND)),
        ipv6: true,
        node_probes: rules.node_probes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_eligible() {
        let ambient = BTreeMap::from([(DATAPLANE_MODE.to_owned(), "ambient".to_owned())]);
        for (label, host, sidecar, namespace, expected) in [
            (None, false, false, Some(&ambient), true),
            (None, false, false, None, false),
            (Some("none"), false, false, Some(&ambient), false),
            (Some("ambient"), false, false, None, true),
            (Some("ambient"), true, false, Some(&ambient), false),
            (None, false, true, Some(&ambient), false),
        ] {
            let mut pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p"}, "spec": {"containers": [], "hostNetwork": host}
            }))
            .unwrap();
            pod.metadata.labels = label.map(|l| BTreeMap::from([(DATAPLANE_MODE.to_owned(), l.to_owned())]));
            if sidecar {
                pod.metadata.annotations =
                    Some(BTreeMap::from([("sidecar.istio.io/status".to_owned(), "{}".to_owned())]));
            }
            assert_eq!(is_eligible(&pod, namespace), expected, "{label:?} {host} {sidecar}");
        }
    }
}
