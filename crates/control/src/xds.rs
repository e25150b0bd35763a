// SPDX-License-Identifier: Apache-2.0
//! The xDS endpoint: who calls is authenticated, and sees what it may see.

mod streams;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_wire::xds::server::{self, Acknowledged, Observer, Publisher, Subscriber};
use meltemi_wire::xds::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer, DeltaDiscoveryRequest,
    DeltaDiscoveryResponse, types,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::streams::Streams;
use crate::access::{Access, Scope};
use crate::auth::{Authenticator, Caller};
use crate::metrics::ControlMetrics;
use crate::publish::audience;

/// Largest message that a client may send: the versions of 100,000 workloads that it holds have room in it.
const LARGEST_REQUEST: usize = 64 << 20;
/// Interval at which open streams are authorized again.
const REAUTHORIZE_INTERVAL: Duration = Duration::from_secs(10);
/// What a proxy says of itself, as far as it is shown, in bytes each.
const SAID: [&str; 6] = ["NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME", "CLUSTER_ID", "VERSION"];
const MAX_SAID: usize = 256;

/// A connected proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `<pod>.<namespace>`.
    pub name: String,
    /// Node proxy or gateway.
    pub scope: Scope,
    /// Its node, as its token or Pod says it.
    pub node: Option<String>,
    /// What it says of itself.
    pub metadata: BTreeMap<String, String>,
    /// By type: the generation that it has acknowledged, and what it refuses.
    pub types: BTreeMap<&'static str, (u64, Option<String>)>,
}

/// The connected proxies, and what they acknowledge; cheap to clone.
#[derive(Clone, Debug)]
pub struct Proxies {
    inner: Arc<Mutex<HashMap<String, Proxy>>>,
    streams: Streams,
    changed: Arc<watch::Sender<u64>>,
    metrics: ControlMetrics,
}

impl Default for Proxies {
    fn default() -> Self {
        Self::new(ControlMetrics::default())
    }
}

impl Proxies {
    /// None yet; what they do is counted.
    pub fn new(metrics: ControlMetrics) -> Self {
        Self {
            inner: Arc::default(),
            streams: Streams::default(),
            changed: Arc::new(watch::channel(0).0),
            metrics,
        }
    }

    /// Every proxy, sorted by name.
    pub fn all(&self) -> Vec<Proxy> {
        let mut all: Vec<Proxy> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Follows what changes.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Proxy>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Proxy)) {
        if let Some(proxy) = self.lock().get_mut(id) {
            change(proxy);
        }
        self.changed.send_modify(|v| *v += 1);
    }

    /// Begins a stream of a proxy: cancelled when there are too many of it.
    fn begin(&self, id: &str, proxy: Proxy) -> CancellationToken {
        let ended = self.streams.begin(&proxy.name, id);
        self.metrics.connected(&proxy.scope, 1);
        self.lock().insert(id.to_owned(), proxy);
        ended
    }

    fn end(&self, id: &str) {
        let ended = self.lock().remove(id);
        if let Some(proxy) = ended {
            self.metrics.connected(&proxy.scope, -1);
            self.streams.end(&proxy.name, id);
        }
    }

    /// A proxy that says so, without a stream.
    #[cfg(test)]
    pub(crate) fn put(&self, proxy: Proxy) {
        self.lock().insert(proxy.name.clone(), proxy);
    }

    /// A proxy that goes without a word.
    #[cfg(test)]
    pub(crate) fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// As `meltemi proxy-status` reads it.
    pub fn to_json(&self, current: u64) -> Value {
        let proxies = self.all().into_iter().map(|proxy| {
            let states: serde_json::Map<String, Value> = proxy
                .types
                .iter()
                .map(|(type_url, (acked, error))| {
                    let status = match error {
                        Some(_) => "NACK",
                        None if *acked == 0 => "NOT SENT",
                        None => "SYNCED",
                    };
                    let state = json!({ "status": status, "generation": acked, "error": error });
                    (short(type_url).to_owned(), state)
                })
                .collect();
            let text = |key: &str| proxy.metadata.get(key).cloned().unwrap_or_default();
            json!({
                "proxy": proxy.name,
                "kind": proxy.scope.kind(),
                "cluster": text("CLUSTER_ID"),
                "version": text("VERSION"),
                "node": proxy.node,
                "generation": current,
                "types": states,
            })
        });
        Value::Array(proxies.collect())
    }
}

/// Short name of a type, as `istioctl` has them for the workload types.
fn short(type_url: &'static str) -> &'static str {
    match type_url {
        types::ADDRESS => "WDS",
        types::AUTHORIZATION => "WADS",
        other => other.rsplit('.').next().unwrap_or(other),
    }
}

impl Observer for Proxies {
    fn connected(&self, subscriber: &Subscriber) {
        tracing::info!(proxy = %subscriber.id, "connected");
    }

    fn acknowledged(&self, acknowledged: Acknowledged) {
        let Acknowledged { subscriber, type_url, generation, error } = acknowledged;
        if let Some(error) = &error {
            tracing::warn!(proxy = %subscriber, type_url, error, "refuses a resource");
        }
        self.metrics.acknowledged(short(type_url), generation, error.is_some(), Instant::now());
        self.update(&subscriber, |proxy| {
            proxy.types.insert(type_url, (generation, error));
        });
    }

    fn disconnected(&self, subscriber: &Subscriber) {
        tracing::info!(proxy = %subscriber.id, "disconnected");
        self.end(&subscriber.id);
        self.changed.send_modify(|v| *v += 1);
    }
}

/// The service.
pub struct Endpoint {
    /// What is published.
    pub publisher: Publisher,
    /// Who is connected.
    pub proxies: Proxies,
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// What callers may see.
    pub access: Access,
    /// Owner of the streams.
    pub tasks: Tasks,
    /// True once the whole mesh has been published: half a mesh is not an answer.
    pub published: watch::Receiver<bool>,
    /// Number of the next stream.
    pub next: AtomicU64,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// Types of a node proxy.
const NODE_TYPES: &[&str] = &[types::AUTHORIZATION, types::ADDRESS];
/// Types of a gateway.
const GATEWAY_TYPES: &[&str] = &[
    types::SETTINGS,
    types::HTTP_POLICY,
    types::JWT,
    types::TLS_SECRET,
    types::ROUTE,
    types::LISTENER,
    types::ADDRESS,
];

impl Endpoint {
    /// The tonic service.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }

    async fn admit(&self, metadata: &tonic::metadata::MetadataMap) -> Result<(Caller, Scope), Status> {
        let authorization = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let caller = self.authenticator.authenticate(authorization).await.map_err(|error| {
            tracing::warn!(%error, "xDS caller refused");
            Status::unauthenticated(error.to_string())
        })?;
        let scope = self.access.scope(&caller).await.map_err(|error| {
            tracing::warn!(%error, "xDS caller refused");
            Status::permission_denied(error.to_string())
        })?;
        Ok((caller, scope))
    }

    /// The node of a caller's Pod.
    fn node(&self, caller: &Caller) -> Option<String> {
        let pod = caller.pod.as_ref()?;
        let name = NamespacedName::new(caller.namespace.as_str(), pod.name.as_str());
        let known = self.access.pods.node_of(&name, &pod.uid, &caller.service_account);
        known.map(|n| n.to_string()).or_else(|| pod.node.clone())
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Endpoint {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let (caller, scope) = self.admit(request.metadata()).await?;
        let mut published = self.published.clone();
        let _ = published.wait_for(|p| *p).await;
        let pod = caller.pod.as_ref().map_or("unbound", |p| p.name.as_str());
        let name = format!("{pod}.{}", caller.namespace);
        let id = format!("{name}#{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (types, audience) = match &scope {
            Scope::NodeProxy => (NODE_TYPES, None),
            Scope::Gateway(gateway) => (GATEWAY_TYPES, Some(audience(gateway))),
        };
        let node = self.node(&caller);
        let (metadata, known) = (BTreeMap::new(), BTreeMap::new());
        let superseded =
            self.proxies.begin(&id, Proxy { name, scope: scope.clone(), node, metadata, types: known });
        let (proxies, named) = (self.proxies.clone(), id.clone());
        let requests = request.into_inner().inspect(move |request| {
            if let Ok(DeltaDiscoveryRequest { node: Some(node), .. }) = request {
                let metadata = node.metadata.as_ref().map(texts).unwrap_or_default();
                proxies.update(&named, |proxy| proxy.metadata = metadata);
            }
        });
        let (out, responses) = mpsc::channel(1);
        let subscriber = Subscriber { id, types: types.to_vec(), audience };
        let (publisher, proxies) = (self.publisher.clone(), self.proxies.clone());
        let (access, mut drain) = (self.access.clone(), self.tasks.drain());
        self.tasks.spawn_job("xds stream", async move {
            let (id, told) = (subscriber.id.clone(), out.clone());
            let observer = Arc::new(proxies.clone());
            let why = tokio::select! {
                () = drain.started() => None,
                () = server::serve(publisher, subscriber, Box::pin(requests), out, observer) => None,
                () = superseded.cancelled() => Some("there are newer streams of this proxy"),
                () = no_longer(&access, &caller, &scope) => Some("what the caller was let in for is gone"),
            };
            if let Some(why) = why {
                tracing::warn!(proxy = %id, why, "a stream is ended");
                let _ = told.try_send(Err(Status::permission_denied(why)));
            }
            proxies.end(&id);
            Ok::<(), std::convert::Infallible>(())
        });
        let stream = futures::stream::unfold(responses, |mut rx| async move { Some((rx.recv().await?, rx)) });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Resolves when a caller that was let in may no longer have what it was let in for: its Pod, or the Gateway that the Pod
/// serves, is gone. Looked at twice, since what is seen of the API may lag.
async fn no_longer(access: &Access, caller: &Caller, scope: &Scope) {
    let mut look = tokio::time::interval(REAUTHORIZE_INTERVAL);
    look.tick().await;
    let mut before = true;
    loop {
        look.tick().await;
        let now = access.still(caller, scope).await;
        if !now && !before {
            return;
        }
        before = now;
    }
}

fn texts(metadata: &prost_types::Struct) -> BTreeMap<String, String> {
    let text = |key: &str| match &metadata.fields.get(key)?.kind {
        Some(prost_types::value::Kind::StringValue(text)) => {
            Some(text[..text.floor_char_boundary(MAX_SAID)].to_owned())
        }
        _ => None,
    };
    SAID.into_iter().filter_map(|key| Some((key.to_owned(), text(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::Service as _;

    use super::*;
    use crate::access::tests::access;
    use crate::auth::tests::reviews;
    use crate::ca::tests::message;

    fn endpoint(access: Access) -> (Endpoint, Vec<Box<dyn std::any::Any>>) {
        let (trigger, drain) = meltemi_runtime::drain::channel();
        let (tasks, supervisor) = Tasks::new("test", drain);
        let (is_published, published) = watch::channel(true);
        let endpoint = Endpoint {
            publisher: Publisher::new(),
            proxies: Proxies::default(),
            authenticator: Arc::new(reviews(true).authenticator),
            access,
            tasks,
            published,
            next: AtomicU64::default(),
        };
        (endpoint, vec![Box::new(trigger), Box::new(supervisor), Box::new(is_published)])
    }

    /// Opens a stream of the waypoint; `first` comes and nothing else, and the stream stays open.
    async fn open(endpoint: Endpoint, first: Body) -> Body {
        let first = first.into_data_stream().chain(futures::stream::pending());
        let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let request = axum::http::Request::post(path)
            .header("content-type", "application/grpc")
            .header("authorization", "Bearer default/waypoint/way")
            .body(Body::from_stream(first))
            .unwrap();
        let answer = endpoint.into_service().call(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("grpc-status"), "{:?}", answer.headers());
        Body::new(answer.into_body())
    }

    async fn ends(body: Body) -> bool {
        let mut frames = body.into_data_stream();
        let rest = async { while let Some(Ok(_)) = frames.next().await {} };
        tokio::time::timeout(Duration::from_secs(5), rest).await.is_ok()
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_ends_its_stream_before_it_is_read() {
        for (length, expected) in [(LARGEST_REQUEST, false), (LARGEST_REQUEST + 1, true)] {
            let (endpoint, _kept) = endpoint(access());
            let proxies = endpoint.proxies.clone();
            let stream = open(endpoint, message(length, b"")).await;
            assert_eq!((ends(stream).await, proxies.all().is_empty()), (expected, expected), "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_soon_after_its_pod_or_gateway() {
        let access = access();
        let (endpoint, _kept) = endpoint(access.clone());
        let (proxies, stream) =
            (endpoint.proxies.clone(), open(endpoint, message(LARGEST_REQUEST, b"")).await);
        tokio::time::sleep(REAUTHORIZE_INTERVAL * 10).await;
        assert_eq!(proxies.all().len(), 1, "it goes on as long as they are there");
        access.gateways.set(&NamespacedName::new("default", "waypoint"), None);
        let gone = tokio::time::Instant::now();
        let mut frames = stream.into_data_stream();
        while let Some(Ok(_)) = frames.next().await {}
        assert!(gone.elapsed() <= REAUTHORIZE_INTERVAL * 2, "{:?}", gone.elapsed());
        assert!(proxies.all().is_empty());
    }

    #[test]
    fn of_what_a_proxy_says_only_what_is_shown_is_kept() {
        let text = |text: &str| prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue(text.into())),
        };
        let fields = [("VERSION", text(&"x".repeat(1000))), ("OTHER", text("x"))];
        let fields = fields.map(|(key, value)| (key.to_owned(), value)).into();
        let said = texts(&prost_types::Struct { fields });
        assert_eq!(said.keys().collect::<Vec<_>>(), ["VERSION"]);
        assert_eq!(said["VERSION"].len(), 256);
    }
}
