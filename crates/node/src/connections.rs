// SPDX-License-Identifier: Apache-2.0
//! The table of open connections, for the admin endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_model::WorkloadUid;
use meltemi_view::access_log::Direction;
use serde::Serialize;

/// An open connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    #[serde(skip)]
    pub workload: WorkloadUid,
    #[serde(skip)]
    pub direction: Direction,
    pub src: Option<SocketAddr>,
    pub original_dst: Option<SocketAddr>,
    pub actual_dst: Option<SocketAddr>,
    pub protocol: &'static str,
}

#[derive(Debug, Default)]
struct Table {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Connection>>,
}

/// All of them; clones share the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Arc<Table>);

/// Keeps a connection in the table.
#[derive(Debug)]
pub(crate) struct Open {
    table: Connections,
    id: u64,
}

impl Connections {
    pub(crate) fn open(&self, connection: Connection) -> Open {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, connection);
        Open { table: self.clone(), id }
    }

    pub(crate) fn all(&self) -> Vec<Connection> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.table.0.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
