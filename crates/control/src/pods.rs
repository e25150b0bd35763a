// SPDX-License-Identifier: Apache-2.0
//! Which Pods run where: what the CA asks before it signs for somebody else than its caller.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meltemi_model::NamespacedName;
use meltemi_translate::facts::PodFacts;
use tokio::sync::watch;

/// A directory that the engine writes and the CA reads.
#[derive(Clone, Debug)]
pub struct Directory {
    inner: Arc<RwLock<Inner>>,
    version: Arc<watch::Sender<u64>>,
}

/// Node, namespace and service account.
type Placed = (Arc<str>, Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<NamespacedName, Entry>,
    /// Pods by node and (namespace, service account); without those on the node's network.
    running: HashMap<Placed, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uid: Arc<str>,
    service_account: Arc<str>,
    node: Arc<str>,
    gateway: Option<Arc<str>>,
    /// On the node's network: never captured, so that no node proxy speaks for it.
    host_network: bool,
}

impl Default for Directory {
    fn default() -> Self {
        Self { inner: Arc::default(), version: Arc::new(watch::channel(0).0) }
    }
}

impl Directory {
    /// Takes a change; a Pod that has ended counts as gone.
    pub fn set(&self, name: &NamespacedName, pod: Option<&PodFacts>) {
        let entry = pod.filter(|p| p.alive).map(|p| Entry {
            uid: p.uid.clone(),
            service_account: p.service_account.clone(),
            node: p.node.clone(),
            host_network: p.host_network,
            gateway: p.labels.get(meltemi_translate::labels::GATEWAY_NAME).map(|g| g.as_str().into()),
        });
        {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            if inner.pods.get(name) == entry.as_ref() {
                return;
            }
            if let Some(old) = inner.pods.remove(name).filter(|old| !old.host_network) {
                let key = (old.node, name.namespace.clone(), old.service_account);
                if let Some(count) = inner.running.get_mut(&key) {
                    *count -= 1;
                    if *count == 0 {
                        inner.running.remove(&key);
                    }
                }
            }
            if let Some(entry) = entry {
                if !entry.host_network {
                    let key = (entry.node.clone(), name.namespace.clone(), entry.service_account.clone());
                    *inner.running.entry(key).or_default() += 1;
                }
                inner.pods.insert(name.clone(), entry);
            }
        }
        self.version.send_modify(|v| *v += 1);
    }

    /// Node of the Pod with this name, uid and service account.
    pub fn node_of(&self, name: &NamespacedName, uid: &str, service_account: &str) -> Option<Arc<str>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.pods.get(name)?;
        (&*entry.uid == uid && &*entry.service_account == service_account && !entry.node.is_empty())
            .then(|| entry.node.clone())
    }

    /// Gateway whose proxy the Pod with this name, uid and service account is.
    pub fn gateway_of(&self, name: &NamespacedName, uid: &str, service_account: &str) -> Option<Arc<str>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.pods.get(name)?;
        (&*entry.uid == uid && &*entry.service_account == service_account).then(|| entry.gateway.clone())?
    }

    /// Whether a Pod of that service account runs on the node, on a network of its own.
    pub fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.running.contains_key(&(node.into(), namespace.into(), service_account.into()))
    }

    /// Waits until `question` has an answer, at most `patience`: the API may be ahead of what was seen of it.
    pub async fn wait<T>(&self, patience: Duration, question: impl Fn(&Self) -> Option<T>) -> Option<T> {
        let mut changes = self.version.subscribe();
        let search = async {
            loop {
                changes.mark_unchanged();
                if let Some(answer) = question(self) {
                    return answer;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, account: &str, node: &str, alive: bool) -> PodFacts {
        let mut pod = PodFacts::read(&k8s_openapi::api::core::v1::Pod::default());
        pod.name = NamespacedName::new("default", name);
        pod.uid = uid.into();
        pod.service_account = account.into();
        pod.node = node.into();
        pod.alive = alive;
        pod
    }

    #[test]
    fn counts_the_pods_of_an_account_on_a_node() {
        let directory = Directory::default();
        let set = |p: &PodFacts| directory.set(&p.name, Some(p));
        set(&pod("a", "1", "curl", "node-1", true));
        set(&pod("b", "2", "curl", "node-1", true));
        assert!(directory.runs("node-1", "default", "curl"));
        assert!(!directory.runs("node-2", "default", "curl"));
        set(&pod("a", "1", "curl", "node-1", false));
        assert!(directory.runs("node-1", "default", "curl"));
        directory.set(&NamespacedName::new("default", "b"), None);
        assert!(!directory.runs("node-1", "default", "curl"), "one ended, one gone");
        let mut host = pod("c", "3", "curl", "node-1", true);
        host.host_network = true;
        set(&host);
        assert!(!directory.runs("node-1", "default", "curl"), "on the node's network");
        directory.set(&host.name, None);
        set(&pod("a", "1", "curl", "node-1", true));
        assert!(directory.runs("node-1", "default", "curl"));
    }

    #[test]
    fn a_pod_is_known_by_name_uid_and_account() {
        let directory = Directory::default();
        let name = NamespacedName::new("default", "a");
        directory.set(&name, Some(&pod("a", "1", "ztunnel", "node-1", true)));
        assert_eq!(directory.node_of(&name, "1", "ztunnel").as_deref(), Some("node-1"));
        assert!(
            directory.node_of(&name, "0", "ztunnel").is_none(),
            "a Pod of that name that was there before"
        );
        assert!(directory.node_of(&name, "1", "curl").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_what_is_on_its_way() {
        let directory = Directory::default();
        let ask = |d: &Directory| d.runs("node-1", "default", "curl").then_some(());
        assert!(directory.wait(Duration::from_secs(2), ask).await.is_none());
        let late = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            directory.set(&NamespacedName::new("default", "a"), Some(&pod("a", "1", "curl", "node-1", true)));
        };
        let (found, ()) = tokio::join!(directory.wait(Duration::from_secs(2), ask), late);
        assert!(found.is_some());
    }
}
