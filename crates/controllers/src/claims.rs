// SPDX-License-Identifier: Apache-2.0
//! Volume claims: each is bound to a folder of its own, which lives until the claim is deleted and no Pod uses it any more.
//!
//! The folder has the name of the claim's uid: a claim of the same name that is made later never finds what an earlier one
//! held. A finalizer keeps the object until the folder is gone.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue, gone_is_fine};

const NAME: &str = "persistentvolume-binder";
const FINALIZER: &str = "kubernetes.io/pvc-protection";

/// `folders`: where the folders of claims are.
pub(crate) fn start(cluster: &Arc<Cluster>, folders: PathBuf, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.claims.subscribe(move |change| {
        if let Some(claim) = change.new {
            add.add(Key::of(&**claim));
        }
    });
    let add = queue.clone();
    cluster.pods.subscribe(move |change| {
        for pod in change.states() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            claims_of(pod).for_each(|claim| add.add(Key::new(namespace, claim)));
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.claims.synced(), c.pods.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, NAME, 2, synced, move |key| {
        let (cluster, folders) = (cluster.clone(), folders.clone());
        async move { reconcile(&cluster, &folders, &key).await }
    });
}

fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// What is to be done for a claim.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Bind,
    /// It asks for what there is not.
    Refuse(&'static str),
    Remove,
}

fn step(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Step {
    let meta = &claim.metadata;
    if meta.deletion_timestamp.is_some() {
        let ours = meta.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        let name = meta.name.as_deref().unwrap_or_default();
        let is_over = |pod: &Pod| {
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
        };
        let used = pods.iter().any(|pod| !is_over(pod) && claims_of(pod).any(|claim| claim == name));
        return if ours && !used { Step::Remove } else { Step::Nothing };
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") {
        return Step::Nothing;
    }
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Step::Refuse("volumeMode Block: there are folders only");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Step::Refuse("dataSource: a volume begins empty here");
    }
    let own = format!("pvc-{}", meta.uid.as_deref().unwrap_or_default());
    if spec.volume_name.is_some_and(|name| !name.is_empty() && name != own) {
        return Step::Refuse(
            "volumeName: PersistentVolumes are not used here, each claim gets a folder of its own",
        );
    }
    Step::Bind
}

async fn reconcile(cluster: &Cluster, folders: &Path, key: &Key) -> Outcome {
    let Some(claim) = cluster.claims.get(key) else { return Ok(None) };
    let Some(uid) = claim.metadata.uid.clone().filter(|uid| is_plain(uid)) else { return Ok(None) };
    let folder = folders.join(&uid);
    match step(&claim, &cluster.pods.in_namespace(&key.namespace)) {
        Step::Nothing => {}
        Step::Refuse(why) => cluster.events.warning(NAME, &*claim, "ProvisioningFailed", why.to_owned()),
        Step::Bind => {
            let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
            if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
            }
            let revision = &claim.metadata.resource_version;
            let patch = json!({
                "metadata": {"finalizers": finalizers, "resourceVersion": revision},
                "spec": {"volumeName": format!("pvc-{uid}")}
            });
            cluster.merge(&cluster.claims, key, patch).await?;
            on_disk(move || make(&folder)).await?;
            let spec = claim.spec.clone().unwrap_or_default();
            let capacity = spec.resources.and_then(|resources| resources.requests);
            let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": capacity});
            cluster.merge_status(&cluster.claims, key, status).await?;
            let message = "bound to a folder of the mesh's data directory".to_owned();
            cluster.events.normal(NAME, &*claim, "ProvisioningSucceeded", message);
        }
        Step::Remove => {
            on_disk(move || remove(&folder)).await?;
            let finalizers = claim.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER);
            let finalizers: Vec<&String> = finalizers.collect();
            let revision = &claim.metadata.resource_version;
            let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": revision}});
            gone_is_fine(cluster.merge(&cluster.claims, key, patch).await)?;
        }
    }
    Ok(None)
}

/// A uid is the name of a folder and leads nowhere else.
fn is_plain(uid: &str) -> bool {
    !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

async fn on_disk(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), kube::Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|e| kube::Error::Service(Box::new(e)))
}

/// Every user of a Pod may write there, as in an emptyDir; what is around it nobody but the mesh may enter.
fn make(folder: &Path) -> io::Result<()> {
    if let Some(around) = folder.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(around)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => fs::set_permissions(folder, Permissions::from_mode(0o777)),
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(meta: Value, spec: Value, phase: &str) -> PersistentVolumeClaim {
        let mut claim =
            json!({"metadata": {"name": "data", "uid": "u"}, "spec": spec, "status": {"phase": phase}});
        for (key, value) in meta.as_object().unwrap() {
            claim["metadata"][key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn pod(claim: &str, phase: &str) -> Arc<Pod> {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        let pod = json!({"spec": {"containers": [], "volumes": volumes}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_claim_is_bound_and_goes_when_nobody_uses_it() {
        let deleted = || json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]});
        let gone = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["other"]});
        let none = || json!({});
        for (what, claim, pods, expected) in [
            ("new", claim(none(), none(), "Pending"), vec![], Step::Bind),
            ("bound", claim(none(), none(), "Bound"), vec![pod("data", "Running")], Step::Nothing),
            ("half bound", claim(none(), json!({"volumeName": "pvc-u"}), "Pending"), vec![], Step::Bind),
            ("deleted", claim(deleted(), none(), "Bound"), vec![pod("other", "Running")], Step::Remove),
            ("in use", claim(deleted(), none(), "Bound"), vec![pod("data", "Running")], Step::Nothing),
            ("not begun", claim(deleted(), none(), "Bound"), vec![pod("data", "Pending")], Step::Nothing),
            ("over", claim(deleted(), none(), "Bound"), vec![pod("data", "Failed")], Step::Remove),
            ("another's to finish", claim(gone, none(), "Bound"), vec![], Step::Nothing),
        ] {
            assert_eq!(step(&claim, &pods), expected, "{what}");
        }
        for spec in [
            json!({"volumeMode": "Block"}),
            json!({"volumeName": "mine"}),
            json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}),
        ] {
            assert!(matches!(step(&claim(none(), spec.clone(), ""), &[]), Step::Refuse(_)), "{spec}");
        }
    }

    #[test]
    fn folders_are_made_and_removed_whole() {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("claims/u-1");
        make(&folder).unwrap();
        make(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o777, 0o700));
        fs::create_dir(folder.join("sub")).unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("sub/link")).unwrap();
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists() && Path::new("/etc/passwd").exists());
        assert!(is_plain("0e-1A") && !is_plain("") && !is_plain("../x") && !is_plain("a/b"));
    }
}
