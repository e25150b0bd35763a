// SPDX-License-Identifier: Apache-2.0
//! From an HTTPRoute to what a layer 7 proxy is told.
//!
//! A rule that no proxy of ours can follow makes the route unacceptable, by name. The requests that it is for are
//! answered with 500: without the rule they would go where its author did not want them, or without a header that a
//! backend relies on.

use gateway_api::httproutes::{
    HttpRoute, HttpRouteRules, HttpRouteRulesFilters, HttpRouteRulesFiltersType, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParamsType,
};
use meltemi_model::pattern::InvalidPattern;
use meltemi_model::{Pattern, l7};
use serde_json::Value;

use super::attach::{Attached, Parent};
use super::backends;
use super::world::World;
use crate::facts::name_of;
use crate::mesh::MeshConfig;

/// A rule that no proxy of ours can follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule}: {reason}")]
pub struct Unsupported {
    /// Index of the rule.
    pub rule: usize,
    /// What it asks for, and what is wrong with it.
    pub reason: String,
}

/// Converts the rules of a route; also returns those that cannot be followed. In their place stands a rule without a
/// backend, which proxies answer with 500, for the same requests; for all requests when they cannot be told either.
pub fn rules(
    route: &HttpRoute,
    world: &dyn World,
    mesh: &MeshConfig,
) -> (Vec<l7::RouteRule>, Vec<Unsupported>) {
    let namespace = name_of(&route.metadata).namespace;
    let (mut rules, mut unsupported) = (Vec::new(), Vec::new());
    for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
        match one(index, rule, &namespace, world, mesh) {
            Ok(rule) => rules.push(rule),
            Err(why) => {
                let matches = conditions(rule).unwrap_or_default();
                rules.push(l7::RouteRule { matches, ..l7::RouteRule::default() });
                unsupported.push(why);
            }
        }
    }
    (rules, unsupported)
}

fn conditions(rule: &HttpRouteRules) -> Result<Vec<l7::RouteMatch>, String> {
    rule.matches.iter().flatten().map(condition).collect()
}

/// Converts a route; none when no parent of ours takes it.
pub fn route(
    route: &HttpRoute,
    rules: Vec<l7::RouteRule>,
    attached: &[Attached],
    mesh: &MeshConfig,
) -> Option<l7::Route> {
    let parents: Vec<l7::Parent> =
        attached.iter().flat_map(|a| &a.parents).map(|p| parent(p, mesh)).collect();
    if parents.is_empty() {
        return None;
    }
    let created = route.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
    let hostnames = route.spec.hostnames.iter().flatten().map(|h| h.to_ascii_lowercase()).collect();
    Some(l7::Route { name: name_of(&route.metadata), created, hostnames, parents, rules })
}

fn parent(parent: &Parent, mesh: &MeshConfig) -> l7::Parent {
    match parent {
        Parent::Listener { gateway, listener, port } => l7::Parent {
            target: l7::Target::Gateway(gateway.clone()),
            section: Some(listener.clone()),
            port: Some(*port),
        },
        Parent::Service { service, port, .. } => l7::Parent {
            target: l7::Target::Service(mesh.service_key(&service.namespace, &service.name)),
            section: None,
            port: *port,
        },
    }
}

fn one(
    index: usize,
    rule: &HttpRouteRules,
    namespace: &str,
    world: &dyn World,
    mesh: &MeshConfig,
) -> Result<l7::RouteRule, Unsupported> {
    let unsupported = |reason: String| Unsupported { rule: index, reason };
    let matches = conditions(rule).map_err(unsupported)?;
    let filters = rule
        .filters
        .iter()
        .flatten()
        .map(|f| checked_filter(f).map_err(unsupported))
        .collect::<Result<Vec<_>, _>>()?;
    if filters.iter().any(changes_prefix) && !matches.iter().all(has_prefix) {
        return Err(unsupported("replacePrefixMatch needs matches of type PathPrefix".to_owned()));
    }
    let mut targets = Vec::new();
    for backend in rule.backend_refs.iter().flatten() {
        if backend.filters.as_ref().is_some_and(|f| !f.is_empty()) {
            return Err(unsupported("a filter of a single backend is not supported".to_owned()));
        }
        let weight = u32::try_from(backend.weight.unwrap_or(1)).unwrap_or(0);
        let resolved = backends::of_rule(namespace, backend, world).ok();
        targets.push(l7::Backend {
            port: resolved.as_ref().map_or(0, |(_, port)| *port),
            service: resolved.map(|(name, _)| mesh.service_key(&name.namespace, &name.name)),
            weight,
        });
    }
    let timeouts = rule.timeouts.as_ref();
    let longest = |text: Option<&String>| -> Result<Option<u64>, Unsupported> {
        match text {
            None => Ok(None),
            Some(text) => {
                let millis =
                    millis(text).ok_or_else(|| unsupported(format!("timeout {text:?} is not supported")))?;
                // Zero means no bound.
                Ok((millis != 0).then_some(millis))
            }
        }
    };
    let whole = longest(timeouts.and_then(|t| t.request.as_ref()))?;
    let backend = longest(timeouts.and_then(|t| t.backend_request.as_ref()))?;
    // Without retries a request to the backend is the request.
    let timeout_ms = [whole, backend].into_iter().flatten().min();
    Ok(l7::RouteRule { matches, filters, backends: targets, timeout_ms })
}

fn condition(condition: &HttpRouteRulesMatches) -> Result<l7::RouteMatch, String> {
    let path = condition.path.as_ref().map(|path| -> Result<_, String> {
        let value = path.value.clone().unwrap_or_else(|| "/".to_owned());
        Ok(match path.r#type {
            Some(HttpRouteRulesMatchesPathType::Exact) => l7::PathMatch::Exact(value),
            Some(HttpRouteRulesMatchesPathType::RegularExpression) => l7::PathMatch::Regex(pattern(&value)?),
            Some(HttpRouteRulesMatchesPathType::PathPrefix) | None => l7::PathMatch::Prefix(value),
        })
    });
    let headers = condition.headers.iter().flatten().map(|h| {
        let regex = h.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression);
        Ok(l7::NamedMatch { name: h.name.to_ascii_lowercase(), value: value(&h.value, regex)? })
    });
    let query = condition.query_params.iter().flatten().map(|q| {
        let regex = q.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression);
        Ok(l7::NamedMatch { name: q.name.clone(), value: value(&q.value, regex)? })
    });
    Ok(l7::RouteMatch {
        path: path.transpose()?,
        headers: headers.collect::<Result<_, String>>()?,
        query: query.collect::<Result<_, String>>()?,
        method: condition.method.as_ref().and_then(word),
    })
}

fn value(text: &str, regex: bool) -> Result<l7::ValueMatch, String> {
    Ok(match regex {
        true => l7::ValueMatch::Regex(pattern(text)?),
        false => l7::ValueMatch::Exact(text.to_owned()),
    })
}

fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|e: InvalidPattern| e.to_string())
}

fn changes_prefix(filter: &l7::Filter) -> bool {
    let (l7::Filter::Rewrite { path, .. } | l7::Filter::Redirect { path, .. }) = filter else { return false };
    matches!(path, Some(l7::PathChange::Prefix(_)))
}

/// No condition on the path is the prefix `/`.
fn has_prefix(one: &l7::RouteMatch) -> bool {
    matches!(one.path, None | Some(l7::PathMatch::Prefix(_)))
}

/// An enum of the API as the word that is written in YAML.
fn word(value: &impl serde::Serialize) -> Option<String> {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A filter that proxies can carry out.
fn checked_filter(written: &HttpRouteRulesFilters) -> Result<l7::Filter, String> {
    let converted = filter(written)?;
    let kind = || word(&written.r#type).unwrap_or_default();
    converted.check().map_err(|why| format!("{}: {why}", kind()))?;
    Ok(converted)
}

fn filter(filter: &HttpRouteRulesFilters) -> Result<l7::Filter, String> {
    let missing = |what: &str| format!("a {what} filter without its settings");
    match filter.r#type {
        HttpRouteRulesFiltersType::RequestHeaderModifier => {
            let m = filter.request_header_modifier.as_ref();
            let m = m.ok_or_else(|| missing("RequestHeaderModifier"))?;
            let changes = l7::HeaderChanges {
                set: m.set.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                add: m.add.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                remove: m.remove.clone().unwrap_or_default(),
            };
            Ok(l7::Filter::RequestHeaders { changes })
        }
        HttpRouteRulesFiltersType::ResponseHeaderModifier => {
            let m = filter.response_header_modifier.as_ref();
            let m = m.ok_or_else(|| missing("ResponseHeaderModifier"))?;
            let changes = l7::HeaderChanges {
                set: m.set.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                add: m.add.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
                remove: m.remove.clone().unwrap_or_default(),
            };
            Ok(l7::Filter::ResponseHeaders { changes })
        }
        HttpRouteRulesFiltersType::RequestRedirect => {
            redirect(filter).ok_or_else(|| missing("RequestRedirect"))
        }
        HttpRouteRulesFiltersType::UrlRewrite => {
            let m = filter.url_rewrite.as_ref().ok_or_else(|| missing("URLRewrite"))?;
            let path = m
                .path
                .as_ref()
                .and_then(|p| path_change(p.replace_full_path.as_ref(), p.replace_prefix_match.as_ref()));
            Ok(l7::Filter::Rewrite { host: m.hostname.clone(), path })
        }
        HttpRouteRulesFiltersType::RequestMirror => Err("a RequestMirror filter is not supported".to_owned()),
        HttpRouteRulesFiltersType::ExtensionRef => Err("an ExtensionRef filter is not supported".to_owned()),
        HttpRouteRulesFiltersType::Cors => Err("a CORS filter is not supported".to_owned()),
    }
}

fn redirect(filter: &HttpRouteRulesFilters) -> Option<l7::Filter> {
    let m = filter.request_redirect.as_ref()?;
    let path = m
        .path
        .as_ref()
        .and_then(|p| path_change(p.replace_full_path.as_ref(), p.replace_prefix_match.as_ref()));
    Some(l7::Filter::Redirect {
        scheme: m.scheme.as_ref().and_then(word),
        host: m.hostname.clone(),
        port: m.port.and_then(|p| u16::try_from(p).ok()),
        path,
        code: m.status_code.and_then(|c| u16::try_from(c).ok()).unwrap_or(302),
    })
}

fn path_change(full: Option<&String>, prefix: Option<&String>) -> Option<l7::PathChange> {
    match (full, prefix) {
        (Some(full), _) => Some(l7::PathChange::Full(full.clone())),
        (None, Some(prefix)) => Some(l7::PathChange::Prefix(prefix.clone())),
        (None, None) => None,
    }
}

/// A duration of the Gateway API (`1h30m`, `500ms`) in milliseconds.
fn millis(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[unit..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        let cases =
            [("10s", Some(10_000)), ("1h30m", Some(5_400_000)), ("500ms", Some(500)), ("0s", Some(0))];
        for (text, expected) in cases {
            assert_eq!(millis(text), expected, "{text}");
        }
        for text in ["", "10", "s", "1d", "-1s"] {
            assert_eq!(millis(text), None, "{text}");
        }
    }
}
