// SPDX-License-Identifier: Apache-2.0
//! A cluster without some kind, or without the right to list it: what of the mesh is published all the same.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use meltemi_runtime::drain;
use serde_json::{Value, json};

use super::*;
use crate::source::Source;

const GATEWAY_API: [&str; 6] =
    ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "referencegrants"];
/// The same as kinds.
const GATEWAY_KINDS: [Kind; 6] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::ReferenceGrant,
];
/// Long enough for a machine under load; what is waited for comes by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// An API whose lists are empty.
#[derive(Debug, Default)]
struct Cluster {
    /// Kinds of Gateway API that are served, by version.
    served: BTreeMap<&'static str, Vec<&'static str>>,
    forbidden: Vec<&'static str>,
    absent: Vec<&'static str>,
    /// Discovery fails.
    is_mute: bool,
    /// How often each kind was listed, by `VERSION/PLURAL`.
    listed: BTreeMap<String, usize>,
}

fn failure(code: StatusCode) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Test", "code": code.as_u16(),
        "message": format!("answered {code}")});
    (code, status)
}

impl Cluster {
    fn answer(&mut self, path: &str) -> (StatusCode, Value) {
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["apis", group, version] = words[..] {
            if self.is_mute {
                return failure(StatusCode::SERVICE_UNAVAILABLE);
            }
            let Some(kinds) = self.served.get(version) else { return failure(StatusCode::NOT_FOUND) };
            let resource = |name: &&str| json!({"name": name, "singularName": "", "namespaced": true, "kind": name, "verbs": ["list", "watch"]});
            let resources: Vec<Value> = kinds.iter().map(resource).collect();
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"),
                "resources": resources});
            return (StatusCode::OK, list);
        }
        let (plural, version) = match words[..] {
            ["apis", _, version, plural] => (plural, version),
            [.., plural] => (plural, "v1"),
            [] => ("", ""),
        };
        *self.listed.entry(format!("{version}/{plural}")).or_default() += 1;
        let is_gateway_api = words.get(1) == Some(&"gateway.networking.k8s.io");
        let is_served = self.served.get(version).is_some_and(|kinds| kinds.contains(&plural));
        if self.absent.contains(&plural) || is_gateway_api && !is_served {
            return failure(StatusCode::NOT_FOUND);
        }
        if self.forbidden.contains(&plural) {
            return failure(StatusCode::FORBIDDEN);
        }
        (
            StatusCode::OK,
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}),
        )
    }
}

/// A client of the cluster; watches say nothing and do not end.
fn client(cluster: &Arc<Mutex<Cluster>>) -> kube::Client {
    let cluster = cluster.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let response = if is_watch {
            Response::new(Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>()))
        } else {
            let (code, value) = cluster.lock().unwrap().answer(request.uri().path());
            let mut response = Response::new(Body::from(value.to_string()));
            *response.status_mut() = code;
            response
        };
        async move { Ok::<_, Infallible>(response) }
    });
    kube::Client::new(service, "default")
}

struct Mesh {
    cluster: Arc<Mutex<Cluster>>,
    engine: Engine,
    events: mpsc::Receiver<Event>,
    missing: BTreeSet<Kind>,
    was_missing: BTreeSet<Kind>,
    _tasks: Tasks,
    _trigger: drain::DrainTrigger,
}

impl Mesh {
    fn of(cluster: Cluster) -> Self {
        let cluster = Arc::new(Mutex::new(cluster));
        let (trigger, drain) = drain::channel();
        let (tasks, _) = Tasks::new("test", drain);
        let (sender, events) = mpsc::channel(64);
        Source::new(client(&cluster), "istio-system".into(), tasks.clone(), sender, Watches::default())
            .start();
        let engine = Engine::new(MeshConfig::default(), super::tests::outlets());
        let (missing, was_missing) = Default::default();
        Self { cluster, engine, events, missing, was_missing, _tasks: tasks, _trigger: trigger }
    }

    /// Takes events until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < LIMIT, "not in time: {what}; not listed: {:?}", self.engine.unlisted);
            let next = tokio::time::timeout(Duration::from_millis(50), self.events.recv()).await;
            let Ok(Some(event)) = next else { continue };
            match &event {
                Event::Missing(kind, _) => {
                    self.missing.insert(*kind);
                    self.was_missing.insert(*kind);
                }
                Event::Synced(kind) => {
                    self.missing.remove(kind);
                }
                Event::Changed(..) | Event::Gone(..) => {}
            }
            self.engine.take(event);
        }
    }

    fn is_publishing(&self) -> bool {
        self.engine.unlisted.is_empty()
    }
}

fn whole() -> Cluster {
    Cluster { served: [("v1", GATEWAY_API.to_vec())].into(), ..Cluster::default() }
}

#[tokio::test(start_paused = true)]
async fn the_mesh_does_without_kinds_that_are_not_there_and_takes_them_when_they_come() {
    let without_grpc = ["gatewayclasses", "gateways", "httproutes"].to_vec();
    let grants_of_old = ["referencegrants", "httproutes"].to_vec();
    let cases: [(&str, Cluster, &[Kind]); 5] = [
        ("all is there", whole(), &[]),
        ("no Gateway API at all", Cluster::default(), &GATEWAY_KINDS),
        (
            "no GRPCRoute, no TLSRoute, grants as v1beta1",
            Cluster {
                served: [("v1", without_grpc), ("v1beta1", grants_of_old)].into(),
                ..Cluster::default()
            },
            &[Kind::GrpcRoute, Kind::TlsRoute],
        ),
        (
            "no right to Secrets and Nodes",
            Cluster { forbidden: vec!["secrets", "nodes"], ..whole() },
            &[Kind::Node, Kind::Secret],
        ),
        (
            "no right to grants",
            Cluster { forbidden: vec!["referencegrants"], ..whole() },
            &[Kind::ReferenceGrant],
        ),
    ];
    for (what, cluster, missing) in cases {
        let mut mesh = Mesh::of(cluster);
        mesh.until(what, Mesh::is_publishing).await;
        assert_eq!(mesh.missing.iter().collect::<Vec<_>>(), missing.iter().collect::<Vec<_>>(), "{what}");
        if what.contains("v1beta1") {
            let listed = mesh.cluster.lock().unwrap().listed.clone();
            assert!(listed.contains_key("v1beta1/referencegrants"), "{listed:?}");
            assert!(
                listed.contains_key("v1/httproutes") && !listed.contains_key("v1beta1/httproutes"),
                "{listed:?}"
            );
        }
        {
            let mut cluster = mesh.cluster.lock().unwrap();
            cluster.forbidden.clear();
            cluster.served.insert("v1", GATEWAY_API.to_vec());
        }
        mesh.until(what, |mesh| mesh.missing.is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_without_policies_or_without_knowing() {
    let cases: [(&str, Cluster, &[Kind], &str); 6] = [
        (
            "no right to policies",
            Cluster { forbidden: vec!["authorizationpolicies"], ..whole() },
            &[Kind::AuthorizationPolicy],
            "v1/authorizationpolicies",
        ),
        (
            "no definition of policies",
            Cluster { absent: vec!["authorizationpolicies"], ..whole() },
            &[Kind::AuthorizationPolicy],
            "v1/authorizationpolicies",
        ),
        (
            "no definition of PeerAuthentication",
            Cluster { absent: vec!["peerauthentications"], ..whole() },
            &[Kind::PeerAuthentication],
            "v1/peerauthentications",
        ),
        (
            "no right to the mesh's settings",
            Cluster { forbidden: vec!["configmaps"], ..whole() },
            &[Kind::MeshConfig],
            "v1/configmaps",
        ),
        (
            "no right to routes, which may be there and take access away",
            Cluster { forbidden: vec!["httproutes"], ..whole() },
            &[Kind::HttpRoute],
            "v1/httproutes",
        ),
        ("discovery fails", Cluster { is_mute: true, ..whole() }, &GATEWAY_KINDS, "v1/pods"),
    ];
    for (what, cluster, unlisted, asked) in cases {
        let times = if cluster.is_mute { 1 } else { 3 };
        let unlisted: BTreeSet<Kind> = unlisted.iter().copied().collect();
        let mut mesh = Mesh::of(cluster);
        // It has had its chance to give up.
        mesh.until(what, |mesh| {
            let listed = mesh.cluster.lock().unwrap().listed.get(asked).copied();
            listed.is_some_and(|count| count >= times) && mesh.engine.unlisted == unlisted
        })
        .await;
        assert!(mesh.missing.is_empty() && !mesh.is_publishing(), "{what}: {:?}", mesh.missing);
        *mesh.cluster.lock().unwrap() = whole();
        mesh.until(what, Mesh::is_publishing).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_for_a_moment_takes_nothing_away() {
    let mut mesh = Mesh::of(Cluster { forbidden: vec!["secrets"], ..whole() });
    let has_tried =
        |mesh: &Mesh| mesh.cluster.lock().unwrap().listed.get("v1/secrets").is_some_and(|count| *count >= 5);
    mesh.until("refused a few times", has_tried).await;
    mesh.cluster.lock().unwrap().forbidden.clear();
    mesh.until("all is listed", Mesh::is_publishing).await;
    assert!(mesh.was_missing.is_empty());
}
