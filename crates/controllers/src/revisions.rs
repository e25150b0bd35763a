// SPDX-License-Identifier: Apache-2.0
//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, for `kubectl rollout undo`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::{Resource, ResourceExt as _};
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Cluster;
use crate::pods;
use crate::queue::is_conflict;

/// The label by which Pods and revisions name their template.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// Makes sure that the present template is a revision, the newest one, and drops what exceeds the history.
/// Returns the template's hash.
pub(crate) async fn ensure<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    owner: &K,
    template: &PodTemplateSpec,
    history: i32,
    in_use: &[&str],
) -> Result<String, kube::Error> {
    let Key { namespace, name } = Key::of(owner);
    let hash = pods::short_hash(template, 0);
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let mut revisions = cluster.revisions.controlled_by(&namespace, uid);
    revisions.sort_by_key(|r| r.revision);
    let newest = revisions.last().map_or(0, |r| r.revision);
    let own_name = format!("{name}-{hash}");
    match revisions.iter().find(|r| r.metadata.name.as_deref() == Some(&own_name)) {
        Some(have) if have.revision == newest => {}
        // An undone template is the newest again.
        Some(_) => {
            let patch = json!({"revision": newest + 1});
            cluster.merge(&cluster.revisions, &Key::new(&namespace, &own_name), patch).await?;
        }
        None => {
            let made = create(cluster, owner, template, (&own_name, &hash, newest + 1)).await;
            match made {
                Ok(()) => {}
                Err(error) if is_conflict(&error) => tracing::debug!(%own_name, "revision exists already"),
                Err(error) => return Err(error),
            }
        }
    }
    let spare = |r: &&Arc<ControllerRevision>| {
        let of = r.labels().get(HASH_LABEL).map(String::as_str).unwrap_or_default();
        of != hash && !in_use.contains(&of)
    };
    let old: Vec<_> = revisions.iter().filter(spare).collect();
    let surplus = old.len().saturating_sub(usize::try_from(history).unwrap_or(0));
    for revision in old.into_iter().take(surplus) {
        cluster.delete(&**revision).await?;
    }
    Ok(hash)
}

async fn create<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    owner: &K,
    template: &PodTemplateSpec,
    (name, hash, revision): (&str, &str, i64),
) -> Result<(), kube::Error> {
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.to_owned());
    // The form in which kubectl reads it back: a patch that replaces the template.
    let mut data = json!({"spec": {"template": template}});
    data["spec"]["template"]["$patch"] = "replace".into();
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![pods::controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision,
    };
    cluster.create(&cluster.revisions, &revision).await.map(drop)
}
