// SPDX-License-Identifier: Apache-2.0
//! Recorded decisions against other policies: what would flip.

mod line;

use std::collections::BTreeMap;
use std::net::IpAddr;

use meltemi_model::NamespacedName;
use meltemi_policy::{Decision, PolicySet};
use meltemi_translate::facts::Labels;
use serde::Serialize;

use crate::explain::Verdict;
use crate::side::{Attached, applies};
use crate::witness::{PLAINTEXT, Witness};
use crate::world::World;

pub use line::parse;

/// What was reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// A Pod: namespace and name.
    Pod(String, String),
    /// A host, as the client wrote it; the namespace of who wrote the log, where it is known.
    Host(String, Option<String>),
}

/// A decision that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's principal, or `plaintext`; none when it was not recorded.
    pub from: Option<String>,
    /// Its address.
    pub from_ip: Option<IpAddr>,
    /// What was reached.
    pub to: Target,
    /// Its port.
    pub port: Option<u16>,
    /// Method and path; none for a connection.
    pub http: Option<(String, String)>,
    /// It was let through.
    pub allowed: bool,
}

/// Flows that are decided otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flip {
    /// How often it was recorded.
    pub count: usize,
    /// The client.
    pub from: String,
    /// What was reached.
    pub to: String,
    /// Method and path, for requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What was recorded.
    pub was: Verdict,
    /// What the policies say.
    pub is: Verdict,
    /// Where.
    pub enforced_at: String,
    /// Why.
    pub reason: String,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Decisions that were looked at.
    pub decisions: usize,
    /// Decided as before.
    pub same: usize,
    /// Decided otherwise, most frequent first.
    pub flips: Vec<Flip>,
    /// Not decided, by reason.
    pub unknown: BTreeMap<String, usize>,
    /// Lines that record no decision.
    pub other_lines: usize,
}

/// Replays lines of access logs. `of` is the namespace of the proxy that wrote them, where it is known.
pub fn replay<'a>(world: &World, lines: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Replay {
    let mut out = Replay::default();
    let mut flips: BTreeMap<(String, String, Option<String>, bool), Flip> = BTreeMap::new();
    for (line, namespace) in lines {
        let Some(flow) = parse(line, namespace) else {
            out.other_lines += usize::from(!line.trim().is_empty());
            continue;
        };
        out.decisions += 1;
        let (is, enforced_at, reason) = match judge(world, &flow) {
            Ok(judged) => judged,
            Err(why) => {
                *out.unknown.entry(why).or_default() += 1;
                continue;
            }
        };
        if (is == Verdict::Allow) == flow.allowed {
            out.same += 1;
            continue;
        }
        let from = flow.from.clone().unwrap_or_default();
        let to = match &flow.to {
            Target::Pod(namespace, name) => format!("{namespace}/{name}"),
            Target::Host(host, _) => host.clone(),
        };
        let request = flow.http.as_ref().map(|(method, path)| format!("{method} {path}"));
        let was = if flow.allowed { Verdict::Allow } else { Verdict::Deny };
        let key = (from.clone(), to.clone(), request.clone(), flow.allowed);
        let flip = Flip { count: 0, from, to, request, was, is, enforced_at, reason };
        flips.entry(key).or_insert(flip).count += 1;
    }
    out.flips = flips.into_values().collect();
    out.flips.sort_by_key(|flip| std::cmp::Reverse(flip.count));
    out
}

type Judged = (Verdict, String, String);

fn judge(world: &World, flow: &Flow) -> Result<Judged, String> {
    let from = flow.from.clone().ok_or("the client's identity was not recorded")?;
    let mut request =
        Witness { from, source_ip: flow.from_ip, port: flow.port.unwrap_or(80), ..Witness::default() };
    match (&flow.http, &flow.to) {
        (Some((method, path)), Target::Host(host, namespace)) => {
            let (service, port) = service(world, host, namespace.as_deref())
                .ok_or_else(|| format!("no Service is known as {host}"))?;
            let binding = world.waypoint_of(&service);
            let Some(gateway) = binding.gateway() else {
                return Err(format!("Service {service} has no waypoint"));
            };
            request.method = Some(method.clone());
            request.path = Some(path.clone());
            request.host = Some(host.clone());
            request.port = port;
            decide(&request, world.at_waypoint(gateway, Some(&service)), format!("waypoint {gateway}"))
        }
        (None, Target::Pod(namespace, name)) => {
            let labels = labels(world, namespace, name)
                .ok_or_else(|| format!("the labels of Pod {namespace}/{name} are not known"))?;
            let policies = world.at_node_proxy(namespace);
            let near = policies.into_iter().filter(|a| applies(&a.guard, labels)).collect();
            decide(&request, near, "node proxy".to_owned())
        }
        _ => Err("the record is of no form that is known".to_owned()),
    }
}

fn decide(request: &Witness, policies: Vec<Attached>, place: String) -> Result<Judged, String> {
    let set = PolicySet::compile(policies.into_iter().map(|a| a.policy)).map_err(|e| e.to_string())?;
    let name = |index: u32| set.policy(index).map(|p| p.name.to_string()).unwrap_or_default();
    Ok(match request.decide(&set)? {
        Decision::Allow { by: Some(by) } => {
            (Verdict::Allow, place, format!("allowed by {} rule[{}]", name(by.policy), by.rule))
        }
        Decision::Allow { by: None } => (Verdict::Allow, place, "no ALLOW policy applies".to_owned()),
        Decision::Deny { by: Some(by) } => {
            (Verdict::Deny, place, format!("denied by {} rule[{}]", name(by.policy), by.rule))
        }
        Decision::Deny { by: None } => {
            (Verdict::Deny, place, "ALLOW policies apply, and none matches".to_owned())
        }
        Decision::Ask { by } => return Err(format!("{} asks a provider", name(by.policy))),
        Decision::Undecided { .. } => return Err("a policy is missing".to_owned()),
    })
}

/// The Service behind a host, and the port that is meant.
fn service(world: &World, host: &str, namespace: Option<&str>) -> Option<(NamespacedName, u16)> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()),
        None => (host, None),
    };
    let mut parts = name.trim_end_matches('.').split('.');
    let service = parts.next()?;
    let found = match parts.next().or(namespace) {
        Some(namespace) => NamespacedName::new(namespace, service),
        None => {
            let targeted = world.targeted();
            let mut all = world.services.keys().chain(&targeted).filter(|s| *s.name == *service);
            let first = all.next()?.clone();
            // The same name in two namespaces says nothing.
            if all.any(|other| *other != first) {
                return None;
            }
            first
        }
    };
    let known = world.services.get(&found);
    if known.is_none() && !world.targeted().contains(&found) {
        return None;
    }
    let usual = known.and_then(|s| s.ports.first()).map_or(80, |(port, _)| *port);
    Some((found, port.unwrap_or(usual)))
}

/// Labels of a Pod, or of what it was made by.
fn labels<'a>(world: &'a World, namespace: &str, pod: &str) -> Option<&'a Labels> {
    let near = world.workloads.iter().filter(|w| *w.name.namespace == *namespace);
    let exact = near.clone().find(|w| w.kind == "Pod" && *w.name.name == *pod);
    let made = |w: &&crate::world::Workload| {
        w.kind != "Pod"
            && pod.strip_prefix(&*w.name.name).is_some_and(|rest| rest.starts_with('-') || rest.is_empty())
    };
    let of = near.filter(made).max_by_key(|w| w.name.name.len());
    exact.or(of).map(|w| &w.labels)
}

/// How a client is written in a log.
fn client(text: &str) -> String {
    match text.strip_prefix("spiffe://") {
        Some(principal) => principal.to_owned(),
        None => PLAINTEXT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_translate::MeshConfig;
    use serde_json::json;

    use super::*;

    fn world() -> World {
        let objects = [
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l4", "namespace": "default"}, "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/gw"]}}]}]}}),
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l7", "namespace": "default"}, "spec": {
                "targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "action": "DENY",
                "rules": [{"to": [{"operation": {"methods": ["DELETE"]}}]}]}}),
            json!({"kind": "Deployment", "metadata": {"name": "web-v1", "namespace": "default"},
                "spec": {"template": {"metadata": {"labels": {"app": "web"}}}}}),
        ];
        World::read(&objects, MeshConfig::default()).whole().unwrap()
    }

    #[test]
    fn flips_are_counted() {
        let l4 = |who: &str, error: &str| {
            format!(
                "T\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:4 src.identity=\"spiffe://cluster.local/ns/default/sa/{who}\" \
                 dst.addr=10.0.0.2:9080 dst.workload=\"web-v1-abc\" dst.namespace=\"default\" direction=\"inbound\" bytes_sent=0{error}"
            )
        };
        let l7 = |method: &str, code: u16| {
            format!(
                "[T] \"{method} /a?b=c HTTP/1.1\" {code} - rbac_access_denied_matched_policy[none] - \"-\" - - 1 - \"-\" \
                 \"curl/8\" \"id\" \"web:8080\" \"-\" - - - spiffe://cluster.local/ns/default/sa/curl - -"
            )
        };
        let denied = " error=\"connection closed due to policy rejection: x\"";
        let lines = [
            l4("gw", ""),
            l4("curl", ""),
            l4("curl", ""),
            l4("gw", denied),
            l7("GET", 200),
            l7("DELETE", 200),
            "something else".to_owned(),
        ];
        let got = replay(&world(), lines.iter().map(|l| (l.as_str(), None)));
        assert_eq!((got.decisions, got.same, got.other_lines), (6, 2, 1), "{got:?}");
        let flips: Vec<(usize, &str, Verdict)> =
            got.flips.iter().map(|f| (f.count, &*f.from, f.is)).collect();
        assert_eq!(
            flips,
            [
                (2, "cluster.local/ns/default/sa/curl", Verdict::Deny),
                (1, "cluster.local/ns/default/sa/curl", Verdict::Deny),
                (1, "cluster.local/ns/default/sa/gw", Verdict::Allow),
            ]
        );
        assert!(got.unknown.is_empty(), "{got:?}");
    }
}
