// SPDX-License-Identifier: Apache-2.0
//! What the store keeps and answers.

use std::sync::Arc;

use serde_json::Value;

use crate::bounds::OverBound;

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
    /// The object exceeds a bound.
    #[error("the object is {0}")]
    OverBound(#[from] OverBound),
    /// The row of this name cannot be read, and was set aside at the start.
    #[error("the stored object cannot be read: {0}")]
    Unreadable(String),
    /// The disk is full.
    #[error("the disk that holds the database is full: {0}")]
    Full(#[source] rusqlite::Error),
    /// The disk refuses.
    #[error("storage: {0}")]
    Disk(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full(error),
            _ => Self::Disk(error),
        }
    }
}

/// Why a revision cannot be read or watched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfHistory {
    /// Changes after it are no longer kept.
    #[error("too old resource version")]
    Forgotten,
    /// The store has not reached it: it is of another database, or of a state that was put back.
    #[error("too large resource version")]
    NotReached,
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
    /// Its memory in bytes, estimated.
    pub(super) memory: usize,
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
    pub(super) name: ObjectName,
    /// Memory of both states in bytes, estimated.
    pub(super) memory: usize,
}

/// An object of a [`Slice`].
#[derive(Clone, Debug)]
pub struct Item {
    /// Namespace and name.
    pub name: ObjectName,
    /// The object.
    pub value: Arc<Value>,
    /// Its memory in bytes, estimated.
    pub memory: usize,
}

/// Part of a list, in order of namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// The objects.
    pub items: Vec<Item>,
    /// The revision they are read at.
    pub revision: u64,
    /// Whether more follow.
    pub more: bool,
}

/// Part of the changes of a resource, in order.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The changes.
    pub events: Vec<Arc<Event>>,
    /// The revision that they reach.
    pub reached: u64,
}

/// A row that could not be read at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    /// `group/plural`
    pub resource: String,
    /// Namespace and name.
    pub name: ObjectName,
    /// Why.
    pub reason: String,
}
