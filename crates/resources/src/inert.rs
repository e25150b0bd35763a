// SPDX-License-Identifier: Apache-2.0
//! Kinds that can be stored and that nothing acts on: the one list of them, which the API server, `analyze` and the
//! proofs on files read.
//!
//! An object of such a kind looks as if it were in force, so every place that sees one names it.

/// Where nothing acts on a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the mesh, wherever it runs: kinds of mesh and gateway APIs, and those of Kubernetes that look like a policy or a
    /// route of it.
    Mesh,
    /// On one machine only; a real Kubernetes acts on it.
    OneMachine,
}

/// A kind that nothing acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inert {
    /// API group.
    pub group: &'static str,
    /// Version to list it in.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural, lower case.
    pub plural: &'static str,
    /// What to use instead, as a clause; empty when there is nothing.
    pub instead: &'static str,
    /// Where nothing acts on it.
    pub place: Place,
}

const fn inert(
    place: Place,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    instead: &'static str,
) -> Inert {
    Inert { group, version, kind, plural, instead, place }
}

use Place::{Mesh, OneMachine};

const ROUTE: &str = "an HTTPRoute is served";
const GATEWAY: &str = "a Gateway of gateway.networking.k8s.io is served";
const POLICY: &str = "an AuthorizationPolicy is enforced";
const DEPLOYMENT: &str = "a Deployment is run";
const VOLUME: &str = "a PersistentVolumeClaim gets a folder of its own";

/// Every such kind.
pub const KINDS: &[Inert] = &[
    inert(Mesh, "networking.istio.io", "v1", "VirtualService", "virtualservices", ROUTE),
    inert(Mesh, "networking.istio.io", "v1", "DestinationRule", "destinationrules", ""),
    inert(Mesh, "networking.istio.io", "v1", "Gateway", "gateways", GATEWAY),
    inert(Mesh, "networking.istio.io", "v1", "ServiceEntry", "serviceentries", ""),
    inert(Mesh, "networking.istio.io", "v1", "Sidecar", "sidecars", ""),
    inert(Mesh, "networking.istio.io", "v1", "WorkloadEntry", "workloadentries", ""),
    inert(Mesh, "networking.istio.io", "v1", "WorkloadGroup", "workloadgroups", ""),
    inert(Mesh, "networking.istio.io", "v1alpha3", "EnvoyFilter", "envoyfilters", "no proxy here is Envoy"),
    inert(Mesh, "networking.istio.io", "v1beta1", "ProxyConfig", "proxyconfigs", ""),
    inert(Mesh, "telemetry.istio.io", "v1", "Telemetry", "telemetries", ""),
    inert(
        Mesh,
        "extensions.istio.io",
        "v1alpha1",
        "WasmPlugin",
        "wasmplugins",
        "no proxy here runs WebAssembly",
    ),
    inert(Mesh, "extensions.istio.io", "v1alpha1", "TrafficExtension", "trafficextensions", ""),
    inert(Mesh, "gateway.networking.k8s.io", "v1", "ListenerSet", "listenersets", ""),
    inert(Mesh, "gateway.networking.x-k8s.io", "v1alpha1", "XListenerSet", "xlistenersets", ""),
    inert(
        Mesh,
        "gateway.networking.x-k8s.io",
        "v1alpha1",
        "XBackendTrafficPolicy",
        "xbackendtrafficpolicies",
        "",
    ),
    inert(Mesh, "gateway.networking.x-k8s.io", "v1alpha1", "XMesh", "xmeshes", ""),
    inert(Mesh, "gateway.networking.k8s.io", "v1", "BackendTLSPolicy", "backendtlspolicies", ""),
    inert(Mesh, "gateway.networking.k8s.io", "v1alpha2", "TCPRoute", "tcproutes", ""),
    inert(Mesh, "gateway.networking.k8s.io", "v1alpha2", "UDPRoute", "udproutes", ""),
    inert(Mesh, "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", POLICY),
    inert(
        Mesh,
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingresses",
        "a Gateway of class istio with an HTTPRoute is served",
    ),
    inert(OneMachine, "batch", "v1", "CronJob", "cronjobs", "a Job is run"),
    inert(
        OneMachine,
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "kubectl scale changes the number of Pods",
    ),
    inert(OneMachine, "", "v1", "ReplicationController", "replicationcontrollers", DEPLOYMENT),
    inert(OneMachine, "", "v1", "ResourceQuota", "resourcequotas", ""),
    inert(OneMachine, "", "v1", "LimitRange", "limitranges", ""),
    inert(OneMachine, "", "v1", "PersistentVolume", "persistentvolumes", VOLUME),
];

/// Kinds that the mesh does not act on, wherever it runs.
pub fn mesh_kinds() -> impl Iterator<Item = &'static Inert> {
    KINDS.iter().filter(|inert| inert.place == Place::Mesh)
}

/// The entry of a kind that the mesh does not act on; `None` when something acts on it or nothing is known of it.
pub fn find_in_mesh(group: &str, kind: &str) -> Option<&'static Inert> {
    mesh_kinds().find(|inert| inert.group == group && inert.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_once_and_what_is_served_is_not_among_them() {
        for (at, one) in KINDS.iter().enumerate() {
            assert!(KINDS[..at].iter().all(|o| (o.group, o.kind) != (one.group, one.kind)), "{one:?}");
            assert!(one.plural.starts_with(&one.kind.to_lowercase()[..4]), "{one:?}");
            let found = find_in_mesh(one.group, one.kind);
            assert_eq!(found, (one.place == Place::Mesh).then_some(one));
        }
        // What a mesh brings a definition of, it acts on.
        let of_ours = |kind: &&Inert| {
            let mut definitions = crate::crds::all().into_iter();
            definitions
                .any(|d| (d.spec.group.as_str(), d.spec.names.kind.as_str()) == (kind.group, kind.kind))
        };
        let ours: Vec<&str> = KINDS.iter().filter(of_ours).map(|inert| inert.kind).collect();
        assert_eq!(ours, [""; 0]);
    }
}
