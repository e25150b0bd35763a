// SPDX-License-Identifier: Apache-2.0
//! The client: one stream for all types, kept open, acknowledged when what came is in use.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::MORE;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};

/// First pause before a new attempt; doubled each time, with jitter.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause: what changed while the control plane was away is in use this long after it is back.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Largest message, as in Istio's proxies.
const MAX_MESSAGE: usize = 200 * 1024 * 1024;
/// gRPC's code of a request that is refused.
const INVALID_ARGUMENT: i32 = 3;

/// A resource that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// Its message; none when it is removed.
    pub resource: Option<Bytes>,
}

/// A resource that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Takes what comes.
pub trait Handler: Send {
    /// Applies updates of one type. The acknowledgement waits for the future: it must resolve when the updates are in
    /// use. What is returned is refused by name; everything else counts as applied.
    fn handle(&mut self, type_url: &str, updates: Vec<Update>) -> impl Future<Output = Vec<Rejected>> + Send;

    /// What was handled last completes what the server has to say of the type for now; before that, something is missing.
    fn complete(&mut self, type_url: &str);

    /// The stream is open (again), or lost.
    fn connected(&mut self, connected: bool);
}

/// Who subscribes, and to what.
#[derive(Clone, Debug)]
pub struct Config {
    /// Node id, `ztunnel~<ip>~<pod>.<ns>~<ns>.svc.cluster.local` for instance.
    pub node_id: String,
    /// Node metadata.
    pub metadata: BTreeMap<String, String>,
    /// Types, in the order in which they are subscribed.
    pub types: Vec<&'static str>,
}

/// Runs for ever: connects, subscribes, applies, acknowledges; connects again with what it holds.
///
/// `connect` gives a channel; `token` the bearer token to present, read for every connection.
pub async fn run<H, C, F, E, T>(config: Config, mut handler: H, connect: C, token: T)
where
    H: Handler,
    C: Fn() -> F + Send,
    F: Future<Output = Result<Channel, E>> + Send,
    E: std::fmt::Display,
    T: Fn() -> Option<String> + Send,
{
    let mut held: Held = config.types.iter().map(|t| ((*t).to_owned(), BTreeMap::new())).collect();
    let mut pause = MIN_PAUSE;
    loop {
        let outcome = match connect().await {
            Ok(channel) => stream(&config, &mut handler, &mut held, channel, token()).await,
            Err(error) => Outcome { answered: false, reason: error.to_string() },
        };
        handler.connected(false);
        if outcome.answered {
            pause = MIN_PAUSE;
        }
        tracing::warn!(reason = %outcome.reason, retry_ms = pause.as_millis(), "xDS stream ended");
        let jitter = pause.mul_f64(rand::random::<f64>() * 0.2);
        tokio::time::sleep(pause + jitter).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Versions held, by type and name.
type Held = HashMap<String, BTreeMap<String, String>>;

struct Outcome {
    answered: bool,
    reason: String,
}

async fn stream<H: Handler>(
    config: &Config,
    handler: &mut H,
    held: &mut Held,
    channel: Channel,
    token: Option<String>,
) -> Outcome {
    let mut answered = false;
    let end = |answered, reason: String| Outcome { answered, reason };
    let (requests, receiver) = mpsc::channel(16);
    for type_url in &config.types {
        let request = DeltaDiscoveryRequest {
            node: Some(node(config)),
            type_url: (*type_url).to_owned(),
            initial_resource_versions: held.get(*type_url).cloned().unwrap_or_default(),
            ..Default::default()
        };
        if requests.send(request).await.is_err() {
            return end(answered, "the stream closed while subscribing".into());
        }
    }
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    if let Some(token) = token {
        match format!("Bearer {token}").parse() {
            Ok(value) => drop(request.metadata_mut().insert("authorization", value)),
            Err(_) => return end(answered, "the token is not a header value".into()),
        }
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut responses = match client.delta_aggregated_resources(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return end(answered, status.to_string()),
    };
    handler.connected(true);
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return end(answered, "the server closed the stream".into()),
            Err(status) => return end(answered, status.to_string()),
        };
        answered = true;
        let answer = apply(handler, held, response).await;
        if requests.send(answer).await.is_err() {
            return end(answered, "the stream closed while acknowledging".into());
        }
    }
}

async fn apply<H: Handler>(
    handler: &mut H,
    held: &mut Held,
    response: DeltaDiscoveryResponse,
) -> DeltaDiscoveryRequest {
    let DeltaDiscoveryResponse { system_version_info, resources, type_url, nonce, removed_resources } =
        response;
    let versions: Vec<(String, String)> =
        resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    let came = resources.into_iter().map(|r| Update {
        name: r.name,
        resource: Some(r.resource.map(|any| Bytes::from(any.value)).unwrap_or_default()),
    });
    let went = removed_resources.iter().map(|name| Update { name: name.clone(), resource: None });
    let rejected = handler.handle(&type_url, came.chain(went).collect()).await;
    if !system_version_info.ends_with(MORE) {
        handler.complete(&type_url);
    }
    let held = held.entry(type_url.clone()).or_default();
    for (name, version) in versions {
        // What was refused is not held: after a reconnect it is sent again.
        if rejected.iter().all(|r| r.name != name) {
            held.insert(name, version);
        } else {
            held.remove(&name);
        }
    }
    for name in removed_resources {
        held.remove(&name);
    }
    let error_detail = (!rejected.is_empty()).then(|| {
        let all: Vec<String> = rejected.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect();
        Status { code: INVALID_ARGUMENT, message: all.join("; ") }
    });
    DeltaDiscoveryRequest { type_url, response_nonce: nonce, error_detail, ..Default::default() }
}

fn node(config: &Config) -> Node {
    let fields = config.metadata.iter().map(|(key, value)| {
        let kind = Some(prost_types::value::Kind::StringValue(value.clone()));
        (key.clone(), prost_types::Value { kind })
    });
    let metadata = Some(prost_types::Struct { fields: fields.collect() });
    Node { id: config.node_id.clone(), cluster: String::new(), metadata }
}
