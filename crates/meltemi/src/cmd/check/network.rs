// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies of enrolled Pods. The cluster's network sees only the tunnels, all of them to port 15008: a rule that
//! names other ports shuts the mesh out, and one that opens 15008 no longer restricts the ports that are reached through it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use meltemi_model::net::ports::HBONE;

use super::facts::Facts;
use super::pods::is_enrolled;
use super::{Fault, Rule, listed};

/// Longest range of ports that is written out: a policy names single ones.
const MAX_RANGE: i32 = 64;

/// What holds of NetworkPolicies.
pub(super) const RULES: &[Rule] = &[
    Rule {
        category: "network policies",
        name: "no NetworkPolicy shuts tunnels out (port 15008)",
        needs: &["namespaces", "pods", "networkpolicies"],
        look: blocked,
    },
    Rule {
        category: "network policies",
        name: "ports that NetworkPolicies restrict are restricted in the mesh",
        needs: &["namespaces", "pods", "networkpolicies", "authorizationpolicies"],
        look: unrestricted,
    },
];

/// A rule of either direction: whom it is for (all, if empty), and which ports it allows (all, if empty).
#[derive(Clone, Debug)]
struct Allowed<'a> {
    direction: &'static str,
    number: usize,
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

impl Allowed<'_> {
    /// Whether tunnels pass.
    fn has_tunnels(&self) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|port| is_port(port, HBONE))
    }

    /// Whether it allows all that another rule does to whom that is for.
    fn is_for_all_of(&self, other: &Self) -> bool {
        self.direction == other.direction
            && (self.peers.is_empty()
                || !other.peers.is_empty() && other.peers.iter().all(|p| self.peers.contains(p)))
    }
}

/// Whether TCP to a port is allowed.
fn is_port(port: &NetworkPolicyPort, number: u16) -> bool {
    let is_tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let number = i32::from(number);
    is_tcp
        && match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&number),
            (Some(IntOrString::Int(only)), None) => *only == number,
            // The name of a port of the Pod's own; nobody names that of the proxy.
            (Some(IntOrString::String(_)), _) => false,
        }
}

fn ingress<'a>((at, rule): (usize, &'a NetworkPolicyIngressRule)) -> Allowed<'a> {
    Allowed {
        direction: "ingress",
        number: at,
        peers: rule.from.as_deref().unwrap_or(&[]),
        ports: rule.ports.as_deref().unwrap_or(&[]),
    }
}

/// The rules of a policy, as far as it is in force for their direction.
fn rules(policy: &NetworkPolicy) -> Vec<Allowed<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let is_of = |direction: &str| match &spec.policy_types {
        Some(types) => types.iter().any(|kind| kind == direction),
        None => direction == "Ingress" || spec.egress.is_some(),
    };
    let ingress = spec.ingress.iter().flatten().enumerate().map(ingress).filter(|_| is_of("Ingress"));
    let egress = spec.egress.iter().flatten().enumerate().map(|(at, rule)| Allowed {
        direction: "egress",
        number: at,
        peers: rule.to.as_deref().unwrap_or(&[]),
        ports: rule.ports.as_deref().unwrap_or(&[]),
    });
    ingress.chain(egress.filter(|_| is_of("Egress"))).collect()
}

fn selects(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    let Some(selector) = selector else { return true };
    let labels = pod.labels();
    let has = |key: &String, value: &String| labels.get(key) == Some(value);
    selector.match_labels.iter().flatten().all(|(key, value)| has(key, value))
        && selector.match_expressions.iter().flatten().all(|wanted| {
            let value = labels.get(&wanted.key);
            let is_one = value.is_some_and(|v| wanted.values.iter().flatten().any(|w| w == v));
            match wanted.operator.as_str() {
                "In" => is_one,
                "NotIn" => !is_one,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// The enrolled Pods that a policy is for.
fn pods_of<'a>(facts: &'a Facts, policy: &NetworkPolicy) -> Vec<&'a Pod> {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    let is_for = |pod: &&Pod| pod.namespace() == policy.namespace() && selects(selector, pod);
    facts.pods.iter().filter(is_for).filter(|pod| is_enrolled(facts, pod)).collect()
}

fn name(policy: &NetworkPolicy) -> String {
    format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any())
}

fn number(port: &NetworkPolicyPort) -> String {
    let first = match &port.port {
        None => "all".to_owned(),
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(name)) => name.clone(),
    };
    port.end_port.map_or(first.clone(), |last| format!("{first}-{last}"))
}

fn blocked(facts: &Facts) -> Result<String, Fault> {
    let (mut found, mut remedies) = (Vec::new(), Vec::new());
    let mut count = 0;
    for policy in &facts.network_policies {
        let pods = pods_of(facts, policy);
        count += usize::from(!pods.is_empty());
        for rule in rules(policy).iter().filter(|rule| !rule.has_tunnels()) {
            // Only UDP and the like: the mesh carries TCP.
            let is_tcp = rule.ports.iter().any(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
            let is_let_in = |pod: &&Pod| {
                let of_pod = facts.network_policies.iter().filter(|other| {
                    other.namespace() == policy.namespace()
                        && selects(other.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()), pod)
                });
                of_pod.flat_map(rules).any(|other| other.has_tunnels() && other.is_for_all_of(rule))
            };
            if !is_tcp || is_name_service(rule) || pods.iter().all(is_let_in) {
                continue;
            }
            let ports: Vec<String> = rule.ports.iter().map(number).collect();
            found.push(format!(
                "{} ({} rule {}: {} only)",
                name(policy),
                rule.direction,
                rule.number,
                ports.join(", ")
            ));
            remedies.push(format!(
                "kubectl -n {} patch networkpolicy {} --type=json -p '[{{\"op\":\"add\",\"path\":\"/spec/{}/{}/ports/-\",\"value\":{{\"protocol\":\"TCP\",\"port\":{HBONE}}}}}]'",
                policy.namespace().unwrap_or_default(),
                policy.name_any(),
                rule.direction,
                rule.number
            ));
        }
    }
    if found.is_empty() {
        return Ok(format!("{count} NetworkPolicies are for enrolled Pods"));
    }
    Err(Fault::failed(format!("tunnels of the mesh do not pass: {}", listed(&found)), remedies.join("\n")))
}

/// Names are asked for at port 53 past the tunnels.
fn is_name_service(rule: &Allowed<'_>) -> bool {
    rule.ports.iter().all(|port| matches!(port.port, Some(IntOrString::Int(53))))
}

/// What a policy leaves unrestricted, and the AuthorizationPolicy that restricts it.
struct Void {
    ports: BTreeSet<u16>,
    remedy: String,
}

fn unrestricted(facts: &Facts) -> Result<String, Fault> {
    let (mut found, mut remedies) = (Vec::new(), Vec::new());
    for policy in &facts.network_policies {
        if let Some(void) = void(facts, policy) {
            let ports: Vec<String> = void.ports.iter().map(u16::to_string).collect();
            found.push(format!("{} (ports {})", name(policy), ports.join(", ")));
            remedies.push(void.remedy);
        }
    }
    if found.is_empty() {
        return Ok(String::new());
    }
    Err(Fault::warning(
        format!("who may open a tunnel reaches every port: {}", listed(&found)),
        format!("restrict them by AuthorizationPolicy:\n{}", remedies.join("\n")),
    ))
}

/// What of a policy no longer holds for what comes through tunnels, unless an AuthorizationPolicy holds it.
fn void(facts: &Facts, policy: &NetworkPolicy) -> Option<Void> {
    let pods = pods_of(facts, policy);
    let first = pods.first()?;
    let of_policy = rules(policy);
    let is_void =
        |rule: &&Allowed<'_>| rule.direction == "ingress" && !rule.ports.is_empty() && rule.has_tunnels();
    of_policy.iter().find(is_void)?;
    // All that any policy lets in to these Pods: nothing of it may be denied.
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    let of_pods = facts.network_policies.iter().filter(|other| {
        other.namespace() == policy.namespace()
            && pods
                .iter()
                .any(|pod| selects(other.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()), pod))
    });
    let let_in: Vec<Allowed<'_>> =
        of_pods.flat_map(rules).filter(|rule| rule.direction == "ingress").collect();
    if let_in.iter().any(|rule| rule.ports.is_empty()) {
        // Somebody may reach every port, with or without the mesh.
        return None;
    }
    let ports: Option<Vec<Vec<u16>>> = let_in
        .iter()
        .flat_map(|rule| rule.ports)
        .filter(|port| is_tcp(port))
        .map(|port| numbers(port, first))
        .collect();
    let namespace = policy.namespace().unwrap_or_default();
    let Some(ports) = ports else {
        let remedy = format!(
            "# {}: no AuthorizationPolicy names a range or all ports; restrict them in the application",
            name(policy)
        );
        return Some(Void { ports: BTreeSet::new(), remedy });
    };
    let ports: BTreeSet<u16> = ports.into_iter().flatten().filter(|port| *port != HBONE).collect();
    if ports.is_empty() || is_restricted(facts, &namespace, selector, &ports) {
        return None;
    }
    Some(Void { remedy: restoring(policy, selector, &ports), ports })
}

fn is_tcp(port: &NetworkPolicyPort) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

/// The ports by number; `None` where they cannot be written out.
fn numbers(port: &NetworkPolicyPort, pod: &Pod) -> Option<Vec<u16>> {
    let (first, last) = match (port.port.as_ref()?, port.end_port) {
        (IntOrString::Int(first), last) => (*first, last.unwrap_or(*first)),
        (IntOrString::String(name), _) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| port.name.as_deref() == Some(name))?.container_port;
            (named, named)
        }
    };
    (last - first < MAX_RANGE).then(|| (first..=last).filter_map(|port| u16::try_from(port).ok()).collect())
}

/// Whether a DENY of all other ports is there for at least these Pods.
fn is_restricted(
    facts: &Facts,
    namespace: &str,
    selector: Option<&LabelSelector>,
    allowed: &BTreeSet<u16>,
) -> bool {
    let labels = selector.and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
    facts.policies.iter().filter(|policy| policy.namespace().as_deref() == Some(namespace)).any(|policy| {
        let spec = &policy.data["spec"];
        let wanted = spec["selector"]["matchLabels"].as_object();
        let is_for = wanted
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
        let mut rules = spec["rules"].as_array().into_iter().flatten();
        let denies_others = rules.any(|rule| {
            let is_of_ports_only = rule.as_object().is_some_and(|rule| rule.keys().all(|key| key == "to"));
            let mut operations = rule["to"].as_array().into_iter().flatten();
            is_of_ports_only
                && operations.any(|to| {
                    let operation = to["operation"].as_object();
                    operation.is_some_and(|operation| {
                        let not: Option<Vec<u16>> = operation.get("notPorts").and_then(|ports| {
                            ports.as_array()?.iter().map(|port| port.as_str()?.parse().ok()).collect()
                        });
                        operation.len() == 1
                            && not.is_some_and(|not| not.iter().all(|port| allowed.contains(port)))
                    })
                })
        });
        spec["action"] == "DENY" && spec.get("targetRefs").is_none() && is_for && denies_others
    })
}

/// The AuthorizationPolicy that restores what a NetworkPolicy restricted.
fn restoring(policy: &NetworkPolicy, selector: Option<&LabelSelector>, ports: &BTreeSet<u16>) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("\"{port}\"")).collect();
    let labels = selector.and_then(|selector| selector.match_labels.clone()).unwrap_or_default();
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
    let has_more =
        selector.is_some_and(|selector| selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty()));
    let note = if has_more {
        "# matchExpressions cannot be written here: label the Pods and select the label\n"
    } else {
        ""
    };
    let selector = if labels.is_empty() {
        String::new()
    } else {
        format!("selector: {{matchLabels: {{{}}}}}, ", labels.join(", "))
    };
    format!(
        "{note}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {}-ports, namespace: {}}}\n\
         spec: {{{selector}action: DENY, rules: [{{to: [{{operation: {{notPorts: [{}]}}}}]}}]}}",
        policy.name_any(),
        policy.namespace().unwrap_or_default(),
        ports.join(", ")
    )
}

#[cfg(test)]
mod tests;
