// SPDX-License-Identifier: Apache-2.0
//! The gateway controller: what stands behind each Gateway, and what its status says.
//!
//! Objects are applied (server-side) when the Gateway or one of them changes; they are removed by the garbage
//! collector through their owner. An object of that name that was not made by a gateway controller is never
//! touched.

mod observed;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gateway_api::gateways::Gateway;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use meltemi_kubeclient::Watches;
use meltemi_model::NamespacedName;
use meltemi_runtime::Tasks;
use meltemi_translate::MeshConfig;
use meltemi_translate::gateways::classes::Class;
use meltemi_translate::gateways::deployment::{self, FIELD_MANAGER, ProxyTemplate};
use meltemi_translate::gateways::status::{self, Observed};
use meltemi_translate::labels;
use meltemi_translate::routes::table::Unresolved;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::leader::Leadership;
use crate::status::{Key, StatusQueue, Wish, untimed};

const AGAIN: Duration = Duration::from_secs(1);

/// Gateways as the engine knows them; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Gateways(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    gateways: HashMap<NamespacedName, Arc<Gateway>>,
    /// Routes by Gateway and listener.
    attached: HashMap<NamespacedName, BTreeMap<String, u32>>,
    /// References of listeners that lead nowhere, by Gateway and listener.
    unresolved: HashMap<NamespacedName, Unresolved>,
    /// What is deployed, by Gateway.
    observed: HashMap<NamespacedName, Observed>,
    due: BTreeSet<NamespacedName>,
    /// Watchers of what is deployed that have not listed it yet.
    unsynced: BTreeSet<&'static str>,
}

impl Gateways {
    /// A Gateway is new or changed.
    pub fn set(&self, name: &NamespacedName, gateway: Arc<Gateway>) {
        self.update(name, |state| {
            state.gateways.insert(name.clone(), gateway);
        });
    }

    /// A Gateway is gone.
    pub fn remove(&self, name: &NamespacedName) {
        self.update(name, |state| {
            state.gateways.remove(name);
            state.attached.remove(name);
            state.unresolved.remove(name);
            state.observed.remove(name);
        });
    }

    /// Routes attached to each listener of a Gateway.
    pub fn set_attached(&self, name: &NamespacedName, routes: BTreeMap<String, u32>) {
        self.update(name, |state| {
            state.attached.insert(name.clone(), routes);
        });
    }

    /// References of each listener of a Gateway that lead nowhere.
    pub fn set_unresolved(&self, name: &NamespacedName, unresolved: Unresolved) {
        self.update(name, |state| {
            state.unresolved.insert(name.clone(), unresolved);
        });
    }

    /// Changes what was seen of the objects behind a Gateway.
    fn observe(&self, name: &NamespacedName, change: impl FnOnce(&mut Observed)) {
        self.update(name, |state| change(state.observed.entry(name.clone()).or_default()));
    }

    /// A watcher of what is deployed is about to list it: until it has, nothing is known and nothing is written.
    fn expect(&self, watcher: &'static str) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).unsynced.insert(watcher);
    }

    fn synced(&self, watcher: &'static str) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).unsynced.remove(watcher);
        self.0.more.notify_one();
    }

    fn is_synced(&self) -> bool {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).unsynced.is_empty()
    }

    fn update(&self, name: &NamespacedName, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.due.insert(name.clone());
        drop(state);
        self.0.more.notify_one();
    }

    fn take(&self) -> BTreeSet<NamespacedName> {
        std::mem::take(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner).due)
    }

    fn read(&self, name: &NamespacedName) -> Option<Known> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Known {
            gateway: state.gateways.get(name)?.clone(),
            observed: state.observed.get(name).cloned().unwrap_or_default(),
            attached: state.attached.get(name).cloned().unwrap_or_default(),
            unresolved: state.unresolved.get(name).cloned().unwrap_or_default(),
        })
    }

    fn again(&self, name: NamespacedName) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).due.insert(name);
        self.0.more.notify_one();
    }
}

/// What is known of one Gateway.
struct Known {
    gateway: Arc<Gateway>,
    observed: Observed,
    attached: BTreeMap<String, u32>,
    unresolved: Unresolved,
}

/// What the controller works with.
#[derive(Clone)]
pub struct Controller {
    /// The API.
    pub client: Client,
    /// The Gateways.
    pub gateways: Gateways,
    /// Where statuses go.
    pub status: StatusQueue,
    /// What the proxies run.
    pub template: ProxyTemplate,
    /// The mesh's settings.
    pub mesh: MeshConfig,
    /// Whether this replica writes.
    pub leader: Leadership,
    /// How the watchers stand.
    pub watches: Watches,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("template", &self.template).finish_non_exhaustive()
    }
}

impl Controller {
    /// Starts the controller and its watchers.
    pub fn start(self, tasks: &Tasks) {
        observed::start(self.client.clone(), tasks, &self.gateways, &self.watches);
        let mut drain = tasks.drain();
        tasks.spawn("gateway controller", async move {
            tokio::select! {
                () = drain.started() => {}
                () = self.run() => {}
            }
            Ok::<(), Infallible>(())
        });
    }

    async fn run(mut self) {
        self.leader.acquired().await;
        let mut said = String::new();
        while let Err(error) = self.classes().await {
            // Where Gateway API is not installed it fails for as long.
            if said != error.to_string() {
                said = error.to_string();
                tracing::warn!(%error, "GatewayClasses not written, trying again");
            }
            tokio::time::sleep(AGAIN).await;
        }
        loop {
            self.leader.acquired().await;
            if !self.gateways.is_synced() {
                self.gateways.0.more.notified().await;
                continue;
            }
            let mut failed = Vec::new();
            for name in self.gateways.take() {
                if let Err(error) = self.reconcile(&name).await {
                    tracing::warn!(gateway = %name, %error, "gateway not deployed, trying again");
                    failed.push(name);
                }
            }
            if !failed.is_empty() {
                tokio::time::sleep(AGAIN).await;
                failed.into_iter().for_each(|name| self.gateways.again(name));
            }
            self.gateways.0.more.notified().await;
        }
    }

    /// Creates the GatewayClasses that are not there.
    async fn classes(&self) -> Result<(), kube::Error> {
        let resource = resource("gateway.networking.k8s.io", "v1", "GatewayClass", "gatewayclasses");
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        for class in Class::ALL {
            let existing = api.get_opt(class.name()).await?;
            if existing.is_none() {
                api.patch(class.name(), &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(class.object()))
                    .await?;
            } else if existing.is_some_and(|e| e.data["spec"]["controllerName"] != class.controller()) {
                tracing::warn!(class = class.name(), "this GatewayClass belongs to another controller");
            }
        }
        Ok(())
    }

    async fn reconcile(&self, name: &NamespacedName) -> Result<(), kube::Error> {
        let Some(Known { gateway, mut observed, attached, unresolved }) = self.gateways.read(name) else {
            return Ok(());
        };
        match deployment::render(&gateway, &self.template, &self.mesh) {
            Ok(managed) => {
                for object in &managed.objects {
                    self.apply(&managed.name.namespace, object).await?;
                }
            }
            Err(deployment::Skip::Deleted) => return Ok(()),
            Err(reason) => tracing::debug!(gateway = %name, ?reason, "nothing is deployed"),
        }
        let addresses = gateway.status.as_ref().and_then(|s| s.addresses.as_ref());
        observed.had_addresses = addresses.is_some_and(|a| !a.is_empty());
        if let Some(report) = status::report(&gateway, &observed, &attached, &unresolved, &self.mesh) {
            let key = Key {
                api_version: "gateway.networking.k8s.io/v1",
                kind: "Gateway",
                plural: "gateways",
                name: name.clone(),
                manager: FIELD_MANAGER,
            };
            self.status.set(key, Wish::Whole(status_json(&report, gateway.metadata.generation)));
        }
        Ok(())
    }

    /// Applies one object, unless there is one of that name that is not a gateway controller's.
    async fn apply(&self, namespace: &str, object: &Value) -> Result<(), kube::Error> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let plural = format!("{}s", kind.to_lowercase());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(group, version, &kind, &plural));
        let name = text(&object["metadata"]["name"]);
        if let Some(existing) = api.get_opt(&name).await? {
            let managed = existing.metadata.labels.as_ref().is_some_and(|l| l.contains_key(labels::MANAGED));
            if !managed {
                tracing::warn!(%kind, namespace, %name, "exists and is not managed by a gateway controller: left alone");
                return Ok(());
            }
        }
        api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
        Ok(())
    }
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// The status as the API writes it, but for the transition times.
fn status_json(report: &status::Report, generation: Option<i64>) -> Value {
    let listeners: Vec<Value> = report
        .listeners
        .iter()
        .map(|l| {
            let kinds: Vec<Value> = l
                .supported
                .iter()
                .map(|kind| json!({ "group": "gateway.networking.k8s.io", "kind": kind }))
                .collect();
            json!({
                "name": l.name,
                "attachedRoutes": l.attached,
                "supportedKinds": kinds,
                "conditions": untimed(&l.conditions, generation),
            })
        })
        .collect();
    let addresses: Vec<Value> =
        report.addresses.iter().map(|(kind, value)| json!({ "type": kind, "value": value })).collect();
    let conditions = untimed(&report.conditions, generation);
    json!({ "addresses": addresses, "conditions": conditions, "listeners": listeners })
}
