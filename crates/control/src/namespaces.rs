// SPDX-License-Identifier: Apache-2.0
//! The root certificate, as a ConfigMap in every namespace: what proxies verify the control plane by.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use meltemi_runtime::Tasks;
use serde_json::json;
use tokio::sync::Notify;

use crate::leader::Leadership;

/// Name of the ConfigMap.
pub const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
const MANAGER: &str = "istio-namespace-controller";
const AGAIN: Duration = Duration::from_secs(1);
/// Every namespace is looked at again so often: a ConfigMap that somebody deleted comes back.
const ROUND: Duration = Duration::from_secs(30);

/// Namespaces that are to have the certificate; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Namespaces(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    all: Mutex<BTreeSet<Arc<str>>>,
    due: Mutex<BTreeSet<Arc<str>>>,
    more: Notify,
}

impl Namespaces {
    /// A namespace is there.
    pub fn add(&self, name: &Arc<str>) {
        if lock(&self.0.all).insert(name.clone()) {
            lock(&self.0.due).insert(name.clone());
            self.0.more.notify_one();
        }
    }

    /// A namespace is gone.
    pub fn remove(&self, name: &Arc<str>) {
        lock(&self.0.all).remove(name);
        lock(&self.0.due).remove(name);
    }

    fn again(&self, name: Arc<str>) {
        if lock(&self.0.all).contains(&name) {
            lock(&self.0.due).insert(name);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the writer; it writes while this replica leads.
pub fn start(client: Client, tasks: &Tasks, namespaces: &Namespaces, root_pem: String, leader: Leadership) {
    let namespaces = namespaces.clone();
    let mut drain = tasks.drain();
    tasks.spawn("root certificates", async move {
        tokio::select! {
            () = drain.started() => {}
            () = write_forever(&client, &namespaces, &root_pem, leader) => {}
        }
        Ok::<(), Infallible>(())
    });
}

async fn write_forever(client: &Client, namespaces: &Namespaces, root_pem: &str, mut leader: Leadership) {
    loop {
        leader.acquired().await;
        let due = std::mem::take(&mut *lock(&namespaces.0.due));
        let mut failed = false;
        for name in due {
            if let Err(error) = write(client, &name, root_pem).await {
                tracing::warn!(namespace = %name, %error, "root certificate not written, trying again");
                namespaces.again(name);
                failed = true;
            }
        }
        if failed {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        if tokio::time::timeout(ROUND, namespaces.0.more.notified()).await.is_err() {
            let all = lock(&namespaces.0.all).clone();
            lock(&namespaces.0.due).extend(all);
        }
    }
}

async fn write(client: &Client, namespace: &str, root_pem: &str) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let right = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get(KEY)).is_some_and(|v| v == root_pem);
    if api.get_opt(NAME).await?.is_some_and(|map| right(&map)) {
        return Ok(());
    }
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "istio.io/config": "true" } },
        "data": { KEY: root_pem },
    });
    match api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&body)).await {
        // A namespace that is being deleted takes nothing new.
        Err(kube::Error::Api(error)) if matches!(error.code, 403 | 404) && terminating(&error.message) => {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn terminating(message: &str) -> bool {
    message.contains("being terminated") || message.contains("not found")
}
