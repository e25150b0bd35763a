// SPDX-License-Identifier: Apache-2.0
//! What the API says of this node's Pods, and of all namespaces.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::runtime::watcher::{self, Event};

use super::{Agent, entry};

/// Follows the Pods of the node.
pub(super) async fn watch(agent: Arc<Agent>) {
    let api: Api<Pod> = Api::all(agent.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", agent.config.node_name));
    let mut stream = agent.watches.follow("Pods of the node", api, config).boxed();
    let mut listed = std::collections::BTreeMap::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(key(&pod), Arc::new(pod));
            }
            Ok(Event::InitDone) => {
                agent.objects.send_replace(Some(std::mem::take(&mut listed)));
                everything(&agent).await;
            }
            Ok(Event::Apply(pod)) => {
                let pod = Arc::new(pod);
                set(&agent, &pod, true);
                observe(&agent, &pod).await;
            }
            Ok(Event::Delete(pod)) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                set(&agent, &Arc::new(pod), false);
                entry::end(&agent, &uid).await;
            }
            Err(error) => tracing::debug!(%error, "watch of Pods"),
        }
    }
}

/// Follows the labels of namespaces.
pub(super) async fn watch_namespaces(agent: Arc<Agent>) {
    let api: Api<Namespace> = Api::all(agent.client.clone());
    let mut stream = agent.watches.follow("Namespaces", api, watcher::Config::default()).boxed();
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    while let Some(event) = stream.next().await {
        let gone: Vec<String> = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(namespace) | Event::Apply(namespace)) => {
                let name = namespace.metadata.name.unwrap_or_default();
                agent.enrolment.set_namespace(&name, Some(namespace.metadata.labels.unwrap_or_default()));
                agent.probes_changed.notify_one();
                listed.insert(name.clone());
                known.insert(name);
                continue;
            }
            Ok(Event::Delete(namespace)) => vec![namespace.metadata.name.unwrap_or_default()],
            // What was deleted while nothing was watched.
            Ok(Event::InitDone) => known.difference(&listed).cloned().collect(),
            Err(error) => {
                tracing::debug!(%error, "watch of namespaces");
                continue;
            }
        };
        for name in gone {
            agent.enrolment.set_namespace(&name, None);
            known.remove(&name);
            listed.remove(&name);
        }
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn set(agent: &Agent, pod: &Arc<Pod>, is_there: bool) {
    agent.objects.send_modify(|objects| {
        let objects = objects.get_or_insert_default();
        match is_there {
            true => drop(objects.insert(key(pod), pod.clone())),
            // A Pod of the same name may have come meanwhile.
            false if objects.get(&key(pod)).is_some_and(|known| known.metadata.uid == pod.metadata.uid) => {
                drop(objects.remove(&key(pod)))
            }
            false => {}
        }
    });
}

/// After a list: takes up what changed while nothing was watched.
async fn everything(agent: &Arc<Agent>) {
    let objects = agent.objects.borrow().clone().unwrap_or_default();
    let there: BTreeSet<&str> = objects.values().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
    let gone: Vec<String> =
        agent.entries().keys().filter(|uid| !there.contains(uid.as_str())).cloned().collect();
    for uid in gone {
        entry::end(agent, &uid).await;
    }
    for pod in objects.values() {
        observe(agent, pod).await;
    }
}

/// Tells the Pod's entry, if it has one.
async fn observe(agent: &Arc<Agent>, pod: &Arc<Pod>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if has_ended(pod) {
        entry::end(agent, &uid).await;
        return;
    }
    let entry = agent.entries().get(&uid).cloned();
    if let Some(entry) = entry {
        entry.object.send_replace(pod.clone());
        agent.probes_changed.notify_one();
    }
}

/// Whether all containers have ended for good.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
