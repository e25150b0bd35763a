// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices: endpoints that no Pod stands behind, and Pods that somebody named by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meltemi_model::NamespacedName;
use meltemi_model::net::is_routable;

use super::name_of;

/// A Pod that an endpoint names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Name of the Pod, in the slice's namespace.
    pub pod: Arc<str>,
    /// The endpoint's address, which counts only if it is the Pod's.
    pub ip: IpAddr,
}

/// An EndpointSlice, without the endpoints that the control plane knows by a Service's selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Name of its Service.
    pub service: Arc<str>,
    /// Addresses, with their readiness. Whoever may write the endpoints of a Service must not lead its waypoint to its own
    /// loopback: what is nobody else's is left out, as Kubernetes refuses it.
    pub endpoints: Vec<(IpAddr, bool)>,
    /// Ready endpoints that name a Pod. Empty for a slice of the endpointslice controller, which follows the selector.
    pub named: Vec<NamedEndpoint>,
    /// Its ports by the name of the Service's port.
    pub ports: BTreeMap<String, u16>,
}

impl SliceFacts {
    /// Reads an EndpointSlice; none when it belongs to no Service.
    pub fn read(slice: &EndpointSlice) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels.get("kubernetes.io/service-name")?.as_str().into();
        let by_selector = labels.get(MANAGED_BY).is_some_and(|by| by == "endpointslice-controller.k8s.io");
        let name = name_of(&slice.metadata);
        let (mut endpoints, mut named) = (Vec::new(), Vec::new());
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let addresses = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            let addresses = addresses.filter(|ip| is_routable(*ip));
            match endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")) {
                None => endpoints.extend(addresses.map(|ip| (ip, ready))),
                Some(pod) if ready && !by_selector && is_near(pod, &name.namespace) => {
                    let pod: Arc<str> = pod.name.as_deref().unwrap_or_default().into();
                    named.extend(addresses.map(|ip| NamedEndpoint { pod: pod.clone(), ip }));
                }
                Some(_) => {}
            }
        }
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), u16::try_from(p.port?).ok()?)))
            .collect();
        Some(Self { name, service, endpoints, named, ports })
    }
}

/// Label by which the writer of an EndpointSlice is known.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Whether a reference stays in its own namespace.
fn is_near(reference: &ObjectReference, namespace: &str) -> bool {
    reference.namespace.as_deref().is_none_or(|named| named.is_empty() || named == namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_lead_no_proxy_to_itself() {
        let addresses =
            ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::7", "x"];
        let slice = serde_json::json!({
            "metadata": { "name": "a", "namespace": "b", "labels": { "kubernetes.io/service-name": "c" } },
            "addressType": "IPv4", "endpoints": [{ "addresses": addresses }],
        });
        let facts = SliceFacts::read(&serde_json::from_value(slice).unwrap()).unwrap();
        let read: Vec<_> = facts.endpoints.iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(read, ["10.0.0.7", "fd00::7"]);
    }

    #[test]
    fn pods_are_named_by_slices_that_follow_no_selector() {
        let endpoint =
            |more: &str| format!("{{addresses: [10.0.0.7], targetRef: {{kind: Pod, name: p{more}}}}}");
        for (by, endpoint, named) in [
            ("", endpoint(""), 1),
            ("me", endpoint(", namespace: b"), 1),
            ("endpointslicemirroring-controller.k8s.io", endpoint(""), 1),
            ("endpointslice-controller.k8s.io", endpoint(""), 0),
            ("", endpoint(", namespace: other"), 0),
            ("", endpoint("").replace("]", "], conditions: {ready: false}"), 0),
            ("", endpoint("").replace("10.0.0.7", "127.0.0.1"), 0),
        ] {
            let yaml = format!(
                "
metadata: {{name: a, namespace: b, labels: {{kubernetes.io/service-name: c, endpointslice.kubernetes.io/managed-by: '{by}'}}}}
addressType: IPv4
endpoints: [{endpoint}]
"
            );
            let facts = SliceFacts::read(&serde_yaml_ng::from_str(&yaml).unwrap()).unwrap();
            assert_eq!((facts.named.len(), facts.endpoints.len()), (named, 0), "{by} {endpoint}");
        }
    }
}
