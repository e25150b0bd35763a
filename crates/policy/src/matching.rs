// SPDX-License-Identifier: Apache-2.0
//! Does a rule match, read clause by clause: for what the index cannot hold and for explanations.
//!
//! Ambiguity goes against whoever would profit from it: where a value can be read in several ways, a DENY matches on any
//! reading and an ALLOW needs all of them.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::authz::{Attribute, Clause, Match, Predicate, Rule, StringMatch, ValueMatch};
use meltemi_model::net::canonical_range;

use crate::facts::{Facts, Headers, audiences, presenter};
use crate::http::{header_value, host_forms, is_literal, list_elements, template_matches};

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

/// Whether one reading fulfils the predicate.
fn fulfils(predicate: &Predicate, reads: impl Fn(&ValueMatch) -> bool) -> bool {
    let positive = predicate.values.is_empty() || predicate.values.iter().any(&reads);
    positive && !predicate.not_values.iter().any(&reads)
}

/// Over several readings of the same thing: a DENY matches on any, an ALLOW needs all.
#[derive(Default)]
struct Readings {
    some: bool,
    any: bool,
    not_all: bool,
}

impl Readings {
    fn add(&mut self, holds: bool) {
        self.some = true;
        self.any |= holds;
        self.not_all |= !holds;
    }

    fn hold(&self, predicate: &Predicate, sense: Sense) -> bool {
        match (self.some, sense) {
            // Absent: no value matches.
            (false, _) => predicate.values.is_empty(),
            (true, Sense::Deny) => self.any,
            (true, Sense::Allow) => !self.not_all,
        }
    }
}

fn path_matches(predicate: &Predicate, paths: &[String], sense: Sense) -> bool {
    let mut readings = Readings::default();
    let forwarded = paths.first().map_or("", String::as_str);
    for path in paths {
        let reads = |wanted: &ValueMatch| {
            let literal = wanted.text().is_some_and(is_literal);
            text_matches(wanted, if literal { forwarded } else { path }, true)
        };
        readings.add(fulfils(predicate, reads));
    }
    readings.hold(predicate, sense)
}

fn header_matches(predicate: &Predicate, headers: &dyn Headers, name: &str, sense: Sense) -> bool {
    let mut readings = Readings::default();
    headers.each(name, &mut |value| {
        let value = header_value(value);
        readings.add(fulfils(predicate, |wanted| text_matches(wanted, value, true)));
        // What a DENY looks for may be an element of a list; it does not look for what is no element.
        if sense == Sense::Deny && !predicate.values.is_empty() {
            for element in list_elements(value) {
                readings.add(fulfils(predicate, |wanted| text_matches(wanted, element, true)));
            }
        }
    });
    readings.hold(predicate, sense)
}

fn predicate_matches(predicate: &Predicate, facts: &Facts<'_>, sense: Sense) -> bool {
    let text = |value: Option<&str>| match value {
        Some(value) => fulfils(predicate, |wanted| text_matches(wanted, value, true)),
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
    // The elements of a claim are one value: one that matches is enough, and one that is excluded too.
    let claims = |path: &[std::sync::Arc<str>]| {
        let reads = |wanted: &ValueMatch| {
            let mut any = false;
            if let Some(claims) = http.claims {
                claims.each(path, &mut |text| any |= text_matches(wanted, text, true));
            }
            any
        };
        fulfils(predicate, reads)
    };
    match &predicate.attribute {
        Attribute::Method => fulfils(predicate, |wanted| text_matches(wanted, http.method, true)),
        Attribute::Path => path_matches(predicate, http.paths, sense),
        Attribute::Host => {
            // The forms of a host are the same host: one that matches is enough, and one that is excluded too.
            let forms = host_forms(http.host);
            let reads =
                |wanted: &ValueMatch| forms.iter().flatten().any(|form| text_matches(wanted, form, false));
            fulfils(predicate, reads)
        }
        Attribute::Header(name) => header_matches(predicate, http.headers, name, sense),
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

fn text_matches(wanted: &ValueMatch, value: &str, case: bool) -> bool {
    match wanted {
        ValueMatch::String(text) if case => text.matches(value),
        ValueMatch::String(text) => without_case(text, value),
        ValueMatch::PathTemplate(template) => template_matches(&template.0, value),
        _ => false,
    }
}

fn without_case(wanted: &StringMatch, value: &str) -> bool {
    let (bytes, fold) = (value.as_bytes(), |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b));
    match wanted {
        StringMatch::Exact(text) => fold(bytes, text.as_bytes()),
        StringMatch::Prefix(text) => bytes.len() >= text.len() && fold(&bytes[..text.len()], text.as_bytes()),
        StringMatch::Suffix(text) => {
            bytes.len() >= text.len() && fold(&bytes[bytes.len() - text.len()..], text.as_bytes())
        }
        StringMatch::Presence => !value.is_empty(),
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
