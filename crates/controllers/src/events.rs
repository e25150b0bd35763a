// SPDX-License-Identifier: Apache-2.0
//! Events about objects, written by one task so that no reconciliation waits for them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Client, Resource};
use meltemi_runtime::Tasks;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cache::namespaced;

/// The same event is not written again within this time.
const QUIET: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 1024;

/// Records events; clones share the recorder.
#[derive(Clone)]
pub(crate) struct Events(mpsc::Sender<Event>);

impl Events {
    /// Starts the task that writes.
    pub(crate) fn start(client: Client, tasks: &Tasks) -> Self {
        let (sender, receiver) = mpsc::channel(256);
        let mut drain = tasks.drain();
        tasks.spawn("events", async move {
            tokio::select! {
                () = write(client, receiver) => {}
                () = drain.started() => {}
            }
            Ok::<_, Infallible>(())
        });
        Self(sender)
    }

    /// Something worth knowing. Events are dropped rather than waited for.
    pub(crate) fn normal<K: Resource<DynamicType = ()>>(
        &self,
        by: &str,
        of: &K,
        reason: &str,
        message: String,
    ) {
        self.send("Normal", by, of, reason, message);
    }

    /// Something that should not be.
    pub(crate) fn warning<K: Resource<DynamicType = ()>>(
        &self,
        by: &str,
        of: &K,
        reason: &str,
        message: String,
    ) {
        self.send("Warning", by, of, reason, message);
    }

    fn send<K: Resource<DynamicType = ()>>(
        &self,
        kind: &str,
        by: &str,
        of: &K,
        reason: &str,
        message: String,
    ) {
        let meta = of.meta();
        let namespace = meta.namespace.clone().unwrap_or_else(|| "default".into());
        let now = Time(jiff::Timestamp::now());
        let name = format!("{}.{:016x}", meta.name.as_deref().unwrap_or_default(), rand::random::<u64>());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                ..ObjectReference::default()
            },
            type_: Some(kind.into()),
            reason: Some(reason.into()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some(by.into()), host: None }),
            reporting_component: Some(by.into()),
            ..Event::default()
        };
        let _ = self.0.try_send(event);
    }
}

/// Object, reason, message.
type Key = (Option<String>, Option<String>, Option<String>);

async fn write(client: Client, mut events: mpsc::Receiver<Event>) {
    let mut recent: HashMap<Key, Instant> = HashMap::new();
    while let Some(event) = events.recv().await {
        let key = (event.involved_object.uid.clone(), event.reason.clone(), event.message.clone());
        recent.retain(|_, at| at.elapsed() < QUIET);
        if recent.contains_key(&key) || recent.len() >= REMEMBERED {
            continue;
        }
        recent.insert(key, Instant::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        if let Err(error) =
            namespaced::<Event>(&client, &namespace).create(&PostParams::default(), &event).await
        {
            tracing::debug!(%error, "event not written");
        }
    }
}
