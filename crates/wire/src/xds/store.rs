// SPDX-License-Identifier: Apache-2.0
//! What the server serves: resources by type and name, with the order of their changes.
//!
//! One writer applies batches; each batch is one revision. Readers ask what changed since the revision that they
//! know; who is too far behind is told to compare everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use prost::bytes::Bytes;
use tokio::sync::watch;

/// Changes that are remembered for readers that lag behind.
const REMEMBERED: usize = 16_384;

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name on the wire.
    pub name: Arc<str>,
    /// Hash of its content: equal content is never sent twice, not even to a client that comes back.
    pub version: Arc<str>,
    /// The encoded message.
    pub body: Bytes,
    /// Other names by which it can be asked for.
    pub aliases: Vec<String>,
    /// Who may see it: clients whose view has one of these tags; empty means every client that may see the type.
    pub tags: BTreeSet<Arc<str>>,
}

impl Item {
    /// A resource that every client of its type sees.
    pub fn new(name: impl Into<Arc<str>>, body: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let version = format!("{:016x}", hasher.finish()).into();
        Self { name: name.into(), version, body, aliases: Vec::new(), tags: BTreeSet::new() }
    }

    /// With other names.
    #[must_use]
    pub fn with_aliases(mut self, aliases: Vec<String>) -> Self {
        self.aliases = aliases;
        self
    }

    /// Seen only with one of the tags; none at all hides it from everybody.
    #[must_use]
    pub fn with_tags(mut self, tags: impl IntoIterator<Item = Arc<str>>) -> Self {
        self.tags = tags.into_iter().collect();
        if self.tags.is_empty() {
            self.tags.insert("".into());
        }
        self
    }
}

/// Type URL of a resource.
pub type TypeUrl = &'static str;

/// Changes that belong together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// New or changed.
    pub upserts: Vec<(TypeUrl, Item)>,
    /// Gone.
    pub removals: Vec<(TypeUrl, Arc<str>)>,
}

impl Batch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// What a reader has to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// These names have changed (or are gone), by type.
    Names(HashMap<TypeUrl, BTreeSet<Arc<str>>>),
    /// Too much has happened: compare everything.
    Everything,
}

#[derive(Debug, Default)]
struct Inner {
    types: HashMap<TypeUrl, BTreeMap<Arc<str>, Arc<Item>>>,
    aliases: HashMap<(TypeUrl, String), BTreeSet<Arc<str>>>,
    revision: u64,
    /// Revision and what changed in it, oldest first.
    log: VecDeque<(u64, TypeUrl, Arc<str>)>,
    /// Changes up to this revision are forgotten.
    forgotten: u64,
}

/// The resources; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<RwLock<Inner>>,
    revision: Arc<watch::Sender<u64>>,
}

impl Default for Store {
    fn default() -> Self {
        Self { inner: Arc::default(), revision: Arc::new(watch::channel(0).0) }
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies a batch; what is equal to what is there is no change.
    pub fn apply(&self, batch: Batch) {
        let revision = {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            let next = inner.revision + 1;
            let mut changed = false;
            for (type_url, item) in batch.upserts {
                changed |= inner.upsert(type_url, item, next);
            }
            for (type_url, name) in batch.removals {
                changed |= inner.remove(type_url, &name, next);
            }
            if !changed {
                return;
            }
            inner.revision = next;
            while inner.log.len() > REMEMBERED {
                if let Some((revision, ..)) = inner.log.pop_front() {
                    inner.forgotten = revision;
                }
            }
            next
        };
        self.revision.send_replace(revision);
    }

    /// Follows the revision.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// A resource by its name.
    pub fn get(&self, type_url: &str, name: &str) -> Option<Arc<Item>> {
        self.read(|inner| inner.types.get(type_url)?.get(name).cloned())
    }

    /// How many resources of a type there are.
    pub fn len(&self, type_url: &str) -> usize {
        self.read(|inner| inner.types.get(type_url).map_or(0, BTreeMap::len))
    }

    /// Whether there is none of a type.
    pub fn is_empty(&self, type_url: &str) -> bool {
        self.len(type_url) == 0
    }

    /// Every resource of a type, by name.
    pub fn all(&self, type_url: &str) -> Vec<Arc<Item>> {
        self.read(|inner| inner.types.get(type_url).map(|t| t.values().cloned().collect()).unwrap_or_default())
    }

    /// Resources that an alias stands for.
    pub(crate) fn by_alias(&self, type_url: TypeUrl, alias: &str) -> Vec<Arc<Item>> {
        self.read(|inner| {
            let names = inner.aliases.get(&(type_url, alias.to_owned()));
            let all = inner.types.get(type_url);
            names.into_iter().flatten().filter_map(|n| all?.get(n).cloned()).collect()
        })
    }

    /// What changed after `revision`, and the revision that this brings the reader to.
    pub(crate) fn since(&self, revision: u64) -> (u64, Since) {
        self.read(|inner| {
            if revision < inner.forgotten {
                return (inner.revision, Since::Everything);
            }
            let start = inner.log.partition_point(|(r, ..)| *r <= revision);
            let mut names: HashMap<TypeUrl, BTreeSet<Arc<str>>> = HashMap::new();
            for (_, type_url, name) in inner.log.range(start..) {
                names.entry(type_url).or_default().insert(name.clone());
            }
            (inner.revision, Since::Names(names))
        })
    }

    /// The current revision.
    pub(crate) fn revision(&self) -> u64 {
        self.read(|inner| inner.revision)
    }

    fn read<T>(&self, question: impl FnOnce(&Inner) -> T) -> T {
        question(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn upsert(&mut self, type_url: TypeUrl, item: Item, revision: u64) -> bool {
        let all = self.types.entry(type_url).or_default();
        if all.get(&item.name).is_some_and(|old| **old == item) {
            return false;
        }
        let item = Arc::new(item);
        let old = all.insert(item.name.clone(), item.clone());
        self.forget_aliases(type_url, old.as_deref());
        for alias in &item.aliases {
            self.aliases.entry((type_url, alias.clone())).or_default().insert(item.name.clone());
        }
        self.log.push_back((revision, type_url, item.name.clone()));
        true
    }

    fn remove(&mut self, type_url: TypeUrl, name: &Arc<str>, revision: u64) -> bool {
        let Some(old) = self.types.get_mut(type_url).and_then(|all| all.remove(name)) else { return false };
        self.forget_aliases(type_url, Some(&old));
        self.log.push_back((revision, type_url, name.clone()));
        true
    }

    fn forget_aliases(&mut self, type_url: TypeUrl, old: Option<&Item>) {
        let Some(old) = old else { return };
        for alias in &old.aliases {
            let key = (type_url, alias.clone());
            if let Some(names) = self.aliases.get_mut(&key) {
                names.remove(&old.name);
                if names.is_empty() {
                    self.aliases.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TypeUrl = "t";

    fn put(name: &str, body: &'static str) -> Batch {
        Batch { upserts: vec![(T, Item::new(name, Bytes::from_static(body.as_bytes())))], removals: vec![] }
    }

    #[test]
    fn equal_content_is_no_change() {
        let store = Store::new();
        store.apply(put("a", "1"));
        store.apply(put("a", "1"));
        assert_eq!(store.revision(), 1);
        store.apply(put("a", "2"));
        assert_eq!(store.revision(), 2);
        assert_ne!(Item::new("a", Bytes::from_static(b"1")).version, store.get(T, "a").unwrap().version);
    }

    #[test]
    fn a_reader_learns_what_changed_since() {
        let store = Store::new();
        store.apply(put("a", "1"));
        store.apply(put("b", "1"));
        store.apply(Batch { upserts: vec![], removals: vec![(T, "a".into())] });
        let (now, since) = store.since(1);
        assert_eq!(now, 3);
        assert_eq!(since, Since::Names([(T, ["a".into(), "b".into()].into())].into()));
        assert_eq!(store.since(3).1, Since::Names(HashMap::new()));
    }

    #[test]
    fn who_lags_too_far_compares_everything() {
        let store = Store::new();
        for i in 0..=REMEMBERED {
            store.apply(put(&format!("n{i}"), "1"));
        }
        assert_eq!(store.since(0).1, Since::Everything);
        assert!(matches!(store.since(1).1, Since::Names(_)));
    }

    #[test]
    fn aliases_follow_their_resource() {
        let store = Store::new();
        let item = |aliases: &[&str]| {
            Item::new("w", Bytes::from_static(b"x")).with_aliases(aliases.iter().map(|a| (*a).to_owned()).collect())
        };
        store.apply(Batch { upserts: vec![(T, item(&["/10.0.0.1"]))], removals: vec![] });
        assert_eq!(store.by_alias(T, "/10.0.0.1").len(), 1);
        store.apply(Batch { upserts: vec![(T, item(&["/10.0.0.2"]))], removals: vec![] });
        assert!(store.by_alias(T, "/10.0.0.1").is_empty());
        store.apply(Batch { upserts: vec![], removals: vec![(T, "w".into())] });
        assert!(store.by_alias(T, "/10.0.0.2").is_empty());
    }
}
