// SPDX-License-Identifier: Apache-2.0
//! The SQLite file below the store.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

use super::ObjectName;

/// A row as loaded at start.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) revision: u64,
    /// Bytes that should be JSON.
    pub(super) json: Vec<u8>,
}

/// Secrets lie in the database: it is its owner's alone, and SQLite gives the files beside it the same mode.
fn private(path: &Path) -> rusqlite::Result<()> {
    let cannot = |error: std::io::Error| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        rusqlite::Error::SqliteFailure(code, Some(format!("{}: {error}", path.display())))
    };
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(cannot)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(cannot)
}

#[derive(Debug)]
pub(super) struct Disk(Connection);

impl Disk {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        private(path)?;
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A commit reaches the operating system, so a killed process loses nothing; only a power cut could.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS objects (
               resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
               revision INTEGER NOT NULL, json TEXT NOT NULL,
               PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self(connection))
    }

    /// The revision reached and every object.
    pub(super) fn load(&self) -> rusqlite::Result<(u64, Vec<Row>)> {
        let revision = self
            .0
            .query_row("SELECT value FROM meta WHERE key = 'revision'", [], |row| row.get(0))
            .or_else(|e| if e == rusqlite::Error::QueryReturnedNoRows { Ok(0_i64) } else { Err(e) })?;
        let mut statement =
            self.0.prepare("SELECT resource, namespace, name, revision, json FROM objects")?;
        let rows = statement
            .query_map([], |row| {
                Ok(Row {
                    resource: row.get(0)?,
                    namespace: row.get(1)?,
                    name: row.get(2)?,
                    revision: row.get::<_, i64>(3)?.unsigned_abs(),
                    json: match row.get_ref(4)? {
                        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
                        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => Vec::new(),
                    },
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok((revision.unsigned_abs(), rows))
    }

    pub(super) fn put(
        &mut self,
        resource: &str,
        key: &ObjectName,
        revision: u64,
        json: &str,
    ) -> rusqlite::Result<()> {
        let transaction = self.0.transaction()?;
        transaction
            .prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![resource, key.0, key.1, revision.cast_signed(), json])?;
        bump(&transaction, revision)?;
        transaction.commit()
    }

    pub(super) fn delete(&mut self, resource: &str, key: &ObjectName, revision: u64) -> rusqlite::Result<()> {
        let transaction = self.0.transaction()?;
        transaction
            .prepare_cached("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(params![resource, key.0, key.1])?;
        bump(&transaction, revision)?;
        transaction.commit()
    }
}

fn bump(transaction: &rusqlite::Transaction<'_>, revision: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('revision', ?1)")?
        .execute([revision.cast_signed()])?;
    Ok(())
}
