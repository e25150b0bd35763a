// SPDX-License-Identifier: Apache-2.0
//! What a waypoint or gateway says: of what is addressed to a Service, of what it forwards to Pods of a closed one, and of
//! what passes a listener.

use std::collections::BTreeSet;

use meltemi_model::{NamespacedName, SpiffeId};
use meltemi_policy::http::{is_of_framing, is_seen, normalize, readings};
use meltemi_policy::{Claims, Facts, Headers, HttpFacts};
use meltemi_translate::facts::selects;

use super::open::{Told, absent, depends, not_told, unseen};
use super::{Answer, Asked, NOWHERE, Port, Token, Verdict, answer, unknown};
use crate::error::QueryError;
use crate::proof::Layer;
use crate::side::{Attached, compile};
use crate::witness::Witness;
use crate::world::space_delimited;

/// What passes a proxy of layer 7.
struct Passing<'a> {
    gateway: &'a NamespacedName,
    /// The Service that is addressed.
    service: Option<&'a NamespacedName>,
    policies: Vec<Attached>,
    port: Port,
    /// The port takes no requests.
    stream: bool,
    /// It is judged as what is forwarded to Pods of another Service.
    forwarded: bool,
}

impl Asked<'_> {
    /// A Gateway's half for everything that passes it.
    pub(super) fn at_gateway(
        &mut self,
        gateway: &NamespacedName,
        client: Option<&SpiffeId>,
        port: Port,
    ) -> Result<Answer, QueryError> {
        let policies = self.world.at_waypoint(gateway, None);
        let passing = Passing { gateway, service: None, policies, port, stream: false, forwarded: false };
        self.passing(&passing, client)
    }

    /// The waypoint's half for what is addressed to a Service.
    pub(super) fn at_waypoint(
        &mut self,
        gateway: &NamespacedName,
        service: &NamespacedName,
        client: Option<&SpiffeId>,
    ) -> Result<Answer, QueryError> {
        let port = Port::new(self.port);
        let known = self.world.services.get(service);
        let stream = known.is_some_and(|s| !port.open && s.streams.contains(&port.number));
        let policies = self.world.at_waypoint(gateway, Some(service));
        let addressed = Passing { gateway, service: Some(service), policies, port, stream, forwarded: false };
        let answer = self.passing(&addressed, client)?;
        if answer.verdict != Verdict::Allow {
            return Ok(answer);
        }
        Ok(self.beside(&addressed, service, client)?.unwrap_or(answer))
    }

    /// What keeps a request from Pods that the Service shares with closed ones; `None` when nothing does.
    fn beside(
        &mut self,
        addressed: &Passing<'_>,
        service: &NamespacedName,
        client: Option<&SpiffeId>,
    ) -> Result<Option<Answer>, QueryError> {
        let pods = self.world.pod_labels(service);
        for beside in self.world.closed_beside(service) {
            // Node proxies keep any other waypoint away.
            let shared = pods.iter().filter(|labels| selects(&beside.selector, labels)).count();
            if beside.waypoint != *addressed.gateway || shared == 0 {
                continue;
            }
            let told = self.port;
            for (_, port) in beside.ports.iter().filter(|(own, _)| told.is_none_or(|port| port == *own)) {
                let forwarded = Passing {
                    policies: self.world.at_backend(addressed.gateway, &beside.closed),
                    port: Port::new(Some(*port)),
                    forwarded: true,
                    service: Some(service),
                    ..*addressed
                };
                let mut answer = self.passing(&forwarded, client)?;
                if answer.verdict == Verdict::Allow {
                    continue;
                }
                let closed = &beside.closed;
                answer.reason = format!(
                    "Pods of Service {service} are of Service {closed} too, which is for its waypoint only: {}",
                    answer.reason
                );
                if shared < pods.len() && answer.verdict == Verdict::Deny {
                    answer.verdict = Verdict::Unknown;
                    answer.reason = format!("only some {}", answer.reason);
                }
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    fn passing(&mut self, passing: &Passing<'_>, client: Option<&SpiffeId>) -> Result<Answer, QueryError> {
        let Passing { gateway, service, policies, port, stream, forwarded } = passing;
        let (port, stream) = (*port, *stream);
        let request = self.request;
        let word = if self.world.is_waypoint(gateway) { "waypoint" } else { "gateway" };
        let method = request.method.as_deref().unwrap_or("GET");
        let path = request.path.as_deref().unwrap_or("/");
        let paths = readings(
            &normalize(path, self.world.normalization())
                .map_err(|error| QueryError::PathOption { option: "--path", error })?,
        );
        let named = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = request.host.as_deref().or(named.map(|(_, host)| host.as_str()));
        let host = host.or(service.map(|s| &*s.name)).unwrap_or_default();
        let headers = Fields(&request.headers);
        let token = self.token(gateway, *service);
        let ip = request.from_ip.unwrap_or(NOWHERE);
        // A closed Service has another address than the one that is addressed.
        let to_ip = request.to_ip.filter(|_| !forwarded);
        let http = HttpFacts {
            method,
            host,
            paths: &paths,
            headers: &headers,
            remote_ip: Some(request.remote_ip.unwrap_or(ip)),
            claims: token.as_ref().map(|token| token as &dyn Claims),
        };
        let set = compile(policies);
        let facts = Facts {
            source: client,
            source_ip: ip,
            destination_ip: to_ip.unwrap_or(NOWHERE),
            destination_port: port.number,
            sni: request.sni.as_deref(),
            http: (!stream).then_some(http),
        };
        let why = meltemi_policy::explain(&set, &facts);
        let at = format!("{word} {gateway}");
        if !forwarded
            && !stream
            && let Some(refused) = self.refused(&at, gateway, *service)
        {
            self.half(&refused, client, port);
            return Ok(refused);
        }
        let mut answer = answer(&why, &set, &at);
        let known = Witness {
            host: Some(host.to_owned()),
            method: Some(method.to_owned()),
            path: Some(paths[0].clone()),
            destination_ip: to_ip,
            claims: token.as_ref().map(|t| t.claims().clone()).unwrap_or_default(),
            ..self.known(client, port)
        };
        let layer = if stream { Layer::Connection } else { Layer::Request };
        let told = Told { policies, layer, known: &known };
        depends(&mut answer, &told, &not_told(request, to_ip, port.open, stream));
        if !stream {
            self.assumed.extend(absent(&answer, &told, request.token.is_some()));
        }
        if !forwarded {
            let looks = !self.world.tokens_at(gateway, *service).is_empty();
            self.warn_of_unseen(stream, looks);
        }
        self.half(&answer, client, port);
        Ok(answer)
    }

    /// The refusal of a token that no RequestAuthentication takes, where one looks for tokens.
    fn refused(
        &self,
        at: &str,
        gateway: &NamespacedName,
        service: Option<&NamespacedName>,
    ) -> Option<Answer> {
        let (issuer, _) = self.request.token.as_ref()?.issuer_and_subject()?;
        let looking = self.world.tokens_at(gateway, service);
        let mut rules = looking.iter().flat_map(|tokens| &tokens.rules);
        let first = looking.first()?;
        if rules.any(|rule| rule.issuer.as_ref().is_none_or(|taken| **taken == *issuer)) {
            return None;
        }
        let names: Vec<String> = looking.iter().map(|tokens| tokens.name.to_string()).collect();
        let reason = format!(
            "401: RequestAuthentication {} takes no token of issuer {issuer:?}, before policies are asked",
            names.join(" and ")
        );
        let policy = Some(first.name.to_string());
        Some(Answer { verdict: Verdict::Deny, policy, ..unknown(Some(at), reason) })
    }

    /// The token as the proxy reads it.
    fn token(&mut self, gateway: &NamespacedName, service: Option<&NamespacedName>) -> Option<Token> {
        let told = self.request.token.as_ref()?;
        let looking = self.world.tokens_at(gateway, service);
        let issuer = told.issuer_and_subject().map(|(issuer, _)| issuer);
        let lists = space_delimited(&looking, issuer);
        let split = told.split(&lists);
        if issuer.is_none() && split != told.split(&BTreeSet::new()) {
            let names: Vec<&str> = lists.iter().map(|name| &**name).collect();
            let text = format!(
                "the token is of an issuer whose RequestAuthentication takes {} for lists between spaces (--request-principal)",
                names.join(" and ")
            );
            if !self.assumed.contains(&text) {
                self.assumed.push(text);
            }
        }
        Some(split)
    }

    /// What was told and no proxy sees.
    fn warn_of_unseen(&mut self, stream: bool, looks: bool) {
        self.warnings.extend(unforwarded(&self.request.headers));
        if !stream {
            let (assumed, warnings) = unseen(self.request, looks);
            self.assumed.extend(assumed);
            self.warnings.extend(warnings);
        }
    }
}

struct Fields<'a>(&'a [(String, String)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, with: &mut dyn FnMut(&str)) {
        let same = self.0.iter().filter(|(n, v)| n.eq_ignore_ascii_case(name) && is_seen(name, v));
        same.for_each(|(_, v)| with(v));
    }

    fn may_lack(&self, name: &str) -> bool {
        is_of_framing(name)
    }
}

/// Headers of one hop that proxies do not act on: policies do not see them.
fn unforwarded(headers: &[(String, String)]) -> Vec<String> {
    let unseen = headers.iter().filter(|(name, value)| !is_seen(&name.to_ascii_lowercase(), value));
    unseen
        .map(|(name, value)| format!("header {name}={value} is for the proxy itself: policies do not see it"))
        .collect()
}
