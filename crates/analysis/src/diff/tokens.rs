// SPDX-License-Identifier: Apache-2.0
//! Tokens: at every place, which requests are refused (401) for their token on one side only. A proxy refuses a token that
//! no rule takes wherever a rule looks for one; a request without a token is none of RequestAuthentication's business.
//!
//! Where RequestAuthentications of one side only apply, the answer is exact. Where they differ, or where rules with
//! `request.auth` see tokens that they did not see, it is UNKNOWN by name.

use std::collections::BTreeSet;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{Action, Attribute, Predicate};
use meltemi_model::l7::JwtRule;
use meltemi_translate::security::request::Tokens;

use super::{gateways, names_of_gateway, services};
use crate::ask::{Extra, Given, Judge, ports};
use crate::compare::{Difference, Differences, Unknown};
use crate::error::QueryError;
use crate::proof::{Answer, Hints, Layer, Subject};
use crate::side::{Attached, compile};
use crate::witness::Witness;
use crate::world::{Beside, Known, Path, World};

/// What is addressed, and what both sides have there.
struct Place<'a> {
    target: String,
    enforced_at: String,
    host: String,
    ports: Vec<u16>,
    identities: Vec<String>,
    tokens: [Vec<&'a Tokens>; 2],
    policies: [Vec<Attached>; 2],
}

/// Compares what is refused for its token, at every place.
pub(super) fn compare(old: &World, new: &World, out: &mut Differences) {
    if old.tokens.is_empty() && new.tokens.is_empty() {
        return;
    }
    let identities: BTreeSet<String> = old.identities().into_iter().chain(new.identities()).collect();
    let identities: Vec<String> = identities.into_iter().collect();
    let mut places = Vec::new();
    for service in services::all(old, new) {
        let lacks = |world: &World| world.knows_service(&service) == Known::No;
        let refused = |world: &World| matches!(world.path_to(&service), Path::Refused(_));
        // Who reaches nothing on one side has a difference of another kind.
        if [old, new].into_iter().any(|world| lacks(world) || refused(world)) {
            continue;
        }
        let sides = [old, new];
        let gateway = |world: &World| match world.path_to(&service) {
            Path::Through(gateway) => Some(gateway),
            _ => None,
        };
        let Some(at) = gateway(new).or_else(|| gateway(old)) else { continue };
        let ports = services::Ports::of_both(old, new, &service);
        if !ports.take_requests() {
            continue;
        }
        places.push(Place {
            target: format!("Service {service}"),
            enforced_at: format!("waypoint {at}"),
            host: service.name.to_string(),
            ports: ports.http(),
            identities: identities.clone(),
            tokens: sides
                .map(|world| gateway(world).map_or_else(Vec::new, |g| world.tokens_at(&g, Some(&service)))),
            policies: sides.map(|world| services::enforced(world, &service)),
        });
        out.unknown.extend(beside(old, new, &service, &at));
    }
    for gateway in gateways(old, new) {
        let (target, enforced_at) = names_of_gateway(new, &gateway);
        places.push(Place {
            target,
            enforced_at,
            host: "other".to_owned(),
            ports: Vec::new(),
            identities: identities.clone(),
            tokens: [old, new].map(|world| world.tokens_at(&gateway, None)),
            policies: [old, new].map(|world| world.at_waypoint(&gateway, None)),
        });
    }
    places.iter().for_each(|place| place.compare(out));
}

/// Closed Services that a Service shares Pods with, whose tokens differ.
fn beside(old: &World, new: &World, service: &NamespacedName, at: &NamespacedName) -> Vec<Unknown> {
    let of = |world: &World| -> BTreeSet<(NamespacedName, Vec<String>)> {
        let through = world.path_to(service);
        let same = |beside: &Beside| through == Path::Through(beside.waypoint.clone());
        let all = world.closed_beside(service).into_iter().filter(same);
        all.map(|beside| {
            let rules = rules(&world.tokens_at_backend(&beside.waypoint, &beside.closed));
            (beside.closed, rules.into_iter().collect())
        })
        .filter(|(_, rules): &(_, Vec<String>)| !rules.is_empty())
        .collect()
    };
    let (was, is) = (of(old), of(new));
    let differ: BTreeSet<&NamespacedName> = was.symmetric_difference(&is).map(|(name, _)| name).collect();
    let unknown = |closed: &&NamespacedName| Unknown {
        target: format!("Pods of Service {closed}, for requests to Service {service}"),
        enforced_at: format!("waypoint {at}"),
        policy: None,
        reason: "which tokens are refused (401) differs, and is not compared".to_owned(),
    };
    differ.iter().map(unknown).collect()
}

/// The rules that apply, in a form that can be compared. How long keys may take to fetch refuses nothing by itself.
fn rules(tokens: &[&Tokens]) -> BTreeSet<String> {
    let all = tokens.iter().flat_map(|t| &t.rules);
    all.map(|rule| format!("{:?}", JwtRule { timeout_ms: None, ..rule.clone() })).collect()
}

/// Names of RequestAuthentications with rules that the other side does not have.
fn names(tokens: &[&Tokens], others: &BTreeSet<String>) -> Vec<String> {
    let own = tokens.iter().filter(|t| !rules(&[t]).is_subset(others));
    own.map(|t| t.name.to_string()).collect()
}

impl Place<'_> {
    fn compare(&self, out: &mut Differences) {
        let [was, is] = [rules(&self.tokens[0]), rules(&self.tokens[1])];
        if was == is {
            return;
        }
        let named = [names(&self.tokens[0], &is), names(&self.tokens[1], &was)];
        match (was.is_empty(), is.is_empty()) {
            (false, true) => self.no_longer_refused(&named[0].join(" and "), out),
            (true, false) => self.refused(&named[1].join(" and "), out),
            _ => {
                let list = |side: &str, names: &[String]| {
                    (!names.is_empty()).then(|| format!("{} on the {side} side", names.join(" and ")))
                };
                let both = [list("old", &named[0]), list("new", &named[1])];
                let both: Vec<String> = both.into_iter().flatten().collect();
                out.unknown.push(self.unknown(
                    None,
                    format!(
                        "RequestAuthentication differs ({}): which tokens are refused (401), and which claims of them rules \
                         see, is not compared; requests without a token are",
                        both.join(", ")
                    ),
                ));
            }
        }
    }

    /// Tokens are looked at on the old side only.
    fn no_longer_refused(&self, name: &str, out: &mut Differences) {
        let mut because = format!(
            "RequestAuthentication {name} of the old policies refuses a token that it does not take (401), nothing of the \
             new ones does"
        );
        let blind = |action: &str, names: Vec<String>, what: &str| match &*names {
            [] => String::new(),
            names => format!(
                "; no token is verified, so that {action} rules with request.auth of {} {what}",
                names.join(" and ")
            ),
        };
        because += &blind("DENY", self.looking(1, &Action::Deny), "match as if there were none");
        because += &blind("ALLOW", self.looking(1, &Action::Allow), "allow nothing by it");
        match self.without_token(1, &self.tokens[0]) {
            Ok(None) => {}
            Ok(Some(found)) => out.newly_allowed.push(self.difference(name, because, found, &self.tokens[0])),
            Err(reason) => out.unknown.push(self.unknown(Some(name.to_owned()), reason.to_string())),
        }
    }

    /// Tokens are looked at on the new side only.
    fn refused(&self, name: &str, out: &mut Differences) {
        let because = format!(
            "RequestAuthentication {name} of the new policies refuses a token that it does not take (401), nothing of the \
             old ones does"
        );
        match self.without_token(0, &self.tokens[1]) {
            Ok(None) => {}
            Ok(Some(found)) => out.newly_denied.push(self.difference(name, because, found, &self.tokens[1])),
            Err(reason) => out.unknown.push(self.unknown(Some(name.to_owned()), reason.to_string())),
        }
        let looking: BTreeSet<String> =
            [Action::Allow, Action::Deny].iter().flat_map(|action| self.looking(1, action)).collect();
        if !looking.is_empty() {
            let looking: Vec<String> = looking.into_iter().collect();
            let reason = format!(
                "tokens that it takes are seen by rules with request.auth of {}: what those allow, or no longer deny, is not \
                 compared",
                looking.join(" and ")
            );
            out.unknown.push(self.unknown(Some(name.to_owned()), reason.to_string()));
        }
    }

    /// Policies of a side with rules that look at tokens.
    fn looking(&self, side: usize, action: &Action) -> Vec<String> {
        let of_token = |p: &Predicate| {
            matches!(
                p.attribute,
                Attribute::RequestPrincipal
                    | Attribute::RequestAuthAudiences
                    | Attribute::RequestAuthPresenter
                    | Attribute::RequestAuthClaim(_)
            )
        };
        let policies = self.policies[side].iter().map(|a| &a.policy);
        let some = policies.filter(|p| p.action == *action && !p.only_reports()).filter(|p| {
            let clauses = p.rules.iter().flat_map(|r| &r.clauses);
            clauses.flat_map(|c| &c.matches).flat_map(|m| &m.predicates).any(of_token)
        });
        some.map(|p| p.name.to_string()).collect()
    }

    /// A request that the policies of a side allow although they see no token, and whether one of plaintext is among those;
    /// it carries a token where the rules look for one.
    ///
    /// # Errors
    /// It cannot be known.
    fn without_token(&self, side: usize, tokens: &[&Tokens]) -> Result<Option<(Witness, bool)>, QueryError> {
        let policies = &self.policies[side];
        let hints = Hints {
            identities: self.identities.clone(),
            ports: vec![self.port()],
            hosts: vec![self.host.clone()],
        };
        let given: Vec<Given> =
            if self.ports.is_empty() { Vec::new() } else { vec![ports(self.ports.clone())] };
        let mut judge = Judge::new(policies, Layer::Request, &given, &hints)?;
        let open: Vec<Extra> = judge.extras().into_iter().filter(|extra| *extra != Extra::Token).collect();
        judge.without_extras(&open);
        let classes = match judge.allowed(&[]) {
            Answer::No => return Ok(None),
            Answer::GaveUp => return Err(QueryError::GaveUp),
            Answer::Yes(classes) => classes,
        };
        let mut witness = Witness::of(&judge.space, &classes, Layer::Request, self.port(), &self.host);
        let nobody = judge.space.absent(Subject::Attribute(&Attribute::SourcePrincipal));
        let plaintext = nobody.is_none_or(|nobody| judge.allowed(&[nobody]) != Answer::No);
        if let Some((header, value)) = carrier(tokens) {
            witness.headers.insert(header, value);
        }
        // CUSTOM is taken as allowed: what its provider says is the same on both sides, or named as unknown.
        let decides = policies.iter().filter(|a| !matches!(a.policy.action, Action::Custom { .. }));
        let set = compile(decides);
        if !witness.decide(&set)?.is_allow() {
            return Err(QueryError::NotConfirmed(Box::new(witness)));
        }
        Ok(Some((witness, plaintext)))
    }

    fn port(&self) -> u16 {
        self.ports.first().copied().unwrap_or(80)
    }

    fn difference(
        &self,
        name: &str,
        because: String,
        (witness, plaintext): (Witness, bool),
        tokens: &[&Tokens],
    ) -> Difference {
        Difference {
            target: self.target.clone(),
            enforced_at: self.enforced_at.clone(),
            policy: Some(name.to_owned()),
            rule: None,
            because,
            condition: format!("a token that is not taken, in {}", locations(tokens).join(" or ")),
            except: Vec::new(),
            plaintext,
            within: None,
            witness,
            explain: None,
        }
    }

    fn unknown(&self, policy: Option<String>, reason: String) -> Unknown {
        Unknown { target: self.target.clone(), enforced_at: self.enforced_at.clone(), policy, reason }
    }
}

/// Whether a rule looks where tokens are by default (RFC 6750 §2).
fn by_default(rule: &JwtRule) -> bool {
    rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty()
}

/// Where rules look for tokens, in words.
fn locations(tokens: &[&Tokens]) -> Vec<String> {
    let mut out = BTreeSet::new();
    for rule in tokens.iter().flat_map(|t| &t.rules) {
        if by_default(rule) {
            out.extend(["header authorization (Bearer)".to_owned(), "parameter access_token".to_owned()]);
        }
        out.extend(rule.from_headers.iter().map(|(name, prefix)| match prefix.trim_end() {
            "" => format!("header {name}"),
            prefix => format!("header {name} ({prefix})"),
        }));
        out.extend(rule.from_params.iter().map(|name| format!("parameter {name}")));
        out.extend(rule.from_cookies.iter().map(|name| format!("cookie {name}")));
    }
    out.into_iter().collect()
}

/// A header that carries a token; `None` where only parameters and cookies do.
fn carrier(tokens: &[&Tokens]) -> Option<(String, String)> {
    tokens.iter().flat_map(|t| &t.rules).find_map(|rule| match rule.from_headers.first() {
        Some((name, prefix)) => Some((name.to_string(), format!("{prefix}TOKEN"))),
        None => by_default(rule).then(|| ("authorization".to_owned(), "Bearer TOKEN".to_owned())),
    })
}
