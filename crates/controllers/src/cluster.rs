// SPDX-License-Identifier: Apache-2.0
//! What every controller shares: the client, the caches, the recorder of events.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource};
use meltemi_kubeclient::Watches;
use meltemi_runtime::Tasks;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cache::{Cache, Key, namespaced};
use crate::events::Events;
use crate::queue::gone_is_fine;

/// Shared by all controllers.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) root_ca: String,
    pub(crate) load_balancer_pool: [u8; 3],
    pub(crate) events: Events,
    pub(crate) watches: Watches,
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) services: Cache<Service>,
    pub(crate) endpoints: Cache<Endpoints>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) accounts: Cache<ServiceAccount>,
    pub(crate) config_maps: Cache<ConfigMap>,
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) replica_sets: Cache<ReplicaSet>,
    pub(crate) daemon_sets: Cache<DaemonSet>,
    pub(crate) stateful_sets: Cache<StatefulSet>,
    pub(crate) revisions: Cache<ControllerRevision>,
    pub(crate) jobs: Cache<Job>,
    pub(crate) cron_jobs: Cache<CronJob>,
}

impl Cluster {
    pub(crate) fn new(client: Client, root_ca: String, load_balancer_pool: [u8; 3], tasks: &Tasks) -> Self {
        Self {
            events: Events::start(client.clone(), tasks),
            watches: Watches::default(),
            client,
            root_ca,
            load_balancer_pool,
            pods: Cache::default(),
            nodes: Cache::default(),
            namespaces: Cache::default(),
            services: Cache::default(),
            endpoints: Cache::default(),
            slices: Cache::default(),
            accounts: Cache::default(),
            config_maps: Cache::default(),
            claims: Cache::default(),
            deployments: Cache::default(),
            replica_sets: Cache::default(),
            daemon_sets: Cache::default(),
            stateful_sets: Cache::default(),
            revisions: Cache::default(),
            jobs: Cache::default(),
            cron_jobs: Cache::default(),
        }
    }

    /// Starts all watches.
    pub(crate) fn feed(&self, tasks: &Tasks) {
        let client = &self.client;
        self.pods.feed(client, &self.watches, tasks);
        self.nodes.feed(client, &self.watches, tasks);
        self.namespaces.feed(client, &self.watches, tasks);
        self.services.feed(client, &self.watches, tasks);
        self.endpoints.feed(client, &self.watches, tasks);
        self.slices.feed(client, &self.watches, tasks);
        self.accounts.feed(client, &self.watches, tasks);
        self.config_maps.feed(client, &self.watches, tasks);
        self.claims.feed(client, &self.watches, tasks);
        self.deployments.feed(client, &self.watches, tasks);
        self.replica_sets.feed(client, &self.watches, tasks);
        self.daemon_sets.feed(client, &self.watches, tasks);
        self.stateful_sets.feed(client, &self.watches, tasks);
        self.revisions.feed(client, &self.watches, tasks);
        self.jobs.feed(client, &self.watches, tasks);
        self.cron_jobs.feed(client, &self.watches, tasks);
    }

    /// Creates an object; the cache has it at once.
    pub(crate) async fn create<K>(&self, cache: &Cache<K>, object: &K) -> Result<K, kube::Error>
    where
        K: Namespaced,
    {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let created =
            namespaced::<K>(&self.client, &namespace).create(&PostParams::default(), object).await?;
        cache.put(created.clone());
        Ok(created)
    }

    /// Replaces an object, which must not have changed since it was read; the cache has it at once.
    pub(crate) async fn replace<K>(&self, cache: &Cache<K>, object: &K) -> Result<K, kube::Error>
    where
        K: Namespaced,
    {
        let Key { namespace, name } = Key::of(object);
        let written =
            namespaced::<K>(&self.client, &namespace).replace(&name, &PostParams::default(), object).await?;
        cache.put(written.clone());
        Ok(written)
    }

    /// Merges into an object; the cache has it at once.
    pub(crate) async fn merge<K>(&self, cache: &Cache<K>, key: &Key, patch: Value) -> Result<K, kube::Error>
    where
        K: Namespaced,
    {
        let api = namespaced::<K>(&self.client, &key.namespace);
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        cache.put(written.clone());
        Ok(written)
    }

    /// Merges into an object's status; the cache has it at once. An object that is gone needs none.
    pub(crate) async fn merge_status<K>(
        &self,
        cache: &Cache<K>,
        key: &Key,
        status: Value,
    ) -> Result<(), kube::Error>
    where
        K: Namespaced,
    {
        let api = namespaced::<K>(&self.client, &key.namespace);
        let patch = Patch::Merge(serde_json::json!({"status": status}));
        let written = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
        if let Ok(written) = &written {
            cache.put(written.clone());
        }
        gone_is_fine(written)
    }

    /// Deletes the object with this uid, in the background.
    pub(crate) async fn delete<K>(&self, object: &K) -> Result<(), kube::Error>
    where
        K: Namespaced,
    {
        let Key { namespace, name } = Key::of(object);
        let preconditions = Preconditions { uid: object.meta().uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        gone_is_fine(namespaced::<K>(&self.client, &namespace).delete(&name, &params).await)
    }
}

/// A kind of objects in namespaces.
pub(crate) trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}
