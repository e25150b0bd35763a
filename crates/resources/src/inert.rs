// SPDX-License-Identifier: Apache-2.0
//! Kinds of mesh and gateway APIs that can be stored, and that nothing of this mesh acts on.
//!
//! Their definitions are not ours: they come with Istio's or Gateway API's manifests. An object of them looks as if it
//! were in force, so every place that sees one names it.

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
}

const fn inert(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    instead: &'static str,
) -> Inert {
    Inert { group, version, kind, plural, instead }
}

const ROUTE: &str = "an HTTPRoute is served";
const GATEWAY: &str = "a Gateway of gateway.networking.k8s.io is served";
const POLICY: &str = "an AuthorizationPolicy is enforced";

/// Every such kind.
pub const KINDS: &[Inert] = &[
    inert("networking.istio.io", "v1", "VirtualService", "virtualservices", ROUTE),
    inert("networking.istio.io", "v1", "DestinationRule", "destinationrules", ""),
    inert("networking.istio.io", "v1", "Gateway", "gateways", GATEWAY),
    inert("networking.istio.io", "v1", "ServiceEntry", "serviceentries", ""),
    inert("networking.istio.io", "v1", "Sidecar", "sidecars", ""),
    inert("networking.istio.io", "v1", "WorkloadEntry", "workloadentries", ""),
    inert("networking.istio.io", "v1", "WorkloadGroup", "workloadgroups", ""),
    inert("networking.istio.io", "v1alpha3", "EnvoyFilter", "envoyfilters", "no proxy here is Envoy"),
    inert("networking.istio.io", "v1beta1", "ProxyConfig", "proxyconfigs", ""),
    inert("telemetry.istio.io", "v1", "Telemetry", "telemetries", ""),
    inert("extensions.istio.io", "v1alpha1", "WasmPlugin", "wasmplugins", "no proxy here runs WebAssembly"),
    inert("gateway.networking.k8s.io", "v1", "BackendTLSPolicy", "backendtlspolicies", ""),
    inert("gateway.networking.k8s.io", "v1", "TLSRoute", "tlsroutes", ""),
    inert("gateway.networking.k8s.io", "v1alpha2", "TCPRoute", "tcproutes", ""),
    inert("gateway.networking.k8s.io", "v1alpha2", "UDPRoute", "udproutes", ""),
    inert("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", POLICY),
    inert(
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingresses",
        "a Gateway of class istio with an HTTPRoute is served",
    ),
];

/// The entry of a kind; `None` when something acts on it or nothing is known of it.
pub fn find(group: &str, kind: &str) -> Option<&'static Inert> {
    KINDS.iter().find(|inert| inert.group == group && inert.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_once_and_none_of_them_is_ours() {
        for (at, one) in KINDS.iter().enumerate() {
            assert!(KINDS[..at].iter().all(|o| (o.group, o.kind) != (one.group, one.kind)), "{one:?}");
            assert!(one.plural.starts_with(&one.kind.to_lowercase()[..4]), "{one:?}");
            assert_eq!(find(one.group, one.kind), Some(one));
        }
        for definition in crate::crds::all() {
            assert_eq!(find(&definition.spec.group, &definition.spec.names.kind), None);
        }
    }
}
