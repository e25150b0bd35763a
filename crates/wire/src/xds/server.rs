// SPDX-License-Identifier: Apache-2.0
//! The delta xDS server: every connected client's view follows the store.
//!
//! What a client may see is decided before its first request is read ([`Admission`]). Within one change, types
//! are sent in the order of [`View::types`]; removals go in the reverse order, after everything new: a policy
//! arrives before the workload that names it, and leaves after it.

mod session;
mod subscription;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::store::{Store, TypeUrl};
use crate::proto::discovery as pb;
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use meltemi_runtime::Tasks;
use session::Session;

/// What a client may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What kind of proxy it is, for people: `ztunnel`, `waypoint`, ...
    pub kind: &'static str,
    /// Its principal, for people.
    pub who: String,
    /// Types that it may subscribe to, in the order in which they are sent.
    pub types: Vec<TypeUrl>,
    /// Tags of the resources that it may see, beside those without tags.
    pub tags: BTreeSet<Arc<str>>,
}

/// Decides who may see what, from the metadata of the request.
pub trait Admission: Send + Sync + 'static {
    /// The view of a caller.
    ///
    /// # Errors
    /// UNAUTHENTICATED or PERMISSION_DENIED.
    fn admit(
        &self,
        metadata: tonic::metadata::MetadataMap,
    ) -> impl Future<Output = Result<View, Status>> + Send;
}

/// What a client has said of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeState {
    /// Nonce of the last response.
    pub sent: u64,
    /// Nonce of the last response that was acknowledged.
    pub acked: u64,
    /// The last rejection, until an acknowledgement follows it.
    pub error: Option<String>,
    /// Versions that it holds, as far as it has acknowledged them.
    pub holds: HashMap<Arc<str>, Arc<str>>,
}

/// A connected client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `id` of its node, e.g. `ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local`.
    pub node: String,
    /// Its metadata that is text.
    pub metadata: BTreeMap<String, String>,
    /// What it may see.
    pub view: View,
    /// What it has said, by type.
    pub types: BTreeMap<TypeUrl, TypeState>,
}

/// The connected clients; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    inner: Arc<Mutex<BTreeMap<u64, Client>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { inner: Arc::default(), changed: Arc::new(watch::channel(0).0) }
    }
}

impl Clients {
    /// Every client as it is now.
    pub fn all(&self) -> Vec<Client> {
        self.lock().values().cloned().collect()
    }

    /// Looks at every client without copying.
    pub fn each(&self, mut look: impl FnMut(&Client)) {
        self.lock().values().for_each(&mut look);
    }

    /// Follows changes: a client that came, went, acknowledged or rejected.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Client>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.lock().get_mut(&id) {
            change(client);
        }
        self.changed.send_modify(|v| *v += 1);
    }
}

/// Serves a store.
pub struct Server<A> {
    store: Store,
    clients: Clients,
    admission: Arc<A>,
    tasks: Tasks,
    next: std::sync::atomic::AtomicU64,
    ready: watch::Receiver<bool>,
}

impl<A> std::fmt::Debug for Server<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl<A: Admission> Server<A> {
    /// A server; clients that come before `ready` is true wait for it: half a mesh is not an answer.
    pub fn new(store: Store, clients: Clients, admission: A, tasks: Tasks, ready: watch::Receiver<bool>) -> Self {
        Self { store, clients, admission: Arc::new(admission), tasks, next: 1.into(), ready }
    }

    /// The tonic service.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(super::MAX_MESSAGE)
            .max_encoding_message_size(super::MAX_MESSAGE)
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<pb::DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<A: Admission> AggregatedDiscoveryService for Server<A> {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<pb::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let view = self.admission.admit(request.metadata().clone()).await?;
        let mut ready = self.ready.clone();
        let _ = ready.wait_for(|r| *r).await;
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // One response under way: what changes meanwhile is joined into the next.
        let (tx, rx) = mpsc::channel(1);
        let session = Session::new(id, view, self.store.clone(), self.clients.clone(), tx);
        let mut requests = request.into_inner();
        let mut drain = self.tasks.drain();
        self.tasks.spawn_job("xds client", async move {
            tokio::select! {
                () = drain.started() => Ok(()),
                ended = session.run(async_stream_of(&mut requests)) => ended,
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

fn async_stream_of(
    requests: &mut Streaming<pb::DeltaDiscoveryRequest>,
) -> impl Stream<Item = Result<pb::DeltaDiscoveryRequest, Status>> + Unpin + Send + '_ {
    requests.map(|r| r)
}

#[cfg(test)]
mod tests;
