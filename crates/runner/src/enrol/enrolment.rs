// SPDX-License-Identifier: Apache-2.0
//! Shared state of enrolment: the labels of namespaces, the node proxies, and the membership of each Pod.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use meltemi_capture::Options;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::lock::lock;
use crate::zds::proxies::Proxies;

/// How long the watch of namespaces has time to bring one before the API server is asked for it.
const WAIT_FOR_WATCH: Duration = Duration::from_millis(300);

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Where a Pod is between the mesh and the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Membership {
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

/// Namespaces, proxies, and Pods.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(super) namespaces: watch::Sender<BTreeMap<String, Labels>>,
    pub proxies: Proxies,
    /// One change of one Pod at a time.
    pub(super) gate: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Membership>>>>,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self {
            namespaces: watch::channel(BTreeMap::new()).0,
            proxies: Proxies::default(),
            gate: Mutex::default(),
        }
    }
}

impl Enrolment {
    /// Takes the labels of a namespace; `None` when it is gone.
    pub(crate) fn set_namespace(&self, name: &str, labels: Option<Labels>) {
        self.namespaces.send_if_modified(|all| match labels {
            Some(labels) => all.insert(name.to_owned(), labels.clone()) != Some(labels),
            None => all.remove(name).is_some(),
        });
    }

    /// The labels of a namespace: from the watch, or else asked for. `None` when neither has them.
    pub(crate) async fn labels_of(&self, client: &kube::Client, name: &str) -> Option<Labels> {
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

    pub(super) fn gate(&self, uid: &str) -> Arc<tokio::sync::Mutex<Membership>> {
        lock(&self.gate).entry(uid.to_owned()).or_default().clone()
    }
}
