// SPDX-License-Identifier: Apache-2.0
//! Objects, read once.

use meltemi_model::NamespacedName;
use meltemi_model::service::AppProtocol;
use meltemi_resources::policies::validate;
use meltemi_resources::policies::{AuthorizationPolicySpec, PeerAuthenticationSpec};
use meltemi_translate::MeshConfig;
use meltemi_translate::facts::{Labels, app_protocol};
use meltemi_translate::security::peer::Peer;
use meltemi_translate::security::{authorization, stand_in};
use serde_json::Value;

use super::{Fault, Gateway, Service, Workload, World};

impl World {
    /// Reads objects; what is invalid is among the faults, kinds that do not matter are passed over.
    pub fn read(objects: &[Value], mesh: MeshConfig) -> Self {
        let mut world = Self { mesh, ..Self::default() };
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
        match kind {
            "AuthorizationPolicy" => self.policy(name, object),
            "PeerAuthentication" => self.peer(name, object),
            "RequestAuthentication" => {
                self.request_authentications.insert(name);
            }
            "Service" => {
                self.services.insert(name, service(labels, &object["spec"]));
            }
            "Namespace" => {
                self.namespaces.insert(name.name.to_string(), labels);
            }
            "Gateway" => {
                let class = text(&object["spec"]["gatewayClassName"]);
                self.gateways.insert(name, Gateway { class, labels });
            }
            "ServiceAccount" => {
                self.accounts.insert(name);
            }
            "Pod" => self.workload(kind, name, labels, &object["spec"]),
            "Deployment" | "DaemonSet" | "StatefulSet" | "Job" => {
                let template = &object["spec"]["template"];
                self.workload(kind, name, texts(&template["metadata"]["labels"]), &template["spec"]);
            }
            _ => {}
        }
    }

    fn workload(&mut self, kind: &str, name: NamespacedName, labels: Labels, spec: &Value) {
        let account = spec["serviceAccountName"].as_str().filter(|a| !a.is_empty()).unwrap_or("default");
        let containers = spec["containers"].as_array().into_iter().flatten();
        let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        let named =
            ports.filter_map(|p| Some((p["name"].as_str()?.to_owned(), number(&p["containerPort"])?)));
        self.workloads.push(Workload {
            kind: kind.to_owned(),
            name,
            labels,
            account: account.to_owned(),
            ports: named.collect(),
        });
    }

    fn fault(&mut self, kind: &str, name: NamespacedName, message: String) {
        self.faults.push(Fault { kind: kind.to_owned(), name, message });
    }

    fn policy(&mut self, name: NamespacedName, object: &Value) {
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

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0)
}

/// A Service's ports that are TCP, as Kubernetes means it.
fn service(labels: Labels, spec: &Value) -> Service {
    let mut out = Service { labels, selector: texts(&spec["selector"]), ..Service::default() };
    let tcp = |p: &&Value| p["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
    for port in spec["ports"].as_array().into_iter().flatten().filter(tcp) {
        let Some(own) = number(&port["port"]) else { continue };
        let target = &port["targetPort"];
        let named = target.as_str().map(str::to_owned);
        out.ports.push((own, if named.is_some() { None } else { number(target).or(Some(own)) }));
        out.named.extend(named.map(|name| (own, name)));
        let protocol = app_protocol(port["appProtocol"].as_str(), port["name"].as_str(), own);
        if matches!(protocol, AppProtocol::Tcp | AppProtocol::Tls) {
            out.streams.insert(own);
        }
    }
    out
}

fn spec<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, String> {
    let spec = object.get("spec").filter(|s| !s.is_null()).cloned();
    serde_json::from_value(spec.unwrap_or_else(|| serde_json::json!({}))).map_err(|e| format!("spec: {e}"))
}

/// A map of texts.
fn texts(map: &Value) -> Labels {
    let pairs = map.as_object().into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}
