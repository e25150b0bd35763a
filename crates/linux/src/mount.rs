// SPDX-License-Identifier: Apache-2.0
//! Mounts, and a new root for the calling process.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const AT_RECURSIVE: libc::c_int = 0x8000;

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

const ATTR_RDONLY: u64 = 0x1;
const ATTR_NOSUID: u64 = 0x2;
const ATTR_NODEV: u64 = 0x4;
const ATTR_NOEXEC: u64 = 0x8;
const ATTR_IDMAP: u64 = 0x0010_0000;

/// What a mount forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forbid {
    /// Writing.
    pub write: bool,
    /// Device files.
    pub devices: bool,
    /// Executing.
    pub execute: bool,
}

/// Cuts the calling process's mounts off from those of others: nothing done here is seen there.
///
/// # Errors
/// Not in a mount namespace of its own, or no right to.
pub fn make_private() -> io::Result<()> {
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// Shows `source` (a file or a folder with everything mounted below it) at `target`.
///
/// # Errors
/// Either does not exist, or no right to.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    Ok(mount(Some(source), target, None::<&str>, flags, None::<&str>)?)
}

/// Tightens the mount at `target` and all below it; set-user-id bits are always ignored from then on.
///
/// # Errors
/// Nothing is mounted there, or no right to.
pub fn tighten(target: &Path, forbid: Forbid) -> io::Result<()> {
    set_attributes(libc::AT_FDCWD, &cstring(target)?, 0, forbid)
}

fn set_attributes(folder: i32, path: &CStr, flags: libc::c_int, forbid: Forbid) -> io::Result<()> {
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    let set = ATTR_NOSUID
        | flag(forbid.write, ATTR_RDONLY)
        | flag(forbid.devices, ATTR_NODEV)
        | flag(forbid.execute, ATTR_NOEXEC);
    set_attr(folder, path, flags | AT_RECURSIVE, &MountAttr { set, clear: 0, propagation: 0, userns: 0 })
}

fn set_attr(folder: i32, path: &CStr, flags: libc::c_int, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: a NUL-terminated path and a struct of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    crate::sys::check(result).map(drop)
}

/// A mount of its own, at no place yet, of the file or folder that a descriptor is open on; tightened as [`tighten`] does.
/// What is mounted below it is not taken along.
///
/// # Errors
/// No right to, in the mount namespace that the descriptor was opened in.
pub fn detached(of: BorrowedFd<'_>, forbid: Forbid) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    // SAFETY: an open descriptor and an empty NUL-terminated path.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, of.as_raw_fd(), c"".as_ptr(), flags) };
    let mount = crate::sys::owned(crate::sys::check(result)?);
    set_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, forbid)?;
    Ok(mount)
}

/// Shows the owners of files through a mount that [`detached`] made as if the ids on the disk were those inside of a user
/// namespace: the file system's user 33 is user 33 of the namespace.
///
/// # Errors
/// The file system or the kernel cannot, the mount is in a place already, or the file system belongs to another user
/// namespace than the caller's.
pub fn map_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    let userns = u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?;
    let attr = MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns };
    set_attr(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attr)
}

/// Mounts on `target` what is in the folder `lower`, with all changes kept in `upper`. `work` is an empty folder on the file
/// system of `upper`. The paths have no comma, colon or backslash; relative ones begin at the working directory. Set-user-id
/// bits and device files mean nothing there.
///
/// # Errors
/// The kernel has no overlay file system, or gives none to this user namespace.
pub fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let (lower, upper_path, work) = (lower.display(), upper, work.display());
    let options = format!("lowerdir={lower},upperdir={},workdir={work}", upper.display());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let own = if may_set_trusted(upper_path)? { "" } else { ",userxattr" };
    let options = format!("{options}{own}");
    Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?)
}

/// Whether this process may set the attributes by which an overlay marks what was removed. Only the machine's root may; where
/// it cannot, an overlay can be mounted all the same, and its folders not removed.
fn may_set_trusted(path: &Path) -> io::Result<bool> {
    let (path, name) = (cstring(path)?, c"trusted.overlay.meltemi");
    // SAFETY: two NUL-terminated strings and an empty value.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), std::ptr::null(), 0, 0) };
    if set < 0 {
        return Ok(false);
    }
    // SAFETY: two NUL-terminated strings.
    let removed = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    crate::sys::check(removed.into()).map(|_| true)
}

/// Mounts what [`detached`] made on the file or folder that `target` is open on.
///
/// # Errors
/// One is a folder and the other is not, or no right to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const BOTH_BY_DESCRIPTOR: libc::c_int = 0x04 | 0x40;
    let (from, to, empty) = (mount.as_raw_fd(), target.as_raw_fd(), c"".as_ptr());
    // SAFETY: two open descriptors and empty NUL-terminated paths.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, BOTH_BY_DESCRIPTOR) };
    crate::sys::check(result).map(drop)
}

/// [`bind`], then [`tighten`] against writing and devices.
///
/// # Errors
/// As those two.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    bind(source, target)?;
    tighten(target, Forbid { write: true, devices: true, execute: false })
}

/// A tmpfs of at most `size` bytes, its root folder with this mode and owned by the caller.
///
/// # Errors
/// The target does not exist, or no right to.
pub fn tmpfs(target: &Path, size: u64, mode: u32) -> io::Result<()> {
    let options = format!("size={size},mode={mode:o}");
    Ok(mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )?)
}

/// An empty folder that nobody can write, over the one at `target`.
///
/// # Errors
/// The target does not exist, or no right to.
pub fn empty(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    Ok(mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("size=4k,mode=555"))?)
}

/// A `/proc` of the calling process's PID namespace.
///
/// # Errors
/// The target does not exist, or (in a user namespace) the existing `/proc` is partly hidden.
pub fn proc(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), target, Some("proc"), flags, None::<&str>)?)
}

/// A set of pseudo-terminals of its own.
///
/// # Errors
/// The target does not exist, or no right to.
pub fn devpts(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(mount(Some("devpts"), target, Some("devpts"), flags, Some("newinstance,ptmxmode=0666,mode=0620"))?)
}

/// Makes `root`, which must be a mount, the root of the calling process; the old one is gone.
///
/// # Errors
/// Not in a mount namespace of its own, or `root` is not a mount.
pub fn pivot_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // Both the same folder: the old root ends up mounted over the new one and is taken away by its path.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// Takes the mount at this path away, now or when nobody uses it any more.
///
/// # Errors
/// Nothing is mounted there, or no right to.
pub fn detach(target: &Path) -> io::Result<()> {
    Ok(umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Whether something is mounted exactly at this path.
pub fn is_mounted(target: &Path) -> bool {
    let wanted = target.as_os_str().as_bytes();
    std::fs::read("/proc/self/mountinfo").is_ok_and(|text| {
        text.split(|b| *b == b'\n').any(|line| line.split(|b| *b == b' ').nth(4) == Some(wanted))
    })
}

fn cstring(path: &Path) -> io::Result<CString> {
    Ok(CStr::to_owned(&CString::new(path.as_os_str().as_bytes())?))
}
