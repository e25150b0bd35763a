// SPDX-License-Identifier: Apache-2.0
//! What a node may do: read what is needed to run the Pods bound to it, write its own Node, Lease and their status.

mod admission;
mod denial;

use serde_json::Value;

use super::rbac::text;
use super::{Attributes, Objects, ResourceTarget, Target, User, Verdict};

pub(super) use admission::admit;
use denial::{NodeDenial, Permission};

/// Namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";

/// The node's name, from `system:node:<name>`.
fn node_name(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|name| !name.is_empty())
}

/// Judges a request of a node.
pub(super) fn judge(objects: &dyn Objects, user: &User, attributes: &Attributes<'_>) -> Verdict {
    let judged = match (node_name(user), attributes.target) {
        (None, _) => Err(NodeDenial::NoNode),
        (Some(node), Target::Resource(target)) => {
            judge_resource(objects, node, attributes.verb, &target).map(|()| node)
        }
        (Some(_), _) => Err(NodeDenial::NotForNodes),
    };
    match judged {
        Ok(node) => Verdict::Allowed(format!("node {node:?} may do this for its Pods")),
        Err(denial) => Verdict::Denied(denial.to_string()),
    }
}

fn judge_resource(objects: &dyn Objects, node: &str, verb: &str, t: &ResourceTarget<'_>) -> Permission {
    let allowed = |allowed: bool| if allowed { Ok(()) } else { Err(NodeDenial::NotForNodes) };
    let reading = matches!(verb, "get" | "list" | "watch");
    let writing = matches!(verb, "update" | "patch");
    match (t.group, t.resource, t.subresource) {
        ("", "services" | "namespaces" | "nodes", "") if reading => Ok(()),
        ("discovery.k8s.io", "endpointslices", "") if reading => Ok(()),
        ("", "nodes", "") if verb == "create" && t.name.is_empty() => Ok(()),
        ("", "nodes", "") if verb == "create" || writing => own(node, t.name),
        ("", "nodes", "status") if reading || writing => own(node, t.name),
        ("", "pods", "") if verb == "get" || verb == "delete" => bound(objects, node, t),
        ("", "pods", "") if reading => selects(t, "spec.nodeName", node),
        ("", "pods", "status") if reading || writing => bound(objects, node, t),
        ("", "secrets" | "configmaps", "") if reading => referenced(objects, node, verb, t),
        ("", "persistentvolumeclaims", "") if verb == "get" => mounts_claim(objects, node, t),
        ("", "serviceaccounts", "") if verb == "get" => uses_account(objects, node, t),
        ("", "serviceaccounts", "token") if verb == "create" => uses_account(objects, node, t),
        ("" | "events.k8s.io", "events", "") => allowed(matches!(verb, "create" | "update" | "patch")),
        ("coordination.k8s.io", "leases", "") if t.namespace == LEASES => match verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => own(node, t.name),
            _ => Err(NodeDenial::NotForNodes),
        },
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews", "") => allowed(verb == "create"),
        _ => Err(NodeDenial::NotForNodes),
    }
}

fn own(node: &str, name: &str) -> Permission {
    if name == node {
        return Ok(());
    }
    Err(NodeDenial::OtherNode { node: node.to_owned(), other: name.to_owned() })
}

/// The relation of the node to the object, or that there is none.
fn related(is_related: bool, node: &str) -> Permission {
    if is_related { Ok(()) } else { Err(NodeDenial::no_relationship(node)) }
}

/// Whether the Pod is bound to the node.
fn bound(objects: &dyn Objects, node: &str, t: &ResourceTarget<'_>) -> Permission {
    // A Pod that is gone is no secret: the node shall read 404 and clean up.
    let pod = objects.get("", "pods", t.namespace, t.name);
    related(pod.is_none_or(|pod| text(&pod, "/spec/nodeName") == node), node)
}

fn selects(t: &ResourceTarget<'_>, field: &'static str, value: &str) -> Permission {
    let wanted = |term: &str| {
        let (key, rest) = term.split_once('=')?;
        (key.trim() == field).then(|| rest.trim_start_matches('=').trim() == value)
    };
    if t.field_selector.split(',').filter_map(wanted).any(|equal| equal) {
        return Ok(());
    }
    Err(NodeDenial::NoSelector { resource: t.resource.to_owned(), field, value: value.to_owned() })
}

fn pods_of(objects: &dyn Objects, node: &str, namespace: &str) -> Vec<std::sync::Arc<Value>> {
    let mut pods = objects.list("", "pods", Some(namespace));
    pods.retain(|pod| text(pod, "/spec/nodeName") == node);
    pods
}

/// Whether a Pod of the node mounts or reads the Secret or ConfigMap.
fn referenced(objects: &dyn Objects, node: &str, verb: &str, t: &ResourceTarget<'_>) -> Permission {
    let named = |term: &'_ str| {
        term.trim().strip_prefix("metadata.name=").map(|n| n.trim_start_matches('=').to_owned())
    };
    let name =
        if t.name.is_empty() { t.field_selector.split(',').find_map(named) } else { Some(t.name.to_owned()) };
    let Some(name) = name else {
        return Err(NodeDenial::NoName { verb: verb.to_owned(), resource: t.resource.to_owned() });
    };
    let pods = pods_of(objects, node, t.namespace);
    related(pods.iter().any(|pod| names_source(pod, t.resource, &name)), node)
}

fn names_source(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let is = |value: &Value| value.as_str() == Some(name);
    let each = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let (volume_key, name_key, env_from, env_ref) = match resource {
        "secrets" => ("secret", "secretName", "secretRef", "secretKeyRef"),
        _ => ("configMap", "name", "configMapRef", "configMapKeyRef"),
    };
    let volumes = each(&spec["volumes"]).iter().any(|volume| {
        let projected = each(&volume["projected"]["sources"]);
        is(&volume[volume_key][name_key]) || projected.iter().any(|source| is(&source[volume_key]["name"]))
    });
    let containers =
        ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|key| each(&spec[*key]));
    let mut env = containers.map(|container| {
        each(&container["envFrom"]).iter().any(|from| is(&from[env_from]["name"]))
            || each(&container["env"]).iter().any(|var| is(&var["valueFrom"][env_ref]["name"]))
    });
    let pull = resource == "secrets" && each(&spec["imagePullSecrets"]).iter().any(|s| is(&s["name"]));
    volumes || pull || env.any(|used| used)
}

/// Whether a Pod of the node has the claim among its volumes.
fn mounts_claim(objects: &dyn Objects, node: &str, t: &ResourceTarget<'_>) -> Permission {
    let mounts = |pod: &Value| {
        let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.any(|volume| volume["persistentVolumeClaim"]["claimName"] == t.name)
    };
    related(pods_of(objects, node, t.namespace).iter().any(|pod| mounts(pod)), node)
}

fn uses_account(objects: &dyn Objects, node: &str, t: &ResourceTarget<'_>) -> Permission {
    let uses = |pod: &Value| text(pod, "/spec/serviceAccountName") == t.name;
    related(pods_of(objects, node, t.namespace).iter().any(|pod| uses(pod)), node)
}
