// SPDX-License-Identifier: Apache-2.0
//! The published state of a server: changed in steps, each with a generation, and a log of what changed in which.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

/// Changes that are remembered for streams that lag.
const LOG: usize = 65_536;
/// A resource as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its message.
    pub bytes: Bytes,
    /// Other names under which it can be asked for.
    pub aliases: Vec<String>,
    /// Who may see it; everybody that may see the type when empty.
    pub audience: Vec<Arc<str>>,
}

/// A change of the published state.
#[derive(Clone, Debug)]
pub struct Change {
    /// Type.
    pub type_url: &'static str,
    /// Name.
    pub name: String,
    /// The resource; none when it is removed.
    pub resource: Option<Published>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) version: String,
    pub(super) published: Published,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) tables: HashMap<&'static str, BTreeMap<String, Entry>>,
    /// What changed in which generation; generations up to `forgotten` are no longer told.
    pub(super) log: VecDeque<(u64, &'static str, String)>,
    pub(super) forgotten: u64,
}

/// The published state; clones share it.
#[derive(Clone, Debug)]
pub struct Publisher {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) generation: watch::Sender<u64>,
}

impl Publisher {
    /// Nothing is published yet.
    pub fn new() -> Self {
        Self { state: Arc::default(), generation: watch::channel(0).0 }
    }

    /// Publishes a step; returns its generation (the one before when nothing changed).
    pub fn publish(&self, changes: Vec<Change>) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.generation + 1;
        let mut changed = Vec::new();
        for Change { type_url, name, resource } in changes {
            let table = state.tables.entry(type_url).or_default();
            let differs = match resource {
                Some(published) => {
                    let same = table.get(&name).is_some_and(|entry| entry.published == published);
                    if !same {
                        let version = version(&published.bytes);
                        table.insert(name.clone(), Entry { version, published });
                    }
                    !same
                }
                None => table.remove(&name).is_some(),
            };
            if differs {
                changed.push((next, type_url, name));
            }
        }
        if changed.is_empty() {
            return state.generation;
        }
        state.generation = next;
        state.log.extend(changed);
        while state.log.len() > LOG {
            state.forgotten = state.log.pop_front().map_or(state.forgotten, |(g, _, _)| g);
        }
        drop(state);
        self.generation.send_replace(next);
        next
    }

    /// The generation reached.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Names of a type, sorted.
    pub fn names(&self, type_url: &str) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tables.get(type_url).map(|table| table.keys().cloned().collect()).unwrap_or_default()
    }

    /// The published resource of a name.
    pub fn get(&self, type_url: &str, name: &str) -> Option<Published> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tables.get(type_url)?.get(name).map(|entry| entry.published.clone())
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

/// A content hash: the same resource has the same version, also after a restart of the server.
fn version(bytes: &Bytes) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
