// SPDX-License-Identifier: Apache-2.0
//! Route: which rule of which HTTPRoute, by the precedence of the Gateway API; a Service without one is its own backend.

use std::sync::Arc;

use http::{HeaderMap, Method};
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::{Backend, PathMatch, Route, RouteMatch, RouteRule, Target};
use meltemi_policy::http::host_forms;
use meltemi_view::view::Mesh;

use crate::context::Context;

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// The service and its port.
    pub(crate) service: NamespacedHostname,
    pub(crate) port: u16,
    /// The rule, for what it does to the request.
    pub(crate) rule: Option<RouteRule>,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// No rule matches: 404.
    NotFound,
    /// The rule's backend cannot be used: 500.
    NoBackend,
}

/// What is looked at.
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// The addressed Service and port, at a waypoint.
    pub(crate) service: Option<(&'a NamespacedHostname, u16)>,
    /// The listener's port, at a gateway.
    pub(crate) listener: Option<u16>,
}

pub(crate) fn choose(context: &Context, mesh: &Mesh, asked: &Asked<'_>) -> Result<Chosen, NoRoute> {
    let mut best: Option<(Rank, &RouteRule)> = None;
    let mut attached = false;
    for route in mesh.routes.values().filter(|r| is_attached(context, mesh, r, asked)) {
        attached = true;
        let Some(specific) = hostname_rank(route, asked) else { continue };
        for rule in &route.rules {
            let everything = [RouteMatch::default()];
            let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches[..] };
            for one in matches.iter().filter(|m| match_holds(m, asked)) {
                let rank = rank(specific, one);
                // Equal ranks: the older route, then the name; routes are visited in order of names.
                if best.as_ref().is_none_or(|(most, _)| rank > *most) {
                    best = Some((rank, rule));
                }
            }
        }
    }
    match (best, asked.service) {
        (Some((_, rule)), _) => {
            let backend = pick(&rule.backends, |n| rand::random::<u32>() % n).ok_or(NoRoute::NoBackend)?;
            let service = backend.service.clone().ok_or(NoRoute::NoBackend)?;
            Ok(Chosen { service, port: backend.port, rule: Some(rule.clone()) })
        }
        (None, Some((service, port))) if !attached => {
            Ok(Chosen { service: service.clone(), port, rule: None })
        }
        (None, _) => Err(NoRoute::NotFound),
    }
}

fn is_attached(context: &Context, mesh: &Mesh, route: &Arc<Route>, asked: &Asked<'_>) -> bool {
    route.parents.iter().any(|parent| match (&parent.target, asked.service) {
        (Target::Service(key), Some((service, port))) => {
            key == service && parent.port.is_none_or(|p| p == port)
        }
        (Target::Gateway(name), None) => {
            let section = |wanted: &str| {
                let mut listeners = mesh.listeners.values();
                listeners.any(|l| l.gateway == *name && l.name == wanted && Some(l.port) == asked.listener)
            };
            *name == context.config.gateway
                && parent.port.is_none_or(|p| Some(p) == asked.listener)
                && parent.section.as_deref().is_none_or(section)
        }
        _ => false,
    })
}

/// How specific the route's host name is for the request's; none when it is for another host.
fn hostname_rank(route: &Route, asked: &Asked<'_>) -> Option<usize> {
    if route.hostnames.is_empty() || asked.service.is_some() {
        return Some(0);
    }
    let forms = host_forms(asked.host);
    let matches = |wanted: &String| {
        forms.iter().flatten().any(|host| match wanted.strip_prefix('*') {
            Some(suffix) => {
                host.len() > suffix.len() && host.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase())
            }
            None => host.eq_ignore_ascii_case(wanted),
        })
    };
    // An exact name is more specific than any wildcard.
    let value = |wanted: &String| if wanted.starts_with('*') { wanted.len() } else { 1000 + wanted.len() };
    route.hostnames.iter().filter(|h| matches(h)).map(value).max()
}

type Rank = (usize, u8, usize, bool, usize, usize);

/// Host, exact path before prefix, longer path, method, more headers, more query parameters.
fn rank(host: usize, one: &RouteMatch) -> Rank {
    let (kind, length) = match &one.path {
        Some(PathMatch::Exact(path)) => (3, path.len()),
        Some(PathMatch::Prefix(path)) => (2, path.len()),
        Some(PathMatch::Regex(path)) => (1, path.len()),
        None => (0, 0),
    };
    (host, kind, length, one.method.is_some(), one.headers.len(), one.query.len())
}

fn match_holds(one: &RouteMatch, asked: &Asked<'_>) -> bool {
    let path = match &one.path {
        None => true,
        Some(PathMatch::Exact(path)) => asked.path == path,
        Some(PathMatch::Prefix(prefix)) => prefix_matches(prefix, asked.path),
        // Not compiled here: a rule whose condition cannot be evaluated matches nothing.
        Some(PathMatch::Regex(_)) => false,
    };
    let method = one.method.as_ref().is_none_or(|m| m == asked.method.as_str());
    let headers = one.headers.iter().all(|h| {
        !h.regex && asked.headers.get_all(&h.name).iter().any(|v| v.as_bytes() == h.value.as_bytes())
    });
    let query = one.query.iter().all(|q| {
        !q.regex
            && asked
                .query
                .split('&')
                .filter_map(|p| p.split_once('='))
                .any(|(n, v)| n == q.name && v == q.value)
    });
    path && method && headers && query
}

/// Element by element: `/a` matches `/a` and `/a/b`, not `/ab`.
fn prefix_matches(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// By weight.
fn pick(backends: &[Backend], random: impl FnOnce(u32) -> u32) -> Option<&Backend> {
    let total: u32 = backends.iter().map(|b| b.weight).fold(0, u32::saturating_add);
    if total == 0 {
        return None;
    }
    let mut at = random(total);
    backends.iter().find(|b| {
        let here = at < b.weight;
        at = at.saturating_sub(b.weight);
        here
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_match_whole_elements() {
        for (prefix, path, expected) in [
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a/", "/a", true),
            ("/a", "/ab", false),
            ("/", "/x", true),
        ] {
            assert_eq!(prefix_matches(prefix, path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn weights_are_shares_and_zero_gets_nothing() {
        let backend = |port, weight| Backend { service: None, port, weight };
        let all = [backend(1, 1), backend(2, 0), backend(3, 3)];
        let seen: Vec<u16> = (0..4).map(|n| pick(&all, |_| n).unwrap().port).collect();
        assert_eq!(seen, [1, 3, 3, 3]);
        assert!(pick(&all[1..2], |_| 0).is_none());
    }
}
