// SPDX-License-Identifier: Apache-2.0
//! From a route to what a layer 7 proxy is told.
//!
//! A rule that no proxy of ours can follow makes the route unacceptable, by name. The requests that it is for are
//! answered with 500: without the rule they would go where its author did not want them, or without a header that a
//! backend relies on.

use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParamsType,
    HttpRouteRulesRetry,
};
use meltemi_model::pattern::InvalidPattern;
use meltemi_model::{Pattern, l7};

use super::attach::{Attached, Parent};
use super::backends;
use super::filters::{self, MAX_RETRIES, RuleError, is_prefix_change, word};
use super::kind::{Referrer, RouteKind};
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
    kind: RouteKind,
    world: &dyn World,
    mesh: &MeshConfig,
) -> (Vec<l7::RouteRule>, Vec<Unsupported>) {
    let namespace = name_of(&route.metadata).namespace;
    let from = Referrer { kind, namespace: &namespace };
    let (mut rules, mut unsupported) = (Vec::new(), Vec::new());
    for (index, rule) in route.spec.rules.iter().flatten().enumerate() {
        match one(index, rule, from, world, mesh) {
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
    from: Referrer<'_>,
    world: &dyn World,
    mesh: &MeshConfig,
) -> Result<l7::RouteRule, Unsupported> {
    let unsupported = |reason: String| Unsupported { rule: index, reason };
    let refused = |error: RuleError| unsupported(error.to_string());
    if rule.session_persistence.is_some() {
        return Err(refused(RuleError::SessionPersistence));
    }
    let matches = conditions(rule).map_err(unsupported)?;
    let resolve = |reference: filters::Reference<'_>| {
        let (name, port) = backends::of_mirror(from, reference, world).ok()?;
        Some((mesh.service_key(&name.namespace, &name.name), port))
    };
    let filters = filters::of_rule(rule, &resolve).map_err(refused)?;
    let mut targets = Vec::new();
    for backend in rule.backend_refs.iter().flatten() {
        let filters = filters::of_backend(backend, &resolve).map_err(refused)?;
        targets.push(target(backend, filters, from, world, mesh));
    }
    let of_backends = targets.iter().flat_map(|target| &target.filters);
    if filters.iter().chain(of_backends).any(is_prefix_change) && !matches.iter().all(has_prefix) {
        return Err(refused(RuleError::NoPrefix));
    }
    let timeouts = rule.timeouts.as_ref();
    let longest = |text: Option<&String>| -> Result<Option<u64>, Unsupported> {
        // Zero means no bound.
        Ok(text.map(|text| duration(text, "timeout")).transpose().map_err(refused)?.filter(|ms| *ms != 0))
    };
    Ok(l7::RouteRule {
        matches,
        filters,
        backends: targets,
        timeout_ms: longest(timeouts.and_then(|t| t.request.as_ref()))?,
        backend_timeout_ms: longest(timeouts.and_then(|t| t.backend_request.as_ref()))?,
        retry: rule.retry.as_ref().map(retry).transpose().map_err(refused)?,
    })
}

fn target(
    backend: &HttpRouteRulesBackendRefs,
    filters: Vec<l7::Filter>,
    from: Referrer<'_>,
    world: &dyn World,
    mesh: &MeshConfig,
) -> l7::Backend {
    let weight = u32::try_from(backend.weight.unwrap_or(1)).unwrap_or(0);
    let resolved = backends::of_rule(from, backend, world).ok();
    l7::Backend {
        port: resolved.as_ref().map_or(0, |(_, port)| *port),
        service: resolved.map(|(name, _)| mesh.service_key(&name.namespace, &name.name)),
        weight,
        filters,
    }
}

/// How often a request is sent again when the route does not say it.
const DEFAULT_RETRIES: u32 = 2;

fn retry(written: &HttpRouteRulesRetry) -> Result<l7::Retry, RuleError> {
    let attempts = match written.attempts {
        None => DEFAULT_RETRIES,
        Some(attempts) if (0..=MAX_RETRIES).contains(&attempts) => {
            u32::try_from(attempts).unwrap_or_default()
        }
        Some(attempts) => return Err(RuleError::Attempts(attempts)),
    };
    let code = |code: &i64| match u16::try_from(*code) {
        Ok(code @ 400..=599) => Ok(code),
        _ => Err(RuleError::Code(*code)),
    };
    let codes = written.codes.iter().flatten().map(code).collect::<Result<_, _>>()?;
    let backoff_ms = written.backoff.as_ref().map(|text| duration(text, "retry.backoff")).transpose()?;
    Ok(l7::Retry { attempts, codes, backoff_ms })
}

/// A duration in milliseconds.
fn duration(text: &str, field: &'static str) -> Result<u64, RuleError> {
    millis(text).ok_or_else(|| RuleError::Duration { field, text: text.to_owned() })
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

/// No condition on the path is the prefix `/`.
fn has_prefix(one: &l7::RouteMatch) -> bool {
    matches!(one.path, None | Some(l7::PathMatch::Prefix(_)))
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
