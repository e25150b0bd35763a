// SPDX-License-Identifier: Apache-2.0
//! What one watcher has handed on, and what it hands on next.

use std::collections::HashSet;
use std::time::Duration;

use kube::Resource;
use kube::runtime::watcher;
use meltemi_model::NamespacedName;
use meltemi_translate::facts::name_of;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Event, Kind, Object, ReadError};

/// How long a kind may not be listed until the mesh does without it. An API server that has just started refuses everybody
/// for a moment, until it has read its own rules.
const FORBIDDEN: Duration = Duration::from_secs(10);

/// The memory of one watcher: what it has handed on.
pub(super) struct Watched {
    kind: Kind,
    known: HashSet<NamespacedName>,
    listed: Option<HashSet<NamespacedName>>,
    /// The last failure that was told: the same one comes every second.
    failure: String,
    /// Since when the kind may not be listed.
    forbidden: Option<Instant>,
    /// That has been handed on.
    is_missing: bool,
    events: mpsc::Sender<Event>,
}

impl Watched {
    pub(super) fn new(kind: Kind, events: mpsc::Sender<Event>) -> Self {
        Self {
            kind,
            known: HashSet::new(),
            listed: None,
            failure: String::new(),
            forbidden: None,
            is_missing: false,
            events,
        }
    }

    /// Takes a failure of the watch, which goes on by itself.
    pub(super) async fn failed(
        &mut self,
        error: &watcher::Error,
    ) -> Result<(), mpsc::error::SendError<Event>> {
        let text = error.to_string();
        if text != self.failure {
            tracing::warn!(kind = ?self.kind, %error, "watching failed, trying again");
            self.failure.clone_from(&text);
        }
        let is_forbidden =
            matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(s)) if s.code == 403);
        if !is_forbidden || !self.kind.is_dispensable() {
            self.forbidden = None;
        } else if self.forbidden.get_or_insert_with(Instant::now).elapsed() > FORBIDDEN && !self.is_missing {
            self.is_missing = true;
            self.events.send(Event::Missing(self.kind, text)).await?;
        }
        Ok(())
    }

    pub(super) async fn take<K: Resource + Sync>(
        &mut self,
        event: watcher::Event<K>,
        read: fn(&K) -> Result<Object, ReadError>,
    ) -> Result<(), mpsc::error::SendError<Event>> {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(object) => {
                let name = name_of(object.meta());
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                self.changed(name, &object, read).await?;
            }
            watcher::Event::Apply(object) => self.changed(name_of(object.meta()), &object, read).await?,
            watcher::Event::Delete(object) => self.gone(name_of(object.meta())).await?,
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.known.difference(&listed).cloned().collect();
                for name in gone {
                    self.gone(name).await?;
                }
                self.failure.clear();
                (self.forbidden, self.is_missing) = (None, false);
                self.events.send(Event::Synced(self.kind)).await?;
            }
        }
        Ok(())
    }

    async fn changed<K: Resource + Sync>(
        &mut self,
        name: NamespacedName,
        object: &K,
        read: fn(&K) -> Result<Object, ReadError>,
    ) -> Result<(), mpsc::error::SendError<Event>> {
        match read(object) {
            Ok(object) => {
                self.known.insert(name.clone());
                self.events.send(Event::Changed(self.kind, name, object)).await
            }
            Err(reason) => {
                tracing::error!(kind = ?self.kind, %name, %reason, "object cannot be read; what was known of it stays");
                Ok(())
            }
        }
    }

    async fn gone(&mut self, name: NamespacedName) -> Result<(), mpsc::error::SendError<Event>> {
        self.known.remove(&name);
        self.events.send(Event::Gone(self.kind, name)).await
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use meltemi_translate::facts::PodFacts;

    use super::*;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("default".to_owned());
        pod
    }

    #[tokio::test]
    async fn what_a_new_list_lacks_is_gone() {
        let (tx, mut rx) = mpsc::channel(16);
        let mut watched = Watched::new(Kind::Pod, tx);
        let read: fn(&Pod) -> Result<Object, ReadError> = |p| Ok(Object::Pod(Box::new(PodFacts::read(p))));
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(pod("a")),
            watcher::Event::InitApply(pod("b")),
            watcher::Event::InitDone,
            watcher::Event::Init,
            watcher::Event::InitApply(pod("b")),
            watcher::Event::InitDone,
        ] {
            watched.take(event, read).await.unwrap();
        }
        drop(watched);
        let mut seen = Vec::new();
        while let Some(event) = rx.recv().await {
            seen.push(match event {
                Event::Changed(_, name, _) => format!("+{}", name.name),
                Event::Gone(_, name) => format!("-{}", name.name),
                Event::Synced(_) => "synced".to_owned(),
                Event::Missing(kind, _) => format!("?{kind:?}"),
            });
        }
        assert_eq!(seen, ["+a", "+b", "synced", "+b", "-a", "synced"]);
    }
}
