// SPDX-License-Identifier: Apache-2.0
//! Random moves of Services between waypoints, with proxies that receive and acknowledge when they like, and reconnect:
//! at no moment does a proxy believe that it serves a Service without holding the policies of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_model::l7::{HttpPolicy, Target};
use meltemi_model::workload::GatewayDestination;
use meltemi_translate::facts::{NamespaceFacts, ServiceFacts, name_of};
use meltemi_wire::convert::{self, Address};
use meltemi_wire::xds::server::{self, Subscriber};
use meltemi_wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, types};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use tokio::sync::mpsc as channel;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::*;
use crate::access::Scope;
use crate::publish::audience;
use crate::xds::Proxy;

const GATEWAYS: [&str; 3] = ["wp0", "wp1", "wp2"];
const SERVICES: [&str; 2] = ["web", "api"];

fn shop(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A Service's label `istio.io/use-waypoint`; `None` for no label.
    Label(usize, Option<&'static str>),
    /// The namespace's.
    LabelNamespace(Option<&'static str>),
    /// `istio.io/waypoint-for` of a waypoint, or its deletion.
    Waypoint(usize, Option<&'static str>),
    /// A Service is deleted, or made again with its last label.
    Service(usize, bool),
    /// A proxy takes its next messages, and acknowledges them.
    Deliver(usize, usize),
    /// A proxy's stream ends, and it connects again.
    Reconnect(usize),
    /// Control learns what was acknowledged.
    Acknowledged,
}

fn step() -> impl Strategy<Value = Step> {
    let waypoint =
        || prop::sample::select(vec![Some("wp0"), Some("wp1"), Some("wp2"), Some("missing"), None]);
    let takes = prop::sample::select(vec![Some("service"), Some("service"), Some("workload"), None]);
    prop_oneof![
        4 => (0..SERVICES.len(), waypoint()).prop_map(|(s, w)| Step::Label(s, w)),
        1 => waypoint().prop_map(Step::LabelNamespace),
        2 => (0..GATEWAYS.len(), takes).prop_map(|(g, takes)| Step::Waypoint(g, takes)),
        1 => (0..SERVICES.len(), any::<bool>()).prop_map(|(s, there)| Step::Service(s, there)),
        8 => (0..GATEWAYS.len(), 1..4usize).prop_map(|(g, n)| Step::Deliver(g, n)),
        1 => (0..GATEWAYS.len()).prop_map(Step::Reconnect),
        2 => Just(Step::Acknowledged),
    ]
}

/// A proxy of a Gateway, as far as it holds Services and policies.
struct FakeProxy {
    gateway: NamespacedName,
    connected: u32,
    requests: channel::UnboundedSender<Result<DeltaDiscoveryRequest, Status>>,
    responses: channel::Receiver<Result<DeltaDiscoveryResponse, Status>>,
    ended: CancellationToken,
    /// Versions held, by type and name.
    held: BTreeMap<String, BTreeMap<String, String>>,
    /// For each Service the Gateway's name that serves it.
    services: BTreeMap<String, Option<String>>,
    policies: BTreeMap<String, HttpPolicy>,
}

impl FakeProxy {
    fn connect(gateway: NamespacedName, outlets: &Outlets) -> Self {
        let (requests, _) = channel::unbounded_channel();
        let (_, responses) = channel::channel(1);
        let mut proxy = Self {
            gateway,
            connected: 0,
            requests,
            responses,
            ended: CancellationToken::new(),
            held: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        proxy.reconnect(outlets);
        proxy
    }

    fn id(&self) -> String {
        format!("{}#{}", self.gateway, self.connected)
    }

    #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
    fn reconnect(&mut self, outlets: &Outlets) {
        self.ended.cancel();
        outlets.proxies.remove(&self.id());
        self.connected += 1;
        let (requests, mut received) = channel::unbounded_channel();
        let (out, responses) = channel::channel(1);
        (self.requests, self.responses, self.ended) = (requests, responses, CancellationToken::new());
        let scope = Scope::Gateway(self.gateway.clone());
        let (node, metadata, known) = (None, BTreeMap::new(), BTreeMap::new());
        outlets.proxies.put(Proxy { name: self.id(), scope, node, metadata, types: known });
        let subscriber = Subscriber {
            id: self.id(),
            types: vec![types::HTTP_POLICY, types::ADDRESS],
            audience: Some(audience(&self.gateway)),
        };
        let stream = futures::stream::poll_fn(move |cx| received.poll_recv(cx));
        let served = server::serve(
            outlets.publisher.clone(),
            subscriber,
            stream,
            out,
            Arc::new(outlets.proxies.clone()),
        );
        let ended = self.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = served => {}
                () = ended.cancelled() => {}
            }
        });
        // In the order of a real one.
        for type_url in [types::HTTP_POLICY, types::ADDRESS] {
            let held = self.held.get(type_url).cloned().unwrap_or_default();
            let request = DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                initial_resource_versions: held.into_iter().collect(),
                ..DeltaDiscoveryRequest::default()
            };
            let _ = self.requests.send(Ok(request));
        }
    }

    /// Takes the next message, if one has come.
    async fn take(&mut self) -> bool {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let Ok(Ok(response)) = self.responses.try_recv() else { return false };
        let held = self.held.entry(response.type_url.clone()).or_default();
        for name in &response.removed_resources {
            held.remove(name);
            self.services.remove(name);
            self.policies.remove(name);
        }
        for resource in response.resources {
            held.insert(resource.name.clone(), resource.version);
            let bytes = resource.resource.unwrap().value;
            if response.type_url == types::HTTP_POLICY {
                self.policies.insert(resource.name, convert::decode_l7(&bytes).unwrap());
            } else if let Address::Service(service) = Address::decode(&bytes).unwrap() {
                let waypoint = service.waypoint.and_then(|waypoint| match waypoint.destination {
                    GatewayDestination::Hostname(key) => Some(key.hostname.split('.').next()?.to_owned()),
                    GatewayDestination::Address(_) => None,
                });
                self.services.insert(resource.name, waypoint);
            }
        }
        self.check();
        let acknowledgement = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        let _ = self.requests.send(Ok(acknowledgement));
        true
    }

    /// Every Service that this proxy serves has its policy here.
    fn check(&self) {
        let own = self.services.iter().filter(|(_, gateway)| gateway.as_deref() == Some(&*self.gateway.name));
        for (name, _) in own {
            let covers = |policy: &HttpPolicy| {
                policy.targets.iter().any(|t| matches!(t, Target::Service(key) if key.to_string() == *name))
            };
            assert!(self.policies.values().any(covers), "{} serves {name} without its policy", self.gateway);
        }
    }
}

/// An engine with Services, each with a policy of its own.
struct Mesh {
    engine: Engine,
    outlets: Outlets,
    labels: [Option<&'static str>; SERVICES.len()],
}

/// Outlets that lead to nobody.
pub(super) fn outlets() -> Outlets {
    Outlets {
        pods: Directory::default(),
        accounts: GatewayAccounts::default(),
        gateways: Gateways::default(),
        namespaces: Namespaces::default(),
        status: StatusQueue::default(),
        publisher: Publisher::new(),
        proxies: Proxies::default(),
        keys: crate::jwks::Keys::default(),
        metrics: ControlMetrics::default(),
        published: watch::channel(false).0,
        watches: Watches::default(),
    }
}

impl Mesh {
    fn new() -> Self {
        let outlets = outlets();
        let engine = Engine::new(MeshConfig::default(), outlets.clone());
        let mut mesh = Self { engine, outlets, labels: [Some("wp0"), Some("wp1")] };
        mesh.namespace(None);
        (0..GATEWAYS.len()).for_each(|g| mesh.waypoint(g, Some("service")));
        for (index, service) in SERVICES.iter().enumerate() {
            mesh.service(index, true);
            let object = json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {"name": service, "namespace": "shop", "generation": 1},
                "spec": {
                    "targetRefs": [{"kind": "Service", "group": "", "name": service}],
                    "action": "DENY",
                    "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}],
                },
            });
            let object = Object::Security(Arc::new(serde_json::from_value(object).unwrap()));
            mesh.engine.take(Event::Changed(Kind::AuthorizationPolicy, shop(service), object));
        }
        Kind::ALL.into_iter().for_each(|kind| mesh.engine.take(Event::Synced(kind)));
        mesh.engine.flush();
        mesh
    }

    fn namespace(&mut self, waypoint: Option<&str>) {
        let labels = waypoint.map(|w| (labels::USE_WAYPOINT.to_owned(), w.to_owned())).into_iter().collect();
        let facts = NamespaceFacts { labels, ..NamespaceFacts::default() };
        let name = NamespacedName::new("", "shop");
        self.engine.take(Event::Changed(Kind::Namespace, name, Object::Namespace(facts)));
    }

    fn service(&mut self, index: usize, there: bool) {
        let name = SERVICES[index];
        if !there {
            return self.engine.take(Event::Gone(Kind::Service, shop(name)));
        }
        let labels = self.labels[index].map(|w| json!({labels::USE_WAYPOINT: w})).unwrap_or_default();
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"clusterIP": format!("10.96.0.{}", index + 1), "ports": [{"port": 80}]},
        }))
        .unwrap();
        let facts = Object::Service(Box::new(ServiceFacts::read(&service)));
        self.engine.take(Event::Changed(Kind::Service, name_of(&service.metadata), facts));
    }

    fn waypoint(&mut self, index: usize, takes: Option<&str>) {
        let name = GATEWAYS[index];
        let Some(takes) = takes else {
            return self.engine.take(Event::Gone(Kind::Gateway, shop(name)));
        };
        let gateway = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {labels::WAYPOINT_FOR: takes}},
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            },
            "status": {"addresses": [{"type": "Hostname", "value": format!("{name}.shop.svc.cluster.local")}]},
        }));
        let gateway = Object::Gateway(Arc::new(gateway.unwrap()));
        self.engine.take(Event::Changed(Kind::Gateway, shop(name), gateway));
    }

    async fn step(&mut self, step: &Step, proxies: &mut [FakeProxy]) {
        match *step {
            Step::Label(index, waypoint) => {
                self.labels[index] = waypoint;
                self.service(index, true);
            }
            Step::LabelNamespace(waypoint) => self.namespace(waypoint),
            Step::Waypoint(index, takes) => self.waypoint(index, takes),
            Step::Service(index, there) => self.service(index, there),
            Step::Deliver(index, messages) => {
                for _ in 0..messages {
                    proxies[index].take().await;
                }
                return;
            }
            Step::Reconnect(index) => return proxies[index].reconnect(&self.outlets),
            Step::Acknowledged => return self.engine.acknowledged(),
        }
        self.engine.flush();
    }
}

#[test]
fn no_proxy_serves_a_service_without_its_policies_whatever_moves() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let config =
        proptest::test_runner::Config { cases: 256, failure_persistence: None, ..Default::default() };
    let outcome = TestRunner::new(config).run(&vec(step(), 1..60), |steps| {
        runtime.block_on(async {
            let mut mesh = Mesh::new();
            let connect = |name: &&str| FakeProxy::connect(shop(name), &mesh.outlets);
            let mut proxies: Vec<FakeProxy> = GATEWAYS.iter().map(connect).collect();
            for step in &steps {
                mesh.step(step, &mut proxies).await;
            }
            // In the end each has what it needs, and nothing else.
            loop {
                let mut quiet = true;
                for proxy in &mut proxies {
                    quiet &= !proxy.take().await;
                }
                let before = mesh.outlets.publisher.generation();
                mesh.engine.acknowledged();
                if quiet && mesh.outlets.publisher.generation() == before {
                    break;
                }
            }
            for proxy in &proxies {
                let bound =
                    |service: &&&str| mesh.engine.index.waypoint_of(&shop(service)) == Some(&proxy.gateway);
                let mut expected: Vec<String> =
                    SERVICES.iter().filter(bound).map(|service| format!("shop/{service}")).collect();
                expected.sort();
                let held: Vec<&String> = proxy.policies.keys().collect();
                assert_eq!(held, expected.iter().collect::<Vec<_>>(), "{}: {steps:?}", proxy.gateway);
            }
        });
        Ok(())
    });
    outcome.unwrap();
}
