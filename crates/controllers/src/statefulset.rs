// SPDX-License-Identifier: Apache-2.0
//! StatefulSets: Pods with names and volume claims that outlive them.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::Deserialize as _;
use kube::ResourceExt as _;
use meltemi_runtime::Tasks;
use serde_json::json;

use self::plan::{Template, revision_name};
use crate::cache::{Key, controllers_of};
use crate::cluster::Cluster;
use crate::pods;
use crate::queue::{Outcome, Queue, is_conflict};
use crate::revisions::{self, HASH_LABEL};

const NAME: &str = "statefulset-controller";
/// Label of a Pod with its own name, so that a Service can select a single one.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label of a Pod with its ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// When to look again whether a claim that is being deleted has gone.
const CLAIM_RETRY: Duration = Duration::from_secs(1);

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.stateful_sets.subscribe(move |change| {
        if let Some(set) = change.new {
            add.add(Key::of(&**set));
        }
    });
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        for key in controllers_of(change, "StatefulSet") {
            add.add(key);
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.pods.synced(), c.claims.synced(), c.stateful_sets.synced(), c.revisions.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 4, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let Some(set) = cluster.stateful_sets.get(key) else { return Ok(None) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let spec = set.spec.clone().unwrap_or_default();
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let owned = cluster.pods.controlled_by(&key.namespace, uid);
    let current = set.status.as_ref().and_then(|status| status.current_revision.clone()).unwrap_or_default();
    // The revision before an update is in use as long as a partition may ask for it.
    let held_back = current.strip_prefix(&format!("{}-", key.name)).unwrap_or_default();
    let mut in_use: Vec<&str> =
        owned.iter().filter_map(|pod| pod.labels().get(HASH_LABEL).map(String::as_str)).collect();
    in_use.push(held_back);
    let history = spec.revision_history_limit.unwrap_or(10);
    let updated = revisions::ensure(cluster, &*set, &spec.template, history, &in_use).await?;
    let plan = plan::plan(&set, &owned, &updated, Timestamp::now());
    let mut again = plan.again;
    for pod in &plan.delete {
        cluster.delete(&**pod).await?;
        cluster.events.normal(NAME, &*set, "SuccessfulDelete", format!("delete Pod {}", pod.name_any()));
    }
    for (ordinal, template) in plan.create {
        let hash = if template == Template::Current && !held_back.is_empty() { held_back } else { &updated };
        let template = template_of(cluster, key, hash).unwrap_or_else(|| spec.template.clone());
        let pod = make_pod(&set, &spec, &template, ordinal, hash);
        if !provide_claims(cluster, &set, &spec, &pod).await? {
            again = pods::sooner(again, Some(CLAIM_RETRY));
            continue;
        }
        let made = cluster.create(&cluster.pods, &pod).await?;
        cluster.events.normal(NAME, &*set, "SuccessfulCreate", format!("create Pod {}", made.name_any()));
    }
    if set.status.as_ref() != Some(&plan.status) {
        cluster.merge_status(&cluster.stateful_sets, key, json!(plan.status)).await?;
    }
    Ok(again)
}

/// The template that a revision holds.
fn template_of(cluster: &Cluster, key: &Key, hash: &str) -> Option<PodTemplateSpec> {
    let revision = cluster.revisions.get(&Key::new(&key.namespace, &revision_name(&key.name, hash)))?;
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    PodTemplateSpec::deserialize(template).ok()
}

/// Name of the claim of a Pod for a template.
fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

fn make_pod(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    ordinal: i32,
    hash: &str,
) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let index = ordinal.to_string();
    let labels = [(HASH_LABEL, hash), (POD_NAME, name.as_str()), (POD_INDEX, index.as_str())];
    let mut pod = pods::from_template(set, template, name.clone(), &labels);
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
    for claim in spec.volume_claim_templates.iter().flatten() {
        let volume = Volume {
            name: claim.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(claim, &name),
                read_only: Some(false),
            }),
            ..Volume::default()
        };
        let volumes = pod_spec.volumes.get_or_insert_default();
        // A template's volume of the same name gives way.
        volumes.retain(|other| other.name != volume.name);
        volumes.push(volume);
    }
    pod
}

/// Makes the claims of a Pod that are not there; false while one of them is being deleted.
async fn provide_claims(
    cluster: &Cluster,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &Pod,
) -> Result<bool, kube::Error> {
    let namespace = set.namespace().unwrap_or_default();
    let mut are_there = true;
    for template in spec.volume_claim_templates.iter().flatten() {
        let name = claim_name(template, &pod.name_any());
        match cluster.claims.get(&Key::new(&namespace, &name)) {
            Some(claim) => are_there &= claim.metadata.deletion_timestamp.is_none(),
            None => {
                let claim = make_claim(set, spec, template, name);
                match cluster.create(&cluster.claims, &claim).await {
                    Err(error) if is_conflict(&error) => {}
                    made => drop(made?),
                }
            }
        }
    }
    Ok(are_there)
}

/// A claim belongs to nobody: it outlives its Pod and the set.
fn make_claim(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PersistentVolumeClaim,
    name: String,
) -> PersistentVolumeClaim {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: template.metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_name_its_place_and_its_claims() {
        let set = StatefulSet::deserialize(json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "u"},
            "spec": {"serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}],
                    "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "1"}},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}
        }))
        .unwrap();
        let spec = set.spec.clone().unwrap();
        let pod = make_pod(&set, &spec, &spec.template, 3, "hash");
        let seen = json!(pod);
        assert_eq!(seen["metadata"]["name"], "db-3");
        assert_eq!(
            seen["metadata"]["labels"],
            json!({"app": "db", HASH_LABEL: "hash", POD_NAME: "db-3", POD_INDEX: "3"})
        );
        assert_eq!((&seen["spec"]["hostname"], &seen["spec"]["subdomain"]), (&json!("db-3"), &json!("db")));
        let volumes = json!([{"name": "tmp", "emptyDir": {}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-3", "readOnly": false}}]);
        assert_eq!(seen["spec"]["volumes"], volumes);
        let templates = spec.volume_claim_templates.as_deref().unwrap();
        let claim = json!(make_claim(&set, &spec, &templates[0], claim_name(&templates[0], "db-3")));
        assert_eq!(claim["metadata"]["name"], "data-db-3");
        assert_eq!(claim["metadata"]["labels"], json!({"app": "db", "tier": "1"}));
        assert_eq!(claim["metadata"]["ownerReferences"], json!(null));
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "1Gi");
    }
}
