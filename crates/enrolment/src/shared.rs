// SPDX-License-Identifier: Apache-2.0
//! Shared state of enrolment: the labels of namespaces, the node proxies, and the membership of each Pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::Api;
use meltemi_capture::Options;
use meltemi_runtime::lock::lock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::is_eligible;
use crate::zds::proxies::Proxies;

/// How long the watch of namespaces has time to bring one before the API server is asked for it.
const WAIT_FOR_WATCH: Duration = Duration::from_millis(300);

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Where a Pod is between the mesh and the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Membership {
    /// No rule, no proxy.
    #[default]
    Outside,
    /// Captured with these options, and handed to the proxies. `shown`: the annotation was seen on the object.
    Enrolled { options: Options, shown: bool },
    /// New connections are no longer captured; until then the proxy goes on to listen.
    Leaving { until: Instant },
    /// The proxy no longer listens; until then its open connections go on.
    Draining { until: Instant },
}

/// What holds for all Pods of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Health probes come from the node, under [`meltemi_capture::PROBE_SOURCE_V4`]. Where whoever runs the Pods dials them
    /// inside of their namespaces, no address of the network is excepted from the capture.
    pub node_probes: bool,
    /// Namespaces whose Pods are never enrolled.
    pub excluded: BTreeSet<String>,
    /// How often it is looked whether the rules of an enrolled Pod are still there; `None` trusts that they are.
    pub look_again: Option<Duration>,
}

/// The namespaces, the node proxies and the Pods of a node.
#[derive(Debug)]
pub struct Enrolment {
    pub(crate) rules: Rules,
    pub(crate) namespaces: watch::Sender<BTreeMap<String, Labels>>,
    pub(crate) proxies: Proxies,
    /// One change of one Pod at a time.
    gate: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Membership>>>>,
}

impl Enrolment {
    /// Nothing is known yet.
    pub fn new(rules: Rules) -> Self {
        let namespaces = watch::channel(BTreeMap::new()).0;
        Self { rules, namespaces, proxies: Proxies::default(), gate: Mutex::default() }
    }

    /// Whether a Pod belongs into the mesh; `labels` are those of its namespace.
    pub fn admits(&self, pod: &Pod, labels: &Labels) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        !self.rules.excluded.contains(namespace) && is_eligible(pod, Some(labels))
    }

    /// As [`Self::admits`], by the labels that the watch has brought; a namespace that is not known admits nothing.
    pub fn expects(&self, pod: &Pod) -> bool {
        let namespaces = self.namespaces.borrow();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        namespaces.get(namespace).is_some_and(|labels| self.admits(pod, labels))
    }

    /// The node proxies.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// Takes the labels of a namespace; `None` when it is gone.
    pub fn set_namespace(&self, name: &str, labels: Option<Labels>) {
        self.namespaces.send_if_modified(|all| match labels {
            Some(labels) => all.insert(name.to_owned(), labels.clone()) != Some(labels),
            None => all.remove(name).is_some(),
        });
    }

    /// The labels of a namespace: from the watch, or else asked for. `None` when neither has them.
    pub async fn labels_of(&self, client: &kube::Client, name: &str) -> Option<Labels> {
        let mut namespaces = self.namespaces.subscribe();
        let known = async {
            let all = namespaces.wait_for(|all| all.contains_key(name)).await.ok()?;
            all.get(name).cloned()
        };
        if let Ok(Some(labels)) = tokio::time::timeout(WAIT_FOR_WATCH, known).await {
            return Some(labels);
        }
        let api: Api<Namespace> = Api::all(client.clone());
        let found = api.get_opt(name).await.ok().flatten()?;
        let labels = found.metadata.labels.unwrap_or_default();
        self.set_namespace(name, Some(labels.clone()));
        Some(labels)
    }

    pub(crate) fn gate(&self, uid: &str) -> Arc<tokio::sync::Mutex<Membership>> {
        lock(&self.gate).entry(uid.to_owned()).or_default().clone()
    }

    /// Forgets a Pod whose last process has ended: no proxy serves it any longer.
    pub async fn end(&self, uid: &str) {
        let gate = self.gate(uid);
        let mut membership = gate.lock().await;
        *membership = Membership::Outside;
        self.proxies.remove(uid);
        lock(&self.gate).remove(uid);
    }
}
