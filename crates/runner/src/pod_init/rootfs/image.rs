// SPDX-License-Identifier: Apache-2.0
//! The root of a container whose image has one: what the container changes of it is kept in memory and goes with it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use meltemi_linux::beneath::{self, Links, Make};
use meltemi_linux::mount;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use super::{ROOT_SIZE, at, devices, give, proc};
use crate::pod_init::{ContainerSpec, named};

/// Lays an empty folder in memory over the root of an image, puts /proc and /dev into it, and returns where it is. Nothing
/// else runs there yet, and no link of the image is followed: these two are looked at first.
pub(in crate::pod_init) fn build(
    spec: &ContainerSpec,
    image: OwnedFd,
    owner: (u32, u32),
) -> io::Result<PathBuf> {
    let place = &spec.root;
    mount::tmpfs(place, ROOT_SIZE, 0o755).map_err(|e| at("root", place, e))?;
    // Relative, since the path may have characters that mean something in a mount's options.
    std::env::set_current_dir(place)?;
    for folder in ["image", "changes", "work", "root"] {
        fs::create_dir(folder)?;
    }
    let target = nix::fcntl::open("image", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    mount::attach(image.as_fd(), target.as_fd()).map_err(named("root of the image"))?;
    // The root folder itself is that of the changes.
    let meta = fs::metadata("image")?;
    lchown("changes", Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions("changes", fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    let overlay =
        mount::overlay(Path::new("image"), Path::new("changes"), Path::new("work"), Path::new("root"));
    overlay.map_err(named("writable root over the image (overlay file system)"))?;
    let root = place.join("root");
    for name in ["proc", "dev"] {
        let folder = root.join(name);
        match fs::symlink_metadata(&folder) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(io::Error::other(format!("/{name} of the image is no folder"))),
            Err(_) => fs::create_dir(&folder)?,
        }
    }
    let dev = root.join("dev");
    mount::tmpfs(&dev, ROOT_SIZE, 0o755).map_err(|e| at("devices", &dev, e))?;
    devices(&root)?;
    give(&dev, owner, fs::metadata(&dev)?.dev())?;
    proc(&root)?;
    Ok(root)
}

/// Writes the files that differ from Pod to Pod. The container's root must be the process's; a link of the image in the
/// place of a file gives way to it.
pub(in crate::pod_init) fn write_files(spec: &ContainerSpec, owner: (u32, u32)) -> io::Result<()> {
    let root = File::open("/")?;
    for (path, text) in &spec.files {
        write_file(&root, path, text, owner).map_err(|e| at("file", path, e))?;
    }
    Ok(())
}

fn write_file(root: &File, path: &Path, text: &str, owner: (u32, u32)) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = beneath::open_or_make(root.as_fd(), folder, Links::WithinRoot, Make::Folder, Some(owner))?;
    match nix::unistd::unlinkat(&folder, name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = File::from(nix::fcntl::openat(&folder, name, flags, Mode::from_bits_truncate(0o644))?);
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(nix::unistd::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?)
}
