// SPDX-License-Identifier: Apache-2.0
//! Server streams in process: order, differences, reconnects, refusals.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::server::{Acknowledged, Change, Observer, Published, Publisher, Subscriber, serve};
use super::types::{ADDRESS, AUTHORIZATION, HTTP_POLICY};
use super::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

#[derive(Default)]
struct Seen(Mutex<Vec<Acknowledged>>);

impl Observer for Seen {
    fn connected(&self, _: &Subscriber) {}
    fn acknowledged(&self, acknowledged: Acknowledged) {
        self.0.lock().unwrap().push(acknowledged);
    }
    fn disconnected(&self, _: &Subscriber) {}
}

struct Client {
    requests: mpsc::Sender<Result<DeltaDiscoveryRequest, tonic::Status>>,
    responses: mpsc::Receiver<Result<DeltaDiscoveryResponse, tonic::Status>>,
    seen: Arc<Seen>,
}

fn put(type_url: &'static str, name: &str, body: &'static str, audience: &[&str]) -> Change {
    let audience = audience.iter().map(|a| (*a).into()).collect();
    let resource = Some(Published { bytes: Bytes::from(body), aliases: Vec::new(), audience });
    Change { type_url, name: name.into(), resource }
}

fn connect(publisher: &Publisher, audience: Option<&str>) -> Client {
    let (requests, receiver) = mpsc::channel(8);
    let (out, responses) = mpsc::channel(8);
    let seen = Arc::new(Seen::default());
    let subscriber = Subscriber {
        id: "proxy".into(),
        types: vec![ADDRESS, AUTHORIZATION, HTTP_POLICY],
        audience: audience.map(Into::into),
    };
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(serve(publisher.clone(), subscriber, ReceiverStream::new(receiver), out, seen.clone()));
    Client { requests, responses, seen }
}

impl Client {
    async fn subscribe(&mut self, type_url: &str, held: &[(&str, &str)]) -> DeltaDiscoveryResponse {
        let initial_resource_versions = held.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            initial_resource_versions,
            ..Default::default()
        };
        self.requests.send(Ok(request)).await.unwrap();
        self.next().await
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.responses.recv().await.unwrap().unwrap()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[tokio::test]
async fn policies_come_before_workloads_and_leave_after_them() {
    let publisher = Publisher::new();
    let mut client = connect(&publisher, None);
    assert!(client.subscribe(ADDRESS, &[]).await.resources.is_empty());
    client.subscribe(AUTHORIZATION, &[]).await;
    publisher.publish(vec![put(ADDRESS, "w", "1", &[]), put(AUTHORIZATION, "p", "1", &[])]);
    let (first, second) = (client.next().await, client.next().await);
    assert_eq!((first.type_url.as_str(), second.type_url.as_str()), (AUTHORIZATION, ADDRESS));
    let gone = |type_url, name: &str| Change { type_url, name: name.into(), resource: None };
    publisher.publish(vec![gone(AUTHORIZATION, "p"), put(ADDRESS, "w", "2", &[])]);
    let (first, second) = (client.next().await, client.next().await);
    assert_eq!(names(&first), ["w"]);
    assert_eq!(second.removed_resources, ["p"]);
}

#[tokio::test]
async fn a_reconnect_sends_only_what_changed_and_names_what_is_gone() {
    let publisher = Publisher::new();
    publisher.publish(vec![put(ADDRESS, "a", "1", &[]), put(ADDRESS, "b", "1", &[])]);
    let mut client = connect(&publisher, None);
    let all = client.subscribe(ADDRESS, &[]).await;
    let version = all.resources[0].version.clone();
    let mut again = connect(&publisher, None);
    let rest = again.subscribe(ADDRESS, &[("a", &version), ("old", "x")]).await;
    assert_eq!(names(&rest), ["b"]);
    assert_eq!(rest.removed_resources, ["old"]);
}

#[tokio::test]
async fn resources_are_for_their_audience_only() {
    let publisher = Publisher::new();
    publisher.publish(vec![
        put(HTTP_POLICY, "mine", "1", &["ns/gw"]),
        put(HTTP_POLICY, "other", "1", &["ns/other"]),
    ]);
    assert_eq!(names(&connect(&publisher, Some("ns/gw")).subscribe(HTTP_POLICY, &[]).await), ["mine"]);
    assert!(connect(&publisher, None).subscribe(HTTP_POLICY, &[]).await.resources.is_empty());
}

#[tokio::test]
async fn what_comes_in_parts_is_told_to_be_a_part() {
    let publisher = Publisher::new();
    let all: Vec<Change> = (0..5_001).map(|n| put(ADDRESS, &format!("w{n:04}"), "1", &[])).collect();
    let generation = publisher.publish(all).to_string();
    let mut client = connect(&publisher, None);
    let first = client.subscribe(ADDRESS, &[]).await;
    let last = client.next().await;
    assert_eq!((first.resources.len(), last.resources.len()), (5_000, 1));
    assert_eq!((first.system_version_info, last.system_version_info), (format!("{generation}+"), generation));
}

#[tokio::test]
async fn a_stream_has_bounds() {
    let publisher = Publisher::new();
    publisher.publish(vec![put(ADDRESS, "w", "1", &[])]);
    let names = |count: usize| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: (0..count).map(|n| format!("n{n}")).collect(),
        ..Default::default()
    };
    // As many names as are allowed are answered soon, all of them; one more ends the stream.
    let mut client = connect(&publisher, None);
    let begun = std::time::Instant::now();
    client.requests.send(Ok(names(65_536))).await.unwrap();
    assert_eq!(client.next().await.removed_resources.len(), 65_536);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    let mut client = connect(&publisher, None);
    client.requests.send(Ok(names(65_537))).await.unwrap();
    let status = client.responses.recv().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    // Who acknowledges nothing is let go of.
    let mut client = connect(&publisher, None);
    client.subscribe(ADDRESS, &[]).await;
    let bodies = ["2", "3"];
    let mut sent = 1;
    let status = loop {
        publisher.publish(vec![put(ADDRESS, "w", bodies[sent % 2], &[])]);
        match client.responses.recv().await.unwrap() {
            Ok(_) => sent += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), sent), (tonic::Code::ResourceExhausted, 4_096));
}

#[tokio::test]
async fn a_refusal_is_kept_in_short() {
    let publisher = Publisher::new();
    publisher.publish(vec![put(ADDRESS, "w", "1", &[])]);
    let mut client = connect(&publisher, None);
    let response = client.subscribe(ADDRESS, &[]).await;
    let error = crate::proto::discovery::Status { code: 3, message: "é".repeat(1 << 20) };
    let refusal = DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        response_nonce: response.nonce,
        error_detail: Some(error),
        ..Default::default()
    };
    // A nonce that was never sent acknowledges nothing.
    let wrong = DeltaDiscoveryRequest { response_nonce: "no".into(), ..refusal.clone() };
    for request in [wrong, refusal] {
        client.requests.send(Ok(request)).await.unwrap();
    }
    tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while client.seen.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let seen = client.seen.0.lock().unwrap();
    assert_eq!((seen.len(), seen[0].error.as_ref().unwrap().len()), (1, 4_096));
}

#[tokio::test]
async fn another_type_is_refused() {
    let publisher = Publisher::new();
    let mut client = connect(&publisher, None);
    let request = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    client.requests.send(Ok(request)).await.unwrap();
    let status = client.responses.recv().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn acknowledgements_reach_the_observer_with_their_generation() {
    let publisher = Publisher::new();
    let generation = publisher.publish(vec![put(AUTHORIZATION, "p", "1", &[])]);
    let mut client = connect(&publisher, None);
    let response = client.subscribe(AUTHORIZATION, &[]).await;
    let ack = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION.into(),
        response_nonce: response.nonce,
        ..Default::default()
    };
    client.requests.send(Ok(ack)).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while client.seen.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(client.seen.0.lock().unwrap()[0].generation, generation);
}
