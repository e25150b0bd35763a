// SPDX-License-Identifier: Apache-2.0
//! Does a rule match, read clause by clause: for what the index cannot hold and for explanations.
//!
//! Texts that can be read in several ways go through [`crate::reading`].

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, Clause, Match, Predicate, Rule, StringMatch, ValueMatch};
use meltemi_model::net::canonical_range;

use crate::facts::{Facts, audiences, each_claim, presenter};
use crate::reading::{fulfil, has_readings, text_matches};

/// On which side a match is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sense {
    /// A match lets through.
    Allow,
    /// A match refuses.
    Deny,
}

/// AND over clauses; none is true.
pub(crate) fn rule_matches(rule: &Rule, facts: &Facts<'_>, sense: Sense) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, facts, sense))
}

/// OR over matches; none is true.
pub(crate) fn clause_matches(clause: &Clause, facts: &Facts<'_>, sense: Sense) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| match_matches(m, facts, sense))
}

fn match_matches(wanted: &Match, facts: &Facts<'_>, sense: Sense) -> bool {
    wanted.predicates.iter().all(|p| predicate_matches(p, facts, sense))
}

/// Whether one value fulfils the predicate.
fn fulfils(predicate: &Predicate, reads: impl Fn(&ValueMatch) -> bool) -> bool {
    let positive = predicate.values.is_empty() || predicate.values.iter().any(&reads);
    positive && !predicate.not_values.iter().any(&reads)
}

fn predicate_matches(predicate: &Predicate, facts: &Facts<'_>, sense: Sense) -> bool {
    let text = |value: Option<&str>| match value {
        Some(value) => fulfils(predicate, |wanted| text_matches(&predicate.attribute, wanted, value)),
        None => predicate.values.is_empty(),
    };
    match &predicate.attribute {
        Attribute::SourcePrincipal => text(facts.source.map(|id| id.principal())),
        Attribute::SourceNamespace => text(facts.source.map(|id| id.namespace())),
        Attribute::SourceTrustDomain => text(facts.source.map(|id| id.trust_domain())),
        Attribute::SourceServiceAccount => match facts.source {
            Some(id) => fulfils(predicate, |wanted| {
                matches!(wanted, ValueMatch::ServiceAccount { namespace, name }
                    if **namespace == *id.namespace() && **name == *id.service_account())
            }),
            None => predicate.values.is_empty(),
        },
        Attribute::SourceIp => fulfils(predicate, |wanted| ip_matches(wanted, facts.source_ip)),
        Attribute::DestinationIp => fulfils(predicate, |wanted| ip_matches(wanted, facts.destination_ip)),
        Attribute::DestinationPort => fulfils(
            predicate,
            |wanted| matches!(wanted, ValueMatch::Port(port) if *port == facts.destination_port),
        ),
        // Without a look at TLS nobody can tell; HTTP without a server name has none.
        Attribute::ConnectionSni if facts.sni.is_some() || facts.http.is_some() => text(facts.sni),
        // Nobody can tell: an ALLOW does not match, a DENY does.
        Attribute::Unsupported(_) => sense == Sense::Deny,
        _ => http_matches(predicate, facts, sense),
    }
}

fn http_matches(predicate: &Predicate, facts: &Facts<'_>, sense: Sense) -> bool {
    // A layer 7 field without a request to look at: an ALLOW does not match, a DENY does.
    let Some(http) = &facts.http else { return sense == Sense::Deny };
    // A list claim matches if any element matches, and is excluded if any element is excluded.
    let claims = |path: &[std::sync::Arc<str>]| {
        let reads = |wanted: &ValueMatch| {
            let mut any = false;
            if let Some(claims) = http.claims {
                each_claim(claims, path, &mut |text| any |= text_matches(&predicate.attribute, wanted, text));
            }
            any
        };
        fulfils(predicate, reads)
    };
    match &predicate.attribute {
        attribute if has_readings(attribute) => {
            fulfil(attribute, (&predicate.values, &predicate.not_values), http, sense)
        }
        Attribute::RemoteIp => match http.remote_ip {
            Some(ip) => fulfils(predicate, |wanted| ip_matches(wanted, ip)),
            None => predicate.values.is_empty(),
        },
        Attribute::RequestPrincipal => match http.claims.and_then(|c| c.issuer_and_subject()) {
            Some((iss, sub)) if !iss.is_empty() && !sub.is_empty() => {
                fulfils(predicate, |wanted| request_principal_matches(wanted, iss, sub))
            }
            _ => predicate.values.is_empty(),
        },
        Attribute::RequestAuthAudiences => claims(audiences()),
        Attribute::RequestAuthPresenter => claims(presenter()),
        Attribute::RequestAuthClaim(path) => claims(path),
        _ => sense == Sense::Deny,
    }
}

/// Issuer and subject are matched apart: the pattern is split at its last `/`, for an issuer is often a URL.
fn request_principal_matches(wanted: &ValueMatch, iss: &str, sub: &str) -> bool {
    let ValueMatch::String(wanted) = wanted else { return false };
    match wanted {
        StringMatch::Presence => true,
        StringMatch::Exact(text) => text.rsplit_once('/') == Some((iss, sub)),
        StringMatch::Prefix(text) => match text.rsplit_once('/') {
            Some((whole, start)) => iss == whole && sub.starts_with(start),
            None => iss.starts_with(&**text),
        },
        StringMatch::Suffix(text) => match text.rsplit_once('/') {
            Some((end, whole)) => iss.ends_with(end) && sub == whole,
            None => sub.ends_with(&**text),
        },
    }
}

/// An IPv4 address in IPv6 clothes is the IPv4 address.
fn ip_matches(wanted: &ValueMatch, ip: IpAddr) -> bool {
    let ValueMatch::Cidr(range) = wanted else { return false };
    match (canonical_range(*range), ip.to_canonical()) {
        (IpNet::V4(range), IpAddr::V4(ip)) => range.contains(&ip),
        (IpNet::V6(range), IpAddr::V6(ip)) => range.contains(&ip),
        _ => false,
    }
}
