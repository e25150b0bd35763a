// SPDX-License-Identifier: Apache-2.0
//! Watches the objects that the mesh is made of and hands each change on, once.
//!
//! A watcher re-lists after a break; what is no longer there is handed on as gone. An object that cannot be
//! read is named in the log and changes nothing: what was known of it stays in force.
//!
//! A kind that the cluster does not serve has no objects, and the mesh does without it (`definition`). So it does without
//! the objects of a kind that it may not list, where that takes access away and gives none ([`Kind::is_dispensable`]). Of all
//! others nothing is known until they have been listed, and nothing is published.

mod definition;
mod watched;

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::tlsroutes::TlsRoute;
use gateway_api::gatewayclasses::GatewayClass;
use gateway_api::gateways::Gateway;
use gateway_api::grpcroutes::GrpcRoute;
use gateway_api::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use meltemi_identity::tls;
use meltemi_kubeclient::Watches;
use meltemi_model::NamespacedName;
use meltemi_model::l7::TlsSecret;
use meltemi_model::workload::Locality;
use meltemi_runtime::Tasks;
use meltemi_translate::facts::{NamespaceFacts, PodFacts, ServiceFacts, SliceFacts, name_of, node_locality};
use meltemi_translate::gateways::certificates::Certificate;
use meltemi_translate::mesh::{CONFIG_KEY, CONFIG_MAP};
use meltemi_translate::routes::RouteKind;
use meltemi_translate::routes::grpc::{self, InvalidGrpcRoute};
use meltemi_translate::routes::tls as tls_route;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use self::watched::Watched;

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// EndpointSlices.
    Slice,
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
    /// GatewayClasses.
    GatewayClass,
    /// Gateways.
    Gateway,
    /// Secrets of type `kubernetes.io/tls`.
    Secret,
    /// HTTPRoutes.
    HttpRoute,
    /// GRPCRoutes.
    GrpcRoute,
    /// TLSRoutes.
    TlsRoute,
    /// ReferenceGrants.
    ReferenceGrant,
    /// AuthorizationPolicies.
    AuthorizationPolicy,
    /// PeerAuthentications.
    PeerAuthentication,
    /// RequestAuthentications.
    RequestAuthentication,
    /// The ConfigMap that configures the mesh.
    MeshConfig,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Pod,
        Self::Service,
        Self::Slice,
        Self::Namespace,
        Self::Node,
        Self::GatewayClass,
        Self::Gateway,
        Self::Secret,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::ReferenceGrant,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::MeshConfig,
    ];

    /// Whether fewer requests pass, and none more, while no object of the kind is known: listeners have no certificates, no
    /// namespace gives leave to refer to it, no node has a locality. A route that is missing gives access in its place to
    /// what is behind it; policies and the settings by which they are read must never be missing.
    pub fn is_dispensable(self) -> bool {
        matches!(self, Self::Secret | Self::ReferenceGrant | Self::Node)
    }
}

/// What is known of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassFacts {
    /// `spec.controllerName`.
    pub controller: String,
    /// Whether it has a `spec.parametersRef`, which nothing acts on.
    pub has_parameters: bool,
    /// Its generation.
    pub generation: Option<i64>,
}

/// An object, read as far as the mesh needs it.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Pod.
    Pod(Box<PodFacts>),
    /// A Service.
    Service(Box<ServiceFacts>),
    /// An EndpointSlice; none when it belongs to no Service.
    Slice(Option<SliceFacts>),
    /// A Namespace.
    Namespace(NamespaceFacts),
    /// Where a Node is.
    Node(Locality),
    /// A GatewayClass.
    GatewayClass(ClassFacts),
    /// A Gateway.
    Gateway(Arc<Gateway>),
    /// A Secret with a certificate.
    Secret(Arc<Certificate>),
    /// A route of a kind, as the HTTPRoute that does what it says.
    Route(RouteKind, Arc<HttpRoute>),
    /// A ReferenceGrant.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// An object of `security.istio.io`, as it was received.
    Security(Arc<DynamicObject>),
    /// What the mesh's ConfigMap says.
    MeshConfig(String),
}

/// What a watcher saw.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is new or changed.
    Changed(Kind, NamespacedName, Object),
    /// An object is gone.
    Gone(Kind, NamespacedName),
    /// Every object of the kind has been handed on.
    Synced(Kind),
    /// There are no objects of the kind to hand on, and why. They are handed on as soon as there are.
    Missing(Kind, String),
}

/// What is wrong with an object of the API.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Object(#[from] serde_json::Error),
    #[error(transparent)]
    GrpcRoute(#[from] InvalidGrpcRoute),
}

/// Starts the watchers.
#[derive(Clone)]
pub struct Source {
    client: Client,
    namespace: Arc<str>,
    tasks: Tasks,
    events: mpsc::Sender<Event>,
    watches: Watches,
}

impl Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    /// Watchers that hand on to `events`; `namespace` is the mesh's root namespace.
    /// `watches` records how each watcher stands.
    pub fn new(
        client: Client,
        namespace: Arc<str>,
        tasks: Tasks,
        events: mpsc::Sender<Event>,
        watches: Watches,
    ) -> Self {
        Self { client, namespace, tasks, events, watches }
    }

    /// Starts one watcher for each kind.
    pub fn start(&self) {
        let client = || self.client.clone();
        self.watch(Kind::Pod, Api::<Pod>::all(client()), |o| Ok(Object::Pod(Box::new(PodFacts::read(o)))));
        self.watch(Kind::Service, Api::<Service>::all(client()), |o| {
            Ok(Object::Service(Box::new(ServiceFacts::read(o))))
        });
        self.watch(Kind::Slice, Api::<EndpointSlice>::all(client()), |o| {
            Ok(Object::Slice(SliceFacts::read(o)))
        });
        self.watch(Kind::Namespace, Api::<Namespace>::all(client()), |o| {
            Ok(Object::Namespace(NamespaceFacts::read(o)))
        });
        self.watch(Kind::Node, Api::<Node>::all(client()), |o| Ok(Object::Node(node_locality(o))));
        self.watch_defined(Kind::GatewayClass, ApiResource::erase::<GatewayClass>(&()), |o| {
            let spec = &o.data["spec"];
            let controller = spec["controllerName"].as_str().unwrap_or_default().to_owned();
            let has_parameters = !spec["parametersRef"].is_null();
            let generation = o.metadata.generation;
            Ok(Object::GatewayClass(ClassFacts { controller, has_parameters, generation }))
        });
        let only = watcher::Config::default().fields("type=kubernetes.io/tls");
        self.watch_only(Kind::Secret, Api::<Secret>::all(client()), only, |o| {
            Ok(Object::Secret(Arc::new(certificate(o))))
        });
        self.watch_defined(Kind::Gateway, ApiResource::erase::<Gateway>(&()), |o| {
            Ok(Object::Gateway(parse(o)?))
        });
        self.watch_defined(Kind::HttpRoute, ApiResource::erase::<HttpRoute>(&()), |o| {
            Ok(Object::Route(RouteKind::Http, parse(o)?))
        });
        self.watch_defined(Kind::GrpcRoute, ApiResource::erase::<GrpcRoute>(&()), |o| {
            Ok(Object::Route(RouteKind::Grpc, Arc::new(grpc::as_http(&o.metadata, &o.data["spec"])?)))
        });
        self.watch_defined(Kind::TlsRoute, ApiResource::erase::<TlsRoute>(&()), |o| {
            Ok(Object::Route(RouteKind::Tls, Arc::new(tls_route::as_http(&o.metadata, &o.data["spec"])?)))
        });
        self.watch_defined(Kind::ReferenceGrant, ApiResource::erase::<ReferenceGrant>(&()), |o| {
            Ok(Object::ReferenceGrant(parse(o)?))
        });
        let settings = Api::<ConfigMap>::namespaced(client(), &self.namespace);
        let only = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        self.watch_only(Kind::MeshConfig, settings, only, |o| {
            let text = o.data.as_ref().and_then(|data| data.get(CONFIG_KEY));
            Ok(Object::MeshConfig(text.cloned().unwrap_or_default()))
        });
        for (kind, name, plural) in [
            (Kind::AuthorizationPolicy, "AuthorizationPolicy", "authorizationpolicies"),
            (Kind::PeerAuthentication, "PeerAuthentication", "peerauthentications"),
            (Kind::RequestAuthentication, "RequestAuthentication", "requestauthentications"),
        ] {
            let gvk = kube::api::GroupVersionKind::gvk("security.istio.io", "v1", name);
            let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            self.watch(kind, api, |o| Ok(Object::Security(Arc::new(o.clone()))));
        }
    }

    /// Watches a kind that the cluster may not serve, or in another version.
    fn watch_defined(
        &self,
        kind: Kind,
        resource: ApiResource,
        read: fn(&DynamicObject) -> Result<Object, ReadError>,
    ) {
        let source = self.clone();
        self.service(kind, async move {
            let missing = |why| source.events.send(Event::Missing(kind, why));
            // `None`: the engine is gone, and so is everything.
            if let Some(served) = definition::served(&source.client, &resource, missing).await {
                let api = Api::<DynamicObject>::all_with(source.client.clone(), &served);
                source.follow(kind, api, watcher::Config::default(), read).await;
            }
        });
    }

    fn watch<K>(&self, kind: Kind, api: Api<K>, read: fn(&K) -> Result<Object, ReadError>)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.watch_only(kind, api, watcher::Config::default(), read);
    }

    fn watch_only<K>(
        &self,
        kind: Kind,
        api: Api<K>,
        config: watcher::Config,
        read: fn(&K) -> Result<Object, ReadError>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let source = self.clone();
        self.service(kind, async move { source.follow(kind, api, config, read).await });
    }

    /// Spawns the work on a kind, which runs until the drain.
    fn service(&self, kind: Kind, work: impl Future<Output = ()> + Send + 'static) {
        let mut drain = self.tasks.drain();
        self.tasks.spawn(&format!("watch {kind:?}"), async move {
            tokio::select! {
                () = drain.started() => {}
                () = work => {}
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Hands on what a watch says, for as long as somebody takes it.
    async fn follow<K>(
        &self,
        kind: Kind,
        api: Api<K>,
        config: watcher::Config,
        read: fn(&K) -> Result<Object, ReadError>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut watched = Watched::new(kind, self.events.clone());
        let mut stream = self.watches.follow(&format!("{kind:?}"), api, config).boxed();
        while let Some(event) = stream.next().await {
            let taken = match event {
                Ok(event) => watched.take(event, read).await,
                Err(error) => watched.failed(&error).await,
            };
            if taken.is_err() {
                return;
            }
        }
    }
}

/// Reads a certificate with its key, and whether they can be used together.
fn certificate(secret: &Secret) -> Certificate {
    let text = |field: &str| {
        let bytes =
            secret.data.as_ref().and_then(|data| data.get(field)).ok_or_else(|| format!("no {field}"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| format!("{field} is no PEM"))
    };
    let read = || {
        let (certificate, key) = (text("tls.crt")?, text("tls.key")?);
        tls::certified_key(&certificate, &key).map_err(|e| e.to_string())?;
        Ok(TlsSecret { name: name_of(&secret.metadata), certificate, key })
    };
    read().map_or_else(|why: String| Certificate::Unusable(why), Certificate::Usable)
}

/// Reads a custom object as its type.
fn parse<T: DeserializeOwned>(object: &DynamicObject) -> Result<Arc<T>, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(object)?).map(Arc::new)
}
