// SPDX-License-Identifier: Apache-2.0
//! One Pod's way into the mesh and out of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use meltemi_capture::{Options, Plan};
use meltemi_linux::netns::NetNs;
use meltemi_runtime::lock::lock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ports::{self, Reserved};
use crate::shared::{Enrolment, Membership};
use crate::zds::proxies::{Answer, Workload};
use crate::{ANNOTATION, Capture, Error, Host, has_annotation, options};

/// First and longest pause before an enrolment that failed is tried again.
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

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

/// A Pod, as it is handed to enrolment.
pub struct Subject {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The object as last seen.
    pub object: watch::Receiver<Arc<Pod>>,
    /// Whoever runs it.
    pub host: Arc<dyn Host>,
    /// It ran before its host knew of it: an earlier life of the host may have captured it.
    pub found_running: bool,
}

/// A Pod, as enrolment sees it.
pub struct Member {
    shared: Arc<Enrolment>,
    client: kube::Client,
    subject: Subject,
    /// What the node proxies last said of it.
    answer: Arc<watch::Sender<Answer>>,
    /// The proxy's ports, while it is enrolled.
    ports: Mutex<Option<Reserved>>,
    /// Nothing has been done yet with what an earlier life of the host may have left.
    unseen: AtomicBool,
}

impl Member {
    /// A Pod of which nothing has been done yet.
    pub fn new(shared: Arc<Enrolment>, client: kube::Client, subject: Subject) -> Self {
        let answer = Arc::new(watch::channel(None).0);
        let unseen = AtomicBool::new(subject.found_running);
        Self { shared, client, subject, answer, ports: Mutex::new(None), unseen }
    }

    fn pod(&self) -> Arc<Pod> {
        self.subject.object.borrow().clone()
    }

    /// `NAMESPACE/NAME`.
    fn full_name(&self) -> String {
        format!("{}/{}", self.subject.namespace, self.subject.name)
    }

    /// Reconciles at every change of the Pod, its namespace or the proxies' answer, and after `due`, until the Pod is gone.
    pub async fn follow(self, due: Option<Duration>) {
        let mut due = due.map(|pause| Instant::now() + pause);
        let mut object = self.subject.object.clone();
        let mut namespaces = self.shared.namespaces.subscribe();
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
            let netns = self.subject.host.netns();
            if changed.is_err() || matches!(netns, Ok(None)) {
                return;
            }
            let pause = match self.again(netns).await {
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

    /// Reconciles a Pod that runs.
    async fn again(&self, netns: io::Result<Option<NetNs>>) -> Result<Option<Duration>, Error> {
        let netns = netns.map_err(meltemi_capture::Error::Namespace)?;
        match netns {
            Some(netns) => self.reconcile(&netns, false).await,
            None => Ok(None),
        }
    }

    fn report_failure(&self, message: &str) {
        tracing::error!(pod = %self.full_name(), error = message, "enrolment failed; it is tried again");
        self.subject.host.warn("EnrolmentFailed", message.to_owned());
        self.subject.host.show(Capture::Not { reason: "CaptureFailed", message: message.to_owned() });
    }

    /// Brings the Pod's capture in line with its labels. Returns after how long it has to be called again without a change.
    /// `starting`: no process of the Pod runs yet, so that it is captured at once and not only when a proxy serves it.
    ///
    /// # Errors
    /// It should be captured and could not be, or it is not known whether it should.
    pub async fn reconcile(&self, netns: &NetNs, starting: bool) -> Result<Option<Duration>, Error> {
        let gate = self.shared.gate(&self.subject.uid);
        let mut membership = gate.lock().await;
        let namespace = &self.subject.namespace;
        let labels = self.shared.labels_of(&self.client, namespace).await;
        let labels = labels.ok_or_else(|| Error::UnknownNamespace(namespace.clone()))?;
        let pod = self.pod();
        // What is captured already stays so while a proxy is waited for.
        let inherited = self.unseen.load(Ordering::Relaxed) && is_applied(netns).await?;
        let starting = starting || inherited;
        let due = match (self.shared.admits(&pod, &labels), *membership) {
            (true, Membership::Enrolled { options: applied, shown }) => {
                *membership = self.stay(netns, &pod, applied, shown).await?;
                self.shared.rules.look_again
            }
            (true, _) => {
                let options = options(&pod, &self.shared.rules);
                self.enrol(netns, &pod, options, starting).await?;
                // The capture is in force; an API server that is away holds nothing up. The next time writes it.
                let written = self.annotate(Some("enabled")).await;
                *membership = Membership::Enrolled { options, shown: written.is_err() };
                written.err().map(|_| MIN_RETRY).or(self.shared.rules.look_again)
            }
            (false, Membership::Enrolled { options, .. }) => {
                apply(netns, Plan::leaving(&options)).await?;
                *membership = Membership::Leaving { until: Instant::now() + LINGER };
                self.annotate(None).await?;
                Some(LINGER)
            }
            (false, Membership::Leaving { until }) if until <= Instant::now() => {
                self.shared.proxies.remove(&self.subject.uid);
                *membership = Membership::Draining { until: Instant::now() + FAREWELL };
                Some(FAREWELL)
            }
            (false, Membership::Draining { until }) if until <= Instant::now() => {
                let netns = netns.try_clone().map_err(meltemi_capture::Error::Namespace)?;
                blocking(move || meltemi_capture::remove(&netns)).await?;
                lock(&self.ports).take();
                *membership = Membership::Outside;
                None
            }
            (false, Membership::Leaving { until } | Membership::Draining { until }) => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            (false, Membership::Outside) if inherited => {
                let every = Options { node_probes: self.shared.rules.node_probes, ..Options::default() };
                apply(netns, Plan::leaving(&every)).await?;
                *membership = Membership::Leaving { until: Instant::now() + LINGER };
                Some(LINGER)
            }
            (false, Membership::Outside) => None,
        };
        self.unseen.store(false, Ordering::Relaxed);
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
        self.subject.host.show(capture);
    }

    /// Keeps an enrolled Pod as it should be: its options may have changed, and its annotation may be gone.
    async fn stay(
        &self,
        netns: &NetNs,
        pod: &Pod,
        applied: Options,
        shown: bool,
    ) -> Result<Membership, Error> {
        let options = options(pod, &self.shared.rules);
        let is_lost = self.shared.rules.look_again.is_some() && !is_applied(netns).await?;
        if is_lost {
            let message = "somebody has taken the rules of the capture away; they are put back".to_owned();
            tracing::error!(pod = %self.full_name(), message);
            self.subject.host.warn("CaptureLost", message);
        }
        if is_lost || options != applied {
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
        self.shared.proxies.add(Workload {
            uid: self.subject.uid.clone(),
            name: self.subject.name.clone(),
            namespace: self.subject.namespace.clone(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            netns: Arc::new(netns.try_clone().map_err(meltemi_capture::Error::Namespace)?),
            answer: self.answer.clone(),
        });
        self.wait_for_proxy(proxy_timeout(starting, self.shared.proxies.any())).await;
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
        let netns = netns.try_clone().map_err(meltemi_capture::Error::Namespace)?;
        let reserved = tokio::task::spawn_blocking(move || ports::reserve(&netns)).await;
        match reserved.map_err(io::Error::other).and_then(|result| result) {
            Ok(reserved) => *lock(&self.ports) = Some(reserved),
            Err(error) => {
                tracing::warn!(pod = %self.full_name(), %error, "the application has a port of the node proxy");
            }
        }
        Ok(())
    }

    async fn wait_for_proxy(&self, patience: Duration) {
        let mut answers = self.answer.subscribe();
        let mut object = self.subject.object.clone();
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
        tracing::warn!(pod = %self.full_name(), reason, "not served by a node proxy: its traffic is refused");
    }

    /// Writes or removes the annotation by which the control plane and Istio's tools know an enrolled Pod.
    async fn annotate(&self, value: Option<&str>) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.subject.namespace);
        let patch =
            serde_json::json!({"metadata": {"uid": self.subject.uid, "annotations": {ANNOTATION: value}}});
        match api.patch_status(&self.subject.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            // Gone, or another Pod of this name.
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
            Err(error) => {
                tracing::warn!(pod = %self.full_name(), %error, "annotation not written; it is tried again");
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
    let netns = netns.try_clone().map_err(meltemi_capture::Error::Namespace)?;
    Ok(blocking(move || meltemi_capture::apply(&netns, &plan)).await?)
}

async fn is_applied(netns: &NetNs) -> Result<bool, Error> {
    let netns = netns.try_clone().map_err(meltemi_capture::Error::Namespace)?;
    Ok(blocking(move || meltemi_capture::is_applied(&netns)).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, meltemi_capture::Error> + Send + 'static,
) -> Result<T, meltemi_capture::Error> {
    let failed = |e: tokio::task::JoinError| meltemi_capture::Error::Rules(io::Error::other(e));
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;

    use super::*;
    use crate::Rules;

    /// What a member has said of its Pod, and the Pod's object: as long as it is there, the Pod is.
    struct Said {
        capture: Mutex<Option<Capture>>,
        _pod: watch::Sender<Arc<Pod>>,
    }

    impl Host for Said {
        fn netns(&self) -> io::Result<Option<NetNs>> {
            Ok(None)
        }

        fn show(&self, capture: Capture) {
            *lock(&self.capture) = Some(capture);
        }

        fn warn(&self, _reason: &'static str, _message: String) {}
    }

    /// A Pod of namespace `bank` of which an agent without an API server knows the labels.
    fn member(labels: Option<&str>, rules: Rules) -> (Member, Arc<Said>) {
        let shared = Arc::new(Enrolment::new(rules));
        let api = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(api).unwrap();
        if let Some(mode) = labels {
            let labels = BTreeMap::from([("istio.io/dataplane-mode".to_owned(), mode.to_owned())]);
            shared.set_namespace("bank", Some(labels));
        }
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "bank", "uid": "u"},
                                     "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let text = str::to_owned;
        let (there, object) = watch::channel(Arc::new(pod));
        let said = Arc::new(Said { capture: Mutex::default(), _pod: there });
        let subject = Subject {
            uid: text("u"),
            namespace: text("bank"),
            name: text("p"),
            object,
            host: said.clone(),
            found_running: false,
        };
        (Member::new(shared, client, subject), said)
    }

    /// Not a network namespace: whatever is tried in it fails.
    fn nowhere() -> NetNs {
        NetNs::from_fd(File::open("/dev/null").unwrap().into())
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_captured_does_not_start() {
        let nowhere = nowhere();
        let (ambient, _) = member(Some("ambient"), Rules::default());
        let error = ambient.reconcile(&nowhere, true).await.unwrap_err();
        assert!(matches!(error, Error::Capture(_)), "{error}");
        assert!(ambient.shared.proxies.get("u").is_none(), "handed to the proxies all the same");
        let (unknown, _) = member(None, Rules::default());
        let error = unknown.reconcile(&nowhere, true).await.unwrap_err();
        assert_eq!(error.to_string(), "the labels of namespace bank are not known");
        // What does not belong into the mesh starts without any of it.
        let (outside, _) = member(Some("none"), Rules::default());
        assert_eq!(outside.reconcile(&nowhere, true).await.unwrap(), None);
        let excluded = Rules { excluded: ["bank".to_owned()].into(), ..Rules::default() };
        let (excluded, _) = member(Some("ambient"), excluded);
        assert_eq!(excluded.reconcile(&nowhere, true).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_for_a_proxy_that_does_not_take_it_for_a_while_only() {
        for (starting, has_proxy, seconds) in [(true, true, 5), (false, true, 15), (true, false, 2)] {
            let (pod, _there) = member(Some("ambient"), Rules::default());
            let begun = Instant::now();
            pod.wait_for_proxy(proxy_timeout(starting, has_proxy)).await;
            assert_eq!(begun.elapsed().as_secs(), seconds);
        }
        let (pod, _there) = member(Some("ambient"), Rules::default());
        let begun = Instant::now();
        let answer = async { drop(pod.answer.send_replace(Some(Ok(())))) };
        tokio::join!(pod.wait_for_proxy(proxy_timeout(false, true)), answer);
        assert_eq!(begun.elapsed().as_secs(), 0, "it is taken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_pod_that_cannot_be_captured_is_tried_again_and_says_so() {
        let (running, said) = member(Some("ambient"), Rules::default());
        for _ in 0..2 {
            let error = running.reconcile(&nowhere(), false).await.unwrap_err();
            running.report_failure(&error.to_string());
            let capture = lock(&said.capture).take();
            assert!(matches!(capture, Some(Capture::Not { reason: "CaptureFailed", .. })), "{capture:?}");
        }
    }
}
