// SPDX-License-Identifier: Apache-2.0
//! One request: which policies judge it where, what they say, and what had to be assumed.

mod answer;
mod named;
mod open;
mod token;
mod waypoint;

use std::net::{IpAddr, Ipv4Addr};

use meltemi_model::authz::{Action, Attribute};
use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::http::is_seen;
use meltemi_policy::{Claims as _, Decision, Explanation, Facts, PolicySet};
use meltemi_translate::facts::Labels;

use self::named::Named;
use self::open::depends;
use crate::error::QueryError;
use crate::proof::Layer;
use crate::side::{Attached, applies, compile};
use crate::witness::{PLAINTEXT, Witness};
use crate::words;
use crate::world::{Binding, Path, World};

pub use answer::{Answer, At, Client, Half, Request, To, Verdict};
pub(crate) use open::{Told, unrecorded};
pub use token::Token;

/// Decides a request by what is known.
///
/// # Errors
/// The client or the path means nothing, or what is reached has no such enforcement point.
pub fn explain(world: &World, request: &Request) -> Result<Answer, QueryError> {
    let named = Named::of(world, request);
    if !named.missing.is_empty() {
        let reason = named.missing.join("; ");
        return Ok(Answer { missing: named.missing, ..unknown(None, reason) });
    }
    let known = match &request.to {
        To::Service(name) => world.ports(name),
        To::Pod(..) | To::Gateway(_) => Vec::new(),
    };
    let ports: Vec<Option<u16>> = match request.port {
        None if !known.is_empty() => known.iter().map(|(port, _)| Some(*port)).collect(),
        told => vec![told],
    };
    let ask =
        |port| Asked { world, request, port, halves: vec![], assumed: vec![], warnings: vec![] }.answer();
    let mut answers = ports.iter().map(|port| ask(*port)).collect::<Result<Vec<Answer>, QueryError>>()?;
    let mixed = answers.iter().any(|a| a.verdict != answers[0].verdict);
    let worst = answers.iter().position(|a| a.verdict != Verdict::Allow).unwrap_or(0);
    let mut answer = answers.swap_remove(worst);
    if let Some(port) = ports[worst].filter(|_| mixed) {
        answer.reason =
            format!("ports of the Service are treated differently, say --port; {port}: {}", answer.reason);
        answer.verdict = Verdict::Unknown;
    }
    answer.presumed.clone_from(&named.presumed);
    answer.assumed.splice(0..0, named.presumed);
    Ok(answer)
}

/// A port; any may be meant when it is open.
#[derive(Clone, Copy)]
struct Port {
    number: u16,
    open: bool,
}

impl Port {
    fn new(told: Option<u16>) -> Self {
        Self { number: told.unwrap_or(80), open: told.is_none() }
    }
}

struct Asked<'a> {
    world: &'a World,
    request: &'a Request,
    port: Option<u16>,
    halves: Vec<Half>,
    assumed: Vec<String>,
    warnings: Vec<String>,
}

/// The Pods that are reached, and how.
struct Reached<'a> {
    namespace: &'a str,
    pods: Vec<Labels>,
    port: Port,
    /// Whom the node proxy sees.
    peer: Option<&'a SpiffeId>,
    /// The connection comes from a waypoint.
    through: bool,
}

impl Asked<'_> {
    fn answer(mut self) -> Result<Answer, QueryError> {
        let client = self.client()?;
        let mut answer = match (&self.request.to, self.request.at) {
            (To::Service(name), _) => self.service(name, client.as_ref())?,
            (To::Gateway(name), None | Some(At::Waypoint)) => {
                self.at_gateway(name, client.as_ref(), Port::new(self.port))?
            }
            (To::Pod(namespace, labels), None | Some(At::NodeProxy)) => {
                let peer = client.as_ref();
                let (pods, port) = (vec![labels.clone()], Port::new(self.port));
                match self.unmodelled(namespace, &pods, peer) {
                    Some(answer) => answer,
                    None => self.at_node_proxy(&Reached { namespace, pods, port, peer, through: false })?,
                }
            }
            (to, _) => return Err(QueryError::NotReachedThere(to.to_string())),
        };
        if answer.verdict == Verdict::Allow {
            allow_by_all(&mut answer, &self.halves);
        }
        answer.halves = self.halves;
        answer.assumed = self.assumed;
        answer.warnings = self.warnings;
        Ok(answer)
    }

    fn service(&mut self, to: &NamespacedName, client: Option<&SpiffeId>) -> Result<Answer, QueryError> {
        let binding = self.world.waypoint_of(to);
        if let Binding::Assumed(gateway) = &binding {
            self.assumed.push(format!("Service {to} uses the waypoint {gateway}"));
        }
        let headless = self.world.is_headless(to);
        let waypoint = match (binding.gateway(), self.request.at) {
            (_, Some(At::NodeProxy)) => None,
            (None, Some(At::Waypoint)) => {
                return Ok(unknown(None, format!("Service {to} has no waypoint")));
            }
            (Some(gateway), None) if client.is_none() => {
                self.warnings.push(format!(
                    "a client outside of the mesh connects to Pods directly: waypoint {gateway} does not see it"
                ));
                None
            }
            (Some(gateway), None) if headless => {
                self.warnings.push(format!(
                    "Service {to} is headless, so its clients connect to Pods: waypoint {gateway} does not see it as a \
                     request to the Service"
                ));
                None
            }
            (gateway, _) => gateway,
        };
        if let (Path::Refused(reason), Some(client), None, false) =
            (self.world.path_to(to), client, self.request.at, headless)
        {
            let reason = format!("connections to Service {to} are refused: {reason}");
            let mut answer = unknown(Some("node proxy of the client"), reason);
            answer.verdict = Verdict::Deny;
            self.half(&answer, Some(client), Port::new(self.port));
            return Ok(answer);
        }
        let mut waypoint_identity = None;
        if let Some(gateway) = waypoint {
            let answer = self.at_waypoint(gateway, to, client)?;
            if answer.verdict != Verdict::Allow || self.request.at.is_some() {
                return Ok(answer);
            }
            let identity = format!("spiffe://{}", self.world.waypoint_identity(gateway));
            waypoint_identity = Some(SpiffeId::parse(&identity)?);
        }
        let mut pods = self.world.pod_labels(to);
        if pods.is_empty() {
            pods.push(Labels::from([("app".to_owned(), to.name.to_string())]));
        }
        if let Some(answer) = self.unmodelled(&to.namespace, &pods, client).filter(|_| headless) {
            return Ok(answer);
        }
        let through = waypoint_identity.is_some();
        let peer = waypoint_identity.as_ref().or(client);
        let port = self.target(to);
        self.at_node_proxy(&Reached { namespace: &to.namespace, pods, port, peer, through })
    }

    /// What is addressed to Pods themselves and passes a waypoint is judged by the Gateway's policies there and comes to the
    /// node proxy with the waypoint's identity.
    fn unmodelled(&self, namespace: &str, pods: &[Labels], client: Option<&SpiffeId>) -> Option<Answer> {
        if client.is_none() || self.request.at.is_some() {
            return None;
        }
        let gateway = pods.iter().find_map(|labels| self.world.waypoint_of_pods(namespace, labels))?;
        let reason = format!(
            "connections to the addresses of these Pods pass waypoint {gateway} (istio.io/waypoint-for), and what it says of \
             them is not modelled; ask for an enforcement point"
        );
        Some(unknown(None, reason))
    }

    /// The Pods' port; the Service's own where it has no such port, as files that know no Service.
    fn target(&self, service: &NamespacedName) -> Port {
        let known = self.world.ports(service);
        match known.iter().find(|(port, _)| Some(*port) == self.port) {
            Some((port, target)) => Port { number: target.unwrap_or(*port), open: target.is_none() },
            None => Port::new(self.port),
        }
    }

    fn client(&self) -> Result<Option<SpiffeId>, QueryError> {
        let (namespace, name) = match &self.request.from {
            Client::Plaintext => return Ok(None),
            Client::Principal(principal) => {
                return Ok(Some(SpiffeId::parse(&format!("spiffe://{principal}"))?));
            }
            Client::Account(namespace, name) => (namespace, name),
        };
        Ok(Some(SpiffeId::new(&self.world.mesh.trust_domain, namespace, name)?))
    }

    /// What is told of a request, but for method, path and host.
    fn known(&self, client: Option<&SpiffeId>, port: Port) -> Witness {
        let request = self.request;
        let headers = request.headers.iter();
        Witness {
            from: client.map_or_else(|| PLAINTEXT.to_owned(), |c| c.principal().to_owned()),
            source_ip: request.from_ip,
            destination_ip: request.to_ip,
            remote_ip: request.remote_ip.or(request.from_ip),
            port: port.number,
            headers: headers
                .map(|(n, v)| (n.to_ascii_lowercase(), v.clone()))
                .filter(|(n, v)| is_seen(n, v))
                .collect(),
            request_principal: request.token.as_ref().and_then(|t| t.principal()).map(str::to_owned),
            claims: request.token.as_ref().map(|t| t.claims().clone()).unwrap_or_default(),
            sni: request.sni.clone(),
            ..Witness::default()
        }
    }

    fn at_node_proxy(&mut self, reached: &Reached<'_>) -> Result<Answer, QueryError> {
        let policies = self.world.at_node_proxy(reached.namespace);
        let answers = reached.pods.iter().map(|labels| self.at_pod(reached, &policies, labels));
        let mut answers = answers.collect::<Result<Vec<Answer>, QueryError>>()?;
        let mixed = answers.iter().any(|a| a.verdict != answers[0].verdict);
        let worst = answers.iter().position(|a| a.verdict != Verdict::Allow).unwrap_or(0);
        let mut answer = answers.swap_remove(worst);
        if mixed {
            answer.verdict = Verdict::Unknown;
            answer.reason = format!(
                "Pods of the Service are treated differently, ask for one by --to-pod; one of them: {}",
                answer.reason
            );
        } else if reached.through
            && answer.verdict == Verdict::Deny
            && let Some(peer) = reached.peer
        {
            answer.reason = format!(
                "{}; the connection comes from the waypoint ({peer}), which this policy does not admit",
                answer.reason
            );
        }
        self.half(&answer, reached.peer, reached.port);
        Ok(answer)
    }

    fn at_pod(
        &self,
        reached: &Reached<'_>,
        policies: &[Attached],
        labels: &Labels,
    ) -> Result<Answer, QueryError> {
        let near = policies.iter().filter(|a| applies(&a.guard, labels));
        let near: Vec<Attached> = near.map(Attached::to_all).collect();
        let set = compile(&near);
        let mut known = self.known(reached.peer, reached.port);
        if reached.through {
            // The connection is between other addresses than the request.
            (known.source_ip, known.destination_ip) = (None, None);
        }
        let facts = Facts {
            source: reached.peer,
            source_ip: known.source_ip.unwrap_or(NOWHERE),
            destination_ip: known.destination_ip.unwrap_or(NOWHERE),
            destination_port: reached.port.number,
            sni: None,
            http: None,
        };
        let mut answer = answer(&meltemi_policy::explain(&set, &facts), &set, "node proxy");
        let open = [
            (Attribute::SourceIp, known.source_ip.is_none()),
            (Attribute::DestinationIp, known.destination_ip.is_none()),
            (Attribute::DestinationPort, reached.port.open),
        ];
        let open: Vec<Attribute> = open.into_iter().filter(|(_, open)| *open).map(|(a, _)| a).collect();
        depends(&mut answer, &Told { policies: &near, layer: Layer::Connection, known: &known }, &open);
        if reached.through && answer.verdict == Verdict::Unknown {
            answer.reason =
                format!("{} (--at node-proxy, --to-pod and the waypoint as --from)", answer.reason);
        }
        Ok(answer)
    }

    fn half(&mut self, answer: &Answer, sees: Option<&SpiffeId>, port: Port) {
        self.halves.push(Half {
            policy: answer.policy.clone(),
            rule: answer.rule,
            clause: answer.clause.clone(),
            port: (!port.open).then_some(port.number),
            enforced_at: answer.enforced_at.clone().unwrap_or_default(),
            verdict: answer.verdict,
            sees: sees.map_or_else(|| PLAINTEXT.to_owned(), |s| s.principal().to_owned()),
            reason: answer.reason.clone(),
        });
    }
}

const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

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
        presumed: Vec::new(),
        missing: Vec::new(),
        warnings: Vec::new(),
    }
}

/// What lets a request through is every proxy on the way: the reason names each of them, and the policy is that of the
/// first one which has a rule for it.
fn allow_by_all(answer: &mut Answer, halves: &[Half]) {
    if halves.len() < 2 {
        return;
    }
    let each = halves.iter().map(|half| format!("{}: {}", half.enforced_at, half.reason));
    answer.reason = each.collect::<Vec<_>>().join("; ");
    if let Some(half) = halves.iter().find(|half| half.policy.is_some()) {
        answer.policy.clone_from(&half.policy);
        answer.rule = half.rule;
        answer.clause.clone_from(&half.clause);
        answer.enforced_at = Some(half.enforced_at.clone());
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
    if let Decision::Allow { by: Some(by) } = why.decision {
        let rule = set.policy(by.policy).and_then(|policy| policy.rules.get(by.rule as usize));
        out.clause = rule.map(words::rule);
    }
    out
}

#[cfg(test)]
mod tests;
