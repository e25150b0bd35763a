// SPDX-License-Identifier: Apache-2.0
//! What is proven is what is enforced: random meshes, once as the control plane's index has them and once as files, have the
//! same policies at the same Gateways.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Service};
use meltemi_analysis::World;
use meltemi_model::{NamespacedName, l7};
use meltemi_translate::facts::{Labels, NamespaceFacts, PodFacts, ServiceFacts};
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::gateways::facts::GatewayFacts;
use meltemi_translate::labels::GATEWAY_NAME;
use meltemi_translate::security::attachment::{self, TargetService};
use meltemi_translate::{Change, Index, MeshConfig};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const GATEWAYS: [&str; 3] = ["g0", "g1", "g2"];
const SERVICES: [&str; 2] = ["s0", "s1"];

fn object(version: &str, kind: &str, namespace: &str, name: &str, labels: &Labels, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name, "labels": labels}, "spec": spec})
}

fn use_waypoint() -> impl Strategy<Value = Labels> {
    let name =
        prop_oneof![2 => Just(None), 3 => select(&GATEWAYS[..]).prop_map(Some), 1 => Just(Some("none"))];
    (name, prop::option::of(select(&NAMESPACES[..])), prop::option::of(Just("deny"))).prop_map(
        |(name, namespace, bypass)| {
            let pairs = [
                ("istio.io/use-waypoint", name),
                ("istio.io/use-waypoint-namespace", namespace),
                ("meltemi.dev/waypoint-bypass", bypass),
            ];
            pairs.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect()
        },
    )
}

fn gateway() -> impl Strategy<Value = Value> {
    let class = select(&["istio", "istio-waypoint", "istio-waypoint", "istio-remote", "nginx"][..]);
    let takes = prop::option::of(select(&["service", "workload", "all", "none"][..]));
    let from = prop::option::of(select(&["All", "Same"][..]));
    let role = prop::option::of(select(&["x", "y"][..]));
    (class, takes, from, role, any::<bool>()).prop_map(|(class, takes, from, role, renamed)| {
        let labels = takes.map(|t| ("istio.io/waypoint-for".to_owned(), t.to_owned())).into_iter().collect();
        let allowed = from.map(|from| json!({"namespaces": {"from": from}}));
        let listener = json!({"name": "l", "port": 15008, "protocol": "HBONE", "allowedRoutes": allowed});
        let made: Labels = role.map(|r| ("role".to_owned(), r.to_owned())).into_iter().collect();
        let spec = json!({"gatewayClassName": class, "infrastructure": {"labels": made}, "listeners": [listener]});
        let mut gateway = object("gateway.networking.k8s.io/v1", "Gateway", "", "", &labels, spec);
        if renamed {
            gateway["metadata"]["annotations"] =
                json!({"gateway.istio.io/name-override": "other", "gateway.istio.io/service-account": "proxy"});
        }
        gateway
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let target = prop_oneof![
        3 => select(&SERVICES[..]).prop_map(|name| json!({"kind": "Service", "group": "", "name": name})),
        2 => select(&GATEWAYS[..]).prop_map(|name| json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": name})),
        1 => select(&["istio-waypoint", "istio", "nginx"][..])
            .prop_map(|name| json!({"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": name})),
    ];
    // Labels that a proxy has because it is made so, because its Gateway asks for them, or because it runs.
    let selected = select(
        &[
            ("role", "x"),
            ("app", "hand-made"),
            ("gateway.networking.k8s.io/gateway-name", "g0"),
            ("gateway.networking.k8s.io/gateway-class-name", "istio"),
            ("gateway.istio.io/managed", "istio.io-gateway-controller"),
            ("istio.io/dataplane-mode", "none"),
            ("service.istio.io/canonical-name", "other"),
            ("service.istio.io/canonical-name", "g1-istio"),
        ][..],
    );
    let rest = json!({"action": "DENY", "rules": [{}]});
    let with = move |more: Value| {
        let mut spec = rest.clone();
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    prop_oneof![
        4 => prop::collection::vec(target, 1..3).prop_map(|targets| json!({"targetRefs": targets})),
        4 => selected.prop_map(|(k, v)| json!({"selector": {"matchLabels": {k: v}}})),
        1 => Just(json!({})),
    ]
    .prop_map(with)
}

#[derive(Debug, Clone)]
struct Mesh {
    objects: Vec<Value>,
}

fn mesh() -> impl Strategy<Value = Mesh> {
    let namespaces = prop::collection::vec(use_waypoint(), 3);
    let services = prop::collection::vec(prop::option::of((use_waypoint(), any::<bool>())), 6);
    let gateways = prop::collection::vec(prop::option::of((gateway(), any::<bool>())), 9);
    let policies = prop::collection::vec((select(&NAMESPACES[..]), policy()), 1..6);
    (namespaces, services, gateways, policies).prop_map(|(namespaces, services, gateways, policies)| {
        let none = Labels::new();
        let mut objects = Vec::new();
        for (name, labels) in NAMESPACES.iter().zip(&namespaces) {
            objects.push(object("v1", "Namespace", "", name, labels, json!({})));
        }
        for (at, (labels, selects)) in
            services.iter().enumerate().filter_map(|(at, s)| Some((at, s.as_ref()?)))
        {
            let (namespace, name) = (NAMESPACES[at / 2], SERVICES[at % 2]);
            let selector = if *selects { json!({"app": "web"}) } else { json!({}) };
            let spec = json!({"clusterIP": "10.96.0.9", "selector": selector, "ports": [{"port": 80}]});
            objects.push(object("v1", "Service", namespace, name, labels, spec));
        }
        for (at, (gateway, runs)) in gateways.iter().enumerate().filter_map(|(at, g)| Some((at, g.as_ref()?)))
        {
            let (namespace, name) = (NAMESPACES[at / 3], GATEWAYS[at % 3]);
            let mut gateway = gateway.clone();
            gateway["metadata"]["namespace"] = namespace.into();
            gateway["metadata"]["name"] = name.into();
            objects.push(gateway);
            if *runs {
                let labels = [(GATEWAY_NAME, name), ("app", "hand-made")];
                let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
                let spec = json!({"containers": [{"name": "c", "image": "x"}]});
                let mut pod = object("v1", "Pod", namespace, &format!("{name}-pod"), &labels, spec);
                pod["status"] = json!({"podIP": "10.0.0.1", "phase": "Running"});
                objects.push(pod);
            }
        }
        for (at, (namespace, spec)) in policies.into_iter().enumerate() {
            let name = format!("p{at}");
            objects.push(object(
                "security.istio.io/v1",
                "AuthorizationPolicy",
                namespace,
                &name,
                &none,
                spec,
            ));
        }
        Mesh { objects }
    })
}

/// The control plane's view.
struct Control {
    index: Index,
    gateways: BTreeMap<NamespacedName, GatewayFacts>,
}

fn name_of(object: &Value) -> NamespacedName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    NamespacedName::new(text("namespace"), text("name"))
}

impl Control {
    fn new(mesh: &Mesh) -> Self {
        let config = MeshConfig::default();
        let mut out = Self { index: Index::new(config.clone()), gateways: BTreeMap::new() };
        for object in &mesh.objects {
            let name = name_of(object);
            let change = match object["kind"].as_str().unwrap() {
                "Namespace" => {
                    let labels = serde_json::from_value(object["metadata"]["labels"].clone()).unwrap();
                    Change::Namespace(name.name, Some(NamespaceFacts { labels, ..NamespaceFacts::default() }))
                }
                "Service" => {
                    let service: Service = serde_json::from_value(object.clone()).unwrap();
                    Change::Service(name, Some(Box::new(ServiceFacts::read(&service))))
                }
                "Pod" => {
                    let pod: Pod = serde_json::from_value(object.clone()).unwrap();
                    Change::Pod(name, Some(Box::new(PodFacts::read(&pod))))
                }
                "Gateway" => {
                    let facts = GatewayFacts::read(object, &config).unwrap();
                    let change = Change::Waypoint(name.clone(), facts.waypoint.clone());
                    out.gateways.insert(name, facts);
                    change
                }
                _ => continue,
            };
            out.index.apply(change);
        }
        out.index.flush();
        out
    }
}

impl attachment::World for Control {
    fn mesh(&self) -> &MeshConfig {
        self.index.mesh()
    }

    fn service(&self, name: &NamespacedName) -> Option<TargetService> {
        let facts = self.index.service(name)?;
        let of_namespace = &self.index.namespace(&name.namespace)?.labels;
        let closed = attachment::is_closed(&facts.labels, of_namespace, facts.selector.as_ref());
        Some(TargetService { waypoint: self.index.waypoint_of(name).cloned(), closed })
    }

    fn has_gateway(&self, name: &NamespacedName) -> bool {
        self.gateways.get(name).is_some_and(|g| g.account.is_some())
    }

    fn waypoints(&self) -> BTreeSet<NamespacedName> {
        self.index.waypoints().map(|w| w.name.clone()).collect()
    }

    fn ingress_gateways(&self) -> BTreeSet<NamespacedName> {
        let ingress = self.gateways.iter().filter(|(_, g)| g.class == Some(Class::Ingress));
        ingress.map(|(name, _)| name.clone()).collect()
    }

    fn proxy_labels(&self, gateway: &NamespacedName) -> Vec<Labels> {
        let made = self.gateways.get(gateway).and_then(|g| g.pod_labels.clone());
        let own = Labels::from([(GATEWAY_NAME.to_owned(), gateway.name.to_string())]);
        let pods = self.index.pods_selected(&gateway.namespace, Some(&own));
        let near = pods.into_iter().filter(|p| p.name.namespace == gateway.namespace);
        made.into_iter().chain(near.map(|p| p.labels.clone())).collect()
    }
}

/// Names of the policies that the control plane has a Gateway enforce.
fn enforced(
    control: &Control,
    files: &World,
    gateway: &NamespacedName,
    to: Option<&l7::Target>,
) -> BTreeSet<NamespacedName> {
    let attaches = |(name, read): &(&NamespacedName, &meltemi_translate::security::Authorization)| {
        let policy = attachment::Policy {
            kind: "AuthorizationPolicy",
            name,
            selector: read.selector.as_ref(),
            targets: &read.targets,
        };
        attachment::attach(policy, control).enforces(gateway, to)
    };
    files.policies.iter().filter(attaches).map(|(name, _)| name.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn files_and_the_control_plane_attach_the_same(mesh in mesh()) {
        let control = Control::new(&mesh);
        let mut files = World::read(&mesh.objects, MeshConfig::default()).whole().unwrap();
        let services: Vec<NamespacedName> = files.services.keys().cloned().collect();
        let all = NAMESPACES.iter().flat_map(|n| GATEWAYS.iter().map(|g| NamespacedName::new(*n, *g)));
        for gateway in all {
            for to in services.iter().map(Some).chain([None]) {
                let key = to.map(|s| control.index.mesh().service_key(&s.namespace, &s.name));
                let addressed = key.clone().map(l7::Target::Service);
                let expected = enforced(&control, &files, &gateway, addressed.as_ref());
                // All objects of a cluster: the same.
                files.complete = true;
                let found = |files: &World| -> BTreeSet<NamespacedName> {
                    files.at_waypoint(&gateway, to).into_iter().map(|a| a.policy.name.clone()).collect()
                };
                let known = files.gateways.contains_key(&gateway);
                let same = found(&files);
                prop_assert!(!known || same == expected, "{gateway} {to:?}: files {same:?}, control plane {expected:?}");
                // The same objects as files, which may lack others: no policy less.
                files.complete = false;
                let more = found(&files);
                prop_assert!(expected.is_subset(&more), "{gateway} {to:?}: files {more:?}, control plane {expected:?}");
                // What is forwarded to the Service's Pods and was addressed to another one.
                let (Some(to), Some(key)) = (to, key) else { continue };
                let expected = enforced(&control, &files, &gateway, Some(&l7::Target::Backend(key)));
                files.complete = true;
                let same: BTreeSet<NamespacedName> =
                    files.at_backend(&gateway, to).into_iter().map(|a| a.policy.name.clone()).collect();
                prop_assert!(!known || same == expected, "{gateway} {to} as backend: {same:?}, control plane {expected:?}");
            }
        }
        // Which waypoint a Service has.
        files.complete = true;
        for service in &services {
            let binding = files.waypoint_of(service);
            prop_assert_eq!(binding.gateway(), control.index.waypoint_of(service), "{}", service);
        }
    }
}
