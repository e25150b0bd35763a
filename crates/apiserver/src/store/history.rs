// SPDX-License-Identifier: Apache-2.0
//! The latest changes of one resource, bounded by number and memory, and what objects were before them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::{Event, ObjectName, OutOfHistory};

/// Most changes of one resource that are kept.
pub(super) const MAX_EVENTS: usize = 4096;
/// Most memory, in bytes, that the changes of one resource keep alive.
pub(super) const MAX_MEMORY: usize = 32 * 1024 * 1024;
/// Most memory, in bytes, that the changes of all resources keep alive.
pub(super) const MAX_TOTAL_MEMORY: usize = 128 * 1024 * 1024;

/// Changes of one resource, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    memory: usize,
    /// Changes up to this revision are not in `events`.
    forgotten: u64,
}

impl History {
    /// A history that begins after a revision.
    pub(super) fn after(revision: u64) -> Self {
        Self { forgotten: revision, ..Self::default() }
    }

    /// Memory that the changes keep alive, in bytes. An object that two changes refer to counts twice.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// The revision of the last change, or of the beginning.
    pub(super) fn last(&self) -> u64 {
        self.events.back().map_or(self.forgotten, |event| event.revision)
    }

    /// Adds a change, and forgets the oldest ones until the bounds of a resource hold.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.memory += event.memory;
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.memory > MAX_MEMORY && self.events.len() > 1) {
            self.forget();
        }
    }

    /// Forgets the oldest change.
    pub(super) fn forget(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.memory -= event.memory;
            self.forgotten = event.revision;
        }
    }

    /// Whether more than the last change is kept.
    pub(super) fn can_forget(&self) -> bool {
        self.events.len() > 1
    }

    /// The changes after a revision, in order.
    pub(super) fn after_revision(
        &self,
        revision: u64,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, OutOfHistory> {
        if revision < self.forgotten {
            return Err(OutOfHistory::Forgotten);
        }
        let begin = self.events.partition_point(|event| event.revision <= revision);
        Ok(self.events.range(begin..))
    }

    /// The objects that have changed since a revision as they were then; `None` for those that did not exist.
    pub(super) fn before(
        &self,
        revision: u64,
    ) -> Result<BTreeMap<&ObjectName, Option<&Arc<Value>>>, OutOfHistory> {
        let mut before = BTreeMap::new();
        for event in self.after_revision(revision)? {
            before.entry(&event.name).or_insert(event.previous.as_ref());
        }
        Ok(before)
    }
}
