// SPDX-License-Identifier: Apache-2.0
//! Recorded decisions against other policies: what would flip.

mod line;

use std::collections::BTreeMap;
use std::net::IpAddr;

use meltemi_model::NamespacedName;
use meltemi_policy::Decision;
use meltemi_policy::http::normalize;
use meltemi_translate::facts::{Labels, selects};
use serde::Serialize;

use crate::error::{QueryError, ReplayError};
use crate::explain::{Told, Verdict, unrecorded};
use crate::proof::Layer;
use crate::side::{Attached, applies, compile};
use crate::witness::{PLAINTEXT, Witness};
use crate::world::World;

pub use line::{Line, parse};

/// What was reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// A Pod: namespace and name.
    Pod(String, String),
    /// A host, as the client wrote it; who wrote the log, where it is known.
    Host(String, Option<Writer>),
}

/// Who wrote a log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Writer {
    /// Its namespace.
    pub namespace: String,
    /// Its Gateway, of a waypoint or an ingress gateway.
    pub gateway: Option<String>,
}

/// A decision that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The client's principal, or `plaintext`; none when it was not recorded.
    pub from: Option<String>,
    /// Its address.
    pub from_ip: Option<IpAddr>,
    /// What was reached.
    pub to: Target,
    /// The address that was addressed, where it is known.
    pub to_ip: Option<IpAddr>,
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
    /// Lines of access logs that cannot be read, by reason.
    pub unreadable: BTreeMap<String, usize>,
}

/// Replays lines of access logs, each with the proxy that wrote it, where it is known.
pub fn replay<'a>(world: &World, lines: impl IntoIterator<Item = (&'a str, Option<&'a Writer>)>) -> Replay {
    let mut out = Replay::default();
    let mut flips: BTreeMap<(String, String, Option<String>, bool, String), Flip> = BTreeMap::new();
    let mut known: BTreeMap<Flow, Result<Judged, ReplayError>> = BTreeMap::new();
    for (line, writer) in lines {
        let flow = match parse(line, writer) {
            Line::Decision(flow) => flow,
            Line::Other => {
                out.other_lines += usize::from(!line.trim().is_empty());
                continue;
            }
            Line::Unreadable(why) => {
                *out.unreadable.entry(why.to_owned()).or_default() += 1;
                continue;
            }
        };
        out.decisions += 1;
        // The same is recorded again and again.
        let (is, enforced_at, reason) = match known.entry(flow.clone()).or_insert_with(|| judge(world, &flow))
        {
            Ok(judged) => judged.clone(),
            Err(why) => {
                *out.unknown.entry(why.to_string()).or_default() += 1;
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
        let key = (from.clone(), to.clone(), request.clone(), flow.allowed, reason.clone());
        let flip = Flip { count: 0, from, to, request, was, is, enforced_at, reason };
        flips.entry(key).or_insert(flip).count += 1;
    }
    out.flips = flips.into_values().collect();
    out.flips.sort_by_key(|flip| std::cmp::Reverse(flip.count));
    out
}

type Judged = (Verdict, String, String);

fn judge(world: &World, flow: &Flow) -> Result<Judged, ReplayError> {
    let from = flow.from.clone().ok_or(ReplayError::NoClient)?;
    let mut request = Witness {
        from,
        source_ip: flow.from_ip,
        remote_ip: flow.from_ip,
        destination_ip: flow.to_ip,
        port: flow.port.unwrap_or(80),
        ..Witness::default()
    };
    let mut served = None;
    let (layer, policies, place) = match (&flow.http, &flow.to) {
        (Some((method, path)), Target::Host(host, writer)) => {
            request.method = Some(method.clone());
            let path = normalize(path, world.normalization())
                .map_err(|error| QueryError::PathOption { option: "a path", error })?;
            request.path = Some(path);
            request.host = Some(host.clone());
            let ingress = writer.as_ref().and_then(|w| {
                let gateway = NamespacedName::new(w.namespace.as_str(), w.gateway.as_deref()?);
                (!world.is_waypoint(&gateway)).then_some(gateway)
            });
            match ingress {
                Some(gateway) => {
                    let policies = world.at_waypoint(&gateway, None);
                    (Layer::Request, policies, format!("gateway {gateway}"))
                }
                None => {
                    let (found, port) = at_service(world, host, writer.as_ref())?;
                    request.port = port;
                    let (policies, place) = found.enforced(world);
                    served = Some(found);
                    (Layer::Request, policies, place)
                }
            }
        }
        (None, Target::Host(host, writer)) => {
            let (found, _) = at_service(world, host, writer.as_ref())?;
            let (policies, place) = found.enforced(world);
            served = Some(found);
            (Layer::Connection, policies, place)
        }
        (None, Target::Pod(namespace, name)) => {
            let labels = labels(world, namespace, name)
                .ok_or_else(|| ReplayError::NoPod(NamespacedName::new(namespace.as_str(), name.as_str())))?;
            let policies = world.at_node_proxy(namespace);
            let near = policies.into_iter().filter(|a| applies(&a.guard, labels));
            let near = near.map(|a| Attached { guard: Vec::new(), ..a }).collect();
            (Layer::Connection, near, "node proxy".to_owned())
        }
        _ => return Err(ReplayError::UnknownForm),
    };
    let judged = decide_recorded(&request, layer, &policies, place)?;
    match served.filter(|_| judged.0 == Verdict::Allow) {
        Some(served) => Ok(served.beside(world, &request, layer)?.unwrap_or(judged)),
        None => Ok(judged),
    }
}

/// Decides, unless the policies look at what was not recorded.
fn decide_recorded(
    request: &Witness,
    layer: Layer,
    policies: &[Attached],
    place: String,
) -> Result<Judged, ReplayError> {
    let judged = decide(request, policies, place)?;
    match unrecorded(&Told { policies, layer, known: request }, judged.0) {
        None => Ok(judged),
        Some(what) => Err(ReplayError::NotRecorded(what)),
    }
}

/// A Service that was addressed, and its waypoint.
struct Served {
    service: NamespacedName,
    gateway: NamespacedName,
}

/// The Service that was addressed, and its port.
fn at_service(world: &World, host: &str, writer: Option<&Writer>) -> Result<(Served, u16), ReplayError> {
    let (service, port) = service(world, host, writer.map(|w| &*w.namespace))
        .ok_or_else(|| ReplayError::NoService(host.to_owned()))?;
    let binding = world.waypoint_of(&service);
    let gateway = binding.gateway().ok_or_else(|| ReplayError::NoWaypoint(service.clone()))?.clone();
    Ok((Served { service, gateway }, port))
}

impl Served {
    /// What the waypoint enforces for the Service, and its name.
    fn enforced(&self, world: &World) -> (Vec<Attached>, String) {
        (world.at_waypoint(&self.gateway, Some(&self.service)), format!("waypoint {}", self.gateway))
    }

    /// What keeps a flow from Pods that the Service shares with closed ones; `None` when nothing does.
    fn beside(&self, world: &World, request: &Witness, layer: Layer) -> Result<Option<Judged>, ReplayError> {
        let pods = world.pod_labels(&self.service);
        for beside in world.closed_beside(&self.service) {
            let shared = pods.iter().filter(|labels| selects(&beside.selector, labels)).count();
            if beside.waypoint != self.gateway || shared == 0 {
                continue;
            }
            let policies = world.at_backend(&self.gateway, &beside.closed);
            for (_, port) in beside.ports.iter().filter(|(own, _)| *own == request.port) {
                let forwarded = Witness { port: *port, destination_ip: None, ..request.clone() };
                let place = format!("waypoint {}", self.gateway);
                let (verdict, place, reason) = decide_recorded(&forwarded, layer, &policies, place)?;
                let closed = &beside.closed;
                match verdict {
                    Verdict::Allow => {}
                    _ if shared < pods.len() => {
                        let (service, closed) = (self.service.clone(), closed.clone());
                        return Err(ReplayError::SomePods { service, closed });
                    }
                    _ => {
                        let reason = format!("{reason} (for Pods of Service {closed})");
                        return Ok(Some((verdict, place, reason)));
                    }
                }
            }
        }
        Ok(None)
    }
}

fn decide(request: &Witness, policies: &[Attached], place: String) -> Result<Judged, ReplayError> {
    let set = compile(policies);
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
        Decision::Ask { by } => return Err(ReplayError::AsksProvider(name(by.policy))),
        Decision::Undecided { .. } => return Err(ReplayError::PolicyMissing),
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
            "[T] \"cut".to_owned(),
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
        assert!(got.unknown.is_empty() && got.unreadable.len() == 1, "{got:?}");
    }

    #[test]
    fn what_was_not_recorded_is_not_guessed() {
        let line = "[T] \"GET /a HTTP/1.1\" 200 - via_upstream - \"-\" - - 1 - \"-\" \"curl/8\" \"id\" \"web:8080\" \"-\" - - - \
                    spiffe://cluster.local/ns/default/sa/curl - -";
        let cases = [
            (json!({"when": [{"key": "request.headers[x-h]", "values": ["a"]}]}), Some("header x-h")),
            (json!({"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}), Some("the client's address")),
            (json!({"when": [{"key": "request.auth.claims[g]", "values": ["a"]}]}), Some("the token")),
            // It does not matter: the method is another one.
            (
                json!({"to": [{"operation": {"methods": ["PUT"]}}], "when": [{"key": "request.headers[x-h]", "values": ["a"]}]}),
                None,
            ),
        ];
        for (rule, what) in cases {
            let objects = [
                json!({"kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "default"}, "spec": {
                "targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": [rule]}}),
            ];
            let world = World::read(&objects, MeshConfig::default()).whole().unwrap();
            let got = replay(&world, [(line, None), (line, None)]);
            match what {
                Some(what) => {
                    let told = got.unknown.iter().any(|(why, count)| why.contains(what) && *count == 2);
                    assert!(told && got.flips.is_empty(), "{got:?}");
                }
                None => assert!(got.unknown.is_empty() && got.flips[0].count == 2, "{got:?}"),
            }
        }
    }
}
