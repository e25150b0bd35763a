// SPDX-License-Identifier: Apache-2.0
//! A kind's objects in memory, fed by a watch and by our own writes.
//!
//! Revisions only grow: an object never gives way to an older one, and an object that the watch has reported as
//! deleted does not come back by the answer to an earlier write.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::TryStreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt as _};
use meltemi_kubeclient::Watches;
use meltemi_runtime::{DrainWatch, Tasks};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Deleted uids that are remembered.
const TOMBSTONES: usize = 1024;

/// An object's namespace (empty when it has none) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A change of one object.
pub(crate) struct Change<'a, K> {
    pub(crate) old: Option<&'a Arc<K>>,
    pub(crate) new: Option<&'a Arc<K>>,
}

impl<K: Resource> Change<'_, K> {
    /// The object afterwards, or what it was.
    pub(crate) fn object(&self) -> Option<&Arc<K>> {
        self.new.or(self.old)
    }

    /// Both states.
    pub(crate) fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

type Subscriber<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    tombstones: VecDeque<String>,
    /// While a list is under way: what was taken in since it was asked for, which it may not have yet.
    since_init: Option<HashSet<Key>>,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    /// One change is told of at a time, in the order in which the changes were made.
    order: Mutex<()>,
    synced: watch::Sender<bool>,
}

/// The cache; clones share it.
pub(crate) struct Cache<K>(Arc<Shared<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                tombstones: VecDeque::new(),
                since_init: None,
            }),
            subscribers: RwLock::default(),
            order: Mutex::new(()),
            synced: watch::channel(false).0,
        }))
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).objects.get(key).cloned()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).objects.values().cloned().collect()
    }

    /// The objects of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let from = Key::new(namespace, "");
        state
            .objects
            .range(from..)
            .take_while(|(k, _)| k.namespace == namespace)
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// The objects of a namespace that the object with this uid controls.
    pub(crate) fn controlled_by(&self, namespace: &str, uid: &str) -> Vec<Arc<K>> {
        let mut objects = self.in_namespace(namespace);
        objects.retain(|o| controller_uid(&**o) == Some(uid));
        objects
    }

    /// Calls `with` for every change from now on.
    pub(crate) fn subscribe(&self, with: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.0.subscribers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(with));
    }

    /// Resolves when the first list has arrived.
    pub(crate) async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        let _ = synced.wait_for(|s| *s).await;
    }

    /// Takes an object in: from the watch, or as the answer to a write.
    pub(crate) fn put(&self, object: K) {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let _order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            let uid = new.meta().uid.as_deref().unwrap_or_default();
            if state.tombstones.iter().any(|t| t == uid) {
                return;
            }
            if state.objects.get(&key).is_some_and(|have| revision(&**have) >= revision(&*new)) {
                return;
            }
            if let Some(recent) = &mut state.since_init {
                recent.insert(key.clone());
            }
            state.objects.insert(key, new.clone())
        };
        self.tell(&Change { old: old.as_ref(), new: Some(&new) });
    }

    /// Takes an object out.
    pub(crate) fn remove(&self, key: &Key, uid: Option<&str>) {
        let _order = self.0.order.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(uid) = uid {
                state.tombstones.push_back(uid.to_owned());
                if state.tombstones.len() > TOMBSTONES {
                    state.tombstones.pop_front();
                }
            }
            match state.objects.get(key) {
                Some(have) if uid.is_none_or(|uid| have.meta().uid.as_deref() == Some(uid)) => {
                    state.objects.remove(key)
                }
                _ => None,
            }
        };
        if old.is_some() {
            self.tell(&Change { old: old.as_ref(), new: None });
        }
    }

    fn tell(&self, change: &Change<'_, K>) {
        for subscriber in &*self.0.subscribers.read().unwrap_or_else(PoisonError::into_inner) {
            subscriber(change);
        }
    }

    /// A list is asked for: what is taken in from now on may be missing from it.
    fn begin_list(&self) {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner).since_init = Some(HashSet::new());
    }

    /// A complete list: what is not in it is gone, except what was written after it was asked for.
    fn replace(&self, listed: Vec<K>) {
        let keep: HashSet<Key> = listed.iter().map(Key::of).collect();
        let gone = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            let recent = state.since_init.take().unwrap_or_default();
            let missing = |k: &&Key| !keep.contains(*k) && !recent.contains(*k);
            state.objects.keys().filter(missing).cloned().collect::<Vec<_>>()
        };
        for key in gone {
            self.remove(&key, None);
        }
        for object in listed {
            self.put(object);
        }
        self.0.synced.send_replace(true);
    }

    /// Feeds the cache from a watch of all namespaces, for ever.
    pub(crate) fn feed(&self, client: &Client, watches: &Watches, tasks: &Tasks) {
        let (cache, watches) = (self.clone(), watches.clone());
        let (client, kind) = (client.clone(), K::kind(&()).into_owned());
        let drain = tasks.drain();
        tasks
            .spawn(&format!("watch {kind}"), async move { cache.follow(client, kind, watches, drain).await });
    }

    async fn follow(
        &self,
        client: Client,
        kind: String,
        watches: Watches,
        mut drain: DrainWatch,
    ) -> Result<(), watcher::Error> {
        let api: Api<K> = Api::all(client);
        let events = watches.follow(kind.as_str(), api, watcher::Config::default().any_semantic());
        futures::pin_mut!(events);
        let mut listed = Vec::new();
        loop {
            let event = tokio::select! {
                event = events.try_next() => event,
                () = drain.started() => return Ok(()),
            };
            match event {
                Ok(Some(Event::Apply(object))) => self.put(object),
                Ok(Some(Event::Delete(object))) => self.remove(&Key::of(&object), object.uid().as_deref()),
                Ok(Some(Event::Init)) => {
                    listed.clear();
                    self.begin_list();
                }
                Ok(Some(Event::InitApply(object))) => listed.push(object),
                Ok(Some(Event::InitDone)) => self.replace(std::mem::take(&mut listed)),
                Ok(None) => return Ok(()),
                // The stream goes on by itself, with a list if it must.
                Err(error) => tracing::debug!(%kind, %error, "watch interrupted"),
            }
        }
    }
}

/// The owner that controls the object.
pub(crate) fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true))
}

/// The uid of the owner that controls the object.
pub(crate) fn controller_uid<K: Resource>(object: &K) -> Option<&str> {
    controller(object).map(|o| o.uid.as_str())
}

/// The names of the controllers of this kind before and after a change.
pub(crate) fn controllers_of<K: Resource>(change: &Change<'_, K>, kind: &str) -> Vec<Key> {
    let owner = |object: &Arc<K>| {
        let owner = controller(&**object).filter(|o| o.kind == kind)?;
        Some(Key::new(object.meta().namespace.as_deref().unwrap_or_default(), &owner.name))
    };
    change.states().filter_map(owner).collect()
}

fn revision<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// An API for objects in a namespace.
pub(crate) fn namespaced<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::{Cache, Key};

    fn object(name: &str, uid: &str, revision: u32) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("a".into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(revision.to_string());
        object
    }

    #[test]
    fn revisions_only_grow_and_the_deleted_stay_deleted() {
        let cache = Cache::<ConfigMap>::default();
        let key = Key::new("a", "x");
        let seen = || cache.get(&key).and_then(|o| o.metadata.resource_version.clone());
        cache.put(object("x", "1", 5));
        cache.put(object("x", "1", 4));
        assert_eq!(seen().as_deref(), Some("5"));
        cache.remove(&key, Some("1"));
        // The answer to a write that was made before the deletion.
        cache.put(object("x", "1", 6));
        assert_eq!(seen(), None);
        cache.put(object("x", "2", 9));
        // A late deletion of the first one.
        cache.remove(&key, Some("1"));
        assert_eq!(seen().as_deref(), Some("9"));
        cache.begin_list();
        cache.replace(vec![object("y", "3", 10)]);
        assert_eq!((seen(), cache.all().len()), (None, 1));
    }

    #[test]
    fn what_a_list_lacks_is_gone_however_new_it_is() {
        let cache = Cache::<ConfigMap>::default();
        let names = || cache.all().iter().filter_map(|o| o.metadata.name.clone()).collect::<Vec<_>>();
        cache.begin_list();
        cache.replace(vec![object("a", "1", 5), object("b", "2", 9)]);
        // The newest object was deleted while nothing was watched: nothing in the next list is as new.
        cache.begin_list();
        cache.put(object("c", "3", 11));
        cache.replace(vec![object("a", "1", 5)]);
        assert_eq!(names(), ["a", "c"], "our own write after the list was asked for stays");
        cache.begin_list();
        cache.replace(vec![]);
        assert!(names().is_empty());
    }
}
