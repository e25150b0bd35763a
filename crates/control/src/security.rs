// SPDX-License-Identifier: Apache-2.0
//! Objects of `security.istio.io`: read, translated, attached, and reported on.
//!
//! An object that is not valid (it came past the admission webhook) changes nothing: what was known of it stays in
//! force. When nothing was known of it, what can be read of it is enforced, and what cannot lets nothing through. Its
//! status says so.

mod attach;
pub mod enforced;
mod exposure;
mod peers;
mod read;
mod report;
mod reviewed;
mod sent;
mod tokens;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use meltemi_model::{NamespacedName, l7};
use meltemi_translate::gateways::classes::{self, Class};
use meltemi_translate::gateways::deployment;
use meltemi_translate::routes::table::For;
use meltemi_translate::security::attachment::{self, Attached};
use meltemi_translate::security::authorization::Authorization;
use meltemi_translate::security::layer4;
use meltemi_translate::{Change, MeshConfig};

use crate::access::Scope;
use crate::jwks::Keys;
use crate::publish::Step;
use crate::review::Remark;
use crate::xds::{Proxies, Proxy};
use attach::{Ingress, WithIngress};
use enforced::Generations;
use peers::PeerObjects;
use read::Source;
use sent::{Difference, Sent, has_acknowledged};
use tokens::TokenObjects;

pub use attach::World;

/// An AuthorizationPolicy and what became of it.
#[derive(Debug)]
struct Entry {
    object: Source,
    generation: Option<i64>,
    authorization: Arc<Authorization>,
    projected: layer4::Projected,
    /// Why the object as it is now is not what is enforced.
    fault: Option<String>,
    attached: Attached,
    since: Generations,
    /// What it probably does not mean.
    remarks: Vec<Remark>,
}

/// The objects.
#[derive(Debug)]
pub struct Security {
    mesh: MeshConfig,
    policies: HashMap<NamespacedName, Entry>,
    peers: PeerObjects,
    tokens: TokenObjects,
    ingress: Ingress,
    /// Policies by the Services that they target.
    by_service: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    changes: Vec<Change>,
    /// Policies to be attached again.
    unattached: BTreeSet<NamespacedName>,
    /// What was sent to gateways.
    sent: Sent<l7::HttpPolicy>,
    /// Policies whose workloads may be others since the last step.
    moved: BTreeSet<NamespacedName>,
    /// Namespaces whose Pods are captured otherwise than at the last step.
    recaptured: BTreeSet<Arc<str>>,
    /// Policies whose status is to be written.
    unreported: BTreeSet<NamespacedName>,
    /// Policies that not every proxy has acknowledged.
    pending: BTreeSet<NamespacedName>,
    /// Something has changed that a review would see.
    unreviewed: bool,
    /// Settings for gateways that have not been sent.
    settings: Option<l7::Settings>,
    proxies: Proxies,
}

impl Security {
    /// No objects yet.
    pub fn new(mesh: MeshConfig, proxies: Proxies, keys: Keys) -> Self {
        let settings = Some(settings(&mesh));
        Self {
            mesh,
            policies: HashMap::new(),
            peers: PeerObjects::default(),
            tokens: TokenObjects::new(keys),
            ingress: Ingress::new(),
            by_service: HashMap::new(),
            changes: Vec::new(),
            unattached: BTreeSet::new(),
            sent: Sent::default(),
            moved: BTreeSet::new(),
            recaptured: BTreeSet::new(),
            unreported: BTreeSet::new(),
            pending: BTreeSet::new(),
            unreviewed: false,
            settings,
            proxies,
        }
    }

    /// Keys of an issuer have come, changed or gone.
    pub fn see_keys(&mut self) {
        self.tokens.see_keys();
    }

    /// A Service changed, or its waypoint did.
    pub fn see_service(&mut self, name: &NamespacedName) {
        self.unattached.extend(self.by_service.get(name).into_iter().flatten().cloned());
        self.tokens.see_service(name);
    }

    /// Pods of a namespace came or went, or are captured otherwise.
    pub fn see_capture(&mut self, namespace: &Arc<str>) {
        self.recaptured.insert(namespace.clone());
        // Whether the way around a waypoint is closed depends on it.
        self.see_namespace(namespace);
    }

    /// Labels of a namespace changed: they count for its Services.
    pub fn see_namespace(&mut self, namespace: &str) {
        let near: Vec<NamespacedName> =
            self.by_service.keys().filter(|service| *service.namespace == *namespace).cloned().collect();
        for service in &near {
            self.see_service(service);
        }
    }

    /// A Gateway changed or is gone.
    pub fn set_gateway(&mut self, name: &NamespacedName, gateway: Option<&gateway_api::gateways::Gateway>) {
        let ingress = gateway.filter(|g| classes::of(&g.spec.gateway_class_name) == Some(Class::Ingress));
        match ingress.and_then(deployment::pod_labels) {
            Some(labels) => self.ingress.insert(name.clone(), labels),
            None => self.ingress.remove(name),
        };
        self.see_gateway(name);
    }

    /// A Gateway or one of its proxies changed or is gone.
    pub fn see_gateway(&mut self, name: &NamespacedName) {
        let root = &self.mesh.root_namespace;
        let touched = |(policy, entry): &(&NamespacedName, &Entry)| {
            let targets = &entry.authorization.targets;
            let near = policy.namespace == name.namespace || policy.namespace == *root;
            let to_gateways = targets.is_empty() || targets.iter().any(attachment::is_of_gateway);
            (near && to_gateways) || entry.attached.gateways.contains(name)
        };
        self.unattached.extend(self.policies.iter().filter(touched).map(|(policy, _)| policy.clone()));
        self.tokens.see_gateways();
    }

    /// Proxies have acknowledged something: marks what Gateways may lose now. Returns whether there is something to flush.
    pub fn see_acknowledged(&mut self) -> bool {
        if !self.sent.is_leaving() && !self.tokens.is_leaving() {
            return false;
        }
        let proxies = self.proxies.all();
        self.unattached.extend(self.sent.all_left(&proxies));
        self.tokens.see_acknowledged(&proxies) || !self.unattached.is_empty()
    }

    /// Changes for the index.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Attaches what is to be attached and adds it to a step.
    pub fn flush(&mut self, world: &World<'_>, step: &mut Step) {
        step.settings = self.settings.take();
        self.unreviewed |= !self.unattached.is_empty();
        let changed = changed_services(step);
        let proxies = if self.sent.is_leaving() { self.proxies.all() } else { Vec::new() };
        for name in std::mem::take(&mut self.unattached) {
            let wanted = self.policies.get_mut(&name).map(|entry| {
                let authorization = &entry.authorization;
                let policy = attachment::Policy {
                    kind: "AuthorizationPolicy",
                    name: &name,
                    selector: authorization.selector.as_ref(),
                    targets: &authorization.targets,
                };
                let attached = attachment::attach(policy, &WithIngress(world, &self.ingress));
                if entry.attached != attached {
                    self.unreported.insert(name.clone());
                    entry.attached = attached;
                }
                let gateways = entry.attached.gateways.clone();
                let targets = entry.attached.targets.clone();
                let policy = (**authorization.policy.policy()).clone();
                let what = l7::HttpPolicy { policy, targets };
                For { what, gateways }
            });
            let services = wanted.as_ref().map_or_else(Vec::new, |w| service_keys(&w.what.targets));
            let moved = services.iter().any(|key| changed.contains(key));
            let left = |gateway: &NamespacedName, since| {
                let gone = !world.gateways.has(gateway);
                has_acknowledged(gateway, since, &services, &proxies)
                    || (gone && !is_connected(gateway, &proxies))
            };
            match self.sent.put(&name, wanted, moved, left) {
                Difference::Same => {}
                Difference::Changed(sent) => step.http_policies.push(sent),
                Difference::Removed => step.removed_http_policies.push(name),
            }
        }
        self.tokens.flush(world, &self.ingress, &self.proxies, step);
        // Workloads that came or went: their namespace's policies have other nodes to be on.
        let mut namespaces: BTreeSet<&str> = step.delta.workloads.iter().map(|w| &*w.namespace).collect();
        let removed = step.delta.removed_workloads.iter().filter_map(|uid| uid.as_str().split('/').nth(3));
        namespaces.extend(removed);
        // So are those whose Services have another waypoint now: their clients come with its identity.
        namespaces.extend(step.delta.bindings.iter().map(|service| &*service.namespace));
        let recaptured = std::mem::take(&mut self.recaptured);
        namespaces.extend(recaptured.iter().map(|namespace| &**namespace));
        if !namespaces.is_empty() {
            let root = &self.mesh.root_namespace;
            let of = |n: &&NamespacedName| namespaces.contains(&*n.namespace) || n.namespace == *root;
            self.unreported.extend(self.policies.keys().filter(of).cloned());
            self.peers.see_workloads(&namespaces, root);
        }
    }

    /// A step became a generation: what it brought has to be acknowledged at it.
    pub fn published(&mut self, generation: u64, step: &Step) {
        let delta = &step.delta;
        for policy in &delta.policies {
            if let Some(entry) = self.policies.get_mut(&policy.name) {
                entry.since.layer4 = generation;
                self.unreported.insert(policy.name.clone());
            }
        }
        let moved = std::mem::take(&mut self.moved);
        if !(delta.workloads.is_empty() && delta.removed_workloads.is_empty()) {
            for name in moved {
                if let Some(entry) = self.policies.get_mut(&name) {
                    entry.since.addresses = generation;
                }
            }
        }
        self.unreported.extend(step.http_policies.iter().map(|policy| policy.what.policy.name.clone()));
        self.sent.published(generation);
        self.peers.published(generation, step);
        self.tokens.published(generation, step);
    }
}

/// Names of the Services that a step changes, as they are sent.
fn changed_services(step: &Step) -> BTreeSet<String> {
    let delta = &step.delta;
    let changed = delta.services.iter().map(|service| service.key.to_string());
    changed.chain(delta.removed_services.iter().map(ToString::to_string)).collect()
}

/// Names of the Services among targets, as they are sent.
fn service_keys(targets: &[l7::Target]) -> Vec<String> {
    let key = |target: &l7::Target| match target {
        l7::Target::Service(key) => Some(key.to_string()),
        l7::Target::Gateway(_) | l7::Target::Backend(_) => None,
    };
    targets.iter().filter_map(key).collect()
}

/// Whether a proxy of a Gateway is connected.
fn is_connected(gateway: &NamespacedName, proxies: &[Proxy]) -> bool {
    proxies.iter().any(|proxy| matches!(&proxy.scope, Scope::Gateway(g) if g == gateway))
}

fn settings(mesh: &MeshConfig) -> l7::Settings {
    let usable = mesh.extension_providers.values().filter_map(|provider| provider.as_ref().ok());
    l7::Settings { path_normalization: mesh.path_normalization, providers: usable.cloned().collect() }
}

#[cfg(test)]
mod tests;
