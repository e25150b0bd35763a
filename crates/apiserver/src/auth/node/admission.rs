// SPDX-License-Identifier: Apache-2.0
//! What a node may write depends on the object: labels place Pods and select policies, addresses say whose traffic comes
//! to a Pod, a token is an identity.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::denial::{NodeDenial, Permission};
use super::{node_name, own};
use crate::auth::rbac::text;
use crate::auth::{Attributes, ISSUER, Objects, Target, User};

/// Labels of Kubernetes' own domains that a node may give itself; by the others an administrator groups nodes.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of labels that a node may give itself.
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Judges what a node writes by the object itself, and by what is stored.
pub(in crate::auth) fn admit(
    objects: &dyn Objects,
    user: &User,
    attributes: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Permission {
    let Some(node) = node_name(user) else { return Ok(()) };
    let Target::Resource(target) = attributes.target else { return Ok(()) };
    let unset = Value::Null;
    let before = old.unwrap_or(&unset);
    match (target.group, target.resource, target.subresource, attributes.verb) {
        ("coordination.k8s.io", "leases", "", "create") => own(node, &text(object, "/metadata/name")),
        ("", "nodes", "", "create") => {
            own(node, &text(object, "/metadata/name"))?;
            node_labels(object, before)
        }
        ("", "nodes", "" | "status", "update") => {
            node_labels(object, before)?;
            node_spec(object, before)
        }
        ("", "serviceaccounts", "token", "create") => pod_token(objects, node, target.namespace, object),
        ("", "pods", "", "create") => Err(NodeDenial::CreatesPod),
        ("", "pods", "status", "update") => {
            if object["metadata"]["labels"] != before["metadata"]["labels"] {
                return Err(NodeDenial::LabelsByStatus { node: node.to_owned() });
            }
            pod_addresses(objects, node, object, before)
        }
        _ => Ok(()),
    }
}

fn node_labels(object: &Value, old: &Value) -> Permission {
    let labels = |value: &Value| value["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(object), labels(old));
    let mut changed = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key));
    let is_within = |domain: &str, parent: &str| {
        domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
    };
    let reserved = |key: &&String| {
        let Some((domain, _)) = key.split_once('/') else { return false };
        let of_kubernetes = is_within(domain, "kubernetes.io") || is_within(domain, "k8s.io");
        let allowed =
            OWN_LABELS.contains(&key.as_str()) || OWN_DOMAINS.iter().any(|own| is_within(domain, own));
        of_kubernetes && !allowed
    };
    match changed.find(reserved) {
        Some(key) => Err(NodeDenial::NodeLabel { key: key.clone() }),
        None => Ok(()),
    }
}

fn node_spec(object: &Value, old: &Value) -> Permission {
    if object["spec"]["taints"] != old["spec"]["taints"] {
        return Err(NodeDenial::NodeField { field: "taints" });
    }
    if object["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
        return Err(NodeDenial::NodeField { field: "ownerReferences" });
    }
    // The addresses that its Pods may claim.
    for field in ["podCIDR", "podCIDRs"] {
        if !old["spec"][field].is_null() && object["spec"][field] != old["spec"][field] {
            return Err(NodeDenial::PodRange { field });
        }
    }
    Ok(())
}

/// A token is asked for a Pod that runs on the node, and for an audience that this Pod asks for.
fn pod_token(objects: &dyn Objects, node: &str, namespace: &str, request: &Value) -> Permission {
    let reference = &request["spec"]["boundObjectRef"];
    if text(reference, "/kind") != "Pod" || text(reference, "/uid").is_empty() {
        return Err(NodeDenial::UnboundToken);
    }
    let Some(pod) = objects.get("", "pods", namespace, &text(reference, "/name")) else {
        return Err(NodeDenial::TokenOfNoPod);
    };
    if text(&pod, "/spec/nodeName") != node {
        return Err(NodeDenial::TokenOfOtherNode);
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    let mounted: Vec<String> = sources
        .filter(|source| source["serviceAccountToken"].is_object())
        .map(|source| audience(source["serviceAccountToken"]["audience"].as_str().unwrap_or_default()))
        .collect();
    let asked = request["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut asked: Vec<String> = asked.map(audience).collect();
    if asked.is_empty() {
        asked.push(audience(""));
    }
    match asked.iter().find(|audience| !mounted.contains(audience)) {
        Some(other) => Err(NodeDenial::Audience { audience: other.clone() }),
        None => Ok(()),
    }
}

/// The audience of a token that names none is this API server.
fn audience(given: &str) -> String {
    if given.is_empty() { ISSUER.to_owned() } else { given.to_owned() }
}

/// A Pod has addresses of its node's range, or those of the node where it uses the node's network: with any other it
/// would take the traffic of another Pod's Services.
fn pod_addresses(objects: &dyn Objects, node: &str, pod: &Value, old: &Value) -> Permission {
    let of = |pod: &Value| {
        let list = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|one| text(one, "/ip"));
        let mut all: Vec<String> =
            list.chain([text(pod, "/status/podIP")]).filter(|ip| !ip.is_empty()).collect();
        all.sort();
        all.dedup();
        all
    };
    let (new, old) = (of(pod), of(old));
    let changed: Vec<&String> = new.iter().filter(|ip| !old.contains(ip)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let unknown = || NodeDenial::UnknownNode { node: node.to_owned() };
    let object = objects.get("", "nodes", "", node).ok_or_else(unknown)?;
    let is_own = |address: &str| {
        let Ok(ip) = address.parse::<IpAddr>() else { return false };
        if pod["spec"]["hostNetwork"] == true {
            let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
            return addresses.into_iter().any(|one| one["address"] == address);
        }
        let range = text(&object, "/spec/podCIDR").parse::<IpNet>();
        range.is_ok_and(|range| range.contains(&ip))
    };
    match changed.into_iter().find(|address| !is_own(address)) {
        Some(address) => Err(NodeDenial::ForeignAddress { node: node.to_owned(), address: address.clone() }),
        None => Ok(()),
    }
}
