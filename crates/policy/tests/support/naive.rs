// SPDX-License-Identifier: Apache-2.0
//! A second evaluator: the specification, sentence by sentence, as slow and as plain as can be. It shares no code with
//! the engine.

use std::net::IpAddr;

use ipnet::IpNet;
use meltemi_model::authz::{Action, Attribute, Clause, Policy, Predicate, Rule, StringMatch, ValueMatch};
use meltemi_policy::Facts;

/// What is decided, with the place of the rule that decides: policy and rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow(Option<(usize, usize)>),
    Deny(Option<(usize, usize)>),
    Ask(usize, usize),
    Undecided,
}

/// "CUSTOM, then DENY, then ALLOW; without an ALLOW policy everything else is allowed." `asked` are the providers that
/// have said yes.
pub(crate) fn judge(policies: &[Policy], missing: bool, facts: &Facts<'_>, asked: &[&str]) -> Verdict {
    let in_force = || policies.iter().enumerate().filter(|(_, p)| !p.dry_run);
    let mut providers: Vec<&str> = Vec::new();
    for (_, policy) in in_force() {
        if let Action::Custom { provider } = &policy.action
            && !providers.contains(&&**provider)
        {
            providers.push(provider);
        }
    }
    // Providers are asked in the order in which policies name them, each of them once.
    for provider in providers.into_iter().filter(|p| !asked.contains(p)) {
        let theirs = in_force()
            .filter(|(_, p)| matches!(&p.action, Action::Custom { provider: named } if **named == *provider));
        if let Some((policy, rule)) = first(theirs, facts, false) {
            return Verdict::Ask(policy, rule);
        }
    }
    if let Some(by) = first(in_force().filter(|(_, p)| p.action == Action::Deny), facts, false) {
        return Verdict::Deny(Some(by));
    }
    if missing {
        return Verdict::Undecided;
    }
    let allow: Vec<_> = in_force().filter(|(_, p)| p.action == Action::Allow).collect();
    if allow.is_empty() {
        return Verdict::Allow(None);
    }
    match first(allow.into_iter(), facts, true) {
        Some(by) => Verdict::Allow(Some(by)),
        None => Verdict::Deny(None),
    }
}

/// What AUDIT policies and dry runs would report: the first rule of each that matches.
pub(crate) fn reported(policies: &[Policy], facts: &Facts<'_>) -> Vec<(usize, usize)> {
    let silent = policies.iter().enumerate().filter(|(_, p)| p.dry_run || p.action == Action::Audit);
    silent.filter_map(|one| first(std::iter::once(one), facts, one.1.action == Action::Allow)).collect()
}

fn first<'p>(
    policies: impl Iterator<Item = (usize, &'p Policy)>,
    facts: &Facts<'_>,
    allow: bool,
) -> Option<(usize, usize)> {
    for (index, policy) in policies {
        // "Rules are ORed; a policy without rules never matches."
        if let Some(at) = policy.rules.iter().position(|r| rule(r, facts, allow)) {
            return Some((index, at));
        }
    }
    None
}

/// "Clauses are ANDed; a rule without clauses matches everything."
pub(crate) fn rule(rule: &Rule, facts: &Facts<'_>, allow: bool) -> bool {
    rule.clauses.iter().all(|c| clause(c, facts, allow))
}

/// "Entries are ORed; fields of an entry are ANDed."
pub(crate) fn clause(clause: &Clause, facts: &Facts<'_>, allow: bool) -> bool {
    let one = |m: &meltemi_model::authz::Match| m.predicates.iter().all(|p| holds(p, facts, allow));
    clause.matches.is_empty() || clause.matches.iter().any(one)
}

/// What a request says of an attribute.
enum Said {
    /// Nobody can tell: an ALLOW does not match, a DENY does.
    Unknown,
    /// Several texts that are one thing: forms of a host, elements of a claim.
    One(Vec<String>),
    /// Readings of which one is meant: a DENY matches on any, an ALLOW needs all.
    Either(Vec<String>),
    Address(Option<IpAddr>),
    Port(u16),
}

fn holds(predicate: &Predicate, facts: &Facts<'_>, allow: bool) -> bool {
    let one = |m: &dyn Fn(&ValueMatch) -> bool| {
        // "Some value matches, if there are values, and no not-value does."
        (predicate.values.is_empty() || predicate.values.iter().any(m)) && !predicate.not_values.iter().any(m)
    };
    let text = |value: &ValueMatch, said: &str| matches(&predicate.attribute, value, said);
    match said(&predicate.attribute, facts) {
        Said::Either(all) if predicate.attribute == Attribute::Path && !all.is_empty() => {
            // "A policy whose own path holds such characters means them literally."
            let holds =
                |reading: &String| one(&|v| text(v, if odd(&v.to_string()) { &all[0] } else { reading }));
            if allow { all.iter().all(holds) } else { all.iter().any(holds) }
        }
        Said::Unknown => !allow,
        Said::One(all) => one(&|v| all.iter().any(|said| text(v, said))),
        Said::Either(all) if all.is_empty() => predicate.values.is_empty(),
        Said::Either(all) if allow => all.iter().all(|said| one(&|v| text(v, said))),
        Said::Either(all) => {
            // "A header may be a list": what a DENY looks for may be one of its elements.
            let elements = |value: &String| {
                let list = value.split(',').map(|e| e.trim_matches([' ', '\t']).to_owned());
                list.filter(|e| value.contains(',') && !e.is_empty()).collect::<Vec<String>>()
            };
            let looked_for = !predicate.values.is_empty();
            all.iter().any(|said| one(&|v| text(v, said)))
                || looked_for && all.iter().flat_map(elements).any(|said| one(&|v| text(v, &said)))
        }
        Said::Address(ip) => {
            one(&|v| matches!((v, ip), (ValueMatch::Cidr(range), Some(ip)) if within(range, ip)))
        }
        Said::Port(port) => one(&|v| *v == ValueMatch::Port(port)),
    }
}

/// `%2F`, `%5C`, `\`, `;` and `//`.
fn odd(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["%2f", "%5c", "\\", ";", "//"].iter().any(|odd| text.contains(odd))
}

fn said(attribute: &Attribute, facts: &Facts<'_>) -> Said {
    let one = |text: Option<&str>| Said::One(text.map(str::to_owned).into_iter().collect());
    match attribute {
        Attribute::SourcePrincipal => one(facts.source.map(|id| id.principal())),
        Attribute::SourceNamespace => one(facts.source.map(|id| id.namespace())),
        Attribute::SourceTrustDomain => one(facts.source.map(|id| id.trust_domain())),
        Attribute::SourceServiceAccount => {
            let text = facts.source.map(|id| format!("{}/{}", id.namespace(), id.service_account()));
            one(text.as_deref())
        }
        Attribute::SourceIp => Said::Address(Some(facts.source_ip)),
        Attribute::DestinationIp => Said::Address(Some(facts.destination_ip)),
        Attribute::DestinationPort => Said::Port(facts.destination_port),
        Attribute::ConnectionSni if facts.sni.is_some() => one(facts.sni),
        Attribute::Unsupported(_) => Said::Unknown,
        _ => facts.http.as_ref().map_or(Said::Unknown, |http| said_by_http(attribute, http)),
    }
}

fn said_by_http(attribute: &Attribute, http: &meltemi_policy::HttpFacts<'_>) -> Said {
    let claim = |path: &[std::sync::Arc<str>]| {
        let mut all = Vec::new();
        if let Some(claims) = http.claims {
            claims.each(path, &mut |text| all.push(text.to_owned()));
        }
        Said::One(all)
    };
    match attribute {
        // HTTP without TLS has no server name.
        Attribute::ConnectionSni => Said::One(Vec::new()),
        Attribute::RemoteIp => Said::Address(http.remote_ip),
        Attribute::Method => Said::One(vec![http.method.to_owned()]),
        Attribute::Path => Said::Either(http.paths.to_vec()),
        Attribute::Header(name) => {
            let mut all = Vec::new();
            http.headers.each(name, &mut |text| all.push(text.trim_matches([' ', '\t']).to_owned()));
            Said::Either(all)
        }
        Attribute::Host => {
            // "As written, without the port, without the trailing dot; without case."
            let host = http.host.to_ascii_lowercase();
            let bare = match host.find(']') {
                Some(end) if host.starts_with('[') => host[..=end].to_owned(),
                _ if host.starts_with('[') => host.clone(),
                _ => host.split(':').next().unwrap_or_default().to_owned(),
            };
            let dotless = bare.strip_suffix('.').unwrap_or(&bare).to_owned();
            Said::One(vec![host, bare, dotless])
        }
        Attribute::RequestPrincipal => {
            let both = http.claims.and_then(|c| c.issuer_and_subject());
            let both = both.filter(|(iss, sub)| !iss.is_empty() && !sub.is_empty());
            // A character that no claim of the tests has, so that what issuer and subject hold stays apart.
            Said::One(both.map(|(iss, sub)| format!("{iss}\n{sub}")).into_iter().collect())
        }
        Attribute::RequestAuthAudiences => claim(&["aud".into()]),
        Attribute::RequestAuthPresenter => claim(&["azp".into()]),
        Attribute::RequestAuthClaim(path) => claim(path),
        _ => Said::Unknown,
    }
}

fn within(range: &IpNet, ip: IpAddr) -> bool {
    // "An IPv4 address in IPv6 clothes is the IPv4 address", in a policy as on the wire.
    match (range, ip.to_canonical()) {
        (IpNet::V4(range), IpAddr::V4(ip)) => range.contains(&ip),
        (IpNet::V6(range), IpAddr::V6(ip)) => range.contains(&ip),
        (IpNet::V6(range), IpAddr::V4(ip)) => {
            range.prefix_len() >= 96 && range.contains(&ip.to_ipv6_mapped())
        }
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

fn matches(attribute: &Attribute, value: &ValueMatch, said: &str) -> bool {
    match (attribute, value) {
        (_, ValueMatch::ServiceAccount { namespace, name }) => said == format!("{namespace}/{name}"),
        (_, ValueMatch::PathTemplate(template)) => template_matches(&template.0, said),
        (Attribute::Host, ValueMatch::String(text)) => string(text, said, str::to_ascii_lowercase),
        (Attribute::RequestPrincipal, ValueMatch::String(text)) => request_principal(text, said),
        (_, ValueMatch::String(text)) => string(text, said, str::to_owned),
        _ => false,
    }
}

/// "`abc`, `abc*`, `*abc`, and `*` for what is not empty."
fn string(pattern: &StringMatch, said: &str, fold: fn(&str) -> String) -> bool {
    match pattern {
        StringMatch::Exact(text) => said == fold(text),
        StringMatch::Prefix(text) => said.starts_with(&fold(text)),
        StringMatch::Suffix(text) => said.ends_with(&fold(text)),
        StringMatch::Presence => !said.is_empty(),
    }
}

/// "Split at the last `/` into issuer and subject; both must match."
fn request_principal(pattern: &StringMatch, said: &str) -> bool {
    let (iss, sub) = said.split_once('\n').unwrap_or_default();
    match pattern {
        StringMatch::Presence => true,
        StringMatch::Exact(text) => text.rsplit_once('/') == Some((iss, sub)),
        StringMatch::Prefix(text) => match text.rsplit_once('/') {
            Some((left, right)) => iss == left && sub.starts_with(right),
            None => iss.starts_with(&**text),
        },
        StringMatch::Suffix(text) => match text.rsplit_once('/') {
            Some((left, right)) => iss.ends_with(left) && sub == right,
            None => sub.ends_with(&**text),
        },
    }
}

/// "`{*}` is one segment, not empty; `{**}` is zero or more characters, `/` among them."
fn template_matches(template: &str, path: &str) -> bool {
    fn go(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.first(), path.first()) {
            (None, None) => true,
            (Some(&"{**}"), Some(_)) if pattern.len() == 1 => true,
            // Zero characters are a segment too, an empty one.
            (Some(&"{**}"), Some(_)) => (1..=path.len()).any(|taken| go(&pattern[1..], &path[taken..])),
            (Some(&"{*}"), Some(segment)) => !segment.is_empty() && go(&pattern[1..], &path[1..]),
            (Some(wanted), Some(segment)) => wanted == segment && go(&pattern[1..], &path[1..]),
            _ => false,
        }
    }
    go(&template.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}
