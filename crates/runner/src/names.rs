// SPDX-License-Identifier: Apache-2.0
//! Names of Services for the node's DNS.

use std::sync::{Arc, Mutex};

use crate::context::lock;
use crate::services::Table;

/// The view that names are answered from.
#[derive(Debug, Default)]
pub(crate) struct View(Mutex<Arc<Table>>);

impl View {
    pub(crate) fn set(&self, table: Table) {
        *lock(&self.0) = Arc::new(table);
    }

    pub(crate) fn get(&self) -> Arc<Table> {
        lock(&self.0).clone()
    }
}
