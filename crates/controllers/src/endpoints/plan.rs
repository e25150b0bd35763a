// SPDX-License-Identifier: Apache-2.0
//! Which Pods stand behind a Service, on which ports, in what condition: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::pods;

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints in a slice.
const SLICE: usize = 100;

/// A port that Pods serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) port: i32,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
}

/// A Pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) address: String,
    pub(super) node: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
}

/// Pods that serve the same ports (a named port can have another number in each).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) ports: Vec<Port>,
    pub(super) members: Vec<Member>,
}

/// What of a Pod matters here.
pub(super) fn view(pod: &Pod) -> (Option<String>, Option<String>, bool, bool, bool) {
    let status = pod.status.clone().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let deleted = pod.metadata.deletion_timestamp.is_some();
    (status.pod_ip, node, pods::is_ready(pod), pods::is_finished(pod), deleted)
}

/// The selector of a Service whose endpoints are made here.
pub(super) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref().filter(|s| s.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

pub(super) fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v))
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The Pods behind the Service, grouped by the ports they serve.
pub(super) fn groups(service: &Service, pods: &[Arc<Pod>]) -> Vec<Group> {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let mut groups: BTreeMap<Vec<Port>, Vec<Member>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !pods::is_finished(p)) {
        if let Some(member) = member(service, pod, publish) {
            groups.entry(ports(service, pod)).or_default().push(member);
        }
    }
    groups
        .into_iter()
        .map(|(ports, mut members)| {
            members.sort_by(|a, b| a.pod.cmp(&b.pod));
            Group { ports, members }
        })
        .collect()
}

fn member(service: &Service, pod: &Pod, publish: bool) -> Option<Member> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let spec = pod.spec.clone().unwrap_or_default();
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pods::is_ready(pod);
    let of_service = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    Some(Member {
        pod: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        address,
        node: spec.node_name,
        hostname: spec.hostname.filter(|_| of_service),
        ready: publish || (serving && !terminating),
        serving,
        terminating,
    })
}

/// The Service's ports as the Pod serves them; a name that the Pod has not is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let mut found: Vec<Port> = ports
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            let port = match &p.target_port {
                Some(IntOrString::Int(number)) if *number > 0 => *number,
                Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
                _ => p.port,
            };
            Some(Port { name: p.name.clone(), port, protocol, app_protocol: p.app_protocol.clone() })
        })
        .collect();
    found.sort();
    found
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    // An init container that is restarted always is a sidecar: its ports count.
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .find(|p| p.name.as_deref() == Some(name))
        .map(|p| p.container_port)
}

/// The slices as they should be. Names follow from content, so that writing them twice does not double them.
pub(super) fn slices(service: &Service, groups: &[Group]) -> Vec<EndpointSlice> {
    let empty = [Group { ports: Vec::new(), members: Vec::new() }];
    // A Service without endpoints still has a slice: it says that there are none.
    let groups = if groups.is_empty() { &empty } else { groups };
    let parts = groups.iter().flat_map(|group| {
        let chunks: Vec<&[Member]> =
            if group.members.is_empty() { vec![&[]] } else { group.members.chunks(SLICE).collect() };
        chunks.into_iter().enumerate().map(move |(index, members)| (group, index, members))
    });
    parts.map(|(group, index, members)| slice(service, group, index, members)).collect()
}

fn slice(service: &Service, group: &Group, index: usize, members: &[Member]) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let uid = service.metadata.uid.clone().unwrap_or_default();
    let mut hash = pods::short_hash(&(uid, &group.ports, index), 0);
    hash.truncate(5);
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let stem: String = name.chars().take(57).collect();
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{stem}-{hash}")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![pods::controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(members.iter().map(|m| endpoint(service, m)).collect()),
        ports: Some(
            group
                .ports
                .iter()
                .map(|p| EndpointPort {
                    name: Some(p.name.clone().unwrap_or_default()),
                    port: Some(p.port),
                    protocol: Some(p.protocol.clone()),
                    app_protocol: p.app_protocol.clone(),
                })
                .collect(),
        ),
    }
}

/// The Pod behind an address.
pub(super) fn pod_of(service: &Service, member: &Member) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        name: Some(member.pod.clone()),
        namespace: service.metadata.namespace.clone(),
        uid: Some(member.uid.clone()),
        ..ObjectReference::default()
    }
}

fn endpoint(service: &Service, member: &Member) -> Endpoint {
    Endpoint {
        addresses: vec![member.address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(member.ready),
            serving: Some(member.serving),
            terminating: Some(member.terminating),
        }),
        hostname: member.hostname.clone(),
        node_name: member.node.clone(),
        target_ref: Some(pod_of(service, member)),
        ..Endpoint::default()
    }
}

/// Whether the slice that exists says what the wanted one says.
pub(super) fn same(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    have.endpoints.as_deref().unwrap_or_default() == wanted.endpoints.as_deref().unwrap_or_default()
        && have.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && have.metadata.labels == wanted.metadata.labels
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::*;

    fn service(extra: Value) -> Service {
        let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.5",
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "raw", "port": 9, "targetPort": 7}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Service::deserialize(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s"}, "spec": spec}))
            .unwrap()
    }

    fn pod(name: &str, port: i32, ready: bool, deleted: bool) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            Pod::deserialize(json!({
                "metadata": {"name": name, "uid": name, "labels": {"app": "web"}, "deletionTimestamp": deleted},
                "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                    "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": format!("10.0.0.{}", name.len()),
                    "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn conditions_follow_the_pods() {
        let pods = [pod("a", 80, true, false), pod("bb", 80, false, false), pod("ccc", 80, true, true)];
        // publishNotReadyAddresses, then (ready, serving, terminating) of each
        let cases = [
            (false, [(true, true, false), (false, false, false), (false, true, true)]),
            (true, [(true, true, false), (true, false, false), (true, true, true)]),
        ];
        for (publish, expected) in cases {
            let service = service(json!({"publishNotReadyAddresses": publish}));
            let groups = groups(&service, &pods);
            assert_eq!(groups.len(), 1);
            let got: Vec<_> = groups[0].members.iter().map(|m| (m.ready, m.serving, m.terminating)).collect();
            assert_eq!(got, expected, "publishNotReadyAddresses: {publish}");
            assert_eq!(groups[0].members[0].hostname.as_deref(), Some("a"));
        }
    }

    #[test]
    fn named_ports_make_groups() {
        let mut gone = Pod::clone(&pod("f", 80, true, false));
        gone.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let pods = [pod("a", 80, true, false), pod("bb", 81, true, false), Arc::new(gone)];
        let service = service(json!({}));
        let slices = slices(&service, &groups(&service, &pods));
        let ports: Vec<Vec<i32>> =
            slices.iter().map(|s| s.ports.iter().flatten().filter_map(|p| p.port).collect()).collect();
        assert_eq!(ports, [[80, 7], [81, 7]]);
        assert_ne!(slices[0].metadata.name, slices[1].metadata.name);
        assert_eq!(slices, super::slices(&service, &super::groups(&service, &pods)), "the same names again");
    }

    #[test]
    fn no_pods_is_one_empty_slice_and_other_services_have_none() {
        let service_of = service;
        let plain = service_of(json!({}));
        let slices = slices(&plain, &groups(&plain, &[]));
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].endpoints, Some(Vec::new()));
        assert!(selector(&service_of(json!({"type": "ExternalName"}))).is_none());
        assert!(selector(&service_of(json!({"selector": {}}))).is_none());
    }
}
