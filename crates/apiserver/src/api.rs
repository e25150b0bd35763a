// SPDX-License-Identifier: Apache-2.0
//! What every request handler has at hand: store, registry, authorization, the clock and the addresses to give out.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use meltemi_runtime::Tasks;
use serde_json::Value;

use crate::admission::Policies;
use crate::auth::{Auth, Objects};
use crate::limits::InFlight;
use crate::metrics::ApiMetrics;
use crate::pki::{Pki, PkiError};
use crate::registry::Registry;
use crate::store::Store;
use crate::streaming::Streaming;

/// A kind, built-in or custom, whose objects are stored and not acted on. A client that creates one gets a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inert {
    /// Its group, empty for the core.
    pub group: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// What to use instead, as a clause; empty when there is nothing.
    pub instead: &'static str,
}

impl Inert {
    /// What is said to who makes one.
    pub fn warning(&self) -> String {
        let instead = if self.instead.is_empty() { String::new() } else { format!("; {}", self.instead) };
        format!("the {} is stored, but nothing in this cluster acts on it{instead}", self.kind)
    }
}

/// The API; clones share it.
#[derive(Clone, Debug)]
pub struct Api {
    /// The objects.
    pub store: Store,
    /// The resources.
    pub registry: Registry,
    /// Who may what.
    pub auth: Arc<Auth>,
    /// Address of the Service `kubernetes`.
    pub advertise: IpAddr,
    /// Streams of Pods.
    pub streaming: Streaming,
    /// Kinds that nobody acts on.
    pub inert: Arc<[Inert]>,
    /// Jobs that write bodies.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: ApiMetrics,
    /// Requests in flight.
    pub in_flight: InFlight,
    /// One allocation at a time: the choice of an address and its storing must not interleave.
    pub allocation: Arc<tokio::sync::Mutex<()>>,
    /// One eviction at a time: what a budget allows must not be taken twice.
    pub eviction: Arc<tokio::sync::Mutex<()>>,
    /// The policies that judge what is written.
    pub policies: Policies,
    /// API groups whose custom resources may not have unknown fields, whatever the client asks for.
    pub strict_groups: &'static [&'static str],
}

impl Api {
    /// An API over a store; what its CustomResourceDefinitions define is served at once.
    ///
    /// # Errors
    /// The keys cannot be used.
    pub fn new(store: Store, pki: &Pki, advertise: IpAddr, tasks: &Tasks) -> Result<Self, PkiError> {
        let registry = Registry::new();
        for definition in store.list("apiextensions.k8s.io/customresourcedefinitions", None, None).0 {
            registry.add_definition(&definition.value);
        }
        let objects = Arc::new(StoreObjects(store.clone()));
        let auth = Auth::new(objects.clone(), pki)?;
        let streaming = Streaming::new(objects, pki, tasks.clone())?;
        let (allocation, eviction, inert) = Default::default();
        let auth = Arc::new(auth);
        Ok(Self {
            store,
            registry,
            auth,
            advertise,
            inert,
            tasks: tasks.clone(),
            metrics: ApiMetrics::default(),
            in_flight: InFlight::default(),
            allocation,
            eviction,
            streaming,
            policies: Policies::default(),
            strict_groups: &[],
        })
    }

    /// An object of a built-in resource.
    pub fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.store.get(&format!("{group}/{resource}"), namespace, name).map(|stored| stored.value)
    }

    /// Writes into aggregated ClusterRoles what they gather; called when a ClusterRole has changed.
    pub fn aggregate_roles(&self) {
        const RESOURCE: &str = "rbac.authorization.k8s.io/clusterroles";
        for role in self.auth.outdated_aggregates() {
            let name = role["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let revision = role["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
            // A conflict is another write, which calls this again.
            if let Some(revision) = revision
                && let Err(error) = self.store.replace(RESOURCE, "", &name, revision, role)
            {
                tracing::debug!(%name, %error, "aggregated role not written");
            }
        }
    }

    /// Now, as Kubernetes writes times.
    pub fn now(&self) -> String {
        jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A free address for a Service, in 10.96.0.0/16 without the first 255 (fixed addresses of the cluster).
    pub fn free_cluster_ip(&self) -> Option<Ipv4Addr> {
        let used: std::collections::HashSet<String> = self
            .store
            .list("/services", None, None)
            .0
            .iter()
            .filter_map(|service| service.value["spec"]["clusterIP"].as_str().map(str::to_owned))
            .collect();
        let free = |address: &Ipv4Addr| !used.contains(&address.to_string());
        let candidate = || {
            let [high, low] = rand::random::<u16>().to_be_bytes();
            Ipv4Addr::new(10, 96, high.max(1), low)
        };
        (0..64).map(|_| candidate()).find(free).or_else(|| {
            (0x0100..=0xfffe_u16).map(u16::to_be_bytes).map(|[h, l]| Ipv4Addr::new(10, 96, h, l)).find(free)
        })
    }
}

/// The live objects, as authentication and authorization read them.
struct StoreObjects(Store);

impl Objects for StoreObjects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.0.get(&format!("{group}/{resource}"), namespace, name).map(|stored| stored.value)
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.0.list(&format!("{group}/{resource}"), namespace, None).0.into_iter().map(|s| s.value).collect()
    }

    fn rbac_revision(&self) -> u64 {
        // May change more often than the group's objects do; the four resources' own last revisions are exact.
        ["roles", "rolebindings", "clusterroles", "clusterrolebindings"]
            .iter()
            .map(|plural| self.0.last_change(&format!("rbac.authorization.k8s.io/{plural}")))
            .max()
            .unwrap_or_default()
    }
}
