// SPDX-License-Identifier: Apache-2.0
//! What the mesh needs to know of an object, read once when it arrives and kept in place of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service as KubeService};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meltemi_model::NamespacedName;
use meltemi_model::enrolment::bypasses_inbound;
use meltemi_model::net::is_routable;
use meltemi_model::service::AppProtocol;
use meltemi_model::workload::Locality;

use crate::labels;

mod slices;

pub use slices::{NamedEndpoint, SliceFacts};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Name of an object; the empty texts of one that has none yet.
pub fn name_of(meta: &ObjectMeta) -> NamespacedName {
    NamespacedName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// Whether every pair of `selector` is among `labels`; an empty selector matches all.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What the agent of a Pod's node says of its capture, by the condition `meltemi.dev/Captured`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// Nothing: the Pod has not started or is not in the mesh, or the agent is Istio's, which knows no such condition.
    #[default]
    Unknown,
    /// Its traffic passes a node proxy.
    Captured,
    /// It does not: the message of the condition.
    NotCaptured(String),
}

impl Capture {
    fn read(pod: &Pod) -> Self {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        match conditions.into_iter().flatten().find(|c| c.type_ == labels::CAPTURED) {
            None => Self::Unknown,
            Some(condition) if condition.status == "True" => Self::Captured,
            Some(condition) => {
                let why = condition.message.clone().or_else(|| condition.reason.clone());
                Self::NotCaptured(why.unwrap_or_default())
            }
        }
    }
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its service account.
    pub service_account: Arc<str>,
    /// The node it was placed on.
    pub node: Arc<str>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// It uses the node's network.
    pub host_network: bool,
    /// Pending or Running.
    pub alive: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// Its traffic is captured (`ambient.istio.io/redirection: enabled`).
    pub enrolled: bool,
    /// Its phase is Running.
    pub running: bool,
    /// What the agent of its node says of its capture.
    pub capture: Capture,
    /// It asks for what comes in not to be captured.
    pub bypasses_inbound: bool,
    /// Another implementation has given it a sidecar.
    pub has_sidecar: bool,
    /// Container ports that have a name.
    pub named_ports: BTreeMap<String, u16>,
    /// Every container port that is declared.
    pub ports: BTreeSet<u16>,
    /// Name of the Deployment (or other owner) behind it.
    pub workload_name: Arc<str>,
}

impl PodFacts {
    /// Reads a Pod.
    pub fn read(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let ips = status
            .and_then(|s| s.pod_ips.as_ref())
            .map(|ips| ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect::<Vec<_>>())
            .filter(|ips| !ips.is_empty())
            .or_else(|| status.and_then(|s| s.pod_ip.as_ref()?.parse().ok()).map(|ip| vec![ip]))
            .unwrap_or_default();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        let ready = status
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        let annotations = pod.metadata.annotations.as_ref();
        Self {
            name: name_of(&pod.metadata),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            service_account: spec.and_then(|s| s.service_account_name.as_deref()).unwrap_or("default").into(),
            node: spec.and_then(|s| s.node_name.as_deref()).unwrap_or_default().into(),
            ips,
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            alive: matches!(phase, "Pending" | "Running"),
            ready: ready && pod.metadata.deletion_timestamp.is_none(),
            enrolled: annotations.and_then(|a| a.get(labels::REDIRECTION)).is_some_and(|v| v == "enabled"),
            running: phase == "Running",
            capture: Capture::read(pod),
            bypasses_inbound: bypasses_inbound(
                annotations.and_then(|a| a.get(labels::BYPASS_INBOUND)).map(String::as_str),
            ),
            has_sidecar: annotations.is_some_and(|a| a.contains_key(labels::SIDECAR_STATUS)),
            named_ports: named_ports(pod),
            ports: declared_ports(pod),
            workload_name: workload_name(pod).into(),
        }
    }
}

fn named_ports(pod: &Pod) -> BTreeMap<String, u16> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter());
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?)))
        .collect()
}

fn declared_ports(pod: &Pod) -> BTreeSet<u16> {
    let containers =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| u16::try_from(p.container_port).ok()).collect()
}

/// The Deployment behind the ReplicaSet behind a Pod, or its direct owner, or itself.
fn workload_name(pod: &Pod) -> String {
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller.unwrap_or(false))
        .map(|o| (o.kind.as_str(), o.name.as_str()));
    let hash = pod.metadata.labels.as_ref().and_then(|l| l.get("pod-template-hash"));
    match (owner, hash) {
        (Some(("ReplicaSet", name)), Some(hash)) => {
            name.strip_suffix(hash.as_str()).and_then(|n| n.strip_suffix('-')).unwrap_or(name).to_owned()
        }
        (Some((_, name)), _) => name.to_owned(),
        (None, _) => pod.metadata.name.clone().unwrap_or_default(),
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, if any.
    pub name: Option<String>,
    /// The Service's port.
    pub port: u16,
    /// The Pod's port.
    pub target: TargetPort,
    /// Declared protocol.
    pub app_protocol: AppProtocol,
}

/// The Pod's side of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port.
    Named(String),
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations that matter.
    pub annotations: Labels,
    /// Cluster addresses; none when headless.
    pub addresses: Vec<IpAddr>,
    /// Further addresses at which nodes serve it: those of its load balancer, and `externalIPs`.
    pub further_addresses: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its Pods; none when its endpoints are given by hand.
    pub selector: Option<Labels>,
    /// An alias in DNS: not part of the mesh.
    pub external_name: bool,
    /// Unready Pods receive traffic too.
    pub publish_unready: bool,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// `trafficDistribution`, from the field or the annotation.
    pub traffic_distribution: Option<String>,
    /// Generation, for its status.
    pub generation: Option<i64>,
}

impl ServiceFacts {
    /// Reads a Service.
    pub fn read(service: &KubeService) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let annotations = service.metadata.annotations.clone().unwrap_or_default();
        let addresses = spec
            .cluster_ips
            .filter(|ips| !ips.is_empty())
            .or_else(|| spec.cluster_ip.map(|ip| vec![ip]))
            .unwrap_or_default();
        let further_addresses = further_addresses(service);
        let ports = spec.ports.unwrap_or_default();
        Self {
            further_addresses,
            name: name_of(&service.metadata),
            labels: service.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ports: ports.into_iter().filter_map(|p| read_port(&p)).collect(),
            selector: spec.selector.filter(|s| !s.is_empty()),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            publish_unready: spec.publish_not_ready_addresses.unwrap_or(false),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            traffic_distribution: spec
                .traffic_distribution
                .or_else(|| annotations.get(labels::TRAFFIC_DISTRIBUTION).cloned()),
            generation: service.metadata.generation,
            annotations,
        }
    }
}

/// Addresses beside the cluster's own that the nodes lead to a Service. A load balancer in mode `Proxy` is not among them:
/// what is sent there leaves the cluster first.
fn further_addresses(service: &KubeService) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let balancer = status
        .and_then(|l| l.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_deref());
    let external = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten()).map(String::as_str);
    let mut out: Vec<IpAddr> = Vec::new();
    for ip in balancer.chain(external).filter_map(|ip| ip.parse().ok()).filter(|ip| is_routable(*ip)) {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

fn read_port(port: &k8s_openapi::api::core::v1::ServicePort) -> Option<ServicePort> {
    if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
        return None;
    }
    let number = u16::try_from(port.port).ok().filter(|p| *p != 0)?;
    let target = match &port.target_port {
        None => TargetPort::Number(number),
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(n)) => TargetPort::Number(u16::try_from(*n).ok()?),
        Some(IntOrString::String(name)) => TargetPort::Named(name.clone()),
    };
    let app_protocol = app_protocol(port.app_protocol.as_deref(), port.name.as_deref(), number);
    Some(ServicePort { name: port.name.clone(), port: number, target, app_protocol })
}

/// Ports that are TCP when nothing declares them: SMTP, DNS, MySQL and MongoDB, as in Istio.
const TCP_PORTS: [u16; 4] = [25, 53, 3306, 27017];

/// The declared protocol of a port: `appProtocol`, else the first word of its name, else what its number stands for.
pub fn app_protocol(declared: Option<&str>, name: Option<&str>, number: u16) -> AppProtocol {
    let word = match (declared, name.filter(|name| !name.is_empty())) {
        (Some(declared), _) if declared.contains('/') => declared,
        (Some(text), _) | (None, Some(text)) => text.split('-').next().unwrap_or(text),
        (None, None) if TCP_PORTS.contains(&number) => return AppProtocol::Tcp,
        (None, None) => return AppProtocol::Unknown,
    };
    match word.to_ascii_lowercase().as_str() {
        "kubernetes.io/wss" => AppProtocol::Tls,
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
}

impl NamespaceFacts {
    /// Reads a Namespace.
    pub fn read(namespace: &Namespace) -> Self {
        Self {
            labels: namespace.metadata.labels.clone().unwrap_or_default(),
            annotations: namespace.metadata.annotations.clone().unwrap_or_default(),
        }
    }
}

/// Where a Node is.
pub fn node_locality(node: &Node) -> Locality {
    let label = |key: &str| -> Arc<str> {
        node.metadata.labels.as_ref().and_then(|l| l.get(key)).map_or("", String::as_str).into()
    };
    Locality { region: label(labels::REGION), zone: label(labels::ZONE), subzone: label(labels::SUBZONE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_declared_by_field_name_or_number() {
        for (declared, name, number, expected) in [
            (Some("http"), Some("tcp"), 80, AppProtocol::Http11),
            (Some("kubernetes.io/h2c"), None, 80, AppProtocol::Http2),
            (Some("kubernetes.io/ws"), None, 80, AppProtocol::Http11),
            (Some("kubernetes.io/wss"), None, 443, AppProtocol::Tls),
            (Some("tls-db"), None, 5432, AppProtocol::Tls),
            (Some("amqp"), None, 5672, AppProtocol::Unknown),
            (None, Some("tcp-postgresql"), 5432, AppProtocol::Tcp),
            (None, Some("postgres"), 5432, AppProtocol::Unknown),
            (None, Some("custom"), 3306, AppProtocol::Unknown),
            (None, None, 3306, AppProtocol::Tcp),
            (None, Some(""), 27017, AppProtocol::Tcp),
            (None, None, 5432, AppProtocol::Unknown),
        ] {
            assert_eq!(app_protocol(declared, name, number), expected, "{declared:?} {name:?} {number}");
        }
    }

    #[test]
    fn a_service_is_known_by_every_address_at_which_nodes_serve_it() {
        let service = serde_json::json!({
            "metadata": { "name": "a", "namespace": "b" },
            "spec": { "clusterIP": "10.96.0.7", "externalIPs": ["172.30.1.9", "172.30.1.1", "127.0.0.1", "x"] },
            "status": { "loadBalancer": { "ingress": [
                { "ip": "172.30.1.1", "ipMode": "VIP" }, { "ip": "203.0.113.1", "ipMode": "Proxy" }, { "hostname": "h" },
            ] } },
        });
        let facts = ServiceFacts::read(&serde_json::from_value(service).unwrap());
        let text = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&facts.addresses), ["10.96.0.7"]);
        assert_eq!(text(&facts.further_addresses), ["172.30.1.1", "172.30.1.9"]);
    }
}
