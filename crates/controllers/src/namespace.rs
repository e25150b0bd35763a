// SPDX-License-Identifier: Apache-2.0
//! Deletion of namespaces: everything in it first, the namespace when it is empty.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::discovery::Scope;
use kube::{Api, Client};
use meltemi_runtime::Tasks;

use crate::cache::Key;
use crate::cluster::Cluster;
use crate::garbage::resources;
use crate::queue::{Outcome, Queue, gone_is_fine};

/// How soon what was deleted is looked at again.
const AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.namespaces.subscribe(move |change| {
        if let Some(namespace) = change.new.filter(|n| n.metadata.deletion_timestamp.is_some()) {
            add.add(Key::of(&**namespace));
        }
    });
    let c = cluster.clone();
    let synced = async move { c.namespaces.synced().await };
    let cluster = cluster.clone();
    queue.run(tasks, "namespace-controller", 4, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(namespace) = cluster.namespaces.get(key) else { return Ok(None) };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(None);
    }
    let all = resources(&cluster.client).await?.into_iter();
    let all = all.filter(|(_, capabilities)| capabilities.scope == Scope::Namespaced);
    let (guards, others): (Vec<_>, Vec<_>) = all.map(|(resource, _)| resource).partition(guards);
    for resources in [others, guards] {
        let mut left = 0;
        for resource in resources {
            left += empty(&cluster.client, &key.name, &resource).await?;
        }
        if left > 0 {
            return Ok(Some(AGAIN));
        }
    }
    finalize(cluster, &namespace, &key.name).await?;
    Ok(None)
}

/// Whether the kind says who may reach a Pod: that holds until the last Pod has ended, so it goes last.
fn guards(resource: &ApiResource) -> bool {
    resource.group == "security.istio.io"
}

/// Deletes a kind's objects in a namespace; how many are left.
async fn empty(client: &Client, namespace: &str, resource: &ApiResource) -> Result<usize, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let objects = match api.list_metadata(&ListParams::default()).await {
        Ok(objects) => objects.items,
        // A kind that went away meanwhile has no objects.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return Ok(0),
        Err(error) => return Err(error),
    };
    for object in objects.iter().filter(|o| o.metadata.deletion_timestamp.is_none()) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(api.delete(name, &DeleteParams::background()).await)?;
    }
    Ok(objects.len())
}

/// Takes the namespace's own finalizer away, by which the API lets it go.
async fn finalize(cluster: &Cluster, namespace: &Namespace, name: &str) -> Result<(), kube::Error> {
    let mut namespace = namespace.clone();
    if let Some(spec) = &mut namespace.spec {
        spec.finalizers = None;
    }
    namespace.metadata.resource_version = None;
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    gone_is_fine(
        api.replace_subresource("finalize", name, &kube::api::PostParams::default(), &namespace).await,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guards_pods_outlives_them() {
        let kind = |group: &str, kind: &str| {
            ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(group, "v1", kind))
        };
        for (group, name, last) in [
            ("", "Pod", false),
            ("gateway.networking.k8s.io", "Gateway", false),
            ("security.istio.io", "AuthorizationPolicy", true),
            ("security.istio.io", "PeerAuthentication", true),
        ] {
            assert_eq!(guards(&kind(group, name)), last, "{name}");
        }
    }
}
