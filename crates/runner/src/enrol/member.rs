// SPDX-License-Identifier: Apache-2.0
//! One Pod's way into the mesh and out of it.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use meltemi_capture::{Options, Plan};
use meltemi_linux::netns::NetNs;
use tokio::sync::watch;
use tokio::time::Instant;

use super::enrolment::Membership;
use super::ports::{self, Reserved};
use super::{ANNOTATION, Error, MAX_RETRY, MIN_RETRY, eligible, has_annotation, options};
use crate::context::{Context, PodEntry};
use crate::lock::lock;
use crate::sandbox::Sandbox;
use crate::state::Capture;
use crate::zds::proxies::{Answer, Workload};

/// How long a new Pod waits for the node proxy to take it. Then it starts, captured: refused until the proxy does.
const WAIT_FOR_PROXY: Duration = Duration::from_secs(5);
/// The same when no proxy is connected.
const WAIT_FOR_NONE: Duration = Duration::from_secs(2);
/// How long a running Pod is open until the node proxy takes it. Then it is captured all the same.
const WAIT_RUNNING: Duration = Duration::from_secs(15);
/// How long the proxy listens for a Pod that leaves: clients whose proxies have not heard of it still open tunnels.
const LINGER: Duration = Duration::from_secs(5);
/// How long connections that the proxy carries go on after that; the proxy itself ends them after five seconds.
const FAREWELL: Duration = Duration::from_secs(6);

/// A Pod, as enrolment sees it.
pub(super) struct Member {
    ctx: Arc<Context>,
    entry: Arc<PodEntry>,
    /// What the node proxies last said of it.
    answer: Arc<watch::Sender<Answer>>,
    /// The proxy's ports, while it is enrolled.
    ports: Mutex<Option<Reserved>>,
}

impl Member {
    pub(super) fn new(ctx: &Arc<Context>, entry: &Arc<PodEntry>) -> Self {
        let answer = Arc::new(watch::channel(None).0);
        Self { ctx: ctx.clone(), entry: entry.clone(), answer, ports: Mutex::new(None) }
    }

    /// Reconciles at every change of the Pod, its namespace or the proxies' answer, and when it is due, until the sandbox
    /// is gone.
    pub(super) async fn follow(self, mut due: Option<Instant>, sandbox: &Weak<Sandbox>) {
        let mut object = self.entry.object.subscribe();
        let mut namespaces = self.ctx.enrolment.namespaces.subscribe();
        let mut answer = self.answer.subscribe();
        let mut retry = MIN_RETRY;
        let mut reported = None;
        loop {
            let waiting = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                changed = object.changed() => changed,
                changed = namespaces.changed() => changed,
                changed = answer.changed() => changed,
                () = waiting => Ok(()),
            };
            let Some(sandbox) = sandbox.upgrade() else { return };
            if changed.is_err() || self.entry.sandbox().is_none() {
                return;
            }
            let pause = match self.reconcile(sandbox.netns(), false).await {
                Ok(pause) => {
                    (retry, reported) = (MIN_RETRY, None);
                    pause
                }
                Err(error) => {
                    let message = error.to_string();
                    // The capture is as it should be; only the API server is away.
                    let of_capture = !matches!(error, Error::Annotation(_));
                    if of_capture && reported.as_ref() != Some(&message) {
                        self.report_failure(&message);
                        reported = Some(message);
                    }
                    let pause = retry;
                    retry = (retry * 2).min(MAX_RETRY);
                    Some(pause)
                }
            };
            due = pause.map(|pause| Instant::now() + pause);
        }
    }

    fn report_failure(&self, message: &str) {
        tracing::error!(pod = %self.entry.full_name(), error = message, "enrolment failed; it is tried again");
        self.ctx.events.warning(&self.entry.pod(), None, "EnrolmentFailed", message.to_owned());
        let failed = Capture::Not { reason: "CaptureFailed", message: message.to_owned() };
        self.entry.update(|state| state.capture = failed);
    }

    /// Brings the Pod's capture in line with its labels. Returns after how long it has to be called again without a change.
    pub(super) async fn reconcile(&self, netns: &NetNs, starting: bool) -> Result<Option<Duration>, Error> {
        let gate = self.ctx.enrolment.gate(&self.entry.uid);
        let mut membership = gate.lock().await;
        let namespace = &self.entry.namespace;
        let labels = self.ctx.enrolment.labels_of(&self.ctx.client, namespace).await;
        let labels = labels.ok_or_else(|| Error::UnknownNamespace(namespace.clone()))?;
        let pod = self.entry.pod();
        let due = match (eligible(&pod, Some(&labels)), *membership) {
            (true, Membership::Enrolled { options: applied, shown }) => {
                *membership = self.stay(netns, &pod, applied, shown).await?;
                None
            }
            (true, _) => {
                let options = options(&pod);
                self.enrol(netns, &pod, options, starting).await?;
                // The capture is in force; an API server that is away holds nothing up. The next time writes it.
                let written = self.annotate(Some("enabled")).await;
                *membership = Membership::Enrolled { options, shown: written.is_err() };
                written.err().map(|_| MIN_RETRY)
            }
            (false, Membership::Enrolled { options, .. }) => {
                apply(netns, Plan::leaving(&options)).await?;
                *membership = Membership::Leaving { until: Instant::now() + LINGER };
                self.annotate(None).await?;
                Some(LINGER)
            }
            (false, Membership::Leaving { until }) if until <= Instant::now() => {
                self.ctx.enrolment.proxies.remove(&self.entry.uid);
                *membership = Membership::Draining { until: Instant::now() + FAREWELL };
                Some(FAREWELL)
            }
            (false, Membership::Draining { until }) if until <= Instant::now() => {
                let netns = netns.try_clone().map_err(meltemi_capture::Error::Routes)?;
                blocking(move || meltemi_capture::remove(&netns)).await?;
                lock(&self.ports).take();
                *membership = Membership::Outside;
                None
            }
            (false, Membership::Leaving { until } | Membership::Draining { until }) => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            (false, Membership::Outside) => None,
        };
        if !matches!(*membership, Membership::Enrolled { .. }) && has_annotation(&pod) {
            // Left by an earlier life of the Pod or of this process, or written by somebody who has not captured it.
            self.annotate(None).await?;
        }
        self.show(*membership);
        Ok(due)
    }

    /// Shows in the Pod's status whether it is captured and served.
    fn show(&self, membership: Membership) {
        let capture = match membership {
            Membership::Enrolled { options, .. } if options.bypass_inbound => Capture::Not {
                reason: "InboundBypassed",
                message: "annotation ambient.istio.io/bypass-inbound-capture".to_owned(),
            },
            Membership::Enrolled { .. } => match &*self.answer.borrow() {
                Some(Ok(())) => Capture::Captured,
                Some(Err(reason)) => Capture::Not { reason: "NotServed", message: reason.clone() },
                None => Capture::Not {
                    reason: "NotServed",
                    message: "no node proxy has taken the Pod yet: its traffic is refused".to_owned(),
                },
            },
            _ => Capture::Outside,
        };
        self.entry.update(|state| state.capture = capture);
    }

    /// Keeps an enrolled Pod as it should be: its options may have changed, and its annotation may be gone.
    async fn stay(
        &self,
        netns: &NetNs,
        pod: &Pod,
        applied: Options,
        shown: bool,
    ) -> Result<Membership, Error> {
        let options = options(pod);
        if options != applied {
            apply(netns, Plan::for_pod(&options)).await?;
        }
        let has = has_annotation(pod);
        if shown && !has {
            self.annotate(Some("enabled")).await?;
        }
        Ok(Membership::Enrolled { options, shown: has })
    }

    async fn enrol(&self, netns: &NetNs, pod: &Pod, options: Options, starting: bool) -> Result<(), Error> {
        if starting {
            apply(netns, Plan::for_pod(&options)).await?;
        }
        self.reserve_ports(netns).await?;
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        self.answer.send_replace(None);
        self.ctx.enrolment.proxies.add(Workload {
            uid: self.entry.uid.clone(),
            name: self.entry.name.clone(),
            namespace: self.entry.namespace.clone(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            netns: Arc::new(netns.try_clone().map_err(meltemi_capture::Error::Routes)?),
            answer: self.answer.clone(),
        });
        self.wait_for_proxy(proxy_timeout(starting, self.ctx.enrolment.proxies.any())).await;
        // A running Pod is captured only when the proxy is there for it: until then its traffic goes on as it is.
        if !starting {
            apply(netns, Plan::for_pod(&options)).await?;
        }
        Ok(())
    }

    /// Keeps the proxy's ports from the application. One that has such a port already keeps the proxy from it, which then says
    /// so; nothing gets out of the port either way.
    async fn reserve_ports(&self, netns: &NetNs) -> Result<(), Error> {
        if lock(&self.ports).is_some() {
            return Ok(());
        }
        let netns = netns.try_clone().map_err(meltemi_capture::Error::Routes)?;
        let reserved = tokio::task::spawn_blocking(move || ports::reserve(&netns)).await;
        match reserved.map_err(std::io::Error::other).and_then(|result| result) {
            Ok(reserved) => *lock(&self.ports) = Some(reserved),
            Err(error) => {
                tracing::warn!(pod = %self.entry.full_name(), %error, "the application has a port of the node proxy");
            }
        }
        Ok(())
    }

    async fn wait_for_proxy(&self, patience: Duration) {
        let mut answers = self.answer.subscribe();
        let mut object = self.entry.object.subscribe();
        let answered = tokio::select! {
            answered = tokio::time::timeout(patience, answers.wait_for(Option::is_some)) => answered,
            // The end of a Pod does not wait for it.
            _ = object.wait_for(|pod| pod.metadata.deletion_timestamp.is_some()) => return,
        };
        let reason = match answered {
            Ok(Ok(answer)) => match &*answer {
                Some(Err(reason)) => reason.clone(),
                _ => return,
            },
            _ => "no node proxy has taken the Pod yet".to_owned(),
        };
        tracing::warn!(pod = %self.entry.full_name(), reason, "not served by a node proxy: its traffic is refused");
    }

    /// Writes or removes the annotation by which the control plane and Istio's tools know an enrolled Pod.
    async fn annotate(&self, value: Option<&str>) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.entry.namespace);
        let patch =
            serde_json::json!({"metadata": {"uid": self.entry.uid, "annotations": {ANNOTATION: value}}});
        match api.patch_status(&self.entry.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            // Gone, or another Pod of this name.
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
            Err(error) => {
                tracing::warn!(pod = %self.entry.full_name(), %error, "annotation not written; it is tried again");
                Err(Error::Annotation(error.to_string()))
            }
        }
    }
}

/// How long a Pod waits to be taken by a node proxy; `has_proxy`: there is one on the node.
fn proxy_timeout(starting: bool, has_proxy: bool) -> Duration {
    match (starting, has_proxy) {
        (_, false) => WAIT_FOR_NONE,
        (true, true) => WAIT_FOR_PROXY,
        (false, true) => WAIT_RUNNING,
    }
}

/// Puts a plan in force in the Pod's namespace.
async fn apply(netns: &NetNs, plan: Plan) -> Result<(), Error> {
    let netns = netns.try_clone().map_err(meltemi_capture::Error::Routes)?;
    Ok(blocking(move || meltemi_capture::apply(&netns, &plan)).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, meltemi_capture::Error> + Send + 'static,
) -> Result<T, meltemi_capture::Error> {
    let failed = |e: tokio::task::JoinError| meltemi_capture::Error::Rules(std::io::Error::other(e));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::state::State;

    const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);

    /// A Pod of namespace `bank`, and a runner that reaches no API server.
    fn member(labels: Option<&str>) -> Member {
        let ctx = crate::context::tests::context(NODE);
        if let Some(mode) = labels {
            let labels = BTreeMap::from([("istio.io/dataplane-mode".to_owned(), mode.to_owned())]);
            ctx.enrolment.set_namespace("bank", Some(labels));
        }
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "bank", "uid": "u"},
                                     "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let state = State::of(&pod, IpAddr::V4(NODE), jiff::Timestamp::now());
        Member::new(&ctx, &Arc::new(PodEntry::new(Arc::new(pod), state)))
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_captured_does_not_start() {
        // No network namespace: whatever is tried in it fails.
        let nowhere = NetNs::from_fd(File::open("/dev/null").unwrap().into());
        let ambient = member(Some("ambient"));
        let error = ambient.reconcile(&nowhere, true).await.unwrap_err();
        assert!(matches!(error, Error::Capture(_)), "{error}");
        assert!(ambient.ctx.enrolment.proxies.get("u").is_none(), "handed to the proxies all the same");
        let unknown = member(None);
        let error = unknown.reconcile(&nowhere, true).await.unwrap_err();
        assert_eq!(error.to_string(), "the labels of namespace bank are not known");
        // What does not belong into the mesh starts without any of it.
        assert_eq!(member(Some("none")).reconcile(&nowhere, true).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_for_a_proxy_that_does_not_take_it_for_a_while_only() {
        for (starting, has_proxy, seconds) in [(true, true, 5), (false, true, 15), (true, false, 2)] {
            let pod = member(Some("ambient"));
            let begun = Instant::now();
            pod.wait_for_proxy(proxy_timeout(starting, has_proxy)).await;
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        let pod = member(Some("ambient"));
        let begun = Instant::now();
        let answer = async { drop(pod.answer.send_replace(Some(Ok(())))) };
        tokio::join!(pod.wait_for_proxy(proxy_timeout(false, true)), answer);
        assert_eq!(begun.elapsed().as_secs(), 0, "it is taken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_pod_that_cannot_be_captured_is_tried_again_and_says_so() {
        let nowhere = NetNs::from_fd(File::open("/dev/null").unwrap().into());
        let running = member(Some("ambient"));
        for _ in 0..2 {
            let error = running.reconcile(&nowhere, false).await.unwrap_err();
            running.report_failure(&error.to_string());
            let capture = running.entry.state().capture;
            assert!(matches!(capture, Capture::Not { reason: "CaptureFailed", .. }), "{capture:?}");
        }
    }
}
