// SPDX-License-Identifier: Apache-2.0
//! The store: objects as JSON in SQLite, an index and a bounded history in memory, one writer, one global revision.
//!
//! Invariants: the revision grows by one with every change; memory is changed only after SQLite has committed; what
//! was acknowledged survives a killed process (WAL, and every commit reaches the operating system).

mod disk;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use self::disk::Disk;

/// Changes of one resource that are kept for watches that start from an older revision.
const HISTORY: usize = 4096;

/// Why the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("already exists")]
    AlreadyExists,
    /// No such object.
    #[error("not found")]
    NotFound,
    /// The object has another revision than expected.
    #[error("the object has been modified")]
    Conflict,
    /// The disk refuses.
    #[error("storage: {0}")]
    Disk(#[from] rusqlite::Error),
    /// The database holds something that is not JSON.
    #[error("storage: object is not JSON: {0}")]
    Corrupt(#[from] serde_json::Error),
}

/// `group/plural` of a resource, the same for all its versions.
pub type ResourceKey = Arc<str>;

/// An object's name: namespace (empty when cluster-scoped) and name.
pub type ObjectName = (String, String);

/// A stored object.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The object, with `metadata.resourceVersion` set.
    pub value: Arc<Value>,
    /// Its revision.
    pub revision: u64,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created.
    Added,
    /// Updated.
    Modified,
    /// Deleted.
    Deleted,
}

/// A change, as watches see it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// What happened.
    pub change: Change,
    /// The object afterwards; for a deletion its last state, at the deletion's revision.
    pub object: Arc<Value>,
    /// The object before.
    pub previous: Option<Arc<Value>>,
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<ObjectName, Stored>,
    history: VecDeque<Arc<Event>>,
    /// Changes up to this revision are no longer in the history.
    forgotten: u64,
}

#[derive(Debug)]
struct Inner {
    disk: Disk,
    /// The revision at the start: what happened before is not in any history.
    base: u64,
    revision: u64,
    shelves: HashMap<ResourceKey, Shelf>,
}

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Mutex<Inner>>,
    revision: watch::Sender<u64>,
}

impl Store {
    /// Opens (or creates) the database.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a database of ours.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let disk = Disk::open(path)?;
        let (revision, rows) = disk.load()?;
        let mut shelves: HashMap<ResourceKey, Shelf> = HashMap::new();
        for row in rows {
            let value: Value = serde_json::from_str(&row.json)?;
            let shelf = shelves.entry(row.resource.into()).or_default();
            shelf.forgotten = revision;
            shelf
                .objects
                .insert((row.namespace, row.name), Stored { value: Arc::new(value), revision: row.revision });
        }
        let inner = Inner { disk, base: revision, revision, shelves };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), revision: watch::channel(revision).0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current revision.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Wakes with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// An object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Stored> {
        self.lock().shelves.get(resource)?.objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Objects in order of namespace and name, after the given one, and the revision they are read at.
    pub fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<&ObjectName>,
    ) -> (Vec<Stored>, u64) {
        let inner = self.lock();
        let Some(shelf) = inner.shelves.get(resource) else { return (Vec::new(), inner.revision) };
        let from = match (after, namespace) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(namespace)) => Bound::Included((namespace.to_owned(), String::new())),
            (None, None) => Bound::Unbounded,
        };
        let items = shelf
            .objects
            .range((from, Bound::Unbounded))
            .take_while(|((ns, _), _)| namespace.is_none_or(|wanted| ns == wanted))
            .map(|(_, stored)| stored.clone())
            .collect();
        (items, inner.revision)
    }

    /// Stores a new object.
    ///
    /// # Errors
    /// The name is taken, or the disk refuses.
    pub fn create(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        value: Value,
    ) -> Result<Stored, StoreError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if inner.shelf(resource).objects.contains_key(&key) {
            return Err(StoreError::AlreadyExists);
        }
        self.write(&mut inner, resource, key, Change::Added, value)
    }

    /// Replaces an object that still has the given revision.
    ///
    /// # Errors
    /// It is gone or has changed, or the disk refuses.
    pub fn replace(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        expected: u64,
        value: Value,
    ) -> Result<Stored, StoreError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let current = inner.shelf(resource).objects.get(&key).ok_or(StoreError::NotFound)?.clone();
        if current.revision != expected {
            return Err(StoreError::Conflict);
        }
        let mut unchanged = value.clone();
        set_revision(&mut unchanged, current.revision);
        if unchanged == *current.value {
            // Nothing changed: no revision, no event, as in Kubernetes.
            return Ok(current);
        }
        self.write(&mut inner, resource, key, Change::Modified, value)
    }

    /// Removes an object that still has the given revision.
    ///
    /// # Errors
    /// It is gone or has changed, or the disk refuses.
    pub fn remove(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        expected: u64,
    ) -> Result<Stored, StoreError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let current = inner.shelf(resource).objects.get(&key).ok_or(StoreError::NotFound)?.clone();
        if current.revision != expected {
            return Err(StoreError::Conflict);
        }
        self.write(&mut inner, resource, key, Change::Deleted, (*current.value).clone())
    }

    fn write(
        &self,
        inner: &mut Inner,
        resource: &str,
        key: ObjectName,
        change: Change,
        mut value: Value,
    ) -> Result<Stored, StoreError> {
        let revision = inner.revision + 1;
        set_revision(&mut value, revision);
        match change {
            Change::Deleted => inner.disk.delete(resource, &key, revision)?,
            Change::Added | Change::Modified => {
                inner.disk.put(resource, &key, revision, &value.to_string())?
            }
        }
        inner.revision = revision;
        let stored = Stored { value: Arc::new(value), revision };
        let shelf = inner.shelf(resource);
        let previous = match change {
            Change::Deleted => shelf.objects.remove(&key),
            Change::Added | Change::Modified => shelf.objects.insert(key, stored.clone()),
        };
        let event =
            Event { revision, change, object: stored.value.clone(), previous: previous.map(|p| p.value) };
        shelf.history.push_back(Arc::new(event));
        if shelf.history.len() > HISTORY {
            shelf.forgotten = shelf.history.pop_front().map_or(shelf.forgotten, |e| e.revision);
        }
        self.revision.send_replace(revision);
        Ok(stored)
    }

    /// The revision of the last change of a resource; before the first change since the start, that of the start.
    pub fn last_change(&self, resource: &str) -> u64 {
        let inner = self.lock();
        inner.shelves.get(resource).map_or(0, |s| s.history.back().map_or(s.forgotten, |e| e.revision))
    }

    /// Changes of a resource after a revision, in order, and the revision they reach. `None` if the history does not
    /// cover them: part of it is forgotten, or the revision is not reached yet (the database was put back).
    pub fn since(&self, resource: &str, revision: u64) -> Option<(Vec<Arc<Event>>, u64)> {
        let inner = self.lock();
        if revision > inner.revision {
            return None;
        }
        let Some(shelf) = inner.shelves.get(resource) else {
            return (revision >= inner.base).then(|| (Vec::new(), inner.revision));
        };
        if revision < shelf.forgotten {
            return None;
        }
        let begin = shelf.history.partition_point(|e| e.revision <= revision);
        Some((shelf.history.range(begin..).cloned().collect(), inner.revision))
    }
}

impl Inner {
    fn shelf(&mut self, resource: &str) -> &mut Shelf {
        if !self.shelves.contains_key(resource) {
            let shelf = Shelf { forgotten: self.base, ..Shelf::default() };
            self.shelves.insert(resource.into(), shelf);
        }
        self.shelves.get_mut(resource).expect("inserted above")
    }
}

fn set_revision(value: &mut Value, revision: u64) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, x: u32) -> Value {
        json!({"metadata": {"name": name}, "x": x})
    }

    #[test]
    fn revisions_grow_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.sqlite");
        let store = Store::open(&path).unwrap();
        let a = store.create("pods", "ns", "a", object("a", 1)).unwrap();
        assert!(matches!(store.create("pods", "ns", "a", object("a", 1)), Err(StoreError::AlreadyExists)));
        let a2 = store.replace("pods", "ns", "a", a.revision, object("a", 2)).unwrap();
        assert!(matches!(
            store.replace("pods", "ns", "a", a.revision, object("a", 3)),
            Err(StoreError::Conflict)
        ));
        store.create("pods", "ns", "b", object("b", 1)).unwrap();
        let same = store.replace("pods", "ns", "a", a2.revision, object("a", 2)).unwrap();
        assert_eq!(same.revision, a2.revision, "an update that changes nothing has no revision");
        let (events, _) = store.since("pods", a.revision).unwrap();
        assert_eq!(events.iter().map(|e| e.change).collect::<Vec<_>>(), [Change::Modified, Change::Added]);
        let revision = store.revision();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.revision(), revision);
        assert_eq!(store.get("pods", "ns", "a").unwrap().value["x"], 2);
        for resource in ["pods", "gone"] {
            assert!(store.since(resource, 0).is_none(), "history does not survive a restart, and says so");
            assert!(store.since(resource, revision).is_some());
            assert!(store.since(resource, revision + 1).is_none(), "the future is not covered either");
        }
        assert_eq!(store.list("pods", Some("ns"), Some(&("ns".into(), "a".into()))).0.len(), 1);
    }

    #[test]
    fn what_is_stored_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
        store.create("secrets", "ns", "a", object("a", 1)).unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
    }

    #[test]
    fn a_deletion_is_an_event_with_a_revision_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db.sqlite")).unwrap();
        let a = store.create("pods", "", "a", object("a", 1)).unwrap();
        let gone = store.remove("pods", "", "a", a.revision).unwrap();
        assert!(gone.revision > a.revision);
        assert_eq!(gone.value["metadata"]["resourceVersion"], gone.revision.to_string());
        assert!(store.get("pods", "", "a").is_none());
    }
}
