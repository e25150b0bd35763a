// SPDX-License-Identifier: Apache-2.0
//! The mesh's own parts: definitions, control plane, webhook, and what runs on the nodes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

use super::cluster::serves;
use super::facts::{DEFINITIONS, Facts, SYSTEM};
use super::pods::{is_enrolled, node_of};
use super::{Fault, Rule, listed};

/// A leader renews every 2 s; the clock here may differ from its own.
const LEASE_LIMIT: SignedDuration = SignedDuration::from_secs(60);
const LOGS_OF_CONTROL: &str = "kubectl -n istio-system logs deploy/istiod says why";

/// What holds of an installed mesh.
pub(super) const RULES: &[Rule] = &[
    Rule {
        category: "definitions",
        name: "policies are served as the mesh reads them",
        needs: &["customresourcedefinitions"],
        look: policies,
    },
    Rule {
        category: "control plane",
        name: "the control plane is ready",
        needs: &["deployments"],
        look: control_plane,
    },
    Rule { category: "control plane", name: "one replica writes", needs: &["leases", "pods"], look: leader },
    Rule {
        category: "control plane",
        name: "the admission webhook asks the control plane",
        needs: &["validatingwebhookconfigurations", "configmaps"],
        look: webhook,
    },
    Rule {
        category: "nodes",
        name: "all parts of the mesh have one image",
        needs: &["deployments", "daemonsets"],
        look: images,
    },
    Rule {
        category: "nodes",
        name: "a node proxy is ready on every node with enrolled Pods",
        needs: &["nodes", "namespaces", "pods"],
        look: proxies,
    },
    Rule {
        category: "nodes",
        name: "the CNI plugin is in place on every node",
        needs: &["nodes", "pods"],
        look: plugins,
    },
];

fn policies(facts: &Facts) -> Result<String, Fault> {
    let is_served = |name: &str| facts.definitions.iter().any(|d| d.name_any() == name && serves(d, "v1"));
    let of_istio = DEFINITIONS.iter().filter(|name| name.ends_with(".security.istio.io"));
    let missing: Vec<String> =
        of_istio.filter(|name| !is_served(name)).map(|name| (*name).to_owned()).collect();
    if missing.is_empty() {
        return Ok(String::new());
    }
    Err(Fault::failed(
        format!("{} not served as v1: the control plane publishes nothing to anybody", listed(&missing)),
        "meltemi install --take-over replaces the definitions",
    ))
}

fn control_plane(facts: &Facts) -> Result<String, Fault> {
    let Some(deployment) = &facts.control_plane else {
        return Err(Fault::failed(format!("no deploy/istiod in {SYSTEM}"), "meltemi install --wait"));
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    match ready {
        _ if ready >= wanted && wanted > 0 => Ok(format!("{ready} of {wanted} replicas are ready")),
        0 => Err(Fault::failed(
            format!(
                "none of {wanted} replicas is ready: proxies go on with what they know, and no change reaches them"
            ),
            format!("{LOGS_OF_CONTROL}; kubectl -n {SYSTEM} describe pods -l app=istiod"),
        )),
        _ => Err(Fault::warning(
            format!("{ready} of {wanted} replicas are ready"),
            format!("kubectl -n {SYSTEM} describe pods -l app=istiod"),
        )),
    }
}

fn leader(facts: &Facts) -> Result<String, Fault> {
    let spec = facts.lease.as_ref().and_then(|lease| lease.spec.as_ref());
    let holder = spec.and_then(|spec| spec.holder_identity.clone()).filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Err(Fault::failed(
            "nobody holds Lease istio-leader: no status, no waypoint and no root certificate is written",
            LOGS_OF_CONTROL,
        ));
    };
    let renewed: Option<Timestamp> = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    let age = renewed.map(|renewed| facts.now.duration_since(renewed));
    if age.is_none_or(|age| age > LEASE_LIMIT) {
        let age = age.map_or_else(|| "never".to_owned(), |age| format!("{} s ago", age.as_secs()));
        return Err(Fault::failed(
            format!("{holder} renewed Lease istio-leader {age}: nobody writes"),
            LOGS_OF_CONTROL,
        ));
    }
    Ok(holder)
}

fn webhook(facts: &Facts) -> Result<String, Fault> {
    let Some(found) = &facts.webhook else {
        return Err(Fault::failed(
            "no ValidatingWebhookConfiguration: policies that cannot be enforced are accepted",
            format!("the control plane writes it when it is ready; {LOGS_OF_CONTROL}"),
        ));
    };
    let root = facts.root.as_ref().and_then(|config| config.data.as_ref()?.get("root-cert.pem"));
    let mut hooks = found.webhooks.iter().flatten();
    let trusts = |root: &String| {
        hooks.all(|hook| {
            let bundle = hook.client_config.ca_bundle.as_ref().map(|bytes| bytes.0.as_slice());
            bundle.is_some_and(|bundle| bundle.trim_ascii() == root.trim().as_bytes())
        })
    };
    if root.is_some_and(trusts) {
        return Ok(String::new());
    }
    Err(Fault::failed(
        "it trusts another certificate than the control plane has: no policy can be written",
        format!("kubectl -n {SYSTEM} rollout restart deploy/istiod: the control plane writes it anew"),
    ))
}

fn images(facts: &Facts) -> Result<String, Fault> {
    let control = facts.control_plane.as_ref().and_then(|found| found.spec.as_ref()?.template.spec.as_ref());
    let nodes = { facts.daemon_sets.iter() }
        .find(|set| set.name_any() == "ztunnel" && set.namespace().as_deref() == Some(SYSTEM))
        .and_then(|set| set.spec.as_ref()?.template.spec.as_ref());
    let containers = control.into_iter().chain(nodes).flat_map(|pod| pod.containers.iter());
    let mut images: Vec<String> = containers.filter_map(|container| container.image.clone()).collect();
    images.sort_unstable();
    images.dedup();
    match images.len() {
        1 => Ok(images.concat()),
        0 => Err(Fault::failed(
            format!("neither deploy/istiod nor ds/ztunnel in {SYSTEM}"),
            "meltemi install --wait",
        )),
        _ => Err(Fault::warning(
            listed(&images),
            "meltemi install brings all parts to one version: the control plane first, then the nodes",
        )),
    }
}

/// The Pod of ds/ztunnel on each node: one that is ready where there are two during an update.
fn agents(facts: &Facts) -> BTreeMap<&str, &Pod> {
    let mut agents: BTreeMap<&str, &Pod> = BTreeMap::new();
    let of_mesh = facts.pods.iter().filter(|pod| {
        pod.namespace().as_deref() == Some(SYSTEM)
            && pod.labels().get("app").is_some_and(|app| app == "ztunnel")
    });
    for pod in of_mesh {
        let Some(node) = node_of(pod) else { continue };
        let is_better = agents.get(node).is_none_or(|known| not_ready(known, None).is_some());
        if is_better {
            agents.insert(node, pod);
        }
    }
    agents
}

/// Why a container, or one of all, is not ready; `None` when it is.
fn not_ready(pod: &Pod, container: Option<&str>) -> Option<String> {
    let spec: &[Container] = pod.spec.as_ref().map_or(&[], |spec| &spec.containers);
    let wanted = spec.iter().map(|c| c.name.as_str()).filter(|name| container.is_none_or(|c| c == *name));
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or(&[]);
    let mut seen = false;
    for name in wanted {
        seen = true;
        let status = statuses.iter().find(|status| status.name == name);
        if status.is_some_and(|status| status.ready) {
            continue;
        }
        let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
        return Some(format!(
            "container {name} of {} {}",
            pod.name_any(),
            waiting.unwrap_or("is not ready".to_owned())
        ));
    }
    (!seen).then(|| format!("{} has no such container", pod.name_any()))
}

/// What keeps a container of ds/ztunnel from being ready on a node.
fn on_node(agents: &BTreeMap<&str, &Pod>, node: &str, container: &str) -> Option<String> {
    match agents.get(node) {
        None => Some(format!("{node} (no Pod of ds/ztunnel)")),
        Some(pod) => not_ready(pod, Some(container)).map(|why| format!("{node} ({why})")),
    }
}

fn proxies(facts: &Facts) -> Result<String, Fault> {
    let mut nodes: Vec<&str> =
        facts.pods.iter().filter(|pod| is_enrolled(facts, pod)).filter_map(node_of).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let agents = agents(facts);
    let lacking: Vec<String> =
        nodes.iter().filter_map(|node| on_node(&agents, node, "istio-proxy")).collect();
    if lacking.is_empty() {
        return Ok(format!("{} nodes", nodes.len()));
    }
    Err(Fault::failed(
        format!("not on {}: their enrolled Pods reach nobody", listed(&lacking)),
        format!(
            "kubectl -n {SYSTEM} describe pods -l app=ztunnel; kubectl -n {SYSTEM} logs ds/ztunnel -c istio-proxy"
        ),
    ))
}

fn plugins(facts: &Facts) -> Result<String, Fault> {
    let agents = agents(facts);
    let is_linux =
        |labels: &BTreeMap<String, String>| labels.get("kubernetes.io/os").is_none_or(|os| os == "linux");
    let nodes: Vec<String> =
        facts.nodes.iter().filter(|node| is_linux(node.labels())).map(|node| node.name_any()).collect();
    let lacking: Vec<String> = nodes.iter().filter_map(|node| on_node(&agents, node, "cni")).collect();
    if lacking.is_empty() && !nodes.is_empty() {
        return Ok(format!("{} nodes", nodes.len()));
    }
    Err(Fault::failed(
        format!("not on {}: no Pod of the mesh starts there, or none is captured", listed(&lacking)),
        format!(
            "kubectl -n {SYSTEM} logs ds/ztunnel -c cni says in which folders it looks; CNI_CONF_DIR and CNI_BIN_DIR of the container set them"
        ),
    ))
}

#[cfg(test)]
mod tests;
