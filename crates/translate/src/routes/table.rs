// SPDX-License-Identifier: Apache-2.0
//! Every route and Gateway, and what came of them: what is sent to whom, and what statuses say.
//!
//! A change marks all routes when it may concern any of them (a Gateway, a grant), and is ignored when no route
//! names the object that changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::gateways::Gateway;
use gateway_api::referencegrants::ReferenceGrant;
use meltemi_model::{NamespacedName, l7};

use super::attach::{Attached, Parent, attach};
use super::conflicts::{self, Placed};
use super::convert;
use super::kind::{Referrer, RouteName};
use super::world::World;
use crate::condition::Condition;
use crate::facts::{Labels, name_of};
use crate::gateways::certificates::{self, Certificate, Certificates, Resolved};
use crate::gateways::classes;
use crate::gateways::status::listener_error;
use crate::index::Index;

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
    pub routes: Vec<(RouteName, For<l7::Route>)>,
    /// Routes that are gone.
    pub removed_routes: Vec<RouteName>,
    /// New or changed listeners, by `<namespace>/<gateway>/<listener>`.
    pub listeners: Vec<(String, For<l7::Listener>)>,
    /// Listeners that are gone.
    pub removed_listeners: Vec<String>,
    /// Status of routes whose parents changed: the route, its generation, its parents.
    pub statuses: Vec<(RouteName, Option<i64>, Vec<Attached>)>,
    /// New or changed certificates.
    pub certificates: Vec<(NamespacedName, For<l7::TlsSecret>)>,
    /// Certificates that no Gateway uses any more.
    pub removed_certificates: Vec<NamespacedName>,
    /// References of listeners that lead nowhere, by listener, where they changed.
    pub unresolved: Vec<(NamespacedName, Unresolved)>,
    /// Routes attached to the listeners of Gateways, where the number changed.
    pub attached: Vec<(NamespacedName, BTreeMap<String, u32>)>,
}

/// References of a Gateway's listeners that lead nowhere: reason and sentence, by listener.
pub type Unresolved = BTreeMap<String, (&'static str, String)>;

/// Routes and Gateways.
#[derive(Debug, Default)]
pub struct Table {
    certificates: HashMap<NamespacedName, Arc<Certificate>>,
    gateways: HashMap<NamespacedName, Arc<Gateway>>,
    /// Routes of every kind, as the HTTPRoutes that do the same.
    routes: BTreeMap<RouteName, Arc<HttpRoute>>,
    grants: HashMap<NamespacedName, Arc<ReferenceGrant>>,
    /// Services and namespaces that some route names.
    services: BTreeSet<NamespacedName>,
    namespaces: BTreeSet<Arc<str>>,
    dirty: bool,
    out: Outputs,
}

#[derive(Debug, Default)]
struct Outputs {
    routes: BTreeMap<RouteName, For<l7::Route>>,
    listeners: BTreeMap<String, For<l7::Listener>>,
    /// Conditions as they were reported, by route, with the parents' names.
    statuses: BTreeMap<RouteName, (Option<i64>, Vec<Vec<Condition>>)>,
    attached: BTreeMap<NamespacedName, BTreeMap<String, u32>>,
    certificates: BTreeMap<NamespacedName, For<l7::TlsSecret>>,
    unresolved: BTreeMap<NamespacedName, Unresolved>,
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
    pub fn set_route(&mut self, name: &RouteName, route: Option<Arc<HttpRoute>>) {
        let seen = |r: &Arc<HttpRoute>| (r.spec.clone(), r.metadata.generation);
        if self.routes.get(name).map(seen) != route.as_ref().map(seen) {
            self.dirty = true;
        }
        match route {
            Some(route) => self.routes.insert(name.clone(), route),
            None => self.routes.remove(name),
        };
    }

    /// A grant is new, changed or gone.
    pub fn set_grant(&mut self, name: &NamespacedName, grant: Option<Arc<ReferenceGrant>>) {
        self.dirty = true;
        set(&mut self.grants, name, grant);
    }

    /// A Secret with a certificate is new, changed or gone.
    pub fn set_certificate(&mut self, name: &NamespacedName, certificate: Option<Arc<Certificate>>) {
        let named = |gateway: &Arc<Gateway>| {
            let references =
                gateway.spec.listeners.iter().filter_map(|l| l.tls.as_ref()?.certificate_refs.as_ref());
            references.flatten().any(|reference| reference.name == *name.name)
        };
        self.dirty |= self.gateways.values().any(named);
        set(&mut self.certificates, name, certificate);
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
        self.namespaces = self.routes.keys().map(|r| r.name.namespace.clone()).collect();
        for (name, route) in &now.routes {
            if self.out.routes.get(name) != Some(route) {
                routed.routes.push((name.clone(), route.clone()));
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
        for (name, certificate) in &now.certificates {
            if self.out.certificates.get(name) != Some(certificate) {
                routed.certificates.push((name.clone(), certificate.clone()));
            }
        }
        routed.removed_certificates = gone(&self.out.certificates, &now.certificates);
        for (name, unresolved) in &now.unresolved {
            if self.out.unresolved.get(name) != Some(unresolved) {
                routed.unresolved.push((name.clone(), unresolved.clone()));
            }
        }
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
            listeners(name, gateway, table, &mut out);
        }
    }
    let mut routes: Vec<Placed<'_>> = table
        .routes
        .iter()
        .map(|(name, route)| Placed { name, route, attached: attach(route, name.kind, &view) })
        .collect();
    conflicts::refuse(&mut routes, &view);
    for Placed { name, route, mut attached } in routes {
        let (rules, unsupported) = convert::rules(route, name.kind, &view, index.mesh());
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

fn listeners(name: &NamespacedName, gateway: &Gateway, table: &Table, out: &mut Outputs) {
    let Some(class) = classes::of(&gateway.spec.gateway_class_name) else { return };
    for listener in &gateway.spec.listeners {
        if listener_error(class, listener, gateway).is_some() {
            continue;
        }
        let Resolved { secrets, unresolved } = certificates::resolve(name, listener, table);
        let all_unresolved = out.unresolved.entry(name.clone()).or_default();
        if let Some(unresolved) = unresolved {
            all_unresolved.insert(listener.name.clone(), unresolved);
        }
        // Without a certificate there is nothing to end TLS with.
        if certificates::ends_tls(listener) && secrets.is_empty() {
            continue;
        }
        let protocol = match listener.protocol.as_str() {
            "HTTP" => l7::Protocol::Http,
            "HTTPS" => l7::Protocol::Https,
            "TLS" if certificates::is_passthrough(listener) => l7::Protocol::TlsPassthrough,
            "TLS" => l7::Protocol::Tls,
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
            secrets,
        };
        for secret in &what.secrets {
            if let Some(Certificate::Usable(certificate)) = table.certificates.get(secret).map(|c| &**c) {
                let unused = || For { what: certificate.clone(), gateways: BTreeSet::new() };
                let entry = out.certificates.entry(secret.clone()).or_insert_with(unused);
                entry.gateways.insert(name.clone());
            }
        }
        let key = format!("{name}/{}", listener.name);
        out.listeners.insert(key, For { what, gateways: [name.clone()].into() });
    }
}

impl Certificates for Table {
    fn certificate(&self, name: &NamespacedName) -> Option<&Certificate> {
        self.certificates.get(name).map(|certificate| &**certificate)
    }

    fn is_granted(&self, gateway_namespace: &str, secret: &NamespacedName) -> bool {
        is_granted(self.grants.values(), ("Gateway", gateway_namespace), ("Secret", secret))
    }
}

/// Whether some ReferenceGrant lets objects of a kind in a namespace name an object of the core group in another one.
fn is_granted<'a>(
    mut grants: impl Iterator<Item = &'a Arc<ReferenceGrant>>,
    (from_kind, from_namespace): (&str, &str),
    (to_kind, to): (&str, &NamespacedName),
) -> bool {
    grants.any(|grant| {
        name_of(&grant.metadata).namespace == to.namespace
            && grant.spec.from.iter().any(|from| {
                from.group == "gateway.networking.k8s.io"
                    && from.kind == from_kind
                    && from.namespace == from_namespace
            })
            && grant.spec.to.iter().any(|one| {
                one.group.is_empty()
                    && one.kind == to_kind
                    && one.name.as_ref().is_none_or(|name| *name == *to.name)
            })
    })
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

    fn granted(&self, from: Referrer<'_>, to: &NamespacedName) -> bool {
        is_granted(self.table.grants.values(), (from.kind.name(), from.namespace), ("Service", to))
    }
}

#[cfg(test)]
mod tests;
