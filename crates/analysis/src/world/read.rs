// SPDX-License-Identifier: Apache-2.0
//! Objects, read once.

use std::collections::BTreeMap;

use meltemi_model::NamespacedName;
use meltemi_model::enrolment::{self, BYPASS_INBOUND, SIDECAR_STATUS};
use meltemi_model::service::AppProtocol;
use meltemi_resources::inert;
use meltemi_resources::policies::validate;
use meltemi_resources::policies::{
    AuthorizationPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
};
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::{Labels, app_protocol};
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::gateways::facts::GatewayFacts;
use meltemi_translate::mesh::{CONFIG_KEY, CONFIG_MAP, unread_keys};
use meltemi_translate::routes::RouteKind;
use meltemi_translate::security::peer::Peer;
use meltemi_translate::security::{authorization, request, stand_in};
use serde_json::{Value, json};

use super::{Fault, Gateway, Service, Workload, World, routes, unacted};

/// Group and version of policies.
const SECURITY_V1: &str = "security.istio.io/v1";

impl World {
    /// Reads objects; what is invalid is among the faults, kinds that do not matter are passed over.
    pub fn read(objects: &[Value], mesh: MeshConfig) -> Self {
        // Gateways are of a class whose object may come after them.
        let mut world = Self { mesh, classes: own_classes(objects), ..Self::default() };
        for object in objects {
            world.add(object);
        }
        world
    }

    fn add(&mut self, object: &Value) {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind.ends_with("List") && object["items"].is_array() {
            object["items"].as_array().into_iter().flatten().for_each(|item| self.add(item));
            return;
        }
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = metadata["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or("default");
        let name = NamespacedName::new(namespace, text(&metadata["name"]));
        let labels = texts(&metadata["labels"]);
        self.objects.insert((kind.to_owned(), name.clone()));
        let group = group_of(object);
        if let Some(inert) = group.and_then(|group| inert::find_in_mesh(group, kind)) {
            self.note_inert(kind, name, inert);
            return;
        }
        if group.is_some_and(|group| Some(group) != expected_group(kind)) {
            return;
        }
        for message in unacted::list(kind, object) {
            self.inert.push(Fault { kind: kind.to_owned(), name: name.clone(), message });
        }
        match kind {
            "AuthorizationPolicy" => self.policy(name, object),
            "PeerAuthentication" => self.peer(name, object),
            "RequestAuthentication" => {
                self.review(kind, &name, object);
                let read = spec::<RequestAuthenticationSpec>(object).and_then(|s| request::read(&name, &s));
                let tokens = read.unwrap_or_else(|_| request::stand_in(&name, &object["spec"]));
                self.tokens.insert(name, tokens);
            }
            "Service" => {
                self.services.insert(name, service(labels, &object["spec"]));
            }
            "Namespace" => {
                self.namespaces.insert(name.name.to_string(), labels);
            }
            "Gateway" => self.gateway(name, object),
            "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "ReferenceGrant" => {
                let mut spec = routes::in_order(without_defaults(&object["spec"], "spec"));
                if let Some(kind) = RouteKind::named(kind)
                    && let Some(rules) = routes::rules(kind, &name.namespace, object, &self.mesh)
                {
                    spec["rules"] = rules;
                }
                self.unmodelled.insert((kind.to_owned(), name), spec);
            }
            "ServiceAccount" => {
                self.accounts.insert(name);
            }
            "ConfigMap" => self.settings(name, object),
            "Pod" => self.workload(kind, name, metadata, &object["spec"]),
            "CronJob" => {
                let template = &object["spec"]["jobTemplate"]["spec"]["template"];
                self.workload(kind, name, &template["metadata"], &template["spec"]);
            }
            "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "Job" => {
                let template = &object["spec"]["template"];
                self.workload(kind, name, &template["metadata"], &template["spec"]);
            }
            _ => {}
        }
    }

    fn gateway(&mut self, name: NamespacedName, object: &Value) {
        let mut object = object.clone();
        object["metadata"]["namespace"] = name.namespace.as_ref().into();
        // As the control plane takes it.
        let own = object["spec"]["gatewayClassName"].as_str().and_then(|class| self.classes.get(class));
        if let Some(class) = own {
            object["spec"]["gatewayClassName"] = class.name().into();
        }
        match GatewayFacts::read(&object, &self.mesh) {
            Ok(GatewayFacts { class, ports, pod_labels, account, waypoint }) => {
                let pod_labels = pod_labels.into_iter().collect();
                let listeners = without_defaults(&object["spec"]["listeners"], "listeners");
                let gateway = Gateway { class, listeners, ports, pod_labels, account, waypoint };
                self.gateways.insert(name, gateway);
            }
            Err(error) => self.fault("Gateway", name, error.to_string()),
        }
    }

    fn note_inert(&mut self, kind: &str, name: NamespacedName, inert: &inert::Inert) {
        let instead = if inert.instead.is_empty() { String::new() } else { format!("; {}", inert.instead) };
        let message = format!("the {kind} is stored, but nothing in this mesh acts on it{instead}");
        self.inert.push(Fault { kind: kind.to_owned(), name, message });
    }

    /// Keys of the mesh's settings that mean nothing here.
    fn settings(&mut self, name: NamespacedName, object: &Value) {
        if *name.name != *CONFIG_MAP || name.namespace != self.mesh.root_namespace {
            return;
        }
        let keys = object["data"][CONFIG_KEY].as_str().map(unread_keys).unwrap_or_default();
        if !keys.is_empty() {
            let message = format!("keys of `{CONFIG_KEY}` without effect: {}", keys.join(", "));
            self.inert.push(Fault { kind: "ConfigMap".to_owned(), name, message });
        }
    }

    fn workload(&mut self, kind: &str, name: NamespacedName, metadata: &Value, spec: &Value) {
        let account = spec["serviceAccountName"].as_str().filter(|a| !a.is_empty()).unwrap_or("default");
        let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
        let containers = [list("containers"), list("initContainers")].concat();
        let ports: Vec<&Value> =
            containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten()).collect();
        let named =
            ports.iter().filter_map(|p| Some((p["name"].as_str()?.to_owned(), number(&p["containerPort"])?)));
        let labels = texts(&metadata["labels"]);
        let annotations = texts(&metadata["annotations"]);
        let (kind, name) = owner(kind, name, metadata, &labels);
        let workload = Workload {
            kind,
            name,
            account: account.to_owned(),
            ports: named.collect(),
            listens: ports.iter().filter_map(|p| number(&p["containerPort"])).collect(),
            host_network: spec["hostNetwork"] == true,
            has_sidecar: annotations.contains_key(SIDECAR_STATUS),
            bypasses_inbound: enrolment::bypasses_inbound(
                annotations.get(BYPASS_INBOUND).map(String::as_str),
            ),
            labels,
        };
        // Pods of one template are alike.
        if !self.workloads.contains(&workload) {
            self.workloads.push(workload);
        }
    }

    /// Keeps what admission would say of an object; whether it is valid.
    fn review(&mut self, kind: &str, name: &NamespacedName, object: &Value) -> bool {
        let mut whole = object.clone();
        if whole["apiVersion"].is_null() {
            whole["apiVersion"] = SECURITY_V1.into();
        }
        let note =
            |message: &String| Fault { kind: kind.to_owned(), name: name.clone(), message: message.clone() };
        let Some(review) = validate::object(&whole) else { return true };
        self.warnings.extend(review.warnings.iter().map(note));
        if kind == "RequestAuthentication" {
            self.faults.extend(review.faults.iter().map(note));
        }
        review.faults.is_empty()
    }

    fn fault(&mut self, kind: &str, name: NamespacedName, message: String) {
        self.faults.push(Fault { kind: kind.to_owned(), name, message });
    }

    fn policy(&mut self, name: NamespacedName, object: &Value) {
        self.review("AuthorizationPolicy", &name, object);
        let read = spec::<AuthorizationPolicySpec>(object).and_then(|spec| {
            authorization::read(&name, &spec, &texts(&object["metadata"]["annotations"]), &self.mesh)
        });
        match read {
            Ok(policy) => {
                self.policies.insert(name, policy);
            }
            Err(message) => {
                // What is enforced of it, where it got past admission.
                let spec = object.get("spec").cloned().unwrap_or_else(|| serde_json::json!({}));
                let annotations = texts(&object["metadata"]["annotations"]);
                let rest = stand_in::read(&name, &spec, &annotations, &self.mesh, message.clone());
                self.policies.insert(name.clone(), rest);
                self.fault("AuthorizationPolicy", name, message);
            }
        }
    }

    fn peer(&mut self, name: NamespacedName, object: &Value) {
        self.review("PeerAuthentication", &name, object);
        let read = spec::<PeerAuthenticationSpec>(object)
            .and_then(|spec| validate::peer_authentication(&spec).map(|()| spec));
        match read {
            Ok(spec) => {
                let created = object["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
                self.peers.push(Peer { name, created, spec });
            }
            Err(message) => self.fault("PeerAuthentication", name, message),
        }
    }
}

/// What made a Pod, by which it is the same workload as before when it runs under another name: the Deployment behind its
/// ReplicaSet, else its controller, else itself.
fn owner(kind: &str, name: NamespacedName, metadata: &Value, labels: &Labels) -> (String, NamespacedName) {
    let all = metadata["ownerReferences"].as_array().into_iter().flatten();
    let Some(owner) = all.into_iter().find(|o| o["controller"] == true).filter(|_| kind == "Pod") else {
        return (kind.to_owned(), name);
    };
    let (of, by) = (owner["kind"].as_str().unwrap_or_default(), owner["name"].as_str().unwrap_or_default());
    let deployment = labels.get("pod-template-hash").filter(|_| of == "ReplicaSet");
    match deployment.and_then(|hash| by.strip_suffix(hash.as_str())?.strip_suffix('-')) {
        Some(deployment) => ("Deployment".to_owned(), NamespacedName::new(name.namespace, deployment)),
        None => (of.to_owned(), NamespacedName::new(name.namespace, by)),
    }
}

/// A part of a route or Gateway without what an API server fills in, so that a file and the object that was made of it
/// are the same. `field` is the name under which it stands.
fn without_defaults(value: &Value, field: &str) -> Value {
    let defaults: &[(&str, Value)] = match field {
        "parentRefs" => &[("group", json!("gateway.networking.k8s.io")), ("kind", json!("Gateway"))],
        "backendRefs" | "backendRef" => {
            &[("group", json!("")), ("kind", json!("Service")), ("weight", json!(1))]
        }
        "certificateRefs" => &[("group", json!("")), ("kind", json!("Secret"))],
        "rules" => &[("matches", json!([{"path": {"type": "PathPrefix", "value": "/"}}]))],
        "matches" => &[("path", json!({"type": "PathPrefix", "value": "/"}))],
        "path" => &[("type", json!("PathPrefix"))],
        "headers" | "queryParams" | "method" => &[("type", json!("Exact"))],
        "listeners" => &[("allowedRoutes", json!({"namespaces": {"from": "Same"}}))],
        "tls" => &[("mode", json!("Terminate"))],
        _ => &[],
    };
    match value {
        Value::Array(list) => list.iter().map(|item| without_defaults(item, field)).collect(),
        Value::Object(map) => {
            let kept =
                map.iter().filter(|(key, value)| !defaults.iter().any(|(k, v)| k == key && v == *value));
            kept.map(|(key, value)| (key.clone(), without_defaults(value, key))).collect()
        }
        other => other.clone(),
    }
}

/// The GatewayClasses among objects whose controller is one of the mesh's, but for those that the mesh makes itself.
fn own_classes(objects: &[Value]) -> BTreeMap<String, Class> {
    let mut classes = BTreeMap::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind.ends_with("List")
            && let Some(items) = object["items"].as_array()
        {
            classes.extend(own_classes(items));
        }
        let name = object["metadata"]["name"].as_str().filter(|name| classes::of(name).is_none());
        let class = object["spec"]["controllerName"].as_str().and_then(classes::by_controller);
        if let ("GatewayClass", Some(name), Some(class)) = (kind, name, class) {
            classes.insert(name.to_owned(), class);
        }
    }
    classes
}

/// The API group of an object, empty for the core; `None` when it does not say.
fn group_of(object: &Value) -> Option<&str> {
    let version = object["apiVersion"].as_str()?;
    Some(version.split_once('/').map_or("", |(group, _)| group))
}

/// The group of a kind that matters here: another group may have a kind of the same name.
fn expected_group(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => "security.istio.io",
        "Service" | "Namespace" | "ServiceAccount" | "ConfigMap" | "Pod" => "",
        "Gateway" | "GatewayClass" | "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "ReferenceGrant" => {
            "gateway.networking.k8s.io"
        }
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" => "apps",
        "Job" | "CronJob" => "batch",
        _ => return None,
    })
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

/// A Service's ports that are TCP, as Kubernetes means it.
fn service(labels: Labels, spec: &Value) -> Service {
    let headless = spec["clusterIP"].as_str() == Some("None");
    let mut out = Service { labels, selector: texts(&spec["selector"]), headless, ..Service::default() };
    let tcp = |p: &&Value| p["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
    for port in spec["ports"].as_array().into_iter().flatten().filter(tcp) {
        let Some(own) = number(&port["port"]) else { continue };
        let target = &port["targetPort"];
        let named = target.as_str().map(str::to_owned);
        out.ports.push((own, if named.is_some() { None } else { number(target).or(Some(own)) }));
        out.named.extend(named.map(|name| (own, name)));
        match app_protocol(port["appProtocol"].as_str(), port["name"].as_str(), own) {
            AppProtocol::Tcp | AppProtocol::Tls => drop(out.streams.insert(own)),
            AppProtocol::Unknown => drop(out.undeclared.insert(own)),
            _ => {}
        }
    }
    out
}

fn spec<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, String> {
    let spec = object.get("spec").filter(|s| !s.is_null()).cloned();
    serde_json::from_value(spec.unwrap_or_else(|| serde_json::json!({}))).map_err(|e| format!("spec: {e}"))
}

/// A map of texts.
pub(super) fn texts(map: &Value) -> Labels {
    let pairs = map.as_object().into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}
