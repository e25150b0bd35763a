// SPDX-License-Identifier: Apache-2.0
//! Files and folders below a folder whose contents somebody else changes at the same time.
//!
//! The kernel resolves the path and refuses to leave the folder, whatever links there are at that moment. The result is
//! a descriptor and is used as one: a path would be resolved a second time.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::sys::{check, owned};

const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;
/// How often the kernel may say that a rename came in between.
const MAX_RACES: u32 = 128;

/// What a link that leads out of the folder means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// It is an error.
    Refused,
    /// The folder is the root of a process: an absolute link starts there.
    WithinRoot,
}

/// What is made where a path does not exist; folders on the way are made as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// A folder.
    Folder,
    /// An empty file.
    File,
}

/// Opens `path` below `folder`, for use as a descriptor only (`O_PATH`); makes what is missing, with this owner.
///
/// # Errors
/// The path has a `..`, it leads out of the folder or through a link of `/proc`, or something on the way is no folder.
pub fn open_or_make(
    folder: BorrowedFd<'_>,
    path: &Path,
    links: Links,
    make: Make,
    owner: Option<(u32, u32)>,
) -> io::Result<OwnedFd> {
    let names = names(path)?;
    match open(folder, path, links) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    let mut place = folder.try_clone_to_owned()?;
    let mut so_far = PathBuf::new();
    for (index, name) in names.iter().enumerate() {
        so_far.push(name);
        match open(folder, &so_far, links) {
            Ok(found) => place = found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let make = if index + 1 == names.len() { make } else { Make::Folder };
                place = make_in(place.as_fd(), Path::new(name), make, owner)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(place)
}

/// Opens `path` below `folder`, for use as a descriptor only (`O_PATH`).
///
/// # Errors
/// As [`open_or_make`], or it does not exist.
pub fn open(folder: BorrowedFd<'_>, path: &Path, links: Links) -> io::Result<OwnedFd> {
    let resolve = match links {
        Links::Refused => RESOLVE_BENEATH,
        Links::WithinRoot => RESOLVE_IN_ROOT,
    };
    let names: PathBuf = names(path)?.into_iter().collect();
    let names = if names.as_os_str().is_empty() { Path::new(".") } else { &names };
    openat2(folder, names, resolve | RESOLVE_NO_MAGICLINKS)
}

fn names(path: &Path) -> io::Result<Vec<&std::ffi::OsStr>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path must be without .."));
            }
        }
    }
    Ok(names)
}

/// Makes one entry of a folder and opens it; somebody may have made it in the meantime.
fn make_in(
    folder: BorrowedFd<'_>,
    name: &Path,
    make: Make,
    owner: Option<(u32, u32)>,
) -> io::Result<OwnedFd> {
    let text = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: an open descriptor and a NUL-terminated name.
    let made = unsafe {
        match make {
            Make::Folder => libc::mkdirat(folder.as_raw_fd(), text.as_ptr(), 0o755),
            Make::File => libc::mknodat(folder.as_raw_fd(), text.as_ptr(), libc::S_IFREG | 0o644, 0),
        }
    };
    let is_new = match check(made.into()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        other => other.map(|_| true)?,
    };
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    let found = openat2(folder, name, resolve)?;
    if let (true, Some((uid, gid))) = (is_new, owner) {
        chown(found.as_fd(), uid, gid)?;
    }
    Ok(found)
}

/// Changes the owner of what a descriptor is open on, be it by `O_PATH` only.
///
/// # Errors
/// No right to, or ids that this user namespace does not have.
pub fn chown(of: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: an open descriptor and an empty NUL-terminated path.
    let result = unsafe { libc::fchownat(of.as_raw_fd(), c"".as_ptr(), uid, gid, flags) };
    check(result.into()).map(drop)
}

fn openat2(folder: BorrowedFd<'_>, path: &Path, resolve: u64) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero open_how is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::try_from(libc::O_PATH | libc::O_CLOEXEC).map_err(io::Error::other)?;
    how.resolve = resolve;
    for _ in 0..MAX_RACES {
        // SAFETY: an open descriptor, a NUL-terminated path and a struct of the size that is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                folder.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match check(result) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other.map(owned),
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What a descriptor is open on.
    fn place(fd: &OwnedFd) -> PathBuf {
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn nothing_leads_out() {
        let temp = tempfile::tempdir().unwrap();
        let (inside, outside) = (temp.path().join("in"), temp.path().join("out"));
        std::fs::create_dir_all(inside.join("a/b")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        symlink("a", inside.join("link")).unwrap();
        symlink("../out", inside.join("up")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("missing", inside.join("dangling")).unwrap();
        symlink("/proc/self/cwd", inside.join("magic")).unwrap();
        let folder: OwnedFd = std::fs::File::open(&inside).unwrap().into();
        let make =
            |path: &str, links| open_or_make(folder.as_fd(), Path::new(path), links, Make::Folder, None);
        for (path, found) in
            [("a/b", "a/b"), ("link/b", "a/b"), ("link/new/x", "a/new/x"), ("", ""), ("/a", "a")]
        {
            assert_eq!(place(&make(path, Links::Refused).unwrap()), inside.join(found), "{path}");
        }
        for path in ["up", "up/x", "absolute/x", "dangling/x", "magic", "magic/x", "../out", "a/../../out"] {
            assert!(make(path, Links::Refused).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        // With the folder as a root, the same links stay inside of it.
        let made = make("absolute/x", Links::WithinRoot);
        assert!(made.is_err() || place(&made.unwrap()).starts_with(&inside));
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        let file =
            open_or_make(folder.as_fd(), Path::new("c/file"), Links::WithinRoot, Make::File, None).unwrap();
        assert!(std::fs::metadata(place(&file)).unwrap().is_file());
    }

    /// The race of CVE-2021-25741: a folder and a link out of the volume change places while they are opened.
    #[test]
    fn links_that_are_swapped_in_lead_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        let (inside, outside) = (temp.path().join("in"), temp.path().join("out"));
        std::fs::create_dir_all(inside.join("x")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        symlink(&outside, inside.join("l")).unwrap();
        let folder: OwnedFd = std::fs::File::open(&inside).unwrap().into();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (x, l) = (CString::new("x").unwrap(), CString::new("l").unwrap());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // SAFETY: an open descriptor and two NUL-terminated names.
                    unsafe {
                        libc::renameat2(
                            folder.as_raw_fd(),
                            x.as_ptr(),
                            folder.as_raw_fd(),
                            l.as_ptr(),
                            libc::RENAME_EXCHANGE,
                        )
                    };
                }
            });
            let mut opened = 0;
            for round in 0..20_000 {
                let path = if round % 2 == 0 { "x".into() } else { format!("x/{round}") };
                let made = open_or_make(folder.as_fd(), Path::new(&path), Links::Refused, Make::Folder, None);
                let Ok(made) = made else { continue };
                opened += 1;
                assert!(place(&made).starts_with(&inside), "{}", place(&made).display());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(opened > 0);
        });
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
