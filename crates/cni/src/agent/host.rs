// SPDX-License-Identifier: Apache-2.0
//! The node's file system as the agent sees it: below a folder, with links that lead from the node's root and not from the
//! agent's.

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

/// Links that are followed in one path.
const MAX_LINKS: usize = 40;

/// The node's root.
#[derive(Clone, Debug)]
pub(super) struct HostRoot(PathBuf);

impl HostRoot {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where a path of the node is for this process.
    ///
    /// # Errors
    /// Too many links.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut left: Vec<PathBuf> = parts(path);
        let mut inside = PathBuf::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part.as_os_str() == ".." {
                inside.pop();
                continue;
            }
            let next = inside.join(&part);
            let Ok(target) = std::fs::read_link(self.0.join(&next)) else {
                inside = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::other(format!("{}: too many links", path.display())));
            }
            if target.is_absolute() {
                inside = PathBuf::new();
            }
            left.extend(parts(&target));
        }
        Ok(self.0.join(inside))
    }

    /// Reads a text file of the node.
    ///
    /// # Errors
    /// It is not there, or no text.
    pub(super) fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(self.resolve(path)?)
    }

    /// Whether a path of the node is there.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.resolve(path).is_ok_and(|path| path.exists())
    }
}

/// The parts of a path, the last one first; its root does not count.
fn parts(path: &Path) -> Vec<PathBuf> {
    let named = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    named.map(|part| PathBuf::from(part.as_os_str())).rev().collect()
}

/// Writes a file so that it is seen whole or not at all.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A name that the runtime does not take for a configuration or a plugin.
    let new = folder.join(format!(".{name}.meltemi-new"));
    let written = (|| {
        let mut file = std::fs::File::create(&new)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        // After a power failure the name must not stand for an empty file.
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    written.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_from_the_nodes_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("var/lib/cni/bin")).unwrap();
        std::fs::create_dir_all(root.join("opt")).unwrap();
        symlink("/var/lib/cni", root.join("opt/cni")).unwrap();
        symlink("../../../../../../etc", root.join("var/out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let host = HostRoot::new(root.to_owned());
        assert_eq!(host.resolve(Path::new("/opt/cni/bin")).unwrap(), root.join("var/lib/cni/bin"));
        assert_eq!(host.resolve(Path::new("/var/out/passwd")).unwrap(), root.join("etc/passwd"));
        assert_eq!(host.resolve(Path::new("/../../x")).unwrap(), root.join("x"));
        assert!(host.resolve(Path::new("/loop")).is_err());
        assert!(host.has(Path::new("/opt/cni/bin")) && !host.has(Path::new("/etc/passwd")));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("10-x.conflist");
        for text in ["one", "two"] {
            write_whole(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_whole(Path::new("/nonexistent/x"), b"", 0o600).is_err());
    }
}
