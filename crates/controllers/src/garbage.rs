// SPDX-License-Identifier: Apache-2.0
//! Garbage collection by owner references: an object whose owners are all gone goes, too; foreground deletion waits
//! for what blocks it; orphaning lets go.
//!
//! The metadata of every kind that can be listed, watched and deleted is kept in a graph; kinds that appear later
//! (CustomResourceDefinitions) join, kinds that go leave.

mod graph;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiCapabilities, Discovery, Scope, verbs};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use meltemi_kubeclient::Watches;
use meltemi_runtime::Tasks;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::graph::{FOREGROUND, Graph, Kind, Node, ORPHAN, Verdict};
use crate::cache::Key;
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue, gone_is_fine, is_gone};

/// How often the kinds are looked at again, should a change have been missed.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Pause after a discovery that failed.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// Definitions come in bursts.
const SETTLE: Duration = Duration::from_millis(50);

struct Collector {
    client: Client,
    watches: Watches,
    graph: Mutex<Graph>,
    queue: Queue,
    kinds_changed: Notify,
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, uids: impl IntoIterator<Item = String>) {
        for uid in uids {
            self.queue.add(Key::new("", &uid));
        }
    }
}

/// The kinds that can be listed, watched and deleted, without events.
pub(crate) async fn resources(client: &Client) -> Result<Vec<(ApiResource, ApiCapabilities)>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let wanted = |(resource, capabilities): &(ApiResource, ApiCapabilities)| {
        resource.plural != "events"
            && [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|v| capabilities.supports_operation(v))
    };
    Ok(discovery.groups().flat_map(|g| g.recommended_resources()).filter(wanted).collect())
}

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let collector = Arc::new(Collector {
        client: cluster.client.clone(),
        watches: cluster.watches.clone(),
        graph: Mutex::default(),
        queue: Queue::default(),
        kinds_changed: Notify::new(),
    });
    let (of, mut drain, jobs) = (collector.clone(), tasks.drain(), tasks.clone());
    tasks.spawn("garbage-collector kinds", async move {
        tokio::select! {
            () = follow_kinds(of, jobs) => {}
            () = drain.started() => {}
        }
        Ok::<_, Infallible>(())
    });
    let queue = collector.queue.clone();
    queue.run(tasks, "garbage-collector", 16, async {}, move |key| {
        let collector = collector.clone();
        async move { collect(&collector, &key.name).await }
    });
}

/// Keeps a watch for every kind.
async fn follow_kinds(collector: Arc<Collector>, tasks: Tasks) {
    let mut watched: HashMap<Kind, CancellationToken> = HashMap::new();
    loop {
        match resources(&collector.client).await {
            Ok(found) => {
                let kinds: HashMap<Kind, ApiResource> =
                    found.into_iter().map(|(r, c)| (Kind::of(&r, c.scope == Scope::Namespaced), r)).collect();
                watched.retain(|kind, stop| {
                    let stays = kinds.contains_key(kind);
                    if !stays {
                        stop.cancel();
                        let orphans = collector.graph().remove_kind(kind);
                        collector.enqueue(orphans);
                    }
                    stays
                });
                for (kind, resource) in kinds {
                    watched.entry(kind.clone()).or_insert_with(|| {
                        let stop = CancellationToken::new();
                        collector.graph().add_kind(kind.clone());
                        let watch = follow(collector.clone(), kind, resource, stop.clone(), tasks.drain());
                        tasks.spawn_job("garbage-collector watch", watch);
                        stop
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "discovery failed");
                tokio::time::sleep(DISCOVERY_RETRY).await;
                continue;
            }
        }
        let _ = tokio::time::timeout(REDISCOVER, collector.kinds_changed.notified()).await;
        tokio::time::sleep(SETTLE).await;
    }
}

async fn follow(
    collector: Arc<Collector>,
    kind: Kind,
    resource: ApiResource,
    stop: CancellationToken,
    mut drain: meltemi_runtime::DrainWatch,
) -> Result<(), Infallible> {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(collector.client.clone(), &resource);
    let name = format!("garbage collection of {} {}", resource.group, resource.plural);
    let watches = &collector.watches;
    let events = watches.follow(name.as_str(), api, watcher::Config::default().any_semantic());
    futures::pin_mut!(events);
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            () = stop.cancelled() => {
                watches.forget(&name);
                return Ok(());
            }
            () = drain.started() => return Ok(()),
        };
        let definition = kind.plural == "customresourcedefinitions";
        let affected = match event {
            Ok(Some(Event::Apply(object))) => collector.graph().put(Node::of(&kind, &object.metadata)),
            Ok(Some(Event::Delete(object))) => {
                collector.graph().remove(object.metadata.uid.as_deref().unwrap_or_default())
            }
            Ok(Some(Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(Event::InitApply(object))) => {
                listed.push(Node::of(&kind, &object.metadata));
                continue;
            }
            Ok(Some(Event::InitDone)) => collector.graph().replace_kind(&kind, std::mem::take(&mut listed)),
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::debug!(kind = %kind.plural, %error, "watch interrupted");
                continue;
            }
        };
        collector.enqueue(affected);
        if definition {
            collector.kinds_changed.notify_one();
        }
    }
}

async fn collect(collector: &Collector, uid: &str) -> Outcome {
    let verdict = collector.graph().judge(uid);
    match verdict {
        Verdict::Keep => {}
        Verdict::Verify { node, absent } => {
            for owner in &absent {
                if exists(collector, &node, owner).await? {
                    // The watch of the owner's kind is behind; it will bring us back here, or this will.
                    return Ok(Some(Duration::from_secs(5)));
                }
            }
            tracing::debug!(kind = %node.kind.plural, object = %node.key, "owners are gone");
            delete(collector, &node, PropagationPolicy::Background).await?;
        }
        Verdict::DeleteWithOwner(node) => delete(collector, &node, PropagationPolicy::Foreground).await?,
        Verdict::WaitFor { dependents } => {
            for node in dependents {
                delete(collector, &node, PropagationPolicy::Foreground).await?;
            }
        }
        Verdict::Release(node) => remove_finalizer(collector, &node, FOREGROUND).await?,
        Verdict::Orphan { node, dependents } => {
            for dependent in dependents {
                remove_owner(collector, &dependent, uid).await?;
            }
            remove_finalizer(collector, &node, ORPHAN).await?;
        }
    }
    Ok(None)
}

fn api(collector: &Collector, node: &Node) -> Api<DynamicObject> {
    let resource = node.kind.resource();
    if node.kind.namespaced {
        Api::namespaced_with(collector.client.clone(), &node.key.namespace, &resource)
    } else {
        Api::all_with(collector.client.clone(), &resource)
    }
}

/// Asks the API itself whether the owner exists: deleting is not undone.
async fn exists(collector: &Collector, node: &Node, owner: &OwnerReference) -> Result<bool, kube::Error> {
    let kind = collector.graph().kind(&owner.api_version, &owner.kind);
    let Some(kind) = kind else {
        // A kind that is not known: perhaps only not yet.
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let known = resources(&collector.client).await?;
        let served =
            known.iter().any(|(r, _)| r.group == group && r.kind == owner.kind && r.version == version);
        return Ok(served);
    };
    let of = Node {
        key: Key::new(if kind.namespaced { &node.key.namespace } else { "" }, &owner.name),
        kind,
        ..Node::default()
    };
    match api(collector, &of).get_metadata(&owner.name).await {
        Ok(live) => Ok(live.metadata.uid.as_deref() == Some(&owner.uid)),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn delete(collector: &Collector, node: &Node, policy: PropagationPolicy) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: Some(node.uid.clone()), resource_version: None };
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    gone_is_fine(api(collector, node).delete(&node.key.name, &params).await)
}

async fn remove_finalizer(collector: &Collector, node: &Node, finalizer: &str) -> Result<(), kube::Error> {
    let api = api(collector, node);
    let live = match api.get_metadata(&node.key.name).await {
        Ok(live) if live.metadata.uid.as_deref() == Some(&node.uid) => live.metadata,
        Ok(_) => return Ok(()),
        Err(error) => return gone_is_fine::<()>(Err(error)),
    };
    let mut finalizers = live.finalizers.unwrap_or_default();
    finalizers.retain(|f| f != finalizer);
    let patch = json!({"metadata": {"resourceVersion": live.resource_version, "finalizers": finalizers}});
    gone_is_fine(api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
}

async fn remove_owner(collector: &Collector, node: &Node, owner: &str) -> Result<(), kube::Error> {
    let api = api(collector, node);
    let live = match api.get_metadata(&node.key.name).await {
        Ok(live) => live.metadata,
        Err(error) => return gone_is_fine::<()>(Err(error)),
    };
    let mut owners = live.owner_references.unwrap_or_default();
    owners.retain(|o| o.uid != owner);
    let patch = json!({"metadata": {"resourceVersion": live.resource_version, "ownerReferences": owners}});
    gone_is_fine(api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
}
