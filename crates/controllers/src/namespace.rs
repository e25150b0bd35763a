// SPDX-License-Identifier: Apache-2.0
//! Deletion of namespaces: everything in it first, the namespace when it is empty. What holds it up is in its conditions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::discovery::Scope;
use kube::{Api, Client};
use meltemi_runtime::Tasks;
use serde_json::{Value, json};

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
        let mut left = Vec::new();
        for resource in resources {
            left.push(empty(&cluster.client, &key.name, &resource).await?);
        }
        left.retain(|left| left.count > 0);
        if !left.is_empty() {
            write_conditions(cluster, &namespace, &left).await?;
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

/// What is left of a kind in a namespace.
struct Left {
    /// E.g. `deployments.apps`.
    resource: String,
    count: usize,
    /// How many objects each finalizer holds.
    finalizers: BTreeMap<String, usize>,
}

/// Deletes a kind's objects in a namespace; what is left.
async fn empty(client: &Client, namespace: &str, resource: &ApiResource) -> Result<Left, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let (plural, group) = (&resource.plural, &resource.group);
    let name = if group.is_empty() { plural.clone() } else { format!("{plural}.{group}") };
    let mut left = Left { resource: name, count: 0, finalizers: BTreeMap::new() };
    let objects = match api.list_metadata(&ListParams::default()).await {
        Ok(objects) => objects.items,
        // A kind that went away meanwhile has no objects.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return Ok(left),
        Err(error) => return Err(error),
    };
    for object in objects.iter().filter(|o| o.metadata.deletion_timestamp.is_none()) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(api.delete(name, &DeleteParams::background()).await)?;
    }
    left.count = objects.len();
    for finalizer in objects.into_iter().flat_map(|object| object.metadata.finalizers.unwrap_or_default()) {
        *left.finalizers.entry(finalizer).or_default() += 1;
    }
    Ok(left)
}

/// Says in the namespace's conditions what holds it up, where they do not say so yet.
async fn write_conditions(
    cluster: &Cluster,
    namespace: &Namespace,
    left: &[Left],
) -> Result<(), kube::Error> {
    let wanted = conditions(left);
    let present = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
    let says = |wanted: &Condition| {
        present.into_iter().flatten().any(|have| {
            have.type_ == wanted.kind
                && (have.status == "True") == wanted.holds
                && have.message.as_deref() == Some(wanted.message.as_str())
        })
    };
    if wanted.iter().all(says) {
        return Ok(());
    }
    let now = Time(jiff::Timestamp::now());
    let conditions: Vec<Value> = wanted
        .into_iter()
        .map(|condition| {
            let status = if condition.holds { "True" } else { "False" };
            let before = present.into_iter().flatten();
            let since = before
                .filter(|have| have.type_ == condition.kind && have.status == status)
                .find_map(|have| have.last_transition_time.clone());
            json!({"type": condition.kind, "status": status, "reason": condition.reason, "message": condition.message,
                "lastTransitionTime": since.unwrap_or_else(|| now.clone())})
        })
        .collect();
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"conditions": conditions}});
    gone_is_fine(api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await)
}

/// A condition of a namespace that is being deleted, with the names of Kubernetes.
#[derive(Debug, PartialEq)]
struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

fn conditions(left: &[Left]) -> Vec<Condition> {
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in left.iter().flat_map(|left| &left.finalizers) {
        *finalizers.entry(finalizer).or_default() += count;
    }
    let is_held = !finalizers.is_empty();
    let kinds: Vec<String> =
        left.iter().map(|left| format!("{} has {} resource instances", left.resource, left.count)).collect();
    let holders: Vec<String> = finalizers
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let kinds = kinds.join(", ");
    let condition = |kind, holds, [if_true, if_false]: [&'static str; 2], message: [String; 2]| {
        let [yes, no] = message;
        let (reason, message) = if holds { (if_true, yes) } else { (if_false, no) };
        Condition { kind, holds, reason, message }
    };
    vec![
        condition(
            "NamespaceDeletionContentFailure",
            is_held,
            ["ContentDeletionFailed", "ContentDeleted"],
            [
                format!("Failed to delete all resource types: {kinds}"),
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            ],
        ),
        condition(
            "NamespaceContentRemaining",
            true,
            ["SomeResourcesRemain", "ContentRemoved"],
            [format!("Some resources are remaining: {kinds}"), String::new()],
        ),
        condition(
            "NamespaceFinalizersRemaining",
            is_held,
            ["SomeFinalizersRemain", "ContentHasNoFinalizers"],
            [
                format!("Some content in the namespace has finalizers remaining: {}", holders.join(", ")),
                "All content-preserving finalizers finished".to_owned(),
            ],
        ),
    ]
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
    fn conditions_name_what_holds_a_namespace_up() {
        let left = |resource: &str, count, finalizers: &[(&str, usize)]| Left {
            resource: resource.to_owned(),
            count,
            finalizers: finalizers.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
        };
        let texts = |left: &[Left]| -> Vec<String> {
            conditions(left)
                .iter()
                .map(|c| format!("{}={} {}: {}", c.kind, c.holds, c.reason, c.message))
                .collect()
        };
        assert_eq!(
            texts(&[left("pods", 2, &[("x.io/a", 1)]), left("configmaps", 1, &[("x.io/a", 1)])]),
            [
                "NamespaceDeletionContentFailure=true ContentDeletionFailed: Failed to delete all resource types: \
                 pods has 2 resource instances, configmaps has 1 resource instances",
                "NamespaceContentRemaining=true SomeResourcesRemain: Some resources are remaining: \
                 pods has 2 resource instances, configmaps has 1 resource instances",
                "NamespaceFinalizersRemaining=true SomeFinalizersRemain: Some content in the namespace has finalizers \
                 remaining: x.io/a in 2 resource instances",
            ]
        );
        let running = texts(&[left("pods", 1, &[])]);
        assert!(
            running[0].starts_with("NamespaceDeletionContentFailure=false ContentDeleted"),
            "{running:?}"
        );
        assert!(running[2].starts_with("NamespaceFinalizersRemaining=false"), "{running:?}");
    }

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
