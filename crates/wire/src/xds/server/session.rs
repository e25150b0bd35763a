// SPDX-License-Identifier: Apache-2.0
//! One client's stream: its requests in, differences out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::Status;

use super::super::store::{Since, Store, TypeUrl};
use super::subscription::{Difference, Subscription};
use super::{Client, Clients, TypeState, View};
use crate::proto::discovery as pb;

/// A response that the client has not answered yet.
struct Pending {
    nonce: u64,
    type_url: TypeUrl,
    versions: Vec<(Arc<str>, Arc<str>)>,
    removed: Vec<Arc<str>>,
}

pub(super) struct Session {
    id: u64,
    view: View,
    store: Store,
    clients: Clients,
    responses: mpsc::Sender<Result<pb::DeltaDiscoveryResponse, Status>>,
    subscriptions: HashMap<TypeUrl, Subscription>,
    pending: VecDeque<Pending>,
    nonce: u64,
    revision: u64,
}

/// Takes the client from the list when its stream ends, however it ends.
struct Listed {
    id: u64,
    clients: Clients,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.clients.lock().remove(&self.id);
        self.clients.changed.send_modify(|v| *v += 1);
    }
}

impl Session {
    pub(super) fn new(
        id: u64,
        view: View,
        store: Store,
        clients: Clients,
        responses: mpsc::Sender<Result<pb::DeltaDiscoveryResponse, Status>>,
    ) -> Self {
        let revision = store.revision();
        let (subscriptions, pending) = (HashMap::new(), VecDeque::new());
        Self { id, view, store, clients, responses, subscriptions, pending, nonce: 0, revision }
    }

    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<pb::DeltaDiscoveryRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
        let client = Client {
            node: String::new(),
            metadata: BTreeMap::new(),
            view: self.view.clone(),
            types: BTreeMap::new(),
        };
        self.clients.lock().insert(self.id, client);
        let _listed = Listed { id: self.id, clients: self.clients.clone() };
        let mut revisions = self.store.follow();
        loop {
            tokio::select! {
                biased;
                request = requests.next() => match request {
                    Some(Ok(request)) => self.request(request).await?,
                    Some(Err(status)) => return Err(status),
                    None => return Ok(()),
                },
                changed = revisions.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.push().await?;
                }
            }
        }
    }

    async fn request(&mut self, request: pb::DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = &request.node {
            self.introduce(node);
        }
        let Some(type_url) = self.view.types.iter().copied().find(|t| *t == request.type_url) else {
            let reason = format!("type {:?} is not served to {}", request.type_url, self.view.who);
            let status = Status::permission_denied(reason);
            let _ = self.responses.send(Err(status.clone())).await;
            return Err(status);
        };
        self.acknowledge(type_url, &request);
        let (subscribe, unsubscribe) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
        if let Some(subscription) = self.subscriptions.get_mut(type_url) {
            let widened = subscribe.iter().any(|s| s == "*");
            let new = subscription.change(subscribe, unsubscribe);
            let difference = if widened {
                subscription.compare(&self.store, &self.view)
            } else if new.is_empty() {
                return Ok(());
            } else {
                subscription.answer(&new, &self.store, &self.view)
            };
            return self.send(type_url, difference).await;
        }
        let mut subscription =
            Subscription::new(type_url, subscribe, unsubscribe, request.initial_resource_versions);
        let difference = subscription.compare(&self.store, &self.view);
        self.subscriptions.insert(type_url, subscription);
        // Even an empty answer says that there is no more to come.
        self.send(type_url, difference).await
    }

    fn introduce(&self, node: &pb::Node) {
        let text = |value: &prost_types::Value| match &value.kind {
            Some(prost_types::value::Kind::StringValue(text)) => Some(text.clone()),
            _ => None,
        };
        let fields = node.metadata.iter().flat_map(|m| m.fields.iter());
        let metadata = fields.filter_map(|(k, v)| Some((k.clone(), text(v)?))).collect();
        self.clients.update(self.id, |client| {
            client.node.clone_from(&node.id);
            client.metadata = metadata;
        });
    }

    /// An answer to a response: what it acknowledges is held, what it rejects is not.
    fn acknowledge(&mut self, type_url: TypeUrl, request: &pb::DeltaDiscoveryRequest) {
        let Ok(nonce) = request.response_nonce.parse::<u64>() else { return };
        let Some(at) = self.pending.iter().position(|p| p.nonce == nonce && p.type_url == type_url) else { return };
        let Some(pending) = self.pending.remove(at) else { return };
        let error = request.error_detail.as_ref().map(|e| e.message.clone());
        if let Some(error) = &error {
            tracing::warn!(who = %self.view.who, type_url, error, "client rejects a resource");
        }
        self.clients.update(self.id, |client| {
            let state = client.types.entry(type_url).or_default();
            match error {
                Some(error) => {
                    // The client names what it rejects; the rest of the batch is in force.
                    for (name, version) in pending.versions {
                        if !error.contains(&*name) {
                            state.holds.insert(name, version);
                        }
                    }
                    state.error = Some(error);
                }
                None => {
                    state.acked = nonce;
                    state.error = None;
                    state.holds.extend(pending.versions);
                }
            }
            for name in &pending.removed {
                state.holds.remove(name);
            }
        });
    }

    /// The store has changed: sends each type its difference, new things first, removals last and in reverse.
    async fn push(&mut self) -> Result<(), Status> {
        let (revision, since) = self.store.since(self.revision);
        self.revision = revision;
        let mut removals = Vec::new();
        for type_url in self.view.types.clone() {
            let Some(subscription) = self.subscriptions.get_mut(type_url) else { continue };
            let mut difference = match &since {
                Since::Everything => subscription.compare(&self.store, &self.view),
                Since::Names(names) => match names.get(type_url) {
                    Some(names) => subscription.look_at(names, &self.store, &self.view),
                    None => continue,
                },
            };
            let removed = std::mem::take(&mut difference.removals);
            if !removed.is_empty() {
                removals.push((type_url, removed));
            }
            if !difference.upserts.is_empty() {
                self.send(type_url, difference).await?;
            }
        }
        for (type_url, removed) in removals.into_iter().rev() {
            self.send(type_url, Difference { upserts: Vec::new(), removals: removed }).await?;
        }
        Ok(())
    }

    async fn send(&mut self, type_url: TypeUrl, difference: Difference) -> Result<(), Status> {
        self.nonce += 1;
        let nonce = self.nonce;
        let Difference { upserts, removals } = difference;
        let versions = upserts.iter().map(|i| (i.name.clone(), i.version.clone())).collect();
        let resources = upserts
            .iter()
            .map(|item| pb::Resource {
                version: item.version.to_string(),
                resource: Some(Any { type_url: type_url.to_owned(), value: item.body.to_vec() }),
                name: item.name.to_string(),
                aliases: item.aliases.clone(),
            })
            .collect();
        let response = pb::DeltaDiscoveryResponse {
            system_version_info: self.revision.to_string(),
            resources,
            type_url: type_url.to_owned(),
            nonce: nonce.to_string(),
            removed_resources: removals.iter().map(ToString::to_string).collect(),
        };
        self.pending.push_back(Pending { nonce, type_url, versions, removed: removals });
        self.clients.update(self.id, |client| {
            let state: &mut TypeState = client.types.entry(type_url).or_default();
            state.sent = nonce;
        });
        self.responses.send(Ok(response)).await.map_err(|_| Status::cancelled("the client is gone"))
    }
}
