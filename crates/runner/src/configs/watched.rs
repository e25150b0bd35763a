// SPDX-License-Identifier: Apache-2.0
//! The watched config maps and secrets, by name, and who has asked for them last.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::lock::lock;

/// Keys and values.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// An object that nobody has asked for in this time is not watched any more. Longer than the pause between two
/// looks at a Pod's volumes.
pub(super) const UNUSED: Duration = Duration::from_secs(300);

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

/// As in messages of Kubernetes.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        })
    }
}

pub(super) type Key = (Kind, String, String);

/// `None`: not known yet; `Some(None)`: there is none.
pub(super) type Known = Option<Option<Arc<Data>>>;

/// The watched objects.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(super) watched: Mutex<HashMap<Key, (watch::Receiver<Known>, tokio::time::Instant)>>,
    pub(super) changes: watch::Sender<u64>,
}

impl Default for Configs {
    fn default() -> Self {
        Self { watched: Mutex::default(), changes: watch::channel(0).0 }
    }
}

impl Configs {
    /// Sees every change of any watched object.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn is_unused(&self, key: &Key) -> bool {
        let mut watched = lock(&self.watched);
        let unused = watched.get(key).is_none_or(|(_, used)| used.elapsed() > UNUSED);
        if unused {
            watched.remove(key);
        }
        unused
    }
}
