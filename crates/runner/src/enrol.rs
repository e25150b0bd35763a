// SPDX-License-Identifier: Apache-2.0
//! Enrolment of Pods in the mesh, as the CNI agent does it: eligibility, capture, the node proxy's knowledge, and the
//! annotation and condition that report them.
//!
//! A Pod that should be captured starts captured or not at all. One that already runs is captured as soon as a node proxy
//! serves it; what fails is tried again by time. A Pod that leaves keeps the proxy's listeners and open connections for a
//! while, since clients learn of it with a delay.

pub(crate) mod enrolment;
mod member;
mod ports;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use meltemi_capture::Options;
use meltemi_model::enrolment::{BYPASS_INBOUND, Candidate, DATAPLANE_MODE, SIDECAR_STATUS, bypasses_inbound};
use tokio::time::Instant;

use self::member::Member;
use crate::context::{Context, PodEntry};
use crate::lock::lock;
use crate::sandbox::Sandbox;

pub(super) const ANNOTATION: &str = "ambient.istio.io/redirection";
/// Label of a namespace whose Pods may use the node's network; it takes rights on Namespaces to set it.
const HOST_NETWORK: &str = "meltemi.dev/host-network";
/// The mesh's own namespace: its Pods may use the node's network without the label.
const SYSTEM: &str = "istio-system";
/// First and longest pause before an enrolment that failed is tried again.
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// Why a Pod is not enrolled, or has not left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
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

/// Whether a Pod belongs into the mesh.
pub(crate) fn eligible(pod: &Pod, namespace: Option<&BTreeMap<String, String>>) -> bool {
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

/// A Pod's own choices. Probes are dialled inside of its namespace, so that no source address of the network is excepted.
fn options(pod: &Pod) -> Options {
    let annotation =
        |name: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str);
    Options {
        dns_capture: annotation("ambient.istio.io/dns-capture") != Some("false"),
        bypass_inbound: bypasses_inbound(annotation(BYPASS_INBOUND)),
        ipv6: true,
        node_probes: false,
    }
}

/// Checks that a Pod on the node's network is in a namespace whose administrator allows it. From there every listener of
/// the node can be reached, and nothing is captured.
///
/// # Errors
/// It does not, or the labels of the namespace are not known; the message says what to do.
pub(crate) async fn check_host_network(ctx: &Arc<Context>, entry: &PodEntry) -> Result<(), String> {
    if entry.namespace == SYSTEM {
        return Ok(());
    }
    let labels = ctx.enrolment.labels_of(&ctx.client, &entry.namespace).await;
    let labels = labels.ok_or_else(|| Error::UnknownNamespace(entry.namespace.clone()).to_string())?;
    if labels.get(HOST_NETWORK).is_some_and(|value| value == "allowed") {
        return Ok(());
    }
    Err(format!(
        "spec.hostNetwork: namespace {} does not allow the node's network; an administrator allows it by the label \
         {HOST_NETWORK}=allowed of the namespace",
        entry.namespace
    ))
}

/// Before the first process of a Pod starts: captures its traffic if it belongs into the mesh, and keeps that in line with
/// its labels from then on.
///
/// # Errors
/// It should be captured and could not be, or it is not known whether it should: no process of it may start.
pub(crate) async fn before_start(
    ctx: &Arc<Context>,
    entry: &Arc<PodEntry>,
    sandbox: &Arc<Sandbox>,
) -> Result<(), Error> {
    let member = Member::new(ctx, entry);
    let due = member.reconcile(sandbox.netns(), true).await?;
    let sandbox = Arc::downgrade(sandbox);
    ctx.job("enrolment", async move {
        member.follow(due.map(|pause| Instant::now() + pause), &sandbox).await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(())
}

/// After the last process of a Pod has ended.
pub(crate) async fn after_end(ctx: &Arc<Context>, entry: &Arc<PodEntry>) {
    let gate = ctx.enrolment.gate(&entry.uid);
    let mut membership = gate.lock().await;
    *membership = enrolment::Membership::Outside;
    ctx.enrolment.proxies.remove(&entry.uid);
    lock(&ctx.enrolment.gate).remove(&entry.uid);
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
            assert_eq!(eligible(&pod, namespace), expected, "{label:?} {host} {sidecar}");
        }
    }
}
