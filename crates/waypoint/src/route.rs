// SPDX-License-Identifier: Apache-2.0
//! Route: which rule of which HTTPRoute, by the precedence of the Gateway API; a Service without one is its own backend.

use std::ops::Deref;
use std::sync::Arc;

use http::{HeaderMap, Method};
use meltemi_model::NamespacedHostname;
use meltemi_model::l7::{Backend, Filter, Listener, Parent, PathMatch, Route, RouteMatch, RouteRule, Target};
use meltemi_policy::http::host_forms;
use meltemi_view::Mesh;

use crate::certificates::Secured;
use crate::context::Context;
use crate::served::BackendRef;

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// None when the rule's share goes to none that can be used.
    pub(crate) backend: Option<BackendRef>,
    /// The prefix that the rule matched the path by.
    pub(crate) prefix: Option<String>,
    /// The rule, for what it does to the request.
    pub(crate) rule: Option<ChosenRule>,
    /// Which of the rule's backends was drawn.
    share: Option<usize>,
}

impl Chosen {
    /// Where a request goes that no route is for.
    pub(crate) fn without_rule(backend: BackendRef) -> Self {
        Self { backend: Some(backend), prefix: None, rule: None, share: None }
    }

    /// What is done to the request and its answer: by the rule, then by the chosen backend.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &Filter> {
        let rule = self.rule.as_deref();
        let backend = rule.zip(self.share).and_then(|(rule, share)| rule.backends.get(share));
        rule.into_iter().flat_map(|rule| &rule.filters).chain(backend.into_iter().flat_map(|b| &b.filters))
    }
}

/// A rule of a route that is shared by all requests that it was chosen for.
#[derive(Clone, Debug)]
pub(crate) struct ChosenRule {
    route: Arc<Route>,
    /// Which of its rules; always one that it has.
    index: usize,
}

impl Deref for ChosenRule {
    type Target = RouteRule;

    fn deref(&self) -> &RouteRule {
        &self.route.rules[self.index]
    }
}

/// Why a request has no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// None matches: 404.
    NoMatch,
    /// Its host is another listener's than the one whose certificate the client was shown: 421 (RFC 9110 §15.5.20). The
    /// client takes another connection for it; this one may be of other terms.
    OtherListener,
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
    /// What the client has said in its TLS handshake.
    pub(crate) secured: Option<&'a Secured>,
}

pub(crate) fn choose(context: &Context, mesh: &Mesh, asked: &Asked<'_>) -> Result<Chosen, NoRoute> {
    // The most specific one: what is attached to another is not reached here.
    let find = |port| mesh.listeners.find(&context.config.gateway, port, asked.host);
    let listener = asked.listener.map(|port| find(port).ok_or(NoRoute::NoMatch)).transpose()?;
    if let (Some(secured), Some(listener)) = (asked.secured, listener) {
        let host = secured.sni.as_deref().unwrap_or_default();
        let shown = mesh.listeners.find(&context.config.gateway, listener.port, host);
        if shown.is_none_or(|shown| shown.name != listener.name) {
            return Err(NoRoute::OtherListener);
        }
    }
    let mut best: Option<(Rank, &Arc<Route>, usize, &RouteMatch)> = None;
    let (mut attached, everything) = (false, [RouteMatch::default()]);
    let target = match (asked.service, listener) {
        (Some((service, _)), _) => Some(Target::Service(service.clone())),
        (None, listener) => listener.map(|listener| Target::Gateway(listener.gateway.clone())),
    };
    let routes = target.iter().flat_map(|target| mesh.routes.attached_to(target)).map(|(_, route)| route);
    for route in routes.filter(|r| is_attached(r, asked, listener)) {
        attached = true;
        let Some(specific) = hostname_rank(route, asked) else { continue };
        for (index, rule) in route.rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { &everything[..] } else { &rule.matches[..] };
            for one in matches.iter().filter(|m| match_holds(m, asked)) {
                let rank = rank(specific, one);
                // Equal ranks: the older route, then the name; routes are visited in order of names.
                let better = |(most, older, ..): &(Rank, &Arc<Route>, _, _)| {
                    rank > *most || (rank == *most && route.created < older.created)
                };
                if best.as_ref().is_none_or(better) {
                    best = Some((rank, route, index, one));
                }
            }
        }
    }
    match (best, asked.service) {
        (Some((_, route, index, one)), _) => {
            let rule = ChosenRule { route: route.clone(), index };
            let share = pick(&rule.backends, |n| rand::random::<u32>() % n);
            let backend = share.map(|share| &rule.backends[share]);
            let backend = backend.and_then(|b| Some(BackendRef::Service(b.service.clone()?, b.port)));
            let prefix = match &one.path {
                Some(PathMatch::Prefix(prefix)) => Some(prefix.clone()),
                // No condition is the prefix `/`.
                None => Some("/".to_owned()),
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
            };
            Ok(Chosen { backend, prefix, rule: Some(rule), share })
        }
        (None, Some((service, port))) if !attached => {
            Ok(Chosen::without_rule(BackendRef::Service(service.clone(), port)))
        }
        (None, _) => Err(NoRoute::NoMatch),
    }
}

/// Whether a route is attached to a port of a Service.
pub(crate) fn is_routed(mesh: &Mesh, service: &NamespacedHostname, port: u16) -> bool {
    let target = Target::Service(service.clone());
    let routes = mesh.routes.attached_to(&target).map(|(_, route)| route);
    routes.flat_map(|route| &route.parents).any(|parent| is_parent(parent, service, port))
}

fn is_parent(parent: &Parent, service: &NamespacedHostname, port: u16) -> bool {
    matches!(&parent.target, Target::Service(key) if key == service) && parent.port.is_none_or(|p| p == port)
}

fn is_attached(route: &Route, asked: &Asked<'_>, listener: Option<&Arc<Listener>>) -> bool {
    route.parents.iter().any(|parent| match (&parent.target, asked.service, listener) {
        (Target::Service(_), Some((service, port)), _) => is_parent(parent, service, port),
        (Target::Gateway(name), None, Some(listener)) => {
            *name == listener.gateway
                && parent.port.is_none_or(|p| p == listener.port)
                && parent.section.as_deref().is_none_or(|section| section == listener.name)
        }
        _ => false,
    })
}

/// How specific a host name is for a host; none when it is for another. An exact name is more specific than any wildcard.
fn host_rank(wanted: &str, host: &str) -> Option<usize> {
    let forms = host_forms(host);
    let matches = forms.iter().flatten().any(|host| match wanted.strip_prefix('*') {
        Some(suffix) => {
            let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
            host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        }
        None => host.eq_ignore_ascii_case(wanted),
    });
    matches.then_some(if wanted.starts_with('*') { wanted.len() } else { 1000 + wanted.len() })
}

/// How specific the route's host name is for the request's; none when it is for another host.
fn hostname_rank(route: &Route, asked: &Asked<'_>) -> Option<usize> {
    if route.hostnames.is_empty() || asked.service.is_some() {
        return Some(0);
    }
    route.hostnames.iter().filter_map(|wanted| host_rank(wanted, asked.host)).max()
}

type Rank = (usize, u8, usize, bool, usize, usize);

/// Host, exact path before prefix, longer path, method, more headers, more query parameters.
fn rank(host: usize, one: &RouteMatch) -> Rank {
    let (kind, length) = match &one.path {
        Some(PathMatch::Exact(path)) => (3, path.len()),
        Some(PathMatch::Prefix(path)) => (2, path.len()),
        Some(PathMatch::Regex(path)) => (1, path.as_str().len()),
        None => (0, 0),
    };
    (host, kind, length, one.method.is_some(), one.headers.len(), one.query.len())
}

fn match_holds(one: &RouteMatch, asked: &Asked<'_>) -> bool {
    let path = match &one.path {
        None => true,
        Some(PathMatch::Exact(path)) => asked.path == path,
        Some(PathMatch::Prefix(prefix)) => prefix_matches(prefix, asked.path),
        Some(PathMatch::Regex(pattern)) => pattern.matches(asked.path.as_bytes()),
    };
    let method = one.method.as_ref().is_none_or(|m| m == asked.method.as_str());
    let headers = one
        .headers
        .iter()
        .all(|h| asked.headers.get_all(&h.name).iter().any(|v| h.value.matches(v.as_bytes())));
    let query = one.query.iter().all(|q| {
        let parameters = asked.query.split('&').filter_map(|p| p.split_once('='));
        parameters.filter(|(name, _)| *name == q.name).any(|(_, value)| q.value.matches(value.as_bytes()))
    });
    path && method && headers && query
}

/// Element by element: `/a` matches `/a` and `/a/b`, not `/ab`.
fn prefix_matches(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// By weight.
fn pick(backends: &[Backend], random: impl FnOnce(u32) -> u32) -> Option<usize> {
    let total: u32 = backends.iter().map(|b| b.weight).fold(0, u32::saturating_add);
    if total == 0 {
        return None;
    }
    let mut at = random(total);
    backends.iter().position(|b| {
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
        let backend = |port, weight| Backend { service: None, port, weight, filters: Vec::new() };
        let all = [backend(1, 1), backend(2, 0), backend(3, 3)];
        let seen: Vec<u16> = (0..4).map(|n| all[pick(&all, |_| n).unwrap()].port).collect();
        assert_eq!(seen, [1, 3, 3, 3]);
        assert!(pick(&all[1..2], |_| 0).is_none());
    }
}
