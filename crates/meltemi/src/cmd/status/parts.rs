// SPDX-License-Identifier: Apache-2.0
//! What each part of a mesh says of itself: not only that it runs, but when it was last in step and what it lacks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use meltemi_kubeclient::{BEHIND, WATCHES};
use serde::Serialize;
use serde_json::Value;

use crate::cmd::forward;

/// Longest answer of a part that is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A Lease of a part of ours that was renewed longer ago says that the part is away. They are renewed every 5 s.
const LEASE_LIMIT: i64 = 15;
/// Namespace of the control plane and the node proxies.
const SYSTEM: &str = "istio-system";
/// Label of proxies of Gateways.
const MANAGED: &str = "gateway.istio.io/managed";

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Which.
    pub name: String,
    /// Whether it is in step.
    pub in_sync: bool,
    /// When it last said so: seconds ago. `None` when it never has.
    pub last_sync: Option<i64>,
    /// What is behind, or what it holds.
    pub detail: String,
}

impl Part {
    fn new(
        name: impl Into<String>,
        in_sync: bool,
        last_sync: Option<i64>,
        detail: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), in_sync, last_sync, detail: detail.into() }
    }
}

/// Asks every part. One that does not answer in time is told as such and holds up none of the others.
pub async fn ask(client: &Client, nodes: &[Node], pods: &[Pod]) -> Vec<Part> {
    let (api, leases, control) =
        tokio::join!(api_server(client), leases(client, nodes), control(client, pods));
    [vec![api], leases, control].concat()
}

async fn api_server(client: &Client) -> Part {
    let asked = Instant::now();
    let request = http::Request::get("/readyz").body(Vec::new());
    let answer = async {
        let request = request.map_err(|e| e.to_string())?;
        client.request_text(request).await.map_err(|e| e.to_string())
    };
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(text)) if text.trim() == "ok" => {
            Part::new("API server", true, Some(0), format!("answers in {} ms", asked.elapsed().as_millis()))
        }
        Ok(Ok(text)) => Part::new("API server", false, None, text.trim()),
        Ok(Err(error)) => Part::new("API server", false, None, error),
        Err(_) => Part::new("API server", false, None, "does not answer"),
    }
}

/// The controllers, the runners, and who leads of the control plane's replicas: each renews a Lease.
async fn leases(client: &Client, nodes: &[Node]) -> Vec<Part> {
    let runner = |node: &Node| (format!("runner {}", node.name_any()), "kube-node-lease", node.name_any());
    let named = |name: &str, namespace, lease: &str| (name.to_owned(), namespace, lease.to_owned());
    let wanted = [named("controllers", "kube-system", "kube-controller-manager")]
        .into_iter()
        .chain(nodes.iter().map(runner))
        .chain([named("control plane: writer", SYSTEM, "istio-leader")]);
    let mut parts = Vec::new();
    for (name, namespace, lease) in wanted {
        let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
        parts.push(match tokio::time::timeout(ANSWER_LIMIT, api.get_opt(&lease)).await {
            Ok(Ok(Some(lease))) => part_of_lease(name, &lease, Timestamp::now()),
            Ok(Ok(None)) => Part::new(name, false, None, "has never reported"),
            Ok(Err(error)) => Part::new(name, false, None, error.to_string()),
            Err(_) => Part::new(name, false, None, "the API does not answer"),
        });
    }
    parts
}

fn part_of_lease(name: String, lease: &Lease, now: Timestamp) -> Part {
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
    let age = renewed.map(|renewed| (now.as_second() - renewed.0.as_second()).max(0));
    let behind = lease.annotations().get(BEHIND).filter(|behind| !behind.is_empty());
    match (age, behind) {
        (None, _) => Part::new(name, false, None, "has never reported"),
        (Some(age), _) if age > LEASE_LIMIT => {
            Part::new(name, false, Some(age), format!("has not reported for {age} s"))
        }
        (age, Some(behind)) => Part::new(name, false, age, format!("behind: {behind}")),
        (age, None) => {
            let detail = lease.annotations().get(WATCHES).map(|count| format!("{count} watches follow"));
            let holder = || lease.spec.as_ref()?.holder_identity.clone();
            Part::new(name, true, age, detail.or_else(holder).unwrap_or_default())
        }
    }
}

/// The control plane, and what it knows of the proxies that must be connected to it.
async fn control(client: &Client, pods: &[Pod]) -> Vec<Part> {
    let asking = async {
        let pod = forward::control_pod(client, SYSTEM).await?;
        let token = forward::control_token(client, SYSTEM).await?;
        let get = |path| forward::get(client, SYSTEM, &pod, forward::MONITORING, path, Some(&token));
        let known: Value = serde_json::from_slice(&get("/debug/configz").await?)?;
        let proxies: Value = serde_json::from_slice(&get("/debug/syncz").await?)?;
        Ok::<_, anyhow::Error>((known, proxies))
    };
    let (known, proxies) = match tokio::time::timeout(ANSWER_LIMIT, asking).await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => return vec![Part::new("control plane", false, None, format!("{error:#}"))],
        Err(_) => return vec![Part::new("control plane", false, None, "does not answer")],
    };
    let mut parts = vec![part_of_control(&known)];
    parts.extend(parts_of_proxies(pods, &proxies));
    parts
}

fn part_of_control(known: &Value) -> Part {
    let behind: Vec<&str> =
        known["behind"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let watches = known["watches"].as_u64().unwrap_or_default();
    let detail = if behind.is_empty() {
        format!("{watches} watches follow, generation {}", known["generation"])
    } else {
        format!("behind: {}", behind.join("; "))
    };
    Part::new("control plane", behind.is_empty(), Some(0), detail)
}

/// A line for each proxy that should be connected: node proxies and those of Gateways.
fn parts_of_proxies(pods: &[Pod], proxies: &Value) -> Vec<Part> {
    let connected: BTreeMap<&str, &Value> = proxies
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|proxy| Some((proxy["proxy"].as_str()?, proxy)))
        .collect();
    let is_proxy = |pod: &&Pod| {
        let node_proxy = pod.namespace().as_deref() == Some(SYSTEM)
            && pod.labels().get("app").is_some_and(|app| app == "ztunnel");
        (node_proxy || pod.labels().contains_key(MANAGED)) && pod.metadata.deletion_timestamp.is_none()
    };
    let part = |pod: &Pod| {
        let full = format!("{}.{}", pod.name_any(), pod.namespace().unwrap_or_default());
        let name = format!("proxy {full}");
        let Some(proxy) = connected.get(full.as_str()) else {
            return Part::new(name, false, None, "not connected to the control plane");
        };
        let states: Vec<(&String, &str)> = proxy["types"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(kind, state)| (kind, state["status"].as_str().unwrap_or("UNKNOWN")))
            .collect();
        let in_sync = !states.is_empty() && states.iter().all(|(_, status)| *status == "SYNCED");
        let detail: Vec<String> = states.iter().map(|(kind, status)| format!("{kind}:{status}")).collect();
        Part::new(name, in_sync, Some(0), detail.join(" "))
    };
    pods.iter().filter(is_proxy).map(part).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_says_when_its_holder_was_last_in_step_and_what_is_behind() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let lease = |renewed: Option<&str>, behind: &str| {
            serde_json::from_value::<Lease>(json!({
                "metadata": {"name": "l", "annotations": {WATCHES: "16", BEHIND: behind}},
                "spec": {"renewTime": renewed}
            }))
            .unwrap()
        };
        let (recent, old) = (Some("2026-01-01T00:00:57.000000Z"), Some("2026-01-01T00:00:20.000000Z"));
        let cases = [
            (recent, "", true, Some(3), "16 watches follow"),
            (recent, "Pod: refused (for 9 s)", false, Some(3), "behind: Pod: refused (for 9 s)"),
            (old, "", false, Some(40), "has not reported for 40 s"),
            (None, "", false, None, "has never reported"),
        ];
        for (renewed, behind, in_sync, last_sync, detail) in cases {
            let part = part_of_lease("x".into(), &lease(renewed, behind), now);
            assert_eq!(part, Part::new("x", in_sync, last_sync, detail));
        }
    }

    #[test]
    fn a_proxy_is_in_step_when_it_is_connected_and_holds_every_type() {
        let pod = |name: &str, labels: Value| {
            serde_json::from_value::<Pod>(
                json!({"metadata": {"name": name, "namespace": SYSTEM, "labels": labels}}),
            )
            .unwrap()
        };
        let pods = [
            pod("good", json!({"app": "ztunnel"})),
            pod("refuses", json!({MANAGED: "x"})),
            pod("away", json!({"app": "ztunnel"})),
            pod("istiod", json!({"app": "istiod"})),
        ];
        let proxies = json!([
            {"proxy": "good.istio-system", "types": {"WDS": {"status": "SYNCED"}, "WADS": {"status": "SYNCED"}}},
            {"proxy": "refuses.istio-system", "types": {"WDS": {"status": "NACK"}}},
        ]);
        let parts = parts_of_proxies(&pods, &proxies);
        let seen: Vec<(&str, bool)> = parts.iter().map(|p| (p.name.as_str(), p.in_sync)).collect();
        assert_eq!(
            seen,
            [
                ("proxy good.istio-system", true),
                ("proxy refuses.istio-system", false),
                ("proxy away.istio-system", false)
            ]
        );
        assert_eq!(parts[2].detail, "not connected to the control plane");
    }

    #[test]
    fn the_control_plane_names_the_watches_that_are_behind() {
        let part = part_of_control(&json!({"watches": 12, "behind": [], "generation": 7}));
        assert_eq!((part.in_sync, part.detail.as_str()), (true, "12 watches follow, generation 7"));
        let part = part_of_control(&json!({"watches": 12, "behind": ["Pod: gone"], "generation": 7}));
        assert_eq!((part.in_sync, part.detail.as_str()), (false, "behind: Pod: gone"));
    }
}
