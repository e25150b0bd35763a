// SPDX-License-Identifier: Apache-2.0
//! A session, driven by hand.

use prost::bytes::Bytes;
use tokio::sync::mpsc;

use super::super::store::{Batch, Item};
use super::*;

const POLICY: TypeUrl = "policy";
const ADDRESS: TypeUrl = "address";

struct Driven {
    store: Store,
    clients: Clients,
    requests: mpsc::Sender<Result<pb::DeltaDiscoveryRequest, Status>>,
    responses: mpsc::Receiver<Result<pb::DeltaDiscoveryResponse, Status>>,
}

fn drive(store: Store, tags: &[&str]) -> Driven {
    let view = View {
        kind: "ztunnel",
        who: "test".into(),
        types: vec![POLICY, ADDRESS],
        tags: tags.iter().map(|t| (*t).into()).collect(),
    };
    let clients = Clients::default();
    let (requests, rx) = mpsc::channel(8);
    let (tx, responses) = mpsc::channel(1);
    let session = Session::new(1, view, store.clone(), clients.clone(), tx);
    let (_trigger, drain) = meltemi_runtime::drain::channel();
    let (tasks, _supervisor) = Tasks::new("test", drain);
    tasks.spawn_job("session", async move { session.run(ReceiverStream::new(rx)).await });
    Driven { store, clients, requests, responses }
}

impl Driven {
    async fn ask(&self, request: pb::DeltaDiscoveryRequest) {
        self.requests.send(Ok(request)).await.unwrap();
    }

    async fn next(&mut self) -> pb::DeltaDiscoveryResponse {
        self.responses.recv().await.unwrap().unwrap()
    }

    /// The next response as text, and its acknowledgement.
    async fn take(&mut self) -> String {
        let response = self.next().await;
        let text = describe(&response);
        self.ask(pb::DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        })
        .await;
        text
    }
}

fn describe(response: &pb::DeltaDiscoveryResponse) -> String {
    let mut parts: Vec<String> = response.resources.iter().map(|r| format!("+{}", r.name)).collect();
    parts.extend(response.removed_resources.iter().map(|r| format!("-{r}")));
    format!("{}:{}", response.type_url, parts.join(","))
}

fn subscribe(type_url: TypeUrl) -> pb::DeltaDiscoveryRequest {
    pb::DeltaDiscoveryRequest { type_url: type_url.into(), ..Default::default() }
}

fn item(name: &str, body: &str) -> Item {
    Item::new(name, Bytes::copy_from_slice(body.as_bytes()))
}

fn put(items: Vec<(TypeUrl, Item)>) -> Batch {
    Batch { upserts: items, removals: Vec::new() }
}

#[tokio::test]
async fn a_policy_arrives_before_the_workload_and_leaves_after_it() {
    let mut driven = drive(Store::new(), &[]);
    driven.ask(subscribe(ADDRESS)).await;
    assert_eq!(driven.take().await, "address:");
    driven.ask(subscribe(POLICY)).await;
    assert_eq!(driven.take().await, "policy:");
    driven.store.apply(put(vec![(ADDRESS, item("w", "1")), (POLICY, item("p", "1"))]));
    assert_eq!(driven.take().await, "policy:+p");
    assert_eq!(driven.take().await, "address:+w");
    driven.store.apply(Batch {
        upserts: vec![],
        removals: vec![(POLICY, "p".into()), (ADDRESS, "w".into())],
    });
    assert_eq!(driven.take().await, "address:-w");
    assert_eq!(driven.take().await, "policy:-p");
}

#[tokio::test]
async fn who_comes_back_is_sent_what_it_lacks_only() {
    let store = Store::new();
    store.apply(put(vec![(ADDRESS, item("a", "1")), (ADDRESS, item("b", "2"))]));
    let version = store.get(ADDRESS, "a").unwrap().version.to_string();
    let mut driven = drive(store, &[]);
    let mut request = subscribe(ADDRESS);
    request.initial_resource_versions = [("a".to_owned(), version), ("gone".to_owned(), "x".to_owned())].into();
    driven.ask(request).await;
    assert_eq!(driven.take().await, "address:+b,-gone");
}

#[tokio::test]
async fn an_acknowledgement_says_what_is_held() {
    let store = Store::new();
    store.apply(put(vec![(POLICY, item("ns/good", "1")), (POLICY, item("ns/bad", "2"))]));
    let mut driven = drive(store, &[]);
    let mut changes = driven.clients.follow();
    driven.ask(subscribe(POLICY)).await;
    let response = driven.next().await;
    driven
        .ask(pb::DeltaDiscoveryRequest {
            type_url: POLICY.into(),
            response_nonce: response.nonce,
            error_detail: Some(pb::Status { code: 13, message: "ns/bad: action: value 7 is not known".into() }),
            ..Default::default()
        })
        .await;
    let state = loop {
        let all = driven.clients.all();
        match all.first().and_then(|c| c.types.get(POLICY)).filter(|s| s.error.is_some()) {
            Some(state) => break state.clone(),
            None => changes.changed().await.unwrap(),
        }
    };
    assert_eq!(state.holds.keys().map(|k| &**k).collect::<Vec<_>>(), ["ns/good"]);
    driven.store.apply(put(vec![(POLICY, item("ns/bad", "3"))]));
    assert_eq!(driven.take().await, "policy:+ns/bad");
    loop {
        let all = driven.clients.all();
        if all[0].types[POLICY].error.is_none() && all[0].types[POLICY].holds.len() == 2 {
            break;
        }
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_tagged_is_seen_by_its_gateway_only() {
    let store = Store::new();
    let tagged = item("route", "1").with_tags(["default/waypoint".into()]);
    let hidden = item("nobody", "1").with_tags([]);
    store.apply(put(vec![(POLICY, tagged), (POLICY, hidden), (POLICY, item("all", "1"))]));
    let mut other = drive(store.clone(), &["default/other"]);
    other.ask(subscribe(POLICY)).await;
    assert_eq!(other.take().await, "policy:+all");
    let mut own = drive(store, &["default/waypoint"]);
    own.ask(subscribe(POLICY)).await;
    assert_eq!(own.take().await, "policy:+all,+route");
    // A tag that is taken away takes the resource away.
    own.store.apply(put(vec![(POLICY, item("route", "1").with_tags(["default/other".into()]))]));
    assert_eq!(own.take().await, "policy:-route");
    assert_eq!(other.take().await, "policy:+route");
}

#[tokio::test]
async fn on_demand_answers_names_and_aliases() {
    let store = Store::new();
    let workload = item("uid", "1").with_aliases(vec!["/10.0.0.1".into()]);
    store.apply(put(vec![(ADDRESS, workload), (ADDRESS, item("other", "1"))]));
    let mut driven = drive(store, &[]);
    let mut request = subscribe(ADDRESS);
    request.resource_names_subscribe = vec!["*".into()];
    request.resource_names_unsubscribe = vec!["*".into()];
    driven.ask(request).await;
    assert_eq!(driven.take().await, "address:");
    let mut request = subscribe(ADDRESS);
    request.resource_names_subscribe = vec!["/10.0.0.1".into(), "/10.0.0.9".into()];
    driven.ask(request).await;
    assert_eq!(driven.take().await, "address:+uid,-/10.0.0.9");
    driven.store.apply(put(vec![(ADDRESS, item("uid", "2").with_aliases(vec!["/10.0.0.1".into()]))]));
    assert_eq!(driven.take().await, "address:+uid");
}

#[tokio::test]
async fn a_type_out_of_view_ends_the_stream() {
    let mut driven = drive(Store::new(), &[]);
    driven.ask(subscribe("secrets")).await;
    let refused = driven.responses.recv().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(driven.responses.recv().await.is_none());
}
