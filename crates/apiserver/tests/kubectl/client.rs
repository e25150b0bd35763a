// SPDX-License-Identifier: Apache-2.0
//! What kube-rs does: watches that outlive the server, server-side apply, updates that must not lose each other.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use serde_json::json;

use super::server::Server;

pub(crate) async fn client(server: &Server) -> Client {
    let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

pub(crate) fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(Duration::from_secs(20), future).await else {
        panic!("not within twenty seconds: {what}")
    };
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_goes_on_after_the_server_was_killed() {
    for streaming in [false, true] {
        let mut server = Server::start();
        let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
        maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
        let config =
            if streaming { watcher::Config::default().streaming_lists() } else { watcher::Config::default() };
        let mut events = Box::pin(watcher::watcher(maps.clone(), config));
        let mut names = Vec::new();
        within("the first list", async {
            loop {
                match events.try_next().await.unwrap().unwrap() {
                    Event::InitApply(map) => names.push(map.metadata.name.unwrap()),
                    Event::InitDone => break,
                    _ => {}
                }
            }
        })
        .await;
        assert_eq!(names, ["a"], "streaming: {streaming}");
        maps.create(&PostParams::default(), &config_map("b")).await.unwrap();
        let next = within("a change", events.try_next()).await.unwrap().unwrap();
        assert!(matches!(next, Event::Apply(map) if map.metadata.name.as_deref() == Some("b")));
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        let next = within("a deletion", events.try_next()).await.unwrap().unwrap();
        assert!(matches!(next, Event::Delete(map) if map.metadata.name.as_deref() == Some("a")));
        // The port changes with the process, so the old watch can only end; it must do so with an error, not a hang.
        server.kill_and_restart();
        assert!(within("the end of the watch", events.next()).await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_do_not_lose_each_other() {
    let server = Server::start();
    let leases: Api<Lease> = Api::default_namespaced(client(&server).await);
    let mut lease = Lease { spec: Some(LeaseSpec::default()), ..Lease::default() };
    lease.metadata.name = Some("l".into());
    let first = leases.create(&PostParams::default(), &lease).await.unwrap();
    let mut one = first.clone();
    one.spec.as_mut().unwrap().holder_identity = Some("one".into());
    leases.replace("l", &PostParams::default(), &one).await.unwrap();
    let mut two = first;
    two.spec.as_mut().unwrap().holder_identity = Some("two".into());
    let refused = leases.replace("l", &PostParams::default(), &two).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let apply = PatchParams::apply("three");
    let patch =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"leaseTransitions": 3}});
    let applied = leases.patch("l", &apply, &Patch::Apply(&patch)).await.unwrap();
    assert_eq!(applied.spec.unwrap().holder_identity.as_deref(), Some("one"));
    let list = leases.list(&ListParams::default().limit(1)).await.unwrap();
    assert_eq!(list.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_a_finalizer_waits_for_it() {
    let server = Server::start();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
    let mut map = config_map("f");
    map.metadata.finalizers = Some(vec!["example.com/wait".into()]);
    maps.create(&PostParams::default(), &map).await.unwrap();
    let left = maps.delete("f", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(left.metadata.deletion_timestamp.is_some());
    let patch = json!({"metadata": {"finalizers": null}});
    maps.patch("f", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert!(maps.get_opt("f").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_a_revision_out_of_the_history_gets_an_error_event() {
    let mut server = Server::start();
    server.kubectl(&["create", "configmap", "a"]);
    server.kubectl(&["delete", "configmap", "a"]);
    server.kill_and_restart();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
    // Before the start of the server, and from a database that has been put back since.
    for revision in ["1", "99999999"] {
        // The request itself succeeds: kube-rs and client-go list again for the event only.
        let events = maps.watch(&WatchParams::default(), revision).await.unwrap();
        match within("an answer", std::pin::pin!(events).next()).await {
            Some(Ok(WatchEvent::Error(status))) => {
                assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
            }
            other => panic!("{revision}: what was deleted before the start cannot be known: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_at_the_same_address_lists_again_after_a_restart() {
    for streaming in [false, true] {
        let mut server = Server::start_at_fixed_port();
        let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
        for name in ["kept", "gone"] {
            maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
        }
        let config =
            if streaming { watcher::Config::default().streaming_lists() } else { watcher::Config::default() };
        let (reader, writer) = kube::runtime::reflector::store();
        let stream = watcher::watcher(maps.clone(), config).default_backoff();
        let mut stream = Box::pin(kube::runtime::reflector::reflector(writer, stream));
        let names = || {
            let mut names: Vec<String> =
                reader.state().iter().filter_map(|m| m.metadata.name.clone()).collect();
            names.sort();
            names
        };
        let mut reaches = async |what: &str, expected: &[&str]| {
            within(what, async {
                while names() != expected {
                    let _ = stream.next().await.unwrap();
                }
            })
            .await;
        };
        reaches("the first list", &["gone", "kept"]).await;
        server.kill_and_restart();
        // The revision moves past everything that the watcher has seen, before it is back.
        maps.delete("gone", &DeleteParams::default()).await.unwrap();
        maps.create(&PostParams::default(), &config_map("new")).await.unwrap();
        reaches("the list after the restart", &["kept", "new"]).await;
        maps.delete("kept", &DeleteParams::default()).await.unwrap();
        reaches("a change after the restart", &["new"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_any_shape_is_refused_and_breaks_nothing() {
    let server = Server::start();
    let client = client(&server).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    let uri = "/api/v1/namespaces/default/configmaps/a?fieldManager=x";
    let shapes = [
        json!(5),
        json!([]),
        json!(null),
        json!("x"),
        json!({"metadata": []}),
        json!({"metadata": {"name": []}}),
    ];
    for shape in shapes {
        for kind in ["merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml", "json-patch+json"]
        {
            let body = if kind.starts_with("json") {
                json!([{"op": "replace", "path": "", "value": shape}])
            } else {
                shape.clone()
            };
            let request = http::Request::patch(uri)
                .header("content-type", format!("application/{kind}"))
                .body(body.to_string().into_bytes())
                .unwrap();
            let answer = client.request::<serde_json::Value>(request).await.unwrap_err();
            let kube::Error::Api(status) = answer else { panic!("{kind} {shape}: {answer}") };
            assert!(matches!(status.code, 400 | 422), "{kind} {shape}: {status:?}");
        }
    }
    assert!(maps.get("a").await.is_ok());
}
