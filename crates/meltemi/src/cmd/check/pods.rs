// SPDX-License-Identifier: Apache-2.0
//! What is enrolled: whether it is captured, and whether its policies are in force.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt as _;
use meltemi_model::enrolment::{BYPASS_INBOUND, Candidate, DATAPLANE_MODE, SIDECAR_STATUS, bypasses_inbound};
use meltemi_translate::labels::CAPTURED;

use super::facts::{Facts, SYSTEM};
use super::{Fault, Rule, listed};

/// Condition of a policy that says whether every proxy which has to holds it.
const ENFORCED: &str = "meltemi.dev/Enforced";
/// Variable of the agent: namespaces whose Pods are never captured.
const EXCLUDED: &str = "EXCLUDE_NAMESPACES";
/// Its default.
const EXCLUDED_DEFAULT: &str = "kube-system";

/// What holds of enrolled Pods.
pub(super) const RULES: &[Rule] = &[
    Rule {
        category: "enrolled Pods",
        name: "every enrolled Pod is captured",
        needs: &["namespaces", "pods", "daemonsets"],
        look: captured,
    },
    Rule {
        category: "enrolled Pods",
        name: "no enrolled namespace is left out by the agent",
        needs: &["namespaces", "daemonsets"],
        look: left_out,
    },
    Rule {
        category: "enrolled Pods",
        name: "every policy is in force",
        needs: &["authorizationpolicies"],
        look: enforced,
    },
];

/// The node that a Pod runs on.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether a Pod runs and belongs into the mesh. Namespaces that the agent leaves out are not asked here.
pub(super) fn is_enrolled(facts: &Facts, pod: &Pod) -> bool {
    let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let namespace = pod.namespace().unwrap_or_default();
    let of_namespace = facts.namespaces.iter().find(|one| one.name_any() == namespace);
    let mode = of_namespace.and_then(|one| one.labels().get(DATAPLANE_MODE));
    let candidate = Candidate {
        host_network: pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true),
        has_sidecar: pod.annotations().contains_key(SIDECAR_STATUS),
        mode: pod.labels().get(DATAPLANE_MODE).map(String::as_str),
    };
    runs && candidate.is_enrolled(mode.map(String::as_str)) && !excluded(facts).contains(namespace.as_str())
}

/// Namespaces whose Pods the agent never captures.
fn excluded(facts: &Facts) -> BTreeSet<&str> {
    let of_mesh = { facts.daemon_sets.iter() }
        .find(|set| set.name_any() == "ztunnel" && set.namespace().as_deref() == Some(SYSTEM));
    let pod = of_mesh.and_then(|set| set.spec.as_ref()?.template.spec.as_ref());
    let mut variables = pod.into_iter().flat_map(|pod| &pod.containers).flat_map(|c| c.env.iter().flatten());
    let set =
        variables.find(|variable| variable.name == EXCLUDED).and_then(|variable| variable.value.as_deref());
    set.unwrap_or(EXCLUDED_DEFAULT).split(',').filter(|name| !name.is_empty()).collect()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn captured(facts: &Facts) -> Result<String, Fault> {
    let enrolled: Vec<&Pod> = facts.pods.iter().filter(|pod| is_enrolled(facts, pod)).collect();
    let mut open = Vec::new();
    let mut bypassing = Vec::new();
    for pod in &enrolled {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        match condition(pod, CAPTURED) {
            Some(found) if found.status == "True" => {}
            Some(found) => {
                let said = found.message.as_deref().or(found.reason.as_deref()).unwrap_or("no reason given");
                open.push(format!("{name} ({said})"));
            }
            None => open.push(format!("{name} (no agent has said so)")),
        }
        if bypasses_inbound(pod.annotations().get(BYPASS_INBOUND).map(String::as_str)) {
            bypassing.push(name);
        }
    }
    if !open.is_empty() {
        return Err(Fault::failed(
            format!("not captured, of {} enrolled: {}", enrolled.len(), listed(&open)),
            format!("kubectl -n {SYSTEM} logs ds/ztunnel -c cni on the Pod's node; the agent goes on trying"),
        ));
    }
    if !bypassing.is_empty() {
        return Err(Fault::warning(
            format!("{} lead past the node proxy by {BYPASS_INBOUND}", listed(&bypassing)),
            "take the annotation away where policies are meant to protect the Pod",
        ));
    }
    Ok(format!("{} Pods", enrolled.len()))
}

fn left_out(facts: &Facts) -> Result<String, Fault> {
    let excluded = excluded(facts);
    let is_left_out = |name: &String| excluded.contains(name.as_str());
    let enrolled = facts
        .namespaces
        .iter()
        .filter(|one| one.labels().get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient"));
    let names: Vec<String> = enrolled.map(|one| one.name_any()).filter(is_left_out).collect();
    if names.is_empty() {
        return Ok(String::new());
    }
    Err(Fault::warning(
        format!("{} are labelled {DATAPLANE_MODE}=ambient and excluded by the agent", listed(&names)),
        format!("take the label away, or the namespace out of {EXCLUDED} of ds/ztunnel"),
    ))
}

fn enforced(facts: &Facts) -> Result<String, Fault> {
    let mut pending = Vec::new();
    for policy in &facts.policies {
        let mut conditions = policy.data["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == ENFORCED);
        if found.is_some_and(|condition| condition["status"] == "True") {
            continue;
        }
        let why = found.and_then(|condition| condition["message"].as_str()).unwrap_or("nobody has said so");
        pending.push(format!("{}/{} ({why})", policy.namespace().unwrap_or_default(), policy.name_any()));
    }
    if pending.is_empty() {
        return Ok(format!("{} policies", facts.policies.len()));
    }
    Err(Fault::warning(
        listed(&pending),
        "kubectl get authorizationpolicies -A -o yaml shows the conditions; meltemi proxy-status shows which proxy is behind",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::State;
    use super::*;

    fn pod(name: &str, labels: &Value, annotations: &Value, captured: Option<&str>) -> Value {
        let conditions: Vec<Value> = captured
            .iter()
            .map(|status| json!({"type": CAPTURED, "status": status, "message": "why"}))
            .collect();
        json!({
            "metadata": {"name": name, "namespace": "shop", "labels": labels, "annotations": annotations},
            "spec": {"nodeName": "a", "containers": []},
            "status": {"phase": "Running", "conditions": conditions},
        })
    }

    fn facts(mode: &str, pods: &[Value]) -> Facts {
        let namespace = json!({"metadata": {"name": "shop", "labels": {DATAPLANE_MODE: mode}}});
        Facts {
            namespaces: vec![serde_json::from_value(namespace).unwrap()],
            pods: pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn an_enrolled_pod_is_captured_only_where_its_condition_says_so() {
        let none = json!({});
        let on_host = {
            let mut pod = pod("x", &none, &none, None);
            pod["spec"]["hostNetwork"] = json!(true);
            pod
        };
        let ended = {
            let mut pod = pod("x", &none, &none, None);
            pod["status"]["phase"] = json!("Succeeded");
            pod
        };
        let bypass = json!({BYPASS_INBOUND: "true"});
        let cases = [
            ("captured", "ambient", pod("x", &none, &none, Some("True")), State::Ok),
            ("not", "ambient", pod("x", &none, &none, Some("False")), State::Failed),
            ("unknown", "ambient", pod("x", &none, &none, None), State::Failed),
            // What an annotation says is anybody's word.
            (
                "claimed",
                "ambient",
                pod("x", &none, &json!({"ambient.istio.io/redirection": "enabled"}), None),
                State::Failed,
            ),
            ("not enrolled", "none", pod("x", &none, &none, None), State::Ok),
            (
                "by its own label",
                "none",
                pod("x", &json!({DATAPLANE_MODE: "ambient"}), &none, None),
                State::Failed,
            ),
            (
                "left out by its own label",
                "ambient",
                pod("x", &json!({DATAPLANE_MODE: "none"}), &none, None),
                State::Ok,
            ),
            ("on the node's network", "ambient", on_host, State::Ok),
            ("ended", "ambient", ended, State::Ok),
            ("past the proxy", "ambient", pod("x", &none, &bypass, Some("True")), State::Warning),
        ];
        for (what, mode, pod, expected) in cases {
            let result = super::captured(&facts(mode, &[pod]));
            assert_eq!(
                result.clone().map_or_else(|fault| fault.state, |_| State::Ok),
                expected,
                "{what}: {result:?}"
            );
        }
    }

    #[test]
    fn what_the_agent_leaves_out_is_not_awaited_and_is_told() {
        let agent = json!({"metadata": {"name": "ztunnel", "namespace": SYSTEM}, "spec": {"selector": {}, "template":
            {"spec": {"containers": [{"name": "cni", "env": [{"name": EXCLUDED, "value": "kube-system,shop"}]}]}}}});
        let mut facts = facts("ambient", &[pod("x", &json!({}), &json!({}), None)]);
        assert!(left_out(&facts).is_ok() && super::captured(&facts).is_err());
        facts.daemon_sets = vec![serde_json::from_value(agent).unwrap()];
        assert!(super::captured(&facts).is_ok());
        assert_eq!(left_out(&facts).map_err(|fault| fault.state), Err(State::Warning));
    }

    #[test]
    fn policies_that_are_not_in_force_are_named() {
        let policy = |conditions: Value| {
            serde_json::from_value(
                json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop"}, "status": {"conditions": conditions}}),
            )
            .unwrap()
        };
        for (conditions, text) in [
            (json!([{"type": ENFORCED, "status": "True"}]), None),
            (
                json!([{"type": ENFORCED, "status": "False", "message": "1/2 proxies"}]),
                Some("shop/p (1/2 proxies)"),
            ),
            (json!([{"type": "Other", "status": "True"}]), Some("shop/p (nobody has said so)")),
            (Value::Null, Some("shop/p (nobody has said so)")),
        ] {
            let facts = Facts { policies: vec![policy(conditions)], ..Facts::default() };
            assert_eq!(enforced(&facts).err().map(|fault| fault.detail).as_deref(), text);
        }
    }
}
