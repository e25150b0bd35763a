// SPDX-License-Identifier: Apache-2.0
//! What can be asked of the store: objects, lists of any revision that the history covers, and changes.

use super::Store;
use super::types::{Changes, Item, ObjectName, OutOfHistory, Slice, Stored, UnreadableRow};
use crate::bounds::Extent;

impl Store {
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
        let items = shelf.range(namespace, after).map(|(_, stored)| stored.clone()).collect();
        (items, inner.revision)
    }

    /// Part of a list at a revision (`None`: the current one), after an object: objects until they have `memory` bytes
    /// together, at least one.
    ///
    /// # Errors
    /// The history does not reach back to the revision, or the store has not reached it.
    pub fn slice(
        &self,
        resource: &str,
        namespace: Option<&str>,
        revision: Option<u64>,
        after: Option<&ObjectName>,
        memory: usize,
    ) -> Result<Slice, OutOfHistory> {
        let inner = self.lock();
        let revision = revision.unwrap_or(inner.revision);
        if revision > inner.revision {
            return Err(OutOfHistory::NotReached);
        }
        let Some(shelf) = inner.shelves.get(resource) else {
            return if revision < inner.base {
                Err(OutOfHistory::Forgotten)
            } else {
                Ok(Slice { revision, ..Slice::default() })
            };
        };
        let before = shelf.history.before(revision)?;
        let mut now = shelf.range(namespace, after).filter(|(name, _)| !before.contains_key(name)).peekable();
        let inside = |name: &ObjectName| {
            namespace.is_none_or(|wanted| name.0 == wanted) && after.is_none_or(|after| name > after)
        };
        let mut then = before
            .iter()
            .filter(|(name, _)| inside(name))
            .filter_map(|(name, value)| value.map(|value| (*name, value)))
            .peekable();
        let mut slice = Slice { revision, ..Slice::default() };
        let mut taken = 0;
        loop {
            let earlier = match (now.peek(), then.peek()) {
                (Some((a, _)), Some((b, _))) => b < a,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (None, None) => return Ok(slice),
            };
            if taken >= memory {
                slice.more = true;
                return Ok(slice);
            }
            let next = if earlier {
                then.next().map(|(name, value)| {
                    let memory = Extent::of(value).map_or(0, |extent| extent.memory);
                    Item { name: name.clone(), value: value.clone(), memory }
                })
            } else {
                now.next().map(|(name, stored)| Item {
                    name: name.clone(),
                    value: stored.value.clone(),
                    memory: stored.memory,
                })
            };
            let Some(item) = next else { return Ok(slice) };
            taken += item.memory;
            slice.items.push(item);
        }
    }

    /// The rows that could not be read at the start.
    pub fn unreadable(&self) -> Vec<UnreadableRow> {
        let inner = self.lock();
        let rows = inner.shelves.iter().flat_map(|(resource, shelf)| {
            shelf.unreadable.iter().map(|(name, reason)| UnreadableRow {
                resource: resource.to_string(),
                name: name.clone(),
                reason: reason.clone(),
            })
        });
        rows.collect()
    }

    /// Why the row of this name could not be read at the start, if there is one.
    pub fn unreadable_reason(&self, resource: &str, namespace: &str, name: &str) -> Option<String> {
        let inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        inner.shelves.get(resource)?.unreadable.get(&key).cloned()
    }

    /// The revision of the last change of a resource; before the first change since the start, that of the start.
    pub fn last_change(&self, resource: &str) -> u64 {
        let inner = self.lock();
        inner.shelves.get(resource).map_or(0, |shelf| shelf.history.last())
    }

    /// How many objects of each resource there are.
    pub fn counts(&self) -> Vec<(super::ResourceKey, usize)> {
        let inner = self.lock();
        inner.shelves.iter().map(|(key, shelf)| (key.clone(), shelf.objects.len())).collect()
    }

    /// Changes of a resource after a revision, until they have `memory` bytes together, at least one if there is one.
    ///
    /// # Errors
    /// The history does not cover the revision.
    pub fn since(&self, resource: &str, revision: u64, memory: usize) -> Result<Changes, OutOfHistory> {
        let inner = self.lock();
        if revision > inner.revision {
            return Err(OutOfHistory::NotReached);
        }
        let mut changes = Changes { events: Vec::new(), reached: inner.revision };
        let Some(shelf) = inner.shelves.get(resource) else {
            return if revision < inner.base { Err(OutOfHistory::Forgotten) } else { Ok(changes) };
        };
        let mut taken = 0;
        for event in shelf.history.after_revision(revision)? {
            if taken >= memory
                && let Some(last) = changes.events.last()
            {
                changes.reached = last.revision;
                break;
            }
            taken += event.memory;
            changes.events.push(event.clone());
        }
        Ok(changes)
    }
}
