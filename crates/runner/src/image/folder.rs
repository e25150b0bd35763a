// SPDX-License-Identifier: Apache-2.0
//! A folder of this machine as the root of an image, and a copy of a root with other owners.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::tree::{Attributes, BOUNDS, Content, Ids, Tree};

/// Copies `source` with all that is in it on the same file system into `target`, an empty folder.
pub(crate) fn copy(source: &Path, target: &Path, ids: &Ids<'_>) -> io::Result<()> {
    let mut tree = Tree::new(target, ids, BOUNDS)?;
    let meta = fs::metadata(source)?;
    if !meta.is_dir() {
        return Err(io::Error::other(format!("{}: not a folder", source.display())));
    }
    tree.put(Path::new(""), Content::Folder, attributes(&meta))?;
    let mut copying = Copying { device: meta.dev(), names: HashMap::new(), tree };
    copying.folder(source, Path::new(""))
}

struct Copying<'a> {
    device: u64,
    /// The first name in the copy of files with more than one.
    names: HashMap<u64, PathBuf>,
    tree: Tree<'a>,
}

impl Copying<'_> {
    fn folder(&mut self, source: &Path, beneath: &Path) -> io::Result<()> {
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"))
        };
        for entry in fs::read_dir(source).map_err(at(source))? {
            let entry = entry.map_err(at(source))?;
            let (from, to) = (entry.path(), beneath.join(entry.file_name()));
            let meta = fs::symlink_metadata(&from).map_err(at(&from))?;
            let kind = meta.file_type();
            let attributes = attributes(&meta);
            if kind.is_dir() {
                self.tree.put(&to, Content::Folder, attributes)?;
                // What is mounted there is no part of it.
                if meta.dev() == self.device {
                    self.folder(&from, &to)?;
                }
            } else if kind.is_symlink() {
                let target = fs::read_link(&from).map_err(at(&from))?;
                self.tree.put(&to, Content::Symlink(target.as_os_str()), attributes)?;
            } else if kind.is_fifo() {
                self.tree.put(&to, Content::Fifo, attributes)?;
            } else if kind.is_file() {
                if let Some(first) = self.names.get(&meta.ino()) {
                    self.tree.put(&to, Content::Link(first), attributes)?;
                    continue;
                }
                if meta.nlink() > 1 {
                    self.names.insert(meta.ino(), to.clone());
                }
                let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
                let opened = File::options().read(true).custom_flags(flags).open(&from);
                let mut file = opened.map_err(at(&from))?;
                self.tree.put(&to, Content::File(&mut file, meta.len()), attributes)?;
            } else if !kind.is_socket() && !to.starts_with("dev") {
                return Err(io::Error::other(format!("{}: device files are not taken", from.display())));
            }
        }
        Ok(())
    }
}

fn attributes(meta: &fs::Metadata) -> Attributes {
    Attributes { uid: meta.uid(), gid: meta.gid(), mode: meta.mode(), modified: meta.mtime() }
}
