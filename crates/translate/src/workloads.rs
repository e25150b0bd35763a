// SPDX-License-Identifier: Apache-2.0
//! From a Pod, or an endpoint that no Pod stands behind, to a workload of the mesh.

use std::collections::BTreeMap;

use meltemi_model::names::{NamespacedHostname, WorkloadUid};
use meltemi_model::service::PortMapping;
use meltemi_model::workload::{
    ApplicationTunnel, GatewayAddress, Health, Locality, NetworkMode, TunnelProtocol, WorkloadType,
};
use meltemi_model::{NamespacedName, Workload};

use crate::facts::{PodFacts, ServiceFacts, SliceFacts, TargetPort, selects};
use crate::labels;
use crate::mesh::MeshConfig;

/// What a workload takes from other objects.
#[derive(Clone, Debug, Default)]
pub struct Surroundings<'a> {
    /// Services of its namespace that select it.
    pub services: Vec<&'a ServiceFacts>,
    /// Services without a selector that name it, each with the slice in which they do.
    pub named_by: Vec<(&'a ServiceFacts, &'a SliceFacts)>,
    /// Selector policies that apply to it, in the order in which they are sent.
    pub policies: Vec<NamespacedName>,
    /// Its waypoint for traffic addressed to it.
    pub waypoint: Option<GatewayAddress>,
    /// Tunnel that its application understands.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where its node is.
    pub locality: Locality,
}

/// Whether a Pod is (still) a workload: it has an address and has not ended.
pub fn is_workload(pod: &PodFacts) -> bool {
    pod.alive && !pod.ips.is_empty()
}

/// Whether a Service selects a Pod.
pub fn selected_by(service: &ServiceFacts, pod: &PodFacts) -> bool {
    !service.external_name
        && service.name.namespace == pod.name.namespace
        && service.selector.as_ref().is_some_and(|s| selects(s, &pod.labels))
}

/// Translates a Pod.
pub fn from_pod(pod: &PodFacts, around: Surroundings<'_>, mesh: &MeshConfig) -> Workload {
    let uid = WorkloadUid::pod(&mesh.cluster_id, &pod.name.namespace, &pod.name.name);
    let mut out = Workload::empty(uid, pod.name.namespace.clone(), pod.name.name.clone());
    out.addresses = pod.ips.clone();
    out.network = mesh.network.clone();
    out.trust_domain = mesh.trust_domain.clone();
    out.service_account = pod.service_account.clone();
    out.node = pod.node.clone();
    out.cluster_id = mesh.cluster_id.clone();
    out.workload_type = WorkloadType::Pod;
    out.workload_name = pod.workload_name.clone();
    out.native_tunnel = pod.labels.get(labels::NATIVE_TUNNEL).is_some_and(|v| v == "http");
    if pod.enrolled || out.native_tunnel {
        out.tunnel_protocol = TunnelProtocol::Hbone;
    }
    let label = |keys: &[&str]| keys.iter().find_map(|k| pod.labels.get(*k)).map(String::as_str);
    out.canonical_name = label(&[labels::CANONICAL_NAME, "app.kubernetes.io/name", "app"])
        .unwrap_or(&pod.workload_name)
        .into();
    out.canonical_revision = label(&[labels::CANONICAL_REVISION, "app.kubernetes.io/version", "version"])
        .unwrap_or("latest")
        .into();
    out.health = if pod.ready { Health::Healthy } else { Health::Unhealthy };
    out.network_mode = if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
    out.locality = around.locality;
    out.waypoint = around.waypoint;
    out.application_tunnel = around.application_tunnel;
    out.authorization_policies = around.policies;
    out.services = around
        .services
        .iter()
        .map(|s| (mesh.service_key(&s.name.namespace, &s.name.name), ports_of(s, &pod.named_ports)))
        .collect();
    for (service, slice) in around.named_by {
        let ports = out.services.entry(mesh.service_key(&service.name.namespace, &service.name.name));
        let ports: &mut Vec<PortMapping> = ports.or_default();
        for port in ports_of_slice(service, slice) {
            if ports.iter().all(|known| known.service_port != port.service_port) {
                ports.push(port);
            }
        }
    }
    out
}

/// The ports of a Service at the endpoints of a slice.
fn ports_of_slice(service: &ServiceFacts, slice: &SliceFacts) -> Vec<PortMapping> {
    let map = |p: &crate::facts::ServicePort| {
        let target_port = *slice.ports.get(p.name.as_deref().unwrap_or_default())?;
        Some(PortMapping { service_port: p.port, target_port, app_protocol: p.app_protocol })
    };
    service.ports.iter().filter_map(map).collect()
}

/// The ports of a Service at a Pod; one whose name the Pod does not have is left out.
fn ports_of(service: &ServiceFacts, named: &BTreeMap<String, u16>) -> Vec<PortMapping> {
    let map = |p: &crate::facts::ServicePort| {
        let target_port = match &p.target {
            TargetPort::Number(port) => *port,
            TargetPort::Named(name) => *named.get(name)?,
        };
        Some(PortMapping { service_port: p.port, target_port, app_protocol: p.app_protocol })
    };
    service.ports.iter().filter_map(map).collect()
}

/// Translates the endpoints of a slice that no Pod stands behind: one workload for each address, reached in
/// the clear, without a mesh identity of its own.
pub fn from_slice(slice: &SliceFacts, service: &ServiceFacts, mesh: &MeshConfig) -> Vec<Workload> {
    let key: NamespacedHostname = mesh.service_key(&service.name.namespace, &service.name.name);
    let ports = ports_of_slice(service, slice);
    slice
        .endpoints
        .iter()
        .map(|(ip, ready)| {
            let name = format!("{}/{ip}", slice.name.name);
            let uid = format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}",
                mesh.cluster_id, slice.name.namespace, slice.name.name
            );
            let uid = WorkloadUid(uid.into());
            let mut out = Workload::empty(uid, slice.name.namespace.clone(), name);
            out.addresses = vec![*ip];
            out.network = mesh.network.clone();
            out.trust_domain = mesh.trust_domain.clone();
            out.cluster_id = mesh.cluster_id.clone();
            out.workload_name = slice.name.name.clone();
            out.health = if *ready { Health::Healthy } else { Health::Unhealthy };
            // The address may be that of a node: nobody is known by it.
            out.network_mode = NetworkMode::HostNetwork;
            out.services = BTreeMap::from([(key.clone(), ports.clone())]);
            out
        })
        .collect()
}
