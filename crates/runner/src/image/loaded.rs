// SPDX-License-Identifier: Apache-2.0
//! Images that were loaded: a root of their own, kept below the data directory until they are removed.
//!
//! `images/NAME/root` is the root of one image; the table says which. A folder that the table does not name is what an
//! interrupted load has left. Whoever changes the table or the folders holds the lock; containers lock their image's folder.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::source::Source;
use super::tree::{BOUNDS, Bounds, Tree, own_ids};
use super::{Entries, folder, packed};

/// What the configuration of an image says of its containers; the names are those of OCI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The entrypoint.
    #[serde(rename = "Entrypoint", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments to the entrypoint where the manifest has none; the whole command without an entrypoint.
    #[serde(rename = "Cmd", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(rename = "Env", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Where the program starts.
    #[serde(
        rename = "WorkingDir",
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Name or number, `:` and a group or not.
    #[serde(rename = "User", deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
}

/// A field that may be null.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An image with a root of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Its folder among those of the table.
    pub folder: String,
    /// What it says of its containers.
    #[serde(default)]
    pub config: Config,
}

/// The image table's file and the folders beside it.
#[derive(Clone, Debug)]
pub struct Store {
    table: PathBuf,
    folders: PathBuf,
}

/// The right to change the table and the folders; others wait for it.
#[derive(Debug)]
pub struct Changing<'a> {
    store: &'a Store,
    _lock: Flock<File>,
}

impl Store {
    /// The one whose table is this file: `images.json`, with the folders in `images`.
    pub fn of(table: &Path) -> Self {
        Self { table: table.to_owned(), folders: table.with_extension("") }
    }

    /// The root of an image.
    pub(crate) fn root(&self, loaded: &Loaded) -> PathBuf {
        self.folders.join(&loaded.folder).join("root")
    }

    /// Waits until nobody else changes the table. What interrupted loads have left goes.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub fn change(&self) -> io::Result<Changing<'_>> {
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.folders.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folders).map_err(failed)?;
        let lock = Flock::lock(File::open(&self.folders).map_err(failed)?, FlockArg::LockExclusive);
        let changing = Changing { store: self, _lock: lock.map_err(|(_, e)| failed(e.into()))? };
        if let Ok(entries) = super::load(&self.table) {
            changing.sweep(&entries);
        }
        Ok(changing)
    }

    /// Marks an image as used for as long as the result lives.
    ///
    /// # Errors
    /// It was removed.
    pub(crate) fn hold(&self, loaded: &Loaded) -> io::Result<Flock<File>> {
        let folder = File::open(self.folders.join(&loaded.folder))?;
        Flock::lock(folder, FlockArg::LockSharedNonblock).map_err(|(_, e)| e.into())
    }
}

impl Changing<'_> {
    /// Unpacks what is at `path` into a folder of its own: a root, an OCI image layout, or what `docker save` writes.
    ///
    /// # Errors
    /// It is none of these, or has what is not taken; nothing of it stays.
    pub fn unpack(&self, reference: &str, path: &Path) -> io::Result<Loaded> {
        self.unpack_within(reference, path, BOUNDS)
    }

    pub(super) fn unpack_within(&self, reference: &str, path: &Path, bounds: Bounds) -> io::Result<Loaded> {
        let name = format!("{}-{}", jiff::Timestamp::now().as_nanosecond(), std::process::id());
        let folder = self.store.folders.join(&name);
        let unpacked = unpack(reference, path, &folder, bounds);
        match unpacked {
            Ok(config) => Ok(Loaded { folder: name, config }),
            Err(e) => {
                let _ = fs::remove_dir_all(folder);
                Err(e)
            }
        }
    }

    /// Takes the folders away that no entry names and no container uses.
    pub fn sweep(&self, entries: &Entries) {
        let named = |name: &str| {
            let mut loaded = entries.values().filter_map(|entry| entry.loaded.as_ref());
            loaded.any(|loaded| loaded.folder == name)
        };
        for entry in fs::read_dir(&self.store.folders).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(named) {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            // Held until it is gone: no container begins to use it meanwhile.
            if let Ok(_unused) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Whether containers use an image.
    pub fn is_used(&self, loaded: &Loaded) -> bool {
        let file = File::open(self.store.folders.join(&loaded.folder));
        file.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
    }
}

fn unpack(reference: &str, path: &Path, into: &Path, bounds: Bounds) -> io::Result<Config> {
    let source = Source::open(path)?;
    let root = into.join("root");
    DirBuilder::new().mode(0o700).create(into)?;
    // The image may say nothing of its root.
    DirBuilder::new().mode(0o755).create(&root)?;
    let ids = own_ids();
    if packed::is_packed(&source) {
        return packed::unpack(&source, reference, &mut Tree::new(&root, &ids, bounds)?);
    }
    match source {
        Source::Folder(_) => folder::copy(path, &root, &ids).map(|()| Config::default()),
        Source::Archive { .. } => Err(io::Error::other(
            "neither an OCI image layout (index.json) nor an archive of `docker save` (manifest.json)",
        )),
    }
}
