// SPDX-License-Identifier: Apache-2.0
//! Every route and Gateway, and what came of them: what is sent to whom, and what statuses say.
//!
//! A change marks all routes when it may concern any of them (a Gateway, a grant), and is ignored when no route
//! names the object that changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gateway_api::gateways::Gateway;
use gateway_api::httproutes::HttpRoute;
use gateway_api::referencegrants::ReferenceGrant;
use meltemi_model::{NamespacedName, l7};

use super::attach::{Attached, Parent, attach};
use super::convert;
use super::world::World;
use crate::condition::Condition;
use crate::facts::{Labels, name_of};
use crate::gateways::classes;
use crate::gateways::status::listener_error;
use crate::index::Index;

/// What the status of a route says whose kind no proxy serves.
const UNSERVED: &str = "GRPCRoute is not served yet: nothing is routed by it. An HTTPRoute that matches the path \
                        /<package>.<service>/<method> does the same";

/// A route or listener, and the Gateways that are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct For<T> {
    /// What they are told.
    pub what: T,
    /// The Gateways; never empty.
    pub gateways: BTreeSet<NamespacedName>,
}

/// What is different after a flush.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// New or changed routes.
    pub routes: Vec<For<l7::Route>>,
    /// Routes that are gone.
    pub removed_routes: Vec<NamespacedName>,
    /// New or changed listeners, by `<namespace>/<gateway>/<listener>`.
    pub listeners: Vec<(String, For<l7::Listener>)>,
    /// Listeners that are gone.
    pub removed_listeners: Vec<String>,
    /// Status of routes whose parents changed: the route, its generation, its parents.
    pub statuses: Vec<(NamespacedName, Option<i64>, Vec<Attached>)>,
    /// The same of routes that nobody serves.
    pub unserved: Vec<(NamespacedName, Option<i64>, Vec<Attached>)>,
    /// Routes attached to the listeners of Gateways, where the number changed.
    pub attached: Vec<(NamespacedName, BTreeMap<String, u32>)>,
}

/// Routes and Gateways.
#[derive(Debug, Default)]
pub struct Table {
    gateways: HashMap<NamespacedName, Arc<Gateway>>,
    routes: BTreeMap<NamespacedName, Arc<HttpRoute>>,
    /// GRPCRoutes, as far as their parents: no proxy routes by them.
    unserved: BTreeMap<NamespacedName, Arc<HttpRoute>>,
    grants: HashMap<NamespacedName, Arc<ReferenceGrant>>,
    /// Services and namespaces that some route names.
    services: BTreeSet<NamespacedName>,
    namespaces: BTreeSet<Arc<str>>,
    dirty: bool,
    out: Outputs,
}

#[derive(Debug, Default)]
struct Outputs {
    routes: BTreeMap<NamespacedName, For<l7::Route>>,
    listeners: BTreeMap<String, For<l7::Listener>>,
    /// Conditions as they were reported, by route, with the parents' names.
    statuses: BTreeMap<NamespacedName, (Option<i64>, Vec<Vec<Condition>>)>,
    unserved: BTreeMap<NamespacedName, (Option<i64>, Vec<Vec<Condition>>)>,
    attached: BTreeMap<NamespacedName, BTreeMap<String, u32>>,
}

impl Table {
    /// A Gateway is new, changed or gone.
    pub fn set_gateway(&mut self, name: &NamespacedName, gateway: Option<Arc<Gateway>>) {
        let spec = |g: &Arc<Gateway>| g.spec.clone();
        if self.gateways.get(name).map(spec) != gateway.as_ref().map(spec) {
            self.dirty = true;
        }
        set(&mut self.gateways, name, gateway);
    }

    /// A route is new, changed or gone.
    pub fn set_route(&mut self, name: &NamespacedName, route: Option<Arc<HttpRoute>>) {
        let seen = |r: &Arc<HttpRoute>| (r.spec.clone(), r.metadata.generation);
        if self.routes.get(name).map(seen) != route.as_ref().map(seen) {
            self.dirty = true;
        }
        match route {
            Some(route) => self.routes.insert(name.clone(), route),
            None => self.routes.remove(name),
        };
    }

    /// A route of a kind that is not served is new, changed or gone; of it only the parents are looked at.
    pub fn set_unserved(&mut self, name: &NamespacedName, route: Option<Arc<HttpRoute>>) {
        self.dirty = true;
        match route {
            Some(route) => self.unserved.insert(name.clone(), route),
            None => self.unserved.remove(name),
        };
    }

    /// A grant is new, changed or gone.
    pub fn set_grant(&mut self, name: &NamespacedName, grant: Option<Arc<ReferenceGrant>>) {
        self.dirty = true;
        set(&mut self.grants, name, grant);
    }

    /// A Service changed, or its waypoint did.
    pub fn see_service(&mut self, name: &NamespacedName) {
        self.dirty |= self.services.contains(name);
    }

    /// A namespace changed.
    pub fn see_namespace(&mut self, name: &str) {
        self.dirty |= self.namespaces.contains(name);
    }

    /// Computes what was marked and returns what is different from before.
    pub fn flush(&mut self, index: &Index) -> Routed {
        let mut routed = Routed::default();
        if !std::mem::take(&mut self.dirty) {
            return routed;
        }
        let (now, services) = compute(self, index, &mut routed);
        self.services = services;
        self.namespaces = self.routes.keys().map(|r| r.namespace.clone()).collect();
        for (name, route) in &now.routes {
            if self.out.routes.get(name) != Some(route) {
                routed.routes.push(route.clone());
            }
        }
        routed.removed_routes = gone(&self.out.routes, &now.routes);
        for (name, listener) in &now.listeners {
            if self.out.listeners.get(name) != Some(listener) {
                routed.listeners.push((name.clone(), listener.clone()));
            }
        }
        routed.removed_listeners = gone(&self.out.listeners, &now.listeners);
        routed.statuses.retain(|(name, ..)| self.out.statuses.get(name) != now.statuses.get(name));
        routed.unserved.retain(|(name, ..)| self.out.unserved.get(name) != now.unserved.get(name));
        for (name, counts) in &now.attached {
            if self.out.attached.get(name) != Some(counts) {
                routed.attached.push((name.clone(), counts.clone()));
            }
        }
        self.out = now;
        routed
    }
}

fn set<T>(map: &mut HashMap<NamespacedName, T>, name: &NamespacedName, value: Option<T>) {
    match value {
        Some(value) => map.insert(name.clone(), value),
        None => map.remove(name),
    };
}

fn gone<K: Ord + Clone, V>(before: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<K> {
    before.keys().filter(|k| !now.contains_key(k)).cloned().collect()
}

fn compute(table: &Table, index: &Index, routed: &mut Routed) -> (Outputs, BTreeSet<NamespacedName>) {
    let view = View { table, index, services: std::cell::RefCell::default() };
    let mut out = Outputs::default();
    for (name, gateway) in &table.gateways {
        if classes::of(&gateway.spec.gateway_class_name).is_some() {
            let counts = gateway.spec.listeners.iter().map(|l| (l.name.clone(), 0)).collect();
            out.attached.insert(name.clone(), counts);
            listeners(name, gateway, &mut out);
        }
    }
    for (name, route) in &table.routes {
        let mut attached = attach(route, &view);
        let (rules, unsupported) = convert::rules(route, &view, index.mesh());
        if let Some(converted) = convert::route(route, rules, &attached, index.mesh()) {
            let gateways: BTreeSet<_> =
                attached.iter().flat_map(|a| &a.parents).filter_map(gateway_of).collect();
            if unsupported.is_empty() {
                count(&attached, &mut out.attached);
            }
            if !gateways.is_empty() {
                out.routes.insert(name.clone(), For { what: converted, gateways });
            }
        }
        if !unsupported.is_empty() {
            refuse(&mut attached, &unsupported);
        }
        let generation = route.metadata.generation;
        let conditions = attached.iter().map(|a| a.conditions.clone()).collect();
        out.statuses.insert(name.clone(), (generation, conditions));
        routed.statuses.push((name.clone(), generation, attached));
    }
    for (name, route) in &table.unserved {
        let mut attached = attach(route, &view);
        for one in &mut attached {
            one.parents.clear();
            one.conditions = vec![Condition::no("Accepted", "UnsupportedValue", UNSERVED)];
        }
        let conditions = attached.iter().map(|a| a.conditions.clone()).collect();
        out.unserved.insert(name.clone(), (route.metadata.generation, conditions));
        routed.unserved.push((name.clone(), route.metadata.generation, attached));
    }
    (out, view.services.into_inner())
}

/// Says of each parent that accepts the route which of its rules cannot be followed.
fn refuse(attached: &mut [Attached], unsupported: &[convert::Unsupported]) {
    let why: Vec<String> = unsupported.iter().map(ToString::to_string).collect();
    let message = format!("{}; requests that it is for are answered with 500", why.join("; "));
    for condition in attached.iter_mut().flat_map(|one| &mut one.conditions) {
        if condition.kind == "Accepted" && condition.status {
            *condition = Condition::no("Accepted", "UnsupportedValue", message.clone());
        }
    }
}

fn gateway_of(parent: &Parent) -> Option<NamespacedName> {
    match parent {
        Parent::Listener { gateway, .. } => Some(gateway.clone()),
        Parent::Service { waypoint, .. } => waypoint.clone(),
    }
}

fn count(attached: &[Attached], counts: &mut BTreeMap<NamespacedName, BTreeMap<String, u32>>) {
    let listeners: BTreeSet<(&NamespacedName, &String)> = attached
        .iter()
        .flat_map(|a| &a.parents)
        .filter_map(|p| match p {
            Parent::Listener { gateway, listener, .. } => Some((gateway, listener)),
            Parent::Service { .. } => None,
        })
        .collect();
    for (gateway, listener) in listeners {
        *counts.entry(gateway.clone()).or_default().entry(listener.clone()).or_default() += 1;
    }
}

fn listeners(name: &NamespacedName, gateway: &Gateway, out: &mut Outputs) {
    let Some(class) = classes::of(&gateway.spec.gateway_class_name) else { return };
    for listener in &gateway.spec.listeners {
        if listener_error(class, listener, &gateway.spec.listeners).is_some() {
            continue;
        }
        let protocol = match listener.protocol.as_str() {
            "HTTP" => l7::Protocol::Http,
            "HBONE" => l7::Protocol::Hbone,
            _ => continue,
        };
        let Ok(port) = u16::try_from(listener.port) else { continue };
        let what = l7::Listener {
            gateway: name.clone(),
            name: listener.name.clone(),
            port,
            protocol,
            hostname: listener.hostname.clone().filter(|h| !h.is_empty()),
            secret: None,
        };
        let key = format!("{name}/{}", listener.name);
        out.listeners.insert(key, For { what, gateways: [name.clone()].into() });
    }
}

/// The world as attachment sees it; it notes which Services were asked for.
struct View<'a> {
    table: &'a Table,
    index: &'a Index,
    services: std::cell::RefCell<BTreeSet<NamespacedName>>,
}

impl World for View<'_> {
    fn gateway(&self, name: &NamespacedName) -> Option<&Gateway> {
        self.table.gateways.get(name).map(|g| &**g)
    }

    fn service_ports(&self, name: &NamespacedName) -> Option<Vec<u16>> {
        self.services.borrow_mut().insert(name.clone());
        let facts = self.index.service(name).filter(|s| !s.external_name)?;
        Some(facts.ports.iter().map(|p| p.port).collect())
    }

    fn namespace_labels(&self, name: &str) -> Labels {
        self.index.namespace(name).map(|n| n.labels.clone()).unwrap_or_default()
    }

    fn waypoint_of(&self, service: &NamespacedName) -> Result<NamespacedName, &'static str> {
        self.services.borrow_mut().insert(service.clone());
        self.index.waypoint_of(service).cloned().ok_or("MissingUseWaypointLabel")
    }

    fn granted(&self, from: &str, to: &NamespacedName) -> bool {
        self.table.grants.values().any(|grant| {
            let of = name_of(&grant.metadata);
            of.namespace == to.namespace
                && grant.spec.from.iter().any(|f| {
                    f.group == "gateway.networking.k8s.io" && f.kind == "HTTPRoute" && f.namespace == from
                })
                && grant.spec.to.iter().any(|t| {
                    t.group.is_empty()
                        && t.kind == "Service"
                        && t.name.as_ref().is_none_or(|n| *n == *to.name)
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service as KubeService;

    use super::*;
    use crate::facts::ServiceFacts;
    use crate::{Change, MeshConfig};

    fn parse<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    fn bookinfo() -> (Table, Index) {
        let mut index = Index::new(MeshConfig::default());
        let service: KubeService = parse(
            "
metadata: {name: productpage, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{port: 9080}]}
",
        );
        index
            .apply(Change::Service(name_of(&service.metadata), Some(Box::new(ServiceFacts::read(&service)))));
        index.flush();
        let mut table = Table::default();
        let gateway: Gateway = parse(
            "
metadata: {name: bookinfo-gateway, namespace: default}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
",
        );
        table.set_gateway(&name_of(&gateway.metadata), Some(Arc::new(gateway)));
        let route: HttpRoute = parse(
            "
metadata: {name: bookinfo, namespace: default, generation: 1}
spec:
  parentRefs: [{name: bookinfo-gateway}]
  rules:
  - matches:
    - path: {type: Exact, value: /productpage}
    - path: {type: PathPrefix, value: /static}
    backendRefs: [{name: productpage, port: 9080}]
",
        );
        table.set_route(&name_of(&route.metadata), Some(Arc::new(route)));
        (table, index)
    }

    #[test]
    fn bookinfo_is_routed_through_its_gateway() {
        let (mut table, index) = bookinfo();
        let routed = table.flush(&index);
        let [route] = routed.routes.as_slice() else { panic!("{routed:?}") };
        let gateway = NamespacedName::new("default", "bookinfo-gateway");
        assert_eq!(route.gateways, [gateway.clone()].into());
        assert_eq!(route.what.parents[0].target, l7::Target::Gateway(gateway.clone()));
        let rule = &route.what.rules[0];
        assert_eq!(rule.matches[0].path, Some(l7::PathMatch::Exact("/productpage".into())));
        assert_eq!(
            rule.backends[0].service,
            Some(MeshConfig::default().service_key("default", "productpage"))
        );
        assert_eq!(routed.listeners[0].0, "default/bookinfo-gateway/http");
        assert_eq!(routed.attached, [(gateway, BTreeMap::from([("http".to_owned(), 1)]))]);
        assert!(routed.statuses[0].2[0].conditions.iter().all(|c| c.status));
        let again = table.flush(&index);
        assert!(again.routes.is_empty() && again.statuses.is_empty());
    }

    #[test]
    fn a_service_that_goes_takes_its_share_to_nowhere() {
        let (mut table, mut index) = bookinfo();
        table.flush(&index);
        let name = NamespacedName::new("default", "productpage");
        index.apply(Change::Service(name.clone(), None));
        index.flush();
        table.see_service(&NamespacedName::new("default", "unrelated"));
        assert!(table.flush(&index).routes.is_empty());
        table.see_service(&name);
        let routed = table.flush(&index);
        assert_eq!(routed.routes[0].what.rules[0].backends[0].service, None);
        assert_eq!(routed.statuses[0].2[0].conditions[1].reason, "BackendNotFound");
    }

    #[test]
    fn a_rule_that_cannot_be_followed_answers_for_its_requests_only() {
        let (mut table, index) = bookinfo();
        let mut route: HttpRoute = parse(
            "
metadata: {name: bookinfo, namespace: default, generation: 2}
spec: {parentRefs: [{name: bookinfo-gateway}]}
",
        );
        let good =
            "{matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: productpage, port: 9080}]}";
        let bad = "{matches: [{path: {type: Exact, value: /b}}], filters: [{type: CORS, cors: {}}]}";
        let unreadable = "{matches: [{path: {type: RegularExpression, value: '/(a'}}]}";
        route.spec.rules = Some([good, bad, unreadable].map(parse).into());
        table.set_route(&name_of(&route.metadata), Some(Arc::new(route)));
        let routed = table.flush(&index);
        let rules = &routed.routes[0].what.rules;
        let seen: Vec<_> = rules.iter().map(|r| (r.matches.len(), r.backends.len())).collect();
        assert_eq!(seen, [(1, 1), (1, 0), (0, 0)]);
        assert!(routed.attached.iter().all(|(_, counts)| counts.values().all(|n| *n == 0)), "{routed:?}");
    }

    #[test]
    fn a_rule_that_cannot_be_followed_makes_the_route_unacceptable() {
        for (rule, message) in [
            (
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: productpage, port: 9080}}}]",
                "rule 0: a RequestMirror filter is not supported",
            ),
            (
                "matches: [{path: {type: RegularExpression, value: '/(a'}}]",
                r#"rule 0: regular expression "/(a": unclosed group"#,
            ),
            (
                "matches: [{headers: [{type: RegularExpression, name: x, value: '[z-a]'}]}]",
                r#"rule 0: regular expression "[z-a]": invalid character class range, the start must be <= the end"#,
            ),
            (
                "matches: [{queryParams: [{type: RegularExpression, name: x, value: '*'}]}]",
                r#"rule 0: regular expression "*": repetition operator missing expression"#,
            ),
            (
                "{matches: [{path: {type: Exact, value: /a}}], \
                 filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
                "rule 0: replacePrefixMatch needs matches of type PathPrefix",
            ),
            (
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-user, value: \"gate\\nway\"}]}}]",
                r#"rule 0: RequestHeaderModifier: set "x-user": the value has a line break"#,
            ),
            (
                "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Content-Length]}}]",
                r#"rule 0: ResponseHeaderModifier: remove "Content-Length": the proxy writes this header itself; a route cannot change it"#,
            ),
            (
                "filters: [{type: URLRewrite, urlRewrite: {hostname: 'a b'}}]",
                r#"rule 0: URLRewrite: hostname "a b" is no host name"#,
            ),
        ] {
            let (mut table, index) = bookinfo();
            let mut route: HttpRoute = parse(
                "
metadata: {name: bookinfo, namespace: default, generation: 2}
spec: {parentRefs: [{name: bookinfo-gateway}]}
",
            );
            route.spec.rules = Some(vec![parse(rule)]);
            table.flush(&index);
            table.set_route(&name_of(&route.metadata), Some(Arc::new(route)));
            let routed = table.flush(&index);
            // Without a backend: 500.
            let [sent] = routed.routes.as_slice() else { panic!("{rule}: {routed:?}") };
            assert_eq!(
                (sent.what.rules[0].backends.len(), sent.what.rules[0].filters.len()),
                (0, 0),
                "{rule}"
            );
            let accepted = &routed.statuses[0].2[0].conditions[0];
            assert_eq!((accepted.status, accepted.reason.as_str()), (false, "UnsupportedValue"), "{rule}");
            let answered = "; requests that it is for are answered with 500";
            assert_eq!(accepted.message, format!("{message}{answered}"), "{rule}");
        }
    }
}
