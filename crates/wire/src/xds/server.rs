// SPDX-License-Identifier: Apache-2.0
//! The server's core: a published state that changes in steps, and one subscription for each stream.
//!
//! Order of a step on a stream: what came of every type but addresses, then addresses, then what went of the other types.
//! So a policy arrives before the workload that names it, and leaves after it; on a new stream, too, where what went
//! waits until addresses were sent. A stream looks only at the names that
//! changed since its last look, as long as the log of changes reaches back.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

pub use super::publisher::{Change, Published, Publisher};
use super::publisher::{Entry, State};
use super::{MORE, types};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

/// Resources in one response.
const BATCH: usize = 5_000;
/// Names that a stream may ask for, of one type. Those of a wildcard do not count.
const MAX_NAMES: usize = 65_536;
/// Responses that a stream may leave unacknowledged.
const MAX_SENT: usize = 4_096;
/// Bytes of a refusal's text that are kept.
const MAX_REFUSAL: usize = 4_096;

/// Who subscribes, and what it may see.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// Unique name, for the observer.
    pub id: String,
    /// Types that it may subscribe to.
    pub types: Vec<&'static str>,
    /// The audience that it is, if any.
    pub audience: Option<Arc<str>>,
}

/// An acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The subscriber's id.
    pub subscriber: String,
    /// The type.
    pub type_url: &'static str,
    /// Everything of this type up to this generation is in use there, but for what is refused.
    pub generation: u64,
    /// What the subscriber refuses, as it words it.
    pub error: Option<String>,
}

/// Sees streams come and go, and what they acknowledge.
pub trait Observer: Send + Sync {
    /// A stream has begun.
    fn connected(&self, subscriber: &Subscriber);
    /// Something is in use.
    fn acknowledged(&self, acknowledged: Acknowledged);
    /// A stream has ended.
    fn disconnected(&self, subscriber: &Subscriber);
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Version held, by name.
    held: BTreeMap<String, String>,
    /// Generation looked at.
    seen: u64,
    /// Every name has been looked at since the subscription changed.
    complete: bool,
    answered: bool,
    /// The subscriber held resources of an earlier stream.
    resumed: bool,
    /// What it refused with its last acknowledgement.
    error: Option<String>,
}

struct Conversation {
    publisher: Publisher,
    subscriber: Subscriber,
    subscriptions: Vec<(&'static str, Subscription)>,
    /// Sent and not acknowledged: nonce, type, generation.
    sent: VecDeque<(String, &'static str, u64)>,
    nonce: u64,
    /// What went of other types before addresses were sent on this stream.
    waiting: Vec<(&'static str, Vec<String>)>,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    observer: Arc<dyn Observer>,
}

/// Serves one stream until either side ends it.
pub async fn serve(
    publisher: Publisher,
    subscriber: Subscriber,
    mut requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    observer: Arc<dyn Observer>,
) {
    observer.connected(&subscriber);
    let mut generation = publisher.generation.subscribe();
    let mut conversation = Conversation {
        publisher,
        subscriber: subscriber.clone(),
        subscriptions: Vec::new(),
        sent: VecDeque::new(),
        nonce: 0,
        waiting: Vec::new(),
        out,
        observer: observer.clone(),
    };
    loop {
        let result = tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => conversation.request(request).await,
                Some(Err(_)) | None => break,
            },
            changed = generation.changed() => match changed {
                Ok(()) => conversation.push().await,
                Err(_) => break,
            },
        };
        match result {
            Ok(()) => {}
            Err(Some(status)) => {
                let _ = conversation.out.send(Err(status)).await;
                break;
            }
            Err(None) => break,
        }
    }
    observer.disconnected(&subscriber);
}

impl Conversation {
    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Option<Status>> {
        let DeltaDiscoveryRequest {
            node: _,
            type_url,
            resource_names_subscribe,
            resource_names_unsubscribe,
            initial_resource_versions,
            response_nonce,
            error_detail,
        } = request;
        let Some(&kind) = self.subscriber.types.iter().find(|t| **t == type_url) else {
            let id = &self.subscriber.id;
            return Err(Some(Status::permission_denied(format!("{id} may not subscribe to {type_url:?}"))));
        };
        if !response_nonce.is_empty() {
            self.acknowledge(&response_nonce, error_detail.map(|e| shortened(e.message)));
        }
        let known = self.subscriptions.iter().any(|(t, _)| *t == kind);
        if !known {
            let held = initial_resource_versions;
            let subscription = Subscription { resumed: !held.is_empty(), held, ..Subscription::default() };
            self.subscriptions.push((kind, subscription));
        }
        let subscription =
            self.subscriptions.iter_mut().find(|(t, _)| *t == kind).map(|(_, s)| s).expect("pushed above");
        let changes =
            !known || !resource_names_subscribe.is_empty() || !resource_names_unsubscribe.is_empty();
        if !known && resource_names_subscribe.is_empty() {
            subscription.wildcard = true;
        }
        for name in resource_names_subscribe {
            if name == "*" {
                subscription.wildcard = true;
            } else {
                subscription.names.insert(name);
            }
        }
        for name in resource_names_unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
            } else {
                subscription.names.remove(&name);
                subscription.held.remove(&name);
            }
        }
        if subscription.names.len() > MAX_NAMES {
            return Err(Some(Status::resource_exhausted(format!("more than {MAX_NAMES} names of {kind}"))));
        }
        if changes {
            subscription.complete = false;
            subscription.answered = false;
            return self.push().await;
        }
        Ok(())
    }

    fn acknowledge(&mut self, nonce: &str, error: Option<String>) {
        let Some(at) = self.sent.iter().position(|(sent, _, _)| sent == nonce) else { return };
        let Some((_, type_url, generation)) = self.sent.remove(at) else { return };
        let subscriber = self.subscriber.id.clone();
        // Only when nothing older of the type is still on its way is the generation reached.
        let open = self.sent.iter().any(|(_, t, g)| *t == type_url && *g <= generation);
        if let Some((_, subscription)) = self.subscriptions.iter_mut().find(|(t, _)| *t == type_url) {
            subscription.error.clone_from(&error);
        }
        if !open || error.is_some() {
            self.observer.acknowledged(Acknowledged { subscriber, type_url, generation, error });
        }
    }

    /// A type has changed and changed back since this stream looked: there is nothing to send, and the generation is
    /// reached with what was sent before.
    fn reach(&mut self, kind: &'static str, generation: u64) {
        if let Some((_, _, reached)) = self.sent.iter_mut().rev().find(|(_, sent, _)| *sent == kind) {
            *reached = generation;
            return;
        }
        let subscription = self.subscriptions.iter().find(|(t, _)| *t == kind);
        let error = subscription.and_then(|(_, subscription)| subscription.error.clone());
        let subscriber = self.subscriber.id.clone();
        self.observer.acknowledged(Acknowledged { subscriber, type_url: kind, generation, error });
    }

    /// Sends every subscription what it lacks, in the order that keeps policies ahead of workloads.
    async fn push(&mut self) -> Result<(), Option<Status>> {
        let mut steps: Vec<Part> = Vec::new();
        let generation;
        let mut unchanged: Vec<&'static str> = Vec::new();
        {
            let state = self.publisher.state.lock().unwrap_or_else(PoisonError::into_inner);
            generation = state.generation;
            for (kind, subscription) in &mut self.subscriptions {
                let first = !subscription.answered;
                let (came, went, same) =
                    difference(&state, kind, subscription, self.subscriber.audience.as_ref());
                if same && came.is_empty() && went.is_empty() && !first {
                    unchanged.push(kind);
                }
                subscription.answered = true;
                steps.push((kind, came, went, state.generation, first));
            }
        }
        for kind in unchanged {
            self.reach(kind, generation);
        }
        let others = |kind: &str| kind != types::ADDRESS;
        for (kind, came, _, generation, first) in steps.iter_mut().filter(|s| others(s.0)) {
            let came = std::mem::take(came);
            if !came.is_empty() || *first {
                self.send(kind, came, Vec::new(), *generation).await?;
            }
        }
        for (kind, came, went, generation, first) in steps.iter_mut().filter(|s| !others(s.0)) {
            let (came, went) = (std::mem::take(came), std::mem::take(went));
            if !came.is_empty() || !went.is_empty() || *first {
                self.send(kind, came, went, *generation).await?;
            }
        }
        let gone = steps.into_iter().filter(|s| others(s.0)).map(|(kind, _, went, _, _)| (kind, went));
        self.waiting.extend(gone.filter(|(_, went)| !went.is_empty()));
        if self.is_waiting_for_addresses() {
            return Ok(());
        }
        for (kind, mut went) in std::mem::take(&mut self.waiting) {
            // While it waited it may have come again.
            let held = self.subscriptions.iter().find(|(t, _)| *t == kind).map(|(_, s)| &s.held);
            went.retain(|name| held.is_none_or(|held| !held.contains_key(name)));
            if !went.is_empty() {
                self.send(kind, Vec::new(), went, generation).await?;
            }
        }
        Ok(())
    }

    /// Whether the subscriber holds resources of an earlier stream and has yet to ask for addresses: it may hold some that
    /// lead to what has gone.
    fn is_waiting_for_addresses(&self) -> bool {
        self.subscriber.types.contains(&types::ADDRESS)
            && self.subscriptions.iter().any(|(_, subscription)| subscription.resumed)
            && !self.subscriptions.iter().any(|(kind, _)| *kind == types::ADDRESS)
    }

    async fn send(
        &mut self,
        kind: &'static str,
        mut came: Vec<Resource>,
        mut went: Vec<String>,
        generation: u64,
    ) -> Result<(), Option<Status>> {
        loop {
            if self.sent.len() >= MAX_SENT {
                return Err(Some(Status::resource_exhausted(format!(
                    "{MAX_SENT} responses are not acknowledged"
                ))));
            }
            let rest = came.split_off(came.len().min(BATCH));
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            self.sent.push_back((nonce.clone(), kind, generation));
            let more = if rest.is_empty() { "" } else { MORE };
            let response = DeltaDiscoveryResponse {
                system_version_info: format!("{generation}{more}"),
                resources: came,
                type_url: kind.to_owned(),
                nonce,
                removed_resources: std::mem::take(&mut went),
            };
            self.out.send(Ok(response)).await.map_err(|_| None)?;
            if rest.is_empty() {
                return Ok(());
            }
            came = rest;
        }
    }
}

/// Of one type: what came, what went, the generation, and whether it is the first answer.
type Part = (&'static str, Vec<Resource>, Vec<String>, u64, bool);

/// What a subscription lacks, and what it has too much; notes it as held. Also returns whether something that it may see
/// has changed and is as the subscriber holds it.
fn difference(
    state: &State,
    kind: &'static str,
    subscription: &mut Subscription,
    audience: Option<&Arc<str>>,
) -> (Vec<Resource>, Vec<String>, bool) {
    let empty = BTreeMap::new();
    let table = state.tables.get(kind).unwrap_or(&empty);
    let (mut came, mut went, mut same) = (Vec::new(), Vec::new(), false);
    let visible = |entry: &Entry| {
        entry.published.audience.is_empty() || audience.is_some_and(|a| entry.published.audience.contains(a))
    };
    let wanted = |subscription: &Subscription, name: &str, entry: &Entry| {
        subscription.wildcard
            || subscription.names.contains(name)
            || entry.published.aliases.iter().any(|alias| subscription.names.contains(alias))
    };
    let mut look = |subscription: &mut Subscription, name: &str| match table
        .get(name)
        .filter(|entry| visible(entry) && wanted(subscription, name, entry))
    {
        Some(entry) if subscription.held.get(name) != Some(&entry.version) => {
            subscription.held.insert(name.to_owned(), entry.version.clone());
            came.push(resource(kind, name, entry));
        }
        Some(_) => same = true,
        None if subscription.held.remove(name).is_some() => went.push(name.to_owned()),
        None => same |= !table.contains_key(name),
    };
    if subscription.complete && subscription.seen >= state.forgotten {
        let begin = state.log.partition_point(|(generation, _, _)| *generation <= subscription.seen);
        for (_, changed, name) in state.log.range(begin..) {
            if *changed == kind {
                look(subscription, name);
            }
        }
    } else {
        let names: BTreeSet<String> = table.keys().chain(subscription.held.keys()).cloned().collect();
        for name in names {
            look(subscription, &name);
        }
        // A name that was asked for and does not exist is answered as removed.
        if !subscription.names.is_empty() {
            let aliases: HashSet<&String> = table.values().flat_map(|e| &e.published.aliases).collect();
            let told: HashSet<String> = went.iter().cloned().collect();
            let exists = |name: &String| table.contains_key(name) || aliases.contains(name);
            went.extend(subscription.names.iter().filter(|n| !exists(n) && !told.contains(*n)).cloned());
        }
    }
    subscription.seen = state.generation;
    subscription.complete = true;
    (came, went, same)
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_REFUSAL));
    text
}

fn resource(kind: &str, name: &str, entry: &Entry) -> Resource {
    Resource {
        version: entry.version.clone(),
        resource: Some(prost_types::Any { type_url: kind.to_owned(), value: entry.published.bytes.to_vec() }),
        name: name.to_owned(),
        aliases: entry.published.aliases.clone(),
    }
}
