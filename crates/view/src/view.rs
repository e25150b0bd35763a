// SPDX-License-Identifier: Apache-2.0
//! The view: runs the xDS client, keeps the snapshot, and acknowledges when it is in use and open connections are judged.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use meltemi_identity::channel::ControlPlane;
use meltemi_model::NamespacedName;
use meltemi_model::l7::{HttpPolicy, Jwt, Listener, Route, Settings, TlsSecret};
use meltemi_runtime::{DrainWatch, Ready, Tasks};
use meltemi_state::{Delta, Snapshot};
use meltemi_wire::convert::{self, Address};
use meltemi_wire::xds::client::{self, Handler, Rejected, Update};
use meltemi_wire::xds::types;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::mesh::targeted::Documents;
use crate::mesh::{Mesh, ValidHttpPolicy, ValidJwt};
use crate::registry::{Changes, PATIENCE, Registry};

/// Interval between two checks, during a drain, of whether all connections have ended.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What the view is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the control plane is.
    pub control: ControlPlane,
    /// Node id.
    pub node_id: String,
    /// Node metadata.
    pub metadata: BTreeMap<String, String>,
    /// Types to subscribe to.
    pub types: Vec<&'static str>,
}

/// The view of a proxy; clones share it.
#[derive(Clone, Debug)]
pub struct View {
    mesh: Arc<ArcSwap<Mesh>>,
    changes: watch::Sender<u64>,
    /// What is open.
    pub registry: Registry<Mesh>,
    /// What may still bring something that is judged; see [`View::serving`].
    serving: Arc<AtomicUsize>,
}

/// Keeps a view up to date during a drain, until it is dropped; see [`View::serving`].
#[derive(Debug)]
pub struct Serving(Arc<AtomicUsize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl View {
    /// A view that nobody fills: for tests.
    pub fn fixed(mesh: Mesh) -> Self {
        Self {
            mesh: Arc::new(ArcSwap::from_pointee(mesh)),
            changes: watch::channel(0).0,
            registry: Registry::default(),
            serving: Arc::default(),
        }
    }

    /// Starts the client. `ready` is said when everything of every type has been heard once and is in use; until then
    /// nothing is judged ([`Mesh::heard`]).
    pub fn start(config: Config, ready: Ready, tasks: &Tasks) -> Self {
        let unheard = config.types.iter().map(|t| (*t).to_owned()).collect();
        let mesh = Mesh { unheard, ..Mesh::default() };
        let view = Self::fixed(mesh.clone());
        let sink = Sink { view: view.clone(), mesh, ready: Some(ready) };
        let control = config.control.clone();
        let token = config.control;
        let client =
            client::Config { node_id: config.node_id, metadata: config.metadata, types: config.types };
        let (last, also_last) = (view.last_served(tasks.drain()), view.last_served(tasks.drain()));
        tasks.spawn("xds", async move {
            let connect = || control.connect();
            tokio::select! {
                () = client::run(client, sink, connect, move || token.read_token()) => {}
                () = last => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        let patience = view.clone();
        tasks.spawn("patience", async move {
            tokio::pin!(also_last);
            // What waits for a policy that does not come must not wait for the next change.
            let mut tick = tokio::time::interval(Duration::from_millis(250));
            loop {
                tokio::select! {
                    _ = tick.tick() => {
                        if patience.registry.has_undecided() {
                            patience.registry.judge_again(&patience.mesh(), &Changes::All);
                        }
                    }
                    () = &mut also_last => return Ok::<(), std::convert::Infallible>(()),
                }
            }
        });
        view
    }

    /// Resolves in a drain when nothing is open and nothing may come any more: what is open is judged to its end, and so is
    /// what still comes, but nothing else holds the process.
    pub fn last_served(&self, mut drain: DrainWatch) -> impl Future<Output = ()> + Send + use<> {
        let (open, serving) = (self.registry.clone(), self.serving.clone());
        async move {
            drain.started().await;
            while !open.is_empty() || serving.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
            }
        }
    }

    /// What is known now.
    pub fn mesh(&self) -> Arc<Mesh> {
        self.mesh.load_full()
    }

    /// Says that something is served that may bring requests or connections, a listener or an idle connection: until this is
    /// dropped a drain does not end what keeps the view up to date, and nothing is judged by policies of before.
    pub fn serving(&self) -> Serving {
        self.serving.fetch_add(1, Ordering::Relaxed);
        Serving(self.serving.clone())
    }

    /// Wakes with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts a mesh into use: what opens from now on sees it, and what is open is judged by it. Returns how many were closed.
    pub fn publish(&self, mesh: Mesh) -> usize {
        self.mesh.store(Arc::new(mesh));
        let closed = self.registry.judge_again(&self.mesh(), &Changes::All);
        self.changes.send_modify(|n| *n += 1);
        closed
    }

    /// Judges what is open by what is known, since time has passed. Returns how many were closed.
    pub async fn judge_again(&self) -> usize {
        self.registry.judge_again_in_parts(&self.mesh(), &Changes::All).await
    }

    /// As [`View::publish`], of a mesh in which only `changes` differ from the one before it.
    async fn publish_changes(&self, mesh: Mesh, changes: &Changes) -> usize {
        self.mesh.store(Arc::new(mesh));
        let closed = self.registry.judge_again_in_parts(&self.mesh(), changes).await;
        self.changes.send_modify(|n| *n += 1);
        closed
    }

    /// Waits until everything has been heard once, for at most `limit`; whether it has.
    pub async fn heard(&self, limit: Duration) -> bool {
        self.wait_for(limit, |mesh| mesh.unheard.is_empty().then_some(())).await.is_some()
    }

    /// Resolves when `found` gives something, looking at every change, for at most `limit`.
    pub async fn wait_for<T>(&self, limit: Duration, found: impl Fn(&Mesh) -> Option<T>) -> Option<T> {
        let mut changes = self.changes();
        let waiting = async {
            loop {
                if let Some(value) = found(&self.mesh()) {
                    return value;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(limit, waiting).await.ok()
    }

    /// How long a new connection waits for what it lacks.
    pub fn patience() -> Duration {
        PATIENCE
    }
}

struct Sink {
    view: View,
    mesh: Mesh,
    ready: Option<Ready>,
}

impl Handler for Sink {
    async fn handle(&mut self, type_url: &str, updates: Vec<Update>) -> Vec<Rejected> {
        let count = updates.len();
        let changes = match type_url {
            types::ADDRESS => Changes::Addresses(updates.iter().map(|update| update.name.clone()).collect()),
            _ => Changes::All,
        };
        let rejected = self.apply(type_url, updates);
        for one in &rejected {
            tracing::error!(resource = %one.name, reason = %one.reason, "refused; what it says is not in force");
        }
        let closed = self.view.publish_changes(self.mesh.clone(), &changes).await;
        tracing::debug!(type_url, count, closed, "applied");
        rejected
    }

    fn complete(&mut self, type_url: &str) {
        if !self.mesh.unheard.remove(type_url) {
            return;
        }
        self.view.publish(self.mesh.clone());
        if self.mesh.unheard.is_empty()
            && let Some(ready) = self.ready.take()
        {
            ready.done();
        }
    }

    fn connected(&mut self, connected: bool) {
        tracing::info!(connected, "control plane");
    }
}

impl Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<Update>) -> Vec<Rejected> {
        let mesh = &mut self.mesh;
        match type_url {
            types::ADDRESS | types::AUTHORIZATION => snapshot(&mut mesh.snapshot, type_url, updates),
            types::HTTP_POLICY => {
                let policies = Arc::make_mut(&mut mesh.http_policies);
                let rejected = documents::<HttpPolicy, ValidHttpPolicy>(policies, updates.clone());
                guard(policies, &mut mesh.refused, "", &updates, &rejected);
                rejected
            }
            types::JWT => {
                let rejected = documents::<Jwt, ValidJwt>(&mut mesh.jwts, updates.clone());
                guard(&mut mesh.jwts, &mut mesh.refused, "RequestAuthentication ", &updates, &rejected);
                rejected
            }
            types::SETTINGS => documents::<Settings, _>(Arc::make_mut(&mut mesh.settings), updates),
            types::ROUTE => documents::<Route, _>(&mut mesh.routes, updates),
            types::LISTENER => documents::<Listener, _>(&mut mesh.listeners, updates),
            types::TLS_SECRET => documents::<TlsSecret, _>(Arc::make_mut(&mut mesh.secrets), updates),
            other => updates
                .into_iter()
                .map(|u| Rejected { name: u.name, reason: format!("type {other} was not asked for") })
                .collect(),
        }
    }
}

/// Of documents that let less through: one that was refused is not the one before it, and not none. `kind` tells those of
/// one type from those of another.
fn guard<T>(
    kept: &mut impl Documents<T>,
    refused: &mut BTreeMap<String, String>,
    kind: &str,
    updates: &[Update],
    rejected: &[Rejected],
) {
    for update in updates {
        refused.remove(&format!("{kind}{}", update.name));
    }
    for one in rejected {
        kept.forget(&one.name);
        refused.insert(format!("{kind}{}", one.name), one.reason.clone());
    }
}

/// Applies updates to the documents of one type; returns those that cannot be read or, as `T`, are not valid.
fn documents<D, T>(kept: &mut impl Documents<T>, updates: Vec<Update>) -> Vec<Rejected>
where
    D: DeserializeOwned,
    T: TryFrom<D, Error: Display>,
{
    let mut rejected = Vec::new();
    for Update { name, resource } in updates {
        let Some(bytes) = resource else {
            kept.forget(&name);
            continue;
        };
        let checked = convert::decode_l7::<D>(&bytes)
            .map_err(|invalid| invalid.to_string())
            .and_then(|document| T::try_from(document).map_err(|invalid| invalid.to_string()));
        match checked {
            Ok(value) => kept.put(name, Arc::new(value)),
            Err(reason) => rejected.push(Rejected { name, reason }),
        }
    }
    rejected
}

fn snapshot(snapshot: &mut Snapshot, type_url: &str, updates: Vec<Update>) -> Vec<Rejected> {
    let mut rejected = Vec::new();
    let mut deltas = HashMap::new();
    for Update { name, resource } in updates {
        let address = type_url == types::ADDRESS;
        // Of a policy that is refused, where it applies may be understood all the same.
        let scope = resource.as_ref().filter(|_| !address).and_then(|bytes| convert::policy_scope(bytes));
        let delta = match resource {
            None if address => Ok(Delta::AddressGone(name.clone())),
            None => name.parse().map(Delta::PolicyGone).map_err(|e| e.to_string()),
            Some(bytes) if address => Address::decode(&bytes).map_err(|e| e.to_string()).map(|a| match a {
                Address::Workload(workload) => Delta::Workload(Box::new(workload)),
                Address::Service(service) => Delta::Service(Box::new(service)),
            }),
            Some(bytes) => {
                convert::policy(&bytes).map_err(|e| e.to_string()).map(|p| Delta::Policy(Box::new(p)))
            }
        };
        match delta {
            Ok(delta) => drop(deltas.insert(name, delta)),
            Err(reason) => {
                if type_url == types::AUTHORIZATION {
                    let known = name.parse().unwrap_or_else(|_| NamespacedName::new("", name.as_str()));
                    let reason = reason.as_str().into();
                    deltas.insert(name.clone(), Delta::PolicyRefused { name: known, scope, reason });
                }
                rejected.push(Rejected { name, reason });
            }
        }
    }
    let invalid = snapshot.apply(deltas.into_values());
    rejected.extend(invalid.iter().map(|e| Rejected { name: e.policy.to_string(), reason: e.to_string() }));
    rejected
}

#[cfg(test)]
mod tests;
