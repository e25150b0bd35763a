// SPDX-License-Identifier: Apache-2.0
//! Which groups a mesh has made: written down, so that they are found and removed whatever ended without doing so.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Interval between two attempts to remove groups whose last processes are about to end.
const RETRY: Duration = Duration::from_millis(10);

/// Name of a mesh's groups: meshes have the same name on two data directories, but never the same groups.
pub(crate) fn mesh_group(data_dir: &Path) -> String {
    // FNV-1a: the same in every version of the binary.
    let hash = data_dir.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let name = data_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let name: String = name.chars().filter(|c| plain(*c)).take(32).collect();
    format!("{name}-{hash:016x}")
}

/// The groups of a mesh that a node wrote down, one in each hierarchy.
pub(super) fn read(record: &Path) -> Vec<PathBuf> {
    fs::read_to_string(record).unwrap_or_default().lines().map(PathBuf::from).collect()
}

/// Writes them down.
pub(super) fn write(record: &Path, groups: &[PathBuf]) -> io::Result<()> {
    if let Some(folder) = record.parent() {
        fs::create_dir_all(folder)?;
    }
    let text: String = groups.iter().map(|group| format!("{}\n", group.display())).collect();
    fs::write(record, text)
}

/// Removes the groups of a mesh that has ended and what its nodes wrote down in `records`; gives those that processes are
/// still in after `limit`.
///
/// # Errors
/// A record cannot be read or removed.
pub fn remove_mesh(records: &Path, limit: Duration) -> io::Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    let entries = match fs::read_dir(records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
        entries => entries?,
    };
    for entry in entries {
        let record = entry?.path();
        let mut all = true;
        for group in read(&record) {
            if !remove_whole(&group, limit) {
                all = false;
                left.push(group);
            }
        }
        if all {
            fs::remove_file(&record)?;
        }
    }
    let _ = fs::remove_dir(records);
    Ok(left)
}

/// Removes what an earlier life of a node left: its groups where its next life has `groups` as well, and all of the mesh
/// where that is started from another place now. Gives those of the mesh that something is left of.
pub(super) fn sweep(record: &Path, node: &str, groups: &[PathBuf], limit: Duration) -> Vec<PathBuf> {
    let gone = |group: &PathBuf| match groups.contains(group) {
        true => remove_tree(&group.join(node), limit),
        false => remove_whole(group, limit),
    };
    read(record).into_iter().filter(|group| !gone(group)).collect()
}

/// Removes the group of a mesh, and that of all meshes where there is no other one.
fn remove_whole(group: &Path, limit: Duration) -> bool {
    let gone = remove_tree(group, limit);
    if let Some(parent) = group.parent().filter(|parent| gone && parent.ends_with(super::GROUP)) {
        let _ = fs::remove_dir(parent);
    }
    gone
}

/// Removes a group with those in it, and tells whether it is gone. Only empty groups can be removed: one whose processes
/// have not ended yet is tried again until `limit` has passed.
pub(super) fn remove_tree(group: &Path, limit: Duration) -> bool {
    let begun = Instant::now();
    loop {
        if try_remove(group).is_ok() {
            return true;
        }
        if begun.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(RETRY);
    }
}

/// Innermost first. The files of a group are the kernel's and go with it; a folder of any other file system that has files
/// is not removed.
fn try_remove(group: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            try_remove(&entry.path())?;
        }
    }
    gone(fs::remove_dir(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meshes_have_groups_of_their_own() {
        let name = mesh_group(Path::new("/var/lib/meltemi"));
        assert!(name.starts_with("meltemi-") && name.len() == 24, "{name}");
        assert_ne!(name, mesh_group(Path::new("/var/lib/other/meltemi")));
        let odd = mesh_group(Path::new("/tmp/a b/../.."));
        assert!(!odd.contains(['.', '/', ' ']), "{odd}");
    }

    #[test]
    fn a_next_life_removes_its_own_and_all_of_a_place_that_it_has_left() {
        let folder = tempfile::tempdir().unwrap();
        let (record, top) = (folder.path().join("records/node-1"), folder.path());
        let (same, before) = (top.join("pids/meltemi/m"), top.join("old/memory/meltemi/m"));
        for made in [same.join("node-1/uid/c"), same.join("node-2/uid"), before.join("node-1/uid/c")] {
            fs::create_dir_all(made).unwrap();
        }
        write(&record, &[same.clone(), before.clone()]).unwrap();
        assert_eq!(sweep(&record, "node-1", std::slice::from_ref(&same), Duration::ZERO), [] as [PathBuf; 0]);
        assert!(!same.join("node-1").exists() && same.join("node-2/uid").exists());
        assert!(!top.join("old/memory/meltemi").exists() && top.join("old/memory").exists());
        // What cannot be removed stays known.
        fs::create_dir_all(before.join("node-1")).unwrap();
        fs::write(before.join("node-1/file"), "").unwrap();
        assert_eq!(sweep(&record, "node-1", &[same], Duration::ZERO), [before]);
    }

    #[test]
    fn what_was_written_down_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (records, groups) = (folder.path().join("records"), folder.path().join("cpu/meltemi"));
        let (ours, other, full) = (groups.join("m-1"), groups.join("m-2"), groups.join("m-3"));
        fs::create_dir_all(ours.join("node-1/uid/container")).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::create_dir_all(full.join("node-2")).unwrap();
        fs::write(full.join("node-2/file"), "not of a group").unwrap();
        write(&records.join("node-1"), &[ours.clone(), folder.path().join("never/made")]).unwrap();
        write(&records.join("node-2"), std::slice::from_ref(&full)).unwrap();
        assert_eq!(remove_mesh(&records, Duration::ZERO).unwrap(), std::slice::from_ref(&full));
        assert!(!ours.exists() && other.exists() && full.join("node-2/file").exists());
        // What is left is still known.
        fs::remove_file(full.join("node-2/file")).unwrap();
        fs::remove_dir(other).unwrap();
        assert_eq!(remove_mesh(&records, Duration::ZERO).unwrap(), [] as [PathBuf; 0]);
        assert!(!groups.exists() && !records.exists());
        assert_eq!(remove_mesh(&records, Duration::ZERO).unwrap(), [] as [PathBuf; 0]);
    }
}
