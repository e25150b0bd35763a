// SPDX-License-Identifier: Apache-2.0
//! One request: which policies judge it where, what they say, and what had to be assumed.

mod answer;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_model::authz::{Action, Attribute};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::http::{normalize, readings};
use meltemi_policy::{Decision, Explanation, Facts, Headers, HttpFacts, PolicySet};
use meltemi_translate::facts::Labels;

use crate::ask::{Judge, given};
use crate::proof::{Answer as Found, Hints, Layer};
use crate::side::{Attached, applies};
use crate::witness::{PLAINTEXT, Witness};
use crate::words;
use crate::world::{Binding, World};

pub use answer::{Answer, At, Client, Half, Request, Verdict};

/// Decides a request by what is known.
///
/// # Errors
/// The client or the path means nothing.
pub fn explain(world: &World, request: &Request) -> Result<Answer, String> {
    let to = NamespacedName::new(request.to.0.as_str(), request.to.1.as_str());
    let mut asked =
        Asked { world, request, to, halves: Vec::new(), assumed: Vec::new(), warnings: Vec::new() };
    let mut answer = asked.answer()?;
    answer.halves = asked.halves;
    answer.assumed = asked.assumed;
    answer.warnings = asked.warnings;
    Ok(answer)
}

struct Asked<'a> {
    world: &'a World,
    request: &'a Request,
    to: NamespacedName,
    halves: Vec<Half>,
    assumed: Vec<String>,
    warnings: Vec<String>,
}

impl Asked<'_> {
    fn answer(&mut self) -> Result<Answer, String> {
        let client = self.client()?;
        let service = self.world.services.get(&self.to);
        if service.is_none() {
            if self.world.complete {
                return Ok(unknown(None, format!("Service {} does not exist", self.to)));
            }
            self.assumed
                .push(format!("Service {} exists and selects Pods labelled app={}", self.to, self.to.name));
        }
        let (port, target_port) =
            ports(service.map(|s| s.ports.as_slice()).unwrap_or_default(), self.request.port);
        let binding = self.world.waypoint_of(&self.to);
        if let Binding::Assumed(gateway) = &binding {
            self.assumed.push(format!("Service {} uses the waypoint {gateway}", self.to));
        }
        let mut peer = client.clone();
        match (binding.gateway(), &client) {
            _ if self.request.at == Some(At::NodeProxy) => {}
            (None, _) if self.request.at == Some(At::Waypoint) => {
                return Ok(unknown(None, format!("Service {} has no waypoint", self.to)));
            }
            (Some(gateway), _) if client.is_some() || self.request.at == Some(At::Waypoint) => {
                let answer = self.at_waypoint(gateway, client.as_ref(), port)?;
                if answer.verdict != Verdict::Allow || self.request.at == Some(At::Waypoint) {
                    return Ok(answer);
                }
                let identity = format!("spiffe://{}", self.world.waypoint_identity(gateway));
                peer = Some(SpiffeId::parse(&identity).map_err(|e| e.to_string())?);
            }
            (Some(gateway), _) => self.warnings.push(format!(
                "a client outside of the mesh connects to Pods directly: waypoint {gateway} does not see it"
            )),
            (None, _) => {}
        }
        let target_port = match target_port {
            Some(port) => port,
            None => {
                self.assumed.push(format!("Pods listen on the port of the Service, {port}"));
                port
            }
        };
        self.at_node_proxy(client.as_ref(), peer.as_ref(), target_port)
    }

    fn client(&mut self) -> Result<Option<SpiffeId>, String> {
        let (namespace, name) = match &self.request.from {
            Client::Plaintext => return Ok(None),
            Client::Principal(principal) => {
                return SpiffeId::parse(&format!("spiffe://{principal}"))
                    .map(Some)
                    .map_err(|e| e.to_string());
            }
            Client::Account(namespace, name) => (namespace, name),
        };
        if !self.world.accounts.contains(&NamespacedName::new(namespace.as_str(), name.as_str())) {
            let what = format!("ServiceAccount {namespace}/{name}");
            if self.world.complete {
                self.warnings.push(format!("{what} does not exist"));
            } else {
                self.assumed.push(format!("{what} exists"));
            }
        }
        SpiffeId::new(&self.world.mesh.trust_domain, namespace, name).map(Some).map_err(|e| e.to_string())
    }

    /// The waypoint's half.
    fn at_waypoint(
        &mut self,
        gateway: &NamespacedName,
        client: Option<&SpiffeId>,
        port: u16,
    ) -> Result<Answer, String> {
        let place = format!("waypoint {gateway}");
        let policies = self.world.at_waypoint(gateway, Some(&self.to));
        let method = self.request.method.as_deref().unwrap_or("GET");
        let path = self.request.path.as_deref().unwrap_or("/");
        let paths =
            readings(&normalize(path, self.world.normalization()).map_err(|e| format!("--path: {e}"))?);
        let host = self.request.host.as_deref().unwrap_or(&self.to.name);
        let headers = Fields(&self.request.headers);
        let ip = self.request.from_ip.unwrap_or(NOWHERE);
        let http =
            HttpFacts { method, host, paths: &paths, headers: &headers, remote_ip: Some(ip), claims: None };
        let set = PolicySet::compile(policies.iter().map(|a| a.policy.clone())).map_err(|e| e.to_string())?;
        let why = meltemi_policy::explain(&set, &facts(client, ip, port, Some(http)));
        let mut answer = answer(&why, &set, &place);
        let mut open = Vec::new();
        if self.request.method.is_none() {
            open.push(Attribute::Method);
        }
        if self.request.path.is_none() {
            open.push(Attribute::Path);
        }
        if self.request.from_ip.is_none() {
            open.extend([Attribute::SourceIp, Attribute::RemoteIp]);
        }
        let known = Witness {
            from: client.map_or_else(|| PLAINTEXT.to_owned(), |c| c.principal().to_owned()),
            source_ip: self.request.from_ip,
            port,
            method: Some(method.to_owned()),
            path: Some(paths[0].clone()),
            host: Some(host.to_owned()),
            headers: self.request.headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.clone())).collect(),
            ..Witness::default()
        };
        self.depends(&mut answer, &policies, Layer::Request, &known, &open);
        self.half(&answer, client);
        Ok(answer)
    }

    /// What was not told must not matter: when another value of it is decided otherwise, nobody knows.
    fn depends(
        &self,
        answer: &mut Answer,
        policies: &[Attached],
        layer: Layer,
        known: &Witness,
        open: &[Attribute],
    ) {
        if answer.verdict == Verdict::Unknown || open.is_empty() {
            return;
        }
        let differs = |open: &[Attribute]| {
            let Ok(mut judge) = Judge::new(policies, layer, &given(known, layer, open), &Hints::default())
            else {
                return false;
            };
            judge.without_extras();
            let other = if answer.verdict == Verdict::Allow { judge.denied() } else { judge.allowed(&[]) };
            other != Found::No
        };
        if !differs(open) {
            return;
        }
        let single: Vec<&str> =
            open.iter().filter(|a| differs(std::slice::from_ref(a))).map(option).collect();
        let mut names = if single.is_empty() { open.iter().map(option).collect() } else { single };
        names.dedup();
        answer.verdict = Verdict::Unknown;
        answer.reason = format!("the policies look at what was not told: say {}", names.join(" and "));
    }

    fn at_node_proxy(
        &mut self,
        client: Option<&SpiffeId>,
        peer: Option<&SpiffeId>,
        port: u16,
    ) -> Result<Answer, String> {
        let policies = self.world.at_node_proxy(&self.to.namespace);
        let mut pods = self.world.pod_labels(&self.to);
        if pods.is_empty() {
            pods.push(Labels::from([("app".to_owned(), self.to.name.to_string())]));
        }
        let mut answers: Vec<Answer> = Vec::new();
        for labels in &pods {
            let near: Vec<Attached> =
                policies.iter().filter(|a| applies(&a.guard, labels)).cloned().collect();
            let near: Vec<Attached> =
                near.into_iter().map(|a| Attached { policy: a.policy, guard: Vec::new() }).collect();
            let set =
                PolicySet::compile(near.iter().map(|a| Arc::clone(&a.policy))).map_err(|e| e.to_string())?;
            // Through a waypoint the connection comes from the waypoint's address.
            let ip = if peer == client { self.request.from_ip } else { None };
            let why = meltemi_policy::explain(&set, &facts(peer, ip.unwrap_or(NOWHERE), port, None));
            let mut answer = answer(&why, &set, "node proxy");
            let known = Witness {
                from: peer.map_or_else(|| PLAINTEXT.to_owned(), |c| c.principal().to_owned()),
                source_ip: ip,
                port,
                ..Witness::default()
            };
            let open = if ip.is_none() { &[Attribute::SourceIp][..] } else { &[] };
            self.depends(&mut answer, &near, Layer::Connection, &known, open);
            answers.push(answer);
        }
        let mut all = answers.iter().map(|a| a.verdict);
        let first = all.next();
        let mixed = all.any(|v| Some(v) != first);
        let worst = answers.iter().position(|a| a.verdict != Verdict::Allow).unwrap_or(0);
        let mut answer = answers.swap_remove(worst);
        if mixed {
            answer.verdict = Verdict::Unknown;
            answer.reason =
                format!("Pods of the Service are treated differently; one of them: {}", answer.reason);
        } else if peer != client
            && answer.verdict == Verdict::Deny
            && let Some(peer) = peer
        {
            answer.reason = format!(
                "{}; the connection comes from the waypoint ({peer}), which this policy does not admit",
                answer.reason
            );
        }
        self.half(&answer, peer);
        Ok(answer)
    }

    fn half(&mut self, answer: &Answer, sees: Option<&SpiffeId>) {
        self.halves.push(Half {
            enforced_at: answer.enforced_at.clone().unwrap_or_default(),
            verdict: answer.verdict,
            sees: sees.map_or_else(|| PLAINTEXT.to_owned(), |s| s.principal().to_owned()),
            reason: answer.reason.clone(),
        });
    }
}

const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The option that tells an attribute.
fn option(attribute: &Attribute) -> &'static str {
    match attribute {
        Attribute::Method => "--method",
        Attribute::Path => "--path",
        _ => "--from-ip",
    }
}

fn unknown(place: Option<&str>, reason: String) -> Answer {
    Answer {
        verdict: Verdict::Unknown,
        policy: None,
        rule: None,
        clause: None,
        enforced_at: place.map(str::to_owned),
        reason,
        halves: Vec::new(),
        assumed: Vec::new(),
        warnings: Vec::new(),
    }
}

fn answer(why: &Explanation, set: &PolicySet, place: &str) -> Answer {
    let mut out = unknown(Some(place), why.text.clone());
    out.verdict = match why.decision {
        Decision::Allow { .. } => Verdict::Allow,
        Decision::Deny { .. } => Verdict::Deny,
        Decision::Ask { .. } | Decision::Undecided { .. } => Verdict::Unknown,
    };
    if let Decision::Ask { by } = why.decision
        && let Some(policy) = set.policy(by.policy)
        && let Action::Custom { provider } = &policy.action
    {
        let rule = policy.rules.get(by.rule as usize).map(words::rule).unwrap_or_default();
        out.reason = format!("provider {provider} is asked about it by {} ({rule})", policy.name);
    }
    out.policy = why.policy.as_ref().map(ToString::to_string);
    out.rule = why.rule;
    out.clause.clone_from(&why.clause);
    out
}

struct Fields<'a>(&'a [(String, String)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).for_each(|(_, v)| with(v));
    }
}

fn facts<'a>(source: Option<&'a SpiffeId>, ip: IpAddr, port: u16, http: Option<HttpFacts<'a>>) -> Facts<'a> {
    Facts { source, source_ip: ip, destination_ip: NOWHERE, destination_port: port, sni: None, http }
}

/// Port of the Service and of its Pods; a named one is not known here.
fn ports(list: &[(u16, Option<u16>)], wanted: Option<u16>) -> (u16, Option<u16>) {
    let found = list.iter().find(|(port, _)| wanted.is_none_or(|w| w == *port));
    match (found, wanted) {
        (Some((port, target)), _) => (*port, *target),
        (None, port) => (port.unwrap_or(80), Some(port.unwrap_or(80))),
    }
}

#[cfg(test)]
mod tests {
    use meltemi_translate::MeshConfig;
    use serde_json::{Value, json};

    use super::*;

    fn policies() -> Vec<Value> {
        vec![
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l4", "namespace": "default"}, "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/gw"]}}]}]}}),
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "l7", "namespace": "default"}, "spec": {
                "targetRefs": [{"kind": "Service", "group": "", "name": "web"}],
                "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/curl"]}}],
                           "to": [{"operation": {"methods": ["GET"]}}]}]}}),
        ]
    }

    fn ask(objects: &[Value], from: &str, method: Option<&str>) -> Answer {
        let request = Request {
            method: method.map(str::to_owned),
            path: method.map(|_| "/".into()),
            ..Request::new(Client::Account("default".into(), from.into()), "default", "web")
        };
        explain(&World::read(objects, MeshConfig::default()).whole().unwrap(), &request).unwrap()
    }

    #[test]
    fn both_layers_and_what_was_not_told() {
        let mut objects = policies();
        let only_l4 = &objects[..1];
        assert_eq!(ask(only_l4, "gw", None).verdict, Verdict::Allow);
        let denied = ask(only_l4, "curl", None);
        assert_eq!((denied.verdict, denied.policy.as_deref()), (Verdict::Deny, Some("default/l4")));
        assert_eq!(denied.enforced_at.as_deref(), Some("node proxy"));
        assert!(denied.assumed.iter().any(|a| a.contains("Service default/web")));
        // With the waypoint: the layer 7 policy first, then the trap of the layer 4 policy that forgets the waypoint.
        assert_eq!(ask(&objects, "curl", None).verdict, Verdict::Unknown);
        assert_eq!(
            ask(&objects, "curl", Some("DELETE")).enforced_at.as_deref(),
            Some("waypoint default/waypoint")
        );
        let trap = ask(&objects, "curl", Some("GET"));
        assert!(trap.verdict == Verdict::Deny && trap.reason.contains("comes from the waypoint"), "{trap:?}");
        objects[0]["spec"]["rules"][0]["from"][0]["source"]["principals"] =
            json!(["cluster.local/ns/default/sa/gw", "cluster.local/ns/default/sa/waypoint"]);
        assert_eq!(ask(&objects, "curl", Some("GET")).verdict, Verdict::Allow);
    }
}
