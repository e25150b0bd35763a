// SPDX-License-Identifier: Apache-2.0
//! Private files: 0600, written whole or not at all.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::{PkiError, io_error};

/// Makes a directory (and its parents) that only its owner can enter.
pub(super) fn private_dir(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io_error(path))
}

/// The file's text; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(path)(e)),
    }
}

/// Replaces the file in one step: a reader sees the old bytes or the new ones.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let fill = || {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    fill().map_err(io_error(path))
}

/// Writes unless the file has these bytes already; in any case it ends up 0600.
pub(super) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    match fs::read(path) {
        Ok(old) if old == bytes => {
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io_error(path))
        }
        _ => write(path, bytes),
    }
}
