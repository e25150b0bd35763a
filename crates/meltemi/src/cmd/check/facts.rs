// SPDX-License-Identifier: Apache-2.0
//! What the checks look at, read from a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::manifests::{self, Engine};

/// Namespace of the mesh.
pub const SYSTEM: &str = "istio-system";
/// Definitions that the mesh reads.
pub const DEFINITIONS: [&str; 9] = [
    "gatewayclasses.gateway.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "tlsroutes.gateway.networking.k8s.io",
    "referencegrants.gateway.networking.k8s.io",
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
    "requestauthentications.security.istio.io",
];

/// A cluster, as far as the checks look at it.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Version of the API server.
    pub version: String,
    /// When this was read.
    pub now: Timestamp,
    /// Whether the mesh is still to be installed.
    pub pre: bool,
    /// What could not be read, and why.
    pub unread: BTreeMap<&'static str, String>,
    /// Verbs on kinds that an installation needs and the caller has not.
    pub denied: Vec<String>,
    pub nodes: Vec<Node>,
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    /// Those of [`DEFINITIONS`] that are there.
    pub definitions: Vec<CustomResourceDefinition>,
    /// Of all namespaces.
    pub daemon_sets: Vec<DaemonSet>,
    pub control_plane: Option<Deployment>,
    pub lease: Option<Lease>,
    pub root: Option<ConfigMap>,
    pub webhook: Option<ValidatingWebhookConfiguration>,
    pub policies: Vec<DynamicObject>,
    pub network_policies: Vec<NetworkPolicy>,
}

/// Reads what the checks need. What cannot be read is named in `unread`.
///
/// # Errors
/// The API does not answer at all.
pub(super) async fn read(client: &Client, pre: bool) -> anyhow::Result<Facts> {
    let version = client.apiserver_version().await?.git_version;
    let mut facts = Facts { version, now: Timestamp::now(), pre, ..Facts::default() };
    let in_system = || SYSTEM;
    facts.definitions = definitions(client, &mut facts.unread).await;
    facts.namespaces = all(client, "namespaces", &mut facts.unread).await;
    facts.daemon_sets = all(client, "daemonsets", &mut facts.unread).await;
    let deployments = Api::namespaced(client.clone(), in_system());
    facts.control_plane = one(deployments, "istiod", "deployments", &mut facts.unread).await;
    if pre {
        facts.denied = denied(client, &mut facts.unread).await;
        return Ok(facts);
    }
    facts.nodes = all(client, "nodes", &mut facts.unread).await;
    facts.pods = all(client, "pods", &mut facts.unread).await;
    facts.network_policies = all(client, "networkpolicies", &mut facts.unread).await;
    let leases = Api::namespaced(client.clone(), in_system());
    facts.lease = one(leases, "istio-leader", "leases", &mut facts.unread).await;
    let configs = Api::namespaced(client.clone(), in_system());
    facts.root = one(configs, "istio-ca-root-cert", "configmaps", &mut facts.unread).await;
    let hooks = Api::all(client.clone());
    let (hook, what) = ("istio-validator-istio-system", "validatingwebhookconfigurations");
    facts.webhook = one(hooks, hook, what, &mut facts.unread).await;
    facts.policies = policies(client, &mut facts.unread).await;
    Ok(facts)
}

type Unread = BTreeMap<&'static str, String>;

/// What was read, or else what it takes to go on without it.
fn or_unread<T: Default>(read: kube::Result<T>, what: &'static str, unread: &mut Unread) -> T {
    read.unwrap_or_else(|error| {
        unread.insert(what, error.to_string());
        T::default()
    })
}

async fn all<K>(client: &Client, what: &'static str, unread: &mut Unread) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let listed = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    or_unread(listed.map(|list| list.items), what, unread)
}

async fn one<K>(api: Api<K>, name: &str, what: &'static str, unread: &mut Unread) -> Option<K>
where
    K: Clone + DeserializeOwned + Debug,
{
    or_unread(api.get_opt(name).await, what, unread)
}

async fn definitions(client: &Client, unread: &mut Unread) -> Vec<CustomResourceDefinition> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut found = Vec::new();
    for name in DEFINITIONS {
        found.extend(or_unread(api.get_opt(name).await, "customresourcedefinitions", unread));
    }
    found
}

/// The policies; none where their definition is missing.
async fn policies(client: &Client, unread: &mut Unread) -> Vec<DynamicObject> {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "authorizationpolicies");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        error => or_unread(error.map(|list| list.items), "authorizationpolicies", unread),
    }
}

/// A kind of an installation's objects, where they are.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Installed {
    group: String,
    plural: String,
    namespace: Option<String>,
}

/// What an installation does, and the caller may not.
async fn denied(client: &Client, unread: &mut Unread) -> Vec<String> {
    let objects = manifests::objects(Engine::Kubernetes).unwrap_or_default();
    let kinds: BTreeSet<Installed> = objects
        .iter()
        .filter_map(|object| {
            let kind = GroupVersionKind::try_from(object.types.as_ref()?).ok()?;
            let plural = ApiResource::from_gvk(&kind).plural;
            Some(Installed { group: kind.group, plural, namespace: object.metadata.namespace.clone() })
        })
        .collect();
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut denied = Vec::new();
    for Installed { group, plural, namespace } in kinds {
        for verb in ["get", "create", "patch"] {
            let mut review = SelfSubjectAccessReview::default();
            review.spec.resource_attributes = Some(ResourceAttributes {
                group: Some(group.clone()),
                resource: Some(plural.clone()),
                namespace: namespace.clone(),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            });
            let answer = api.create(&PostParams::default(), &review).await;
            let answer = or_unread(answer.map(Some), "selfsubjectaccessreviews", unread);
            if answer.and_then(|review| review.status).is_some_and(|status| !status.allowed) {
                denied.push(format!("{verb} {plural}"));
            }
        }
    }
    denied
}
