// SPDX-License-Identifier: Apache-2.0
//! The one owner of what is known: takes changes from the watchers, computes what depends on them, hands the
//! differences on.
//!
//! Nothing is published before every kind has been listed once, or is known to be missing: half a mesh would take policies
//! and workloads away from proxies that have held on to them since before a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway_api::gateways::Gateway;
use meltemi_kubeclient::Watches;
use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_translate::gateways::{classes, deployment};
use meltemi_translate::labels;
use meltemi_translate::routes::{RouteKind, RouteName, Table};
use meltemi_translate::waypoints::WaypointFacts;
use meltemi_translate::{Change, Index, MeshConfig};
use meltemi_wire::xds::server::Publisher;
use tokio::sync::{mpsc, watch};

use crate::access::GatewayAccounts;
use crate::gateways::Gateways;
use crate::jwks::Keys;
use crate::metrics::ControlMetrics;
use crate::namespaces::Namespaces;
use crate::pods::Directory;
use crate::publish::{self, Step};
use crate::review::{Inbox, Message};
use crate::security::{Security, World};
use crate::source::{Event, Kind, Object};
use crate::status::StatusQueue;
use crate::statuses;
use crate::xds::Proxies;

/// Changes that arrive within so much of each other are computed together.
const DEBOUNCE: Duration = Duration::from_millis(1);
/// Changes that are computed together at most.
const TOGETHER: usize = 4096;

/// Where the engine hands things on; cheap to clone.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// Pods, for the CA.
    pub pods: Directory,
    /// Service accounts of gateways, for xDS.
    pub accounts: GatewayAccounts,
    /// Gateways, for their controller.
    pub gateways: Gateways,
    /// Namespaces, for the root certificate.
    pub namespaces: Namespaces,
    /// Statuses.
    pub status: StatusQueue,
    /// What the proxies are sent.
    pub publisher: Publisher,
    /// What the proxies say.
    pub proxies: Proxies,
    /// Keys of issuers.
    pub keys: Keys,
    /// What is counted.
    pub metrics: ControlMetrics,
    /// How the watches of the API stand.
    pub watches: Watches,
    /// True once the whole mesh has been published.
    pub published: watch::Sender<bool>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    index: Index,
    table: Table,
    security: Security,
    /// Gateways as they are written.
    written: BTreeMap<NamespacedName, Arc<Gateway>>,
    /// The controllers of GatewayClasses.
    classes: BTreeMap<Arc<str>, String>,
    outlets: Outlets,
    /// The settings of the start.
    started: MeshConfig,
    /// Kinds that have not been listed yet.
    unlisted: BTreeSet<Kind>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(mesh: MeshConfig, outlets: Outlets) -> Self {
        Self {
            security: Security::new(mesh.clone(), outlets.proxies.clone(), outlets.keys.clone()),
            started: mesh.clone(),
            index: Index::new(mesh),
            table: Table::default(),
            written: BTreeMap::new(),
            classes: BTreeMap::new(),
            outlets,
            unlisted: Kind::ALL.into_iter().collect(),
        }
    }

    /// Runs until the watchers end.
    pub fn start(mut self, tasks: &Tasks, mut events: mpsc::Receiver<Event>, mut review: Inbox) {
        let mut drain = tasks.drain();
        tasks.spawn("engine", async move {
            let mut said = self.outlets.proxies.follow();
            let mut keys = self.outlets.keys.follow_changes();
            loop {
                let first = tokio::select! {
                    () = drain.started() => return Ok::<(), Infallible>(()),
                    event = events.recv() => event,
                    Some(message) = review.messages.recv() => {
                        self.reviewed(message);
                        continue;
                    }
                    _ = keys.changed() => {
                        self.keys_changed();
                        continue;
                    }
                    _ = said.changed() => {
                        self.acknowledged();
                        continue;
                    }
                };
                let Some(first) = first else { return Ok(()) };
                self.take(first);
                self.gather(&mut events).await;
                if self.unlisted.is_empty() {
                    self.flush();
                    if self.security.take_unreviewed() {
                        review.due.notify_one();
                    }
                }
            }
        });
    }

    /// Proxies have come, gone or acknowledged something: Gateways lose what they have left, and statuses follow.
    pub fn acknowledged(&mut self) {
        if self.security.see_acknowledged() && self.unlisted.is_empty() {
            self.flush();
        }
        self.security.acknowledged(&self.index, &self.outlets.status);
    }

    /// Keys of an issuer have come, changed or gone.
    pub fn keys_changed(&mut self) {
        self.security.see_keys();
        if self.unlisted.is_empty() {
            self.flush();
        }
    }

    fn reviewed(&mut self, message: Message) {
        match message {
            // Who asked may have ended with the process.
            Message::Ask(answer) => drop(answer.send(self.security.subject(&self.index))),
            Message::Found(subject, remarks) => {
                self.security.remark(&subject, remarks);
                self.security.report(&self.index, &self.outlets.status);
            }
        }
    }

    /// Takes what else arrives right now, and within the debounce.
    async fn gather(&mut self, events: &mut mpsc::Receiver<Event>) {
        let until = tokio::time::Instant::now() + DEBOUNCE;
        for _ in 0..TOGETHER {
            match tokio::time::timeout_at(until, events.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Takes one event.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Synced(kind) => {
                self.unlisted.remove(&kind);
                self.outlets.metrics.missing(kind, false);
            }
            // What was known of the kind before stays in force.
            Event::Missing(kind, why) => {
                tracing::warn!(?kind, why, "the mesh does without this kind");
                self.unlisted.remove(&kind);
                self.outlets.metrics.missing(kind, true);
            }
            Event::Changed(kind, name, object) => self.changed(kind, name, object),
            Event::Gone(kind, name) => self.gone(kind, name),
        }
    }

    fn changed(&mut self, kind: Kind, name: NamespacedName, object: Object) {
        match object {
            Object::Pod(pod) => {
                self.outlets.pods.set(&name, Some(&pod));
                if let Some(gateway) = pod.labels.get(labels::GATEWAY_NAME) {
                    let gateway = NamespacedName::new(name.namespace.clone(), gateway.as_str());
                    self.security.see_gateway(&gateway);
                }
                if self.index.pod(&name).is_none_or(|before| before.passage_facts() != pod.passage_facts()) {
                    self.security.see_capture(&name.namespace);
                }
                self.index.apply(Change::Pod(name, Some(pod)));
            }
            Object::Service(service) => {
                self.table.see_service(&name);
                self.security.see_service(&name);
                self.index.apply(Change::Service(name, Some(service)));
            }
            Object::Slice(slice) => self.index.apply(Change::Slice(name, slice)),
            Object::Namespace(facts) => {
                self.outlets.namespaces.add(&name.name);
                self.table.see_namespace(&name.name);
                self.security.see_capture(&name.name);
                self.index.apply(Change::Namespace(name.name, Some(facts)));
            }
            Object::Node(locality) => self.index.apply(Change::Node(name.name, Some(locality))),
            Object::GatewayClass(facts) => {
                if let Some(class) = classes::by_controller(&facts.controller) {
                    statuses::class(&self.outlets.status, &name, class, &facts);
                }
                self.set_class(name.name, Some(facts.controller));
            }
            Object::Secret(certificate) => self.table.set_certificate(&name, Some(certificate)),
            Object::Gateway(gateway) => self.take_gateway(name, gateway),
            Object::Route(kind, route) => self.table.set_route(&RouteName { name, kind }, Some(route)),
            Object::ReferenceGrant(grant) => self.table.set_grant(&name, Some(grant)),
            Object::Security(object) => self.security.set(kind, &name, Some(&object)),
            Object::MeshConfig(text) => self.configure(&text),
        }
    }

    /// Takes a Gateway. One of a class that somebody has made for a controller of ours is one of the controller's own class.
    fn take_gateway(&mut self, name: NamespacedName, mut gateway: Arc<Gateway>) {
        self.written.insert(name.clone(), gateway.clone());
        let class = &gateway.spec.gateway_class_name;
        let made = self.classes.get(&**class).and_then(|controller| classes::by_controller(controller));
        if classes::of(class).is_none()
            && let Some(class) = made
        {
            Arc::make_mut(&mut gateway).spec.gateway_class_name = class.name().to_owned();
        }
        let account = deployment::service_account(&gateway);
        self.outlets.accounts.set(&name, account.as_deref());
        let waypoint = WaypointFacts::read(&gateway, self.index.mesh());
        self.index.apply(Change::Waypoint(name.clone(), waypoint));
        self.security.set_gateway(&name, Some(&gateway));
        self.table.set_gateway(&name, Some(gateway.clone()));
        self.outlets.gateways.set(&name, gateway);
    }

    /// A GatewayClass is for another controller now, or gone: so are its Gateways.
    fn set_class(&mut self, class: Arc<str>, controller: Option<String>) {
        let before = match &controller {
            Some(controller) => self.classes.insert(class.clone(), controller.clone()),
            None => self.classes.remove(&class),
        };
        if before == controller {
            return;
        }
        let of_class = self.written.iter().filter(|(_, gateway)| gateway.spec.gateway_class_name == *class);
        let of_class: Vec<_> = of_class.map(|(name, gateway)| (name.clone(), gateway.clone())).collect();
        for (name, gateway) in of_class {
            self.take_gateway(name, gateway);
        }
    }

    fn gone(&mut self, kind: Kind, name: NamespacedName) {
        match kind {
            Kind::Pod => {
                self.outlets.pods.set(&name, None);
                self.security.see_capture(&name.namespace);
                self.index.apply(Change::Pod(name, None));
            }
            Kind::Service => {
                self.table.see_service(&name);
                self.security.see_service(&name);
                self.index.apply(Change::Service(name, None));
            }
            Kind::Slice => self.index.apply(Change::Slice(name, None)),
            Kind::Namespace => {
                self.outlets.namespaces.remove(&name.name);
                self.table.see_namespace(&name.name);
                self.index.apply(Change::Namespace(name.name, None));
            }
            Kind::Node => self.index.apply(Change::Node(name.name, None)),
            Kind::GatewayClass => self.set_class(name.name, None),
            Kind::Secret => self.table.set_certificate(&name, None),
            Kind::Gateway => {
                self.written.remove(&name);
                self.outlets.accounts.set(&name, None);
                self.index.apply(Change::Waypoint(name.clone(), None));
                self.security.set_gateway(&name, None);
                self.table.set_gateway(&name, None);
                self.outlets.gateways.remove(&name);
            }
            Kind::HttpRoute => self.table.set_route(&RouteName { name, kind: RouteKind::Http }, None),
            Kind::GrpcRoute => self.table.set_route(&RouteName { name, kind: RouteKind::Grpc }, None),
            Kind::TlsRoute => self.table.set_route(&RouteName { name, kind: RouteKind::Tls }, None),
            Kind::ReferenceGrant => self.table.set_grant(&name, None),
            Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication => {
                self.security.set(kind, &name, None);
            }
            Kind::MeshConfig => self.configure(""),
        }
    }

    /// Takes the settings of the mesh's ConfigMap, over those that this process was started with.
    fn configure(&mut self, text: &str) {
        let configured = match self.started.configured(text) {
            Ok(configured) => configured,
            Err(reason) => {
                tracing::error!(%reason, "the mesh's configuration is not understood; what was known of it stays");
                return;
            }
        };
        for ignored in MeshConfig::ignored(text) {
            tracing::warn!("the mesh's configuration: {ignored}");
        }
        let now = self.index.mesh();
        if (&configured.trust_domain, &configured.root_namespace) != (&now.trust_domain, &now.root_namespace)
        {
            tracing::warn!(
                trust_domain = %configured.trust_domain, root_namespace = %configured.root_namespace,
                "the trust domain and the root namespace are settings of the start (TRUST_DOMAIN); those of the ConfigMap are not taken"
            );
        }
        let mesh = MeshConfig {
            trust_domain_aliases: configured.trust_domain_aliases,
            path_normalization: configured.path_normalization,
            extension_providers: configured.extension_providers,
            ..now.clone()
        };
        self.index.set_mesh(mesh.clone());
        self.security.set_mesh(mesh);
    }

    /// Computes what is different and hands it on.
    pub fn flush(&mut self) {
        for change in self.security.changes() {
            self.index.apply(change);
        }
        let delta = self.index.flush();
        for service in &delta.bindings {
            self.table.see_service(service);
            self.security.see_service(service);
        }
        let routed = self.table.flush(&self.index);
        let mut step = Step { delta, routed, ..Step::default() };
        let world = World { index: &self.index, gateways: &self.outlets.accounts, mesh: self.index.mesh() };
        self.security.flush(&world, &mut step);
        let generation = publish::publish(&self.outlets.publisher, &step);
        self.outlets.metrics.published(generation, Instant::now());
        self.security.published(generation, &step);
        self.outlets.published.send_replace(true);
        for (service, conditions) in &step.delta.service_conditions {
            let facts = self.index.service(service);
            statuses::service(
                &self.outlets.status,
                service,
                facts.and_then(|f| f.generation),
                conditions.clone(),
            );
        }
        for (route, generation, attached) in &step.routed.statuses {
            statuses::route(&self.outlets.status, route, *generation, attached);
        }
        for (gateway, unresolved) in step.routed.unresolved {
            self.outlets.gateways.set_unresolved(&gateway, unresolved);
        }
        for (gateway, counts) in step.routed.attached {
            self.outlets.gateways.set_attached(&gateway, counts);
        }
        self.security.report(&self.index, &self.outlets.status);
    }
}

#[cfg(test)]
mod incomplete;
#[cfg(test)]
mod tests;
