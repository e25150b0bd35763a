// SPDX-License-Identifier: Apache-2.0
//! The folder that an image is unpacked into. What an archive says is a path inside of that folder's root, whatever
//! links the archive has made there before: the kernel resolves it, and the last name of it is never followed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use meltemi_linux::beneath::{self, Links, Make};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};

/// What an image may have at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of its files.
    pub bytes: u64,
    /// Entries of its layers.
    pub entries: u64,
    /// Whiteouts of one layer: they are held in memory.
    pub whiteouts: usize,
}

/// The bounds in force.
pub(super) const BOUNDS: Bounds = Bounds { bytes: 16 << 30, entries: 1_000_000, whiteouts: 100_000 };
/// Longest path of an entry on the disk, in bytes: what walks it or removes it does so by recursion.
const MAX_PATH: usize = 3_500;
/// Ids that every Pod of root has; files of others belong to root.
const IDS: u32 = 65_536;

/// Which owner a file gets, as this process counts ids; from those that the image says. `None` leaves it to this process.
pub(super) type Ids<'a> = dyn Fn(u32) -> Option<u32> + 'a;

/// The owners that the image says where this process may give files away; root's where it does not have an id.
pub(super) fn own_ids() -> impl Fn(u32) -> Option<u32> {
    let is_root = nix::unistd::geteuid().is_root();
    let there = meltemi_linux::users::available().unwrap_or_default();
    let has = move |id: u32| {
        id < IDS && there.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|n| n < *count))
    };
    move |id| is_root.then_some(if has(id) { id } else { 0 })
}

/// Owner, mode and time of an entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: i64,
}

/// What an entry is.
pub(super) enum Content<'a> {
    Folder,
    File(&'a mut dyn Read, u64),
    Symlink(&'a OsStr),
    /// Another name of an entry that is there.
    Link(&'a Path),
    Fifo,
}

/// What is being unpacked.
pub(super) struct Tree<'a> {
    root: File,
    ids: &'a Ids<'a>,
    bounds: Bounds,
    bytes_left: u64,
    entries_left: u64,
}

impl<'a> Tree<'a> {
    /// Unpacks into `root`, a folder that nobody else changes.
    pub(super) fn new(root: &Path, ids: &'a Ids<'a>, bounds: Bounds) -> io::Result<Self> {
        let Bounds { bytes: bytes_left, entries: entries_left, .. } = bounds;
        Ok(Self { root: File::open(root)?, ids, bounds, bytes_left, entries_left })
    }

    /// What it may have at most.
    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Makes an entry; one that is there gives way, a folder to a folder excepted.
    pub(super) fn put(
        &mut self,
        path: &Path,
        content: Content<'_>,
        attributes: Attributes,
    ) -> io::Result<()> {
        let most = self.bounds.entries;
        let left = self.entries_left.checked_sub(1);
        self.entries_left =
            left.ok_or_else(|| io::Error::other(format!("the image has more than {most} entries")))?;
        let done = self.put_in(path, content, attributes);
        done.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    fn put_in(&mut self, path: &Path, content: Content<'_>, attributes: Attributes) -> io::Result<()> {
        let Some((parent, name)) = self.place(path)? else {
            let Content::Folder = content else { return Err(io::Error::other("the root must be a folder")) };
            return self.finish_folder(self.root.as_fd().try_clone_to_owned()?, attributes);
        };
        let kind = kind_of(&parent, name)?;
        match (&content, kind) {
            (_, None) | (Content::Folder, Some(SFlag::S_IFDIR)) => {}
            (_, Some(_)) => remove_entry(&parent, name, kind)?,
        }
        match content {
            Content::Folder => {
                if kind != Some(SFlag::S_IFDIR) {
                    nix::sys::stat::mkdirat(&parent, name, Mode::S_IRWXU)?;
                }
                let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                let folder = nix::fcntl::openat(&parent, name, flags, Mode::empty())?;
                self.finish_folder(folder, attributes)
            }
            Content::File(reader, size) => self.write(&parent, name, reader, size, attributes),
            Content::Symlink(target) => {
                nix::unistd::symlinkat(target, &parent, name)?;
                self.give(&parent, name, attributes)
            }
            Content::Link(target) => self.link(&parent, name, target),
            Content::Fifo => {
                nix::sys::stat::mknodat(&parent, name, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)?;
                self.give(&parent, name, attributes)?;
                let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
                Ok(nix::sys::stat::fchmodat(&parent, name, mode(attributes.mode & 0o777), flags)?)
            }
        }
    }

    /// Takes away an entry of an earlier layer, if there is one, with all that is in it.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let Some((parent, name)) = self.find(path)? else { return Ok(()) };
        remove_entry(&parent, name, kind_of(&parent, name)?)
    }

    /// Takes away all that earlier layers have put into a folder, if there is one.
    pub(super) fn clear(&mut self, path: &Path) -> io::Result<()> {
        let folder = match beneath::open(self.root.as_fd(), path, Links::WithinRoot) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let Ok(entries) = fs::read_dir(by_descriptor(&folder)) else { return Ok(()) };
        for entry in entries {
            let name = entry?.file_name();
            remove_entry(&folder, &name, kind_of(&folder, &name)?)?;
        }
        Ok(())
    }

    /// The folder of an entry, made if it is missing, and its name there. `None`: it is the root itself.
    fn place<'p>(&self, path: &'p Path) -> io::Result<Option<(OwnedFd, &'p OsStr)>> {
        let Some((parent, name)) = split(path)? else { return Ok(None) };
        let root = (self.ids)(0).zip((self.ids)(0));
        let folder = beneath::open_or_make(self.root.as_fd(), parent, Links::WithinRoot, Make::Folder, root)?;
        // The path that it really has: links may have led deeper than the path of the entry says.
        let real = fs::read_link(by_descriptor(&folder))?;
        if real.as_os_str().len() + name.len() > MAX_PATH {
            return Err(io::Error::other(format!("the path is longer than {MAX_PATH} bytes")));
        }
        Ok(Some((folder, name)))
    }

    /// As [`Self::place`]; makes nothing.
    fn find<'p>(&self, path: &'p Path) -> io::Result<Option<(OwnedFd, &'p OsStr)>> {
        let Some((parent, name)) = split(path)? else { return Ok(None) };
        match beneath::open(self.root.as_fd(), parent, Links::WithinRoot) {
            Ok(folder) => Ok(Some((folder, name))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        reader: &mut dyn Read,
        size: u64,
        attributes: Attributes,
    ) -> io::Result<()> {
        let most = self.bounds.bytes;
        let left = self.bytes_left.checked_sub(size);
        self.bytes_left = left
            .ok_or_else(|| io::Error::other(format!("the files of the image have more than {most} bytes")))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut file = File::from(nix::fcntl::openat(parent, name, flags, mode(0o600))?);
        if io::copy(&mut reader.take(size), &mut file)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.give(parent, name, attributes)?;
        // Set-user-id bits mean nothing in a Pod, and are not to mean anything on the machine.
        let readable = if (self.ids)(0).is_none() { 0o400 } else { 0 };
        file.set_permissions(fs::Permissions::from_mode(attributes.mode & 0o777 | readable))?;
        let time = TimeSpec::new(attributes.modified, 0);
        Ok(nix::sys::stat::futimens(&file, &time, &time)?)
    }

    fn link(&self, parent: &OwnedFd, name: &OsStr, target: &Path) -> io::Result<()> {
        let failed = |why: &str| io::Error::other(format!("hard link to {}: {why}", target.display()));
        let found = self.find(target).map_err(|e| failed(&e.to_string()))?;
        let (folder, entry) = found.ok_or_else(|| failed("no such file in the image"))?;
        match kind_of(&folder, entry)? {
            Some(SFlag::S_IFREG | SFlag::S_IFLNK | SFlag::S_IFIFO) => {}
            Some(_) => return Err(failed("not a file")),
            None => return Err(failed("no such file in the image")),
        }
        Ok(nix::unistd::linkat(&folder, entry, parent, name, AtFlags::empty())?)
    }

    fn finish_folder(&self, folder: OwnedFd, attributes: Attributes) -> io::Result<()> {
        let folder = File::from(folder);
        let (uid, gid) = ((self.ids)(attributes.uid), (self.ids)(attributes.gid));
        nix::unistd::fchown(&folder, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
        // Who is not root must be able to fill it, and to remove it one day.
        let usable = if (self.ids)(0).is_none() { 0o700 } else { 0 };
        folder.set_permissions(fs::Permissions::from_mode(attributes.mode & 0o3777 | usable))
    }

    fn give(&self, parent: &OwnedFd, name: &OsStr, attributes: Attributes) -> io::Result<()> {
        let (uid, gid) = ((self.ids)(attributes.uid), (self.ids)(attributes.gid));
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(nix::unistd::fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

/// The path of what a descriptor is open on; only as part of a path that is used at once.
fn by_descriptor(folder: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

/// Parent and last name. `None` for the root.
fn split(path: &Path) -> io::Result<Option<(&Path, &OsStr)>> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !path.components().all(plain) {
        return Err(io::Error::other("a path of an image must be relative and without `..`"));
    }
    Ok(path.parent().zip(path.file_name()))
}

fn kind_of(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<SFlag>> {
    match nix::sys::stat::fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn remove_entry(folder: &OwnedFd, name: &OsStr, kind: Option<SFlag>) -> io::Result<()> {
    match kind {
        None => Ok(()),
        // Follows no link at any depth.
        Some(SFlag::S_IFDIR) => fs::remove_dir_all(by_descriptor(folder).join(name)),
        Some(_) => Ok(nix::unistd::unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?),
    }
}
