// SPDX-License-Identifier: Apache-2.0
//! Events about Pods, as `kubectl describe` shows them: counted, and written by one task so that nobody waits.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use meltemi_runtime::Tasks;
use tokio::sync::mpsc;

/// More waiting events than this are dropped: they inform, nothing depends on them.
const QUEUE: usize = 1024;
/// Series that are counted in one event; the oldest is forgotten.
const SERIES: usize = 4096;

/// Takes events.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Said>);

#[derive(Debug)]
struct Said {
    object: ObjectReference,
    normal: bool,
    reason: String,
    message: String,
}

impl Events {
    /// Events that `component` writes on a node.
    pub fn new(client: kube::Client, component: &'static str, node: &str, tasks: &Tasks) -> Self {
        let (tx, rx) = mpsc::channel(QUEUE);
        let mut drain = tasks.drain();
        let work = write(client, component, node.to_owned(), rx);
        tasks.spawn("events", async move {
            tokio::select! {
                () = work => {}
                () = drain.started() => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Self(tx)
    }

    /// Something usual.
    pub fn normal(&self, pod: &Pod, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.say(pod, container, true, reason, message.into());
    }

    /// Something that somebody should look at.
    pub fn warning(&self, pod: &Pod, container: Option<&str>, reason: &str, message: impl Into<String>) {
        self.say(pod, container, false, reason, message.into());
    }

    fn say(&self, pod: &Pod, container: Option<&str>, normal: bool, reason: &str, message: String) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: container.map(|c| format!("spec.containers{{{c}}}")),
            ..ObjectReference::default()
        };
        let _ = self.0.try_send(Said { object, normal, reason: reason.to_owned(), message });
    }
}

async fn write(client: kube::Client, component: &'static str, node: String, mut rx: mpsc::Receiver<Said>) {
    let mut known: HashMap<String, (String, i32)> = HashMap::new();
    let mut serial: u64 = 0;
    while let Some(said) = rx.recv().await {
        let namespace = said.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let path = said.object.field_path.clone().unwrap_or_default();
        let key = format!("{:?}{path}{}{}", said.object.uid, said.reason, said.message);
        let now = Time(Timestamp::now());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": now});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
        }
        serial += 1;
        let stamp = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(serial);
        let name = format!("{}.{stamp:x}", said.object.name.clone().unwrap_or_default());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: said.object,
            type_: Some(if said.normal { "Normal" } else { "Warning" }.to_owned()),
            reason: Some(said.reason),
            message: Some(said.message),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some(component.to_owned()), host: Some(node.clone()) }),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(node.clone()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if known.len() >= SERIES {
                    known.clear();
                }
                known.insert(key, (name, 1));
            }
            Err(error) => tracing::debug!(%error, "event not written"),
        }
    }
}
