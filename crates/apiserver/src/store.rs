// SPDX-License-Identifier: Apache-2.0
//! The store: objects as JSON in SQLite, an index and a bounded history in memory, one writer, one global revision.
//!
//! Invariants: the revision grows by one with every change; memory is changed only after SQLite has committed; what
//! was acknowledged survives a killed process (WAL, and every commit reaches the operating system); what is stored is
//! within [`crate::bounds`] and can be read again. The history does not survive a restart: who watches from a revision
//! of before is answered [`OutOfHistory::Forgotten`].

mod disk;
mod history;
mod read;
mod types;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use self::disk::Disk;
use self::history::{History, MAX_TOTAL_MEMORY};
pub use self::types::{
    Change, Changes, Event, Item, ObjectName, OutOfHistory, ResourceKey, Slice, StoreError, Stored,
    UnreadableRow,
};
use crate::bounds::{Extent, MAX_OBJECT, OverBound};

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<ObjectName, Stored>,
    history: History,
    /// Rows that could not be read at the start, with the reason. They stay on the disk and keep their names.
    unreadable: BTreeMap<ObjectName, String>,
}

#[derive(Debug)]
struct Inner {
    disk: Disk,
    /// The revision at the start: what happened before is not in any history.
    base: u64,
    revision: u64,
    shelves: HashMap<ResourceKey, Shelf>,
    /// Memory of all histories in bytes.
    history_memory: usize,
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
            let shelf = shelves.entry(row.resource.as_str().into()).or_insert_with(|| Shelf::after(revision));
            let key = (row.namespace, row.name);
            match read_row(&row.json) {
                Ok((value, memory)) => {
                    let stored = Stored { value: Arc::new(value), revision: row.revision, memory };
                    shelf.objects.insert(key, stored);
                }
                Err(reason) => {
                    let (resource, namespace, name) = (&row.resource, &key.0, &key.1);
                    tracing::error!(
                        resource,
                        namespace,
                        name,
                        reason,
                        "stored object cannot be read; set aside"
                    );
                    shelf.unreadable.insert(key, reason);
                }
            }
        }
        let inner = Inner { disk, base: revision, revision, shelves, history_memory: 0 };
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

    /// Removes a row that could not be read; false if there is none of this name.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn discard_unreadable(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<bool, StoreError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if !inner.shelf(resource).unreadable.contains_key(&key) {
            return Ok(false);
        }
        let revision = inner.revision;
        inner.disk.delete(resource, &key, revision)?;
        inner.shelf(resource).unreadable.remove(&key);
        Ok(true)
    }

    /// Stores a new object.
    ///
    /// # Errors
    /// The name is taken, the object exceeds a bound, or the disk refuses.
    pub fn create(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        value: Value,
    ) -> Result<Stored, StoreError> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let shelf = inner.shelf(resource);
        if shelf.objects.contains_key(&key) {
            return Err(StoreError::AlreadyExists);
        }
        if let Some(reason) = shelf.unreadable.get(&key) {
            return Err(StoreError::Unreadable(reason.clone()));
        }
        self.write(&mut inner, resource, key, Change::Added, value)
    }

    /// Replaces an object that still has the given revision.
    ///
    /// # Errors
    /// It is gone or has changed, the object exceeds a bound, or the disk refuses.
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
        let mut memory = 0;
        match change {
            Change::Deleted => inner.disk.delete(resource, &key, revision)?,
            Change::Added | Change::Modified => {
                memory = Extent::of(&value)?.memory;
                let json = value.to_string();
                if json.len() > MAX_OBJECT {
                    return Err(OverBound::Bytes.into());
                }
                inner.disk.put(resource, &key, revision, &json)?;
            }
        }
        inner.revision = revision;
        let stored = Stored { value: Arc::new(value), revision, memory };
        let shelf = inner.shelf(resource);
        let previous = match change {
            Change::Deleted => shelf.objects.remove(&key),
            Change::Added | Change::Modified => shelf.objects.insert(key.clone(), stored.clone()),
        };
        // A deletion's object is a copy of the one before, with another revision.
        let before = previous.as_ref().map_or(0, |previous| previous.memory);
        let memory = before + if change == Change::Deleted { before } else { memory };
        let event = Event {
            revision,
            change,
            object: stored.value.clone(),
            previous: previous.map(|p| p.value),
            name: key,
            memory,
        };
        inner.remember(resource, event);
        self.revision.send_replace(revision);
        Ok(stored)
    }
}

impl Inner {
    fn shelf(&mut self, resource: &str) -> &mut Shelf {
        if !self.shelves.contains_key(resource) {
            self.shelves.insert(resource.into(), Shelf::after(self.base));
        }
        self.shelves.get_mut(resource).expect("inserted above")
    }

    /// Adds a change to its history, and forgets the oldest changes of the largest history while all are too large.
    fn remember(&mut self, resource: &str, event: Event) {
        let history = &mut self.shelf(resource).history;
        let before = history.memory();
        history.push(Arc::new(event));
        let after = history.memory();
        self.history_memory = self.history_memory + after - before;
        while self.history_memory > MAX_TOTAL_MEMORY {
            let histories = self.shelves.values_mut().map(|shelf| &mut shelf.history);
            let Some(largest) = histories.filter(|h| h.can_forget()).max_by_key(|h| h.memory()) else {
                return;
            };
            let before = largest.memory();
            largest.forget();
            self.history_memory -= before - largest.memory();
        }
    }
}

impl Shelf {
    /// A shelf whose history begins after a revision.
    fn after(revision: u64) -> Self {
        Self { history: History::after(revision), ..Self::default() }
    }

    /// The objects of a namespace (`None`: of all), after one of them.
    fn range(
        &self,
        namespace: Option<&str>,
        after: Option<&ObjectName>,
    ) -> impl Iterator<Item = (&ObjectName, &Stored)> {
        let from = match (after, namespace) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(namespace)) => Bound::Included((namespace.to_owned(), String::new())),
            (None, None) => Bound::Unbounded,
        };
        self.objects
            .range((from, Bound::Unbounded))
            .take_while(move |((ns, _), _)| namespace.is_none_or(|wanted| ns == wanted))
    }
}

/// Reads a row, and estimates its memory in bytes; the reason if it cannot be read.
fn read_row(json: &[u8]) -> Result<(Value, usize), String> {
    let value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if !value.is_object() {
        return Err("not an object".to_owned());
    }
    // An earlier version may have stored what is over the bounds of this one: it stays, until it is written again.
    let memory =
        Extent::of(&value).map_or(json.len().saturating_mul(size_of::<Value>()), |extent| extent.memory);
    Ok((value, memory))
}

fn set_revision(value: &mut Value, revision: u64) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
}

#[cfg(test)]
mod tests;
