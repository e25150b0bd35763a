// SPDX-License-Identifier: Apache-2.0
//! Watches the objects that the mesh is made of and hands each change on, once.
//!
//! A watcher re-lists after a break; what is no longer there is handed on as gone. An object that cannot be
//! read is named in the log and changes nothing: what was known of it stays in force.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt as _;
use gateway_api::experimental::httproutes::HttpRoute;
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
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

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
    pub const ALL: [Self; 15] = [
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
        Self::ReferenceGrant,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::MeshConfig,
    ];
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
    /// A GatewayClass: its controller and generation.
    GatewayClass(String, Option<i64>),
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
        self.watch_custom(Kind::GatewayClass, &ApiResource::erase::<GatewayClass>(&()), |o| {
            let controller = o.data["spec"]["controllerName"].as_str().unwrap_or_default().to_owned();
            Ok(Object::GatewayClass(controller, o.metadata.generation))
        });
        let only = watcher::Config::default().fields("type=kubernetes.io/tls");
        self.watch_only(Kind::Secret, Api::<Secret>::all(client()), only, |o| {
            Ok(Object::Secret(Arc::new(certificate(o))))
        });
        self.watch_custom(Kind::Gateway, &ApiResource::erase::<Gateway>(&()), |o| {
            Ok(Object::Gateway(parse(o)?))
        });
        self.watch_custom(Kind::HttpRoute, &ApiResource::erase::<HttpRoute>(&()), |o| {
            Ok(Object::Route(RouteKind::Http, parse(o)?))
        });
        self.watch_custom(Kind::GrpcRoute, &ApiResource::erase::<GrpcRoute>(&()), |o| {
            Ok(Object::Route(RouteKind::Grpc, Arc::new(grpc::as_http(&o.metadata, &o.data["spec"])?)))
        });
        self.watch_custom(Kind::ReferenceGrant, &ApiResource::erase::<ReferenceGrant>(&()), |o| {
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
            self.watch_custom(kind, &resource, |o| Ok(Object::Security(Arc::new(o.clone()))));
        }
    }

    fn watch_custom(
        &self,
        kind: Kind,
        resource: &ApiResource,
        read: fn(&DynamicObject) -> Result<Object, ReadError>,
    ) {
        self.watch(kind, Api::<DynamicObject>::all_with(self.client.clone(), resource), read);
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
        let events = self.events.clone();
        let mut drain = self.tasks.drain();
        let followed = self.watches.follow(&format!("{kind:?}"), api, config);
        self.tasks.spawn(&format!("watch {kind:?}"), async move {
            let mut watched = Watched { kind, known: HashSet::new(), listed: None, events };
            let mut stream = followed.boxed();
            loop {
                let event = tokio::select! {
                    () = drain.started() => return Ok::<(), Infallible>(()),
                    event = stream.next() => event,
                };
                match event {
                    Some(Ok(event)) => {
                        if watched.take(event, read).await.is_err() {
                            // The engine is gone: so is everything.
                            return Ok(());
                        }
                    }
                    Some(Err(error)) => tracing::warn!(?kind, %error, "watching failed, trying again"),
                    None => return Ok(()),
                }
            }
        });
    }
}

/// The memory of one watcher: what it has handed on.
struct Watched {
    kind: Kind,
    known: HashSet<NamespacedName>,
    listed: Option<HashSet<NamespacedName>>,
    events: mpsc::Sender<Event>,
}

impl Watched {
    async fn take<K: Resource + Sync>(
        &mut self,
        event: watcher::Event<K>,
        read: fn(&K) -> Result<Object, ReadError>,
    ) -> Result<(), mpsc::error::SendError<Event>> {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(object) => {
                let name = name_of(object.meta());
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                self.changed(name, &object, read).await?;
            }
            watcher::Event::Apply(object) => self.changed(name_of(object.meta()), &object, read).await?,
            watcher::Event::Delete(object) => self.gone(name_of(object.meta())).await?,
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.known.difference(&listed).cloned().collect();
                for name in gone {
                    self.gone(name).await?;
                }
                self.events.send(Event::Synced(self.kind)).await?;
            }
        }
        Ok(())
    }

    async fn changed<K: Resource + Sync>(
        &mut self,
        name: NamespacedName,
        object: &K,
        read: fn(&K) -> Result<Object, ReadError>,
    ) -> Result<(), mpsc::error::SendError<Event>> {
        match read(object) {
            Ok(object) => {
                self.known.insert(name.clone());
                self.events.send(Event::Changed(self.kind, name, object)).await
            }
            Err(reason) => {
                tracing::error!(kind = ?self.kind, %name, %reason, "object cannot be read; what was known of it stays");
                Ok(())
            }
        }
    }

    async fn gone(&mut self, name: NamespacedName) -> Result<(), mpsc::error::SendError<Event>> {
        self.known.remove(&name);
        self.events.send(Event::Gone(self.kind, name)).await
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("default".to_owned());
        pod
    }

    #[tokio::test]
    async fn what_a_new_list_lacks_is_gone() {
        let (tx, mut rx) = mpsc::channel(16);
        let mut watched = Watched { kind: Kind::Pod, known: HashSet::new(), listed: None, events: tx };
        let read: fn(&Pod) -> Result<Object, ReadError> = |p| Ok(Object::Pod(Box::new(PodFacts::read(p))));
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(pod("a")),
            watcher::Event::InitApply(pod("b")),
            watcher::Event::InitDone,
            watcher::Event::Init,
            watcher::Event::InitApply(pod("b")),
            watcher::Event::InitDone,
        ] {
            watched.take(event, read).await.unwrap();
        }
        drop(watched);
        let mut seen = Vec::new();
        while let Some(event) = rx.recv().await {
            seen.push(match event {
                Event::Changed(_, name, _) => format!("+{}", name.name),
                Event::Gone(_, name) => format!("-{}", name.name),
                Event::Synced(_) => "synced".to_owned(),
            });
        }
        assert_eq!(seen, ["+a", "+b", "synced", "+b", "-a", "synced"]);
    }
}
