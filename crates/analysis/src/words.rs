// SPDX-License-Identifier: Apache-2.0
//! Policies in their own words: `principals=[cluster.local/ns/a/sa/b] methods=[GET] paths=[/x*]`.

use meltemi_model::authz::{Attribute, Clause, ClauseOrigin, Match, Predicate, Rule, ValueMatch};

/// Values of a list that are written out.
const VALUES: usize = 12;

/// The field of an AuthorizationPolicy that an attribute is written in.
pub(crate) fn field(attribute: &Attribute) -> String {
    match attribute {
        Attribute::SourcePrincipal => "principals".to_owned(),
        Attribute::SourceNamespace => "namespaces".to_owned(),
        Attribute::SourceServiceAccount => "serviceAccounts".to_owned(),
        Attribute::SourceTrustDomain => "trustDomains".to_owned(),
        Attribute::SourceIp => "ipBlocks".to_owned(),
        Attribute::RemoteIp => "remoteIpBlocks".to_owned(),
        Attribute::RequestPrincipal => "requestPrincipals".to_owned(),
        Attribute::DestinationIp => "destination.ip".to_owned(),
        Attribute::DestinationPort => "ports".to_owned(),
        Attribute::ConnectionSni => "connection.sni".to_owned(),
        Attribute::Host => "hosts".to_owned(),
        Attribute::Method => "methods".to_owned(),
        Attribute::Path => "paths".to_owned(),
        Attribute::Header(name) => format!("request.headers[{name}]"),
        Attribute::RequestAuthAudiences => "request.auth.audiences".to_owned(),
        Attribute::RequestAuthPresenter => "request.auth.presenter".to_owned(),
        Attribute::RequestAuthClaim(path) => {
            format!("request.auth.claims{}", path.iter().map(|p| format!("[{p}]")).collect::<String>())
        }
        Attribute::Unsupported(key) => key.to_string(),
    }
}

/// The field of the negative values: `notPrincipals`, `not request.headers[x]`.
pub(crate) fn not_field(attribute: &Attribute) -> String {
    let name = field(attribute);
    let mut chars = name.chars();
    match chars.next() {
        Some(first) if !name.contains(['.', '[']) => {
            format!("not{}{}", first.to_ascii_uppercase(), chars.as_str())
        }
        _ => format!("not {name}"),
    }
}

/// A value as it is written.
pub(crate) fn value(value: &ValueMatch) -> String {
    match value {
        ValueMatch::String(text) => text.to_string(),
        ValueMatch::Cidr(range) if range.prefix_len() == range.max_prefix_len() => range.addr().to_string(),
        ValueMatch::Cidr(range) => range.to_string(),
        ValueMatch::Port(port) => port.to_string(),
        ValueMatch::ServiceAccount { namespace, name } => format!("{namespace}/{name}"),
        ValueMatch::PathTemplate(template) => template.0.to_string(),
    }
}

fn list(values: &[ValueMatch]) -> String {
    let mut texts: Vec<String> = values.iter().take(VALUES).map(value).collect();
    if values.len() > VALUES {
        texts.push(format!("… {} more", values.len() - VALUES));
    }
    texts.join(",")
}

/// `principals=[a,b] notPrincipals=[c]`
pub(crate) fn predicate(predicate: &Predicate) -> String {
    let name = &predicate.attribute;
    let mut out = Vec::new();
    if !predicate.values.is_empty() {
        out.push(format!("{}=[{}]", field(name), list(&predicate.values)));
    }
    if !predicate.not_values.is_empty() {
        out.push(format!("{}=[{}]", not_field(name), list(&predicate.not_values)));
    }
    out.join(" ")
}

fn one(wanted: &Match) -> String {
    wanted.predicates.iter().map(predicate).collect::<Vec<_>>().join(" ")
}

/// The alternatives of a clause.
pub(crate) fn clause(clause: &Clause) -> String {
    match &*clause.matches {
        [] => String::new(),
        [single] => one(single),
        many => {
            let shown: Vec<String> = many.iter().take(VALUES).map(|m| format!("({})", one(m))).collect();
            let more = many.len().saturating_sub(VALUES);
            let more = if more > 0 { format!(" or {more} more") } else { String::new() };
            format!("{}{more}", shown.join(" or "))
        }
    }
}

/// All of a rule; `any request` when it asks for nothing.
pub(crate) fn rule(rule: &Rule) -> String {
    let clauses: Vec<String> = rule.clauses.iter().map(clause).filter(|c| !c.is_empty()).collect();
    if clauses.is_empty() { "any request".to_owned() } else { clauses.join(" ") }
}

/// `from[0]`, `to[1]`, `when[2]`: where in a rule a match was written.
pub(crate) fn origin(origin: ClauseOrigin, index: usize) -> String {
    match origin {
        ClauseOrigin::From => format!("from[{index}]"),
        ClauseOrigin::To => format!("to[{index}]"),
        ClauseOrigin::When(when) => format!("when[{when}]"),
        ClauseOrigin::Unknown => format!("clause[{index}]"),
    }
}
