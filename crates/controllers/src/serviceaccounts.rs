// SPDX-License-Identifier: Apache-2.0
//! What every namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meltemi_runtime::Tasks;
use serde_json::json;

use crate::cache::Key;
use crate::cluster::Cluster;
use crate::queue::{Outcome, Queue, is_conflict};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) fn start(cluster: &Arc<Cluster>, tasks: &Tasks) {
    let queue = Queue::default();
    let add = queue.clone();
    cluster.namespaces.subscribe(move |change| {
        if let Some(namespace) = change.new {
            add.add(Key::of(&**namespace));
        }
    });
    let add = queue.clone();
    cluster.accounts.subscribe(move |change| {
        if let (Some(old), None) = (change.old, change.new)
            && old.metadata.name.as_deref() == Some(ACCOUNT)
        {
            add.add(Key::new("", old.metadata.namespace.as_deref().unwrap_or_default()));
        }
    });
    let add = queue.clone();
    cluster.config_maps.subscribe(move |change| {
        if let Some(map) = change.object()
            && map.metadata.name.as_deref() == Some(ROOT_CA)
        {
            add.add(Key::new("", map.metadata.namespace.as_deref().unwrap_or_default()));
        }
    });
    let c = cluster.clone();
    let synced = async move {
        tokio::join!(c.namespaces.synced(), c.accounts.synced(), c.config_maps.synced());
    };
    let cluster = cluster.clone();
    queue.run(tasks, "serviceaccount-controller", 8, synced, move |key| {
        let cluster = cluster.clone();
        async move { reconcile(&cluster, &key).await }
    });
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Outcome {
    let active = cluster.namespaces.get(key).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
    if !active {
        return Ok(None);
    }
    let meta = |name: &str| ObjectMeta {
        name: Some(name.into()),
        namespace: Some(key.name.clone()),
        ..ObjectMeta::default()
    };
    if cluster.accounts.get(&Key::new(&key.name, ACCOUNT)).is_none() {
        let account = ServiceAccount { metadata: meta(ACCOUNT), ..ServiceAccount::default() };
        exists_is_fine(cluster.create(&cluster.accounts, &account).await)?;
    }
    let data = BTreeMap::from([("ca.crt".to_owned(), cluster.root_ca.clone())]);
    let of = Key::new(&key.name, ROOT_CA);
    match cluster.config_maps.get(&of) {
        None => {
            let mut metadata = meta(ROOT_CA);
            metadata.annotations = Some(BTreeMap::from([(
                "kubernetes.io/description".to_owned(),
                "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints."
                    .to_owned(),
            )]));
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            exists_is_fine(cluster.create(&cluster.config_maps, &map).await)?;
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            cluster.merge(&cluster.config_maps, &of, json!({"data": data})).await?;
        }
        Some(_) => {}
    }
    Ok(None)
}

fn exists_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
