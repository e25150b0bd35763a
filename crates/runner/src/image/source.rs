// SPDX-License-Identifier: Apache-2.0
//! Where the parts of a packed image are: files of a folder, or members of a tar that stays packed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use meltemi_linux::beneath::{self, Links};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Most members of a packed image.
const MAX_MEMBERS: usize = 10_000;
/// Most bytes of a manifest or configuration.
const MAX_DOCUMENT: u64 = 4 << 20;

/// The parts of a packed image, by their names in it.
pub(super) enum Source {
    Folder(File),
    Archive { file: File, members: BTreeMap<PathBuf, Member> },
}

/// A member of a tar.
pub(super) enum Member {
    /// Where its bytes begin, and how many there are.
    File(u64, u64),
    /// It is another member; older `docker save`s write a layer that stands twice so.
    Link(PathBuf),
}

/// A part, read from its beginning.
pub(super) struct Part {
    pub reader: Box<dyn Read>,
    pub size: u64,
}

impl Source {
    /// Opens a folder, or a tar whose members it looks up.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Ok(Self::Folder(file));
        }
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("neither a folder nor a file"));
        }
        refuse_compressed(&file)?;
        let mut archive = tar::Archive::new(BufReader::new(file.try_clone()?));
        let mut members = BTreeMap::new();
        for raw in archive.entries_with_seek()?.raw(true) {
            let raw = raw.map_err(|e| io::Error::other(format!("not a tar: {e}")))?;
            let path = raw.path_bytes();
            let Some(path) = plain(Path::new(std::str::from_utf8(&path).map_err(io::Error::other)?)) else {
                continue;
            };
            let member = match raw.header().entry_type() {
                tar::EntryType::Regular => Member::File(raw.raw_file_position(), raw.size()),
                tar::EntryType::Symlink => {
                    let link = raw.link_name()?.unwrap_or_default();
                    Member::Link(joined(path.parent().unwrap_or(Path::new("")), &link))
                }
                _ => continue,
            };
            if members.len() == MAX_MEMBERS {
                return Err(io::Error::other(format!("it has more than {MAX_MEMBERS} members")));
            }
            members.insert(path, member);
        }
        Ok(Self::Archive { file, members })
    }

    /// Whether there is a part of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => beneath::open(folder.as_fd(), Path::new(name), Links::Refused).is_ok(),
            Self::Archive { members, .. } => members.contains_key(Path::new(name)),
        }
    }

    pub(super) fn part(&self, name: &str) -> io::Result<Part> {
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("{name}: {e}"));
        self.open_part(name).map_err(failed)
    }

    fn open_part(&self, name: &str) -> io::Result<Part> {
        match self {
            Self::Folder(folder) => {
                let found = beneath::open(folder.as_fd(), Path::new(name), Links::Refused)?;
                // A FIFO would be waited for: what it is must be known before it is opened for reading.
                let meta = File::from(found.try_clone()?).metadata()?;
                if !meta.is_file() {
                    return Err(io::Error::other("not a file"));
                }
                let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
                Ok(Part { reader: Box::new(file.take(meta.len())), size: meta.len() })
            }
            Self::Archive { file, members } => {
                let missing = || io::Error::from(io::ErrorKind::NotFound);
                let member = match members.get(Path::new(name)).ok_or_else(missing)? {
                    Member::Link(target) => members.get(target).ok_or_else(missing)?,
                    found @ Member::File(..) => found,
                };
                let Member::File(begin, size) = member else {
                    return Err(io::Error::other("a link to a link"));
                };
                let (begin, size) = (*begin, *size);
                if begin.checked_add(size).is_none_or(|end| file.metadata().is_ok_and(|m| m.len() < end)) {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                // A descriptor of its own position: two parts may be read by turns.
                let mut own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                own.seek(SeekFrom::Start(begin))?;
                Ok(Part { reader: Box::new(own.take(size)), size })
            }
        }
    }

    /// A small part whole, and its SHA-256.
    pub(super) fn document(&self, name: &str) -> io::Result<(Vec<u8>, String)> {
        let Part { reader, size } = self.part(name)?;
        if size > MAX_DOCUMENT {
            return Err(io::Error::other(format!("{name}: more than {MAX_DOCUMENT} bytes")));
        }
        let mut bytes = Vec::new();
        reader.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        let digest = hex(&Sha256::digest(&bytes));
        Ok((bytes, digest))
    }

    /// A small part as JSON; it must have this digest, if one is said.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str, digest: Option<&str>) -> io::Result<T> {
        let (bytes, found) = self.document(name)?;
        if digest.is_some_and(|digest| digest != found) {
            return Err(io::Error::other(format!("{name}: its digest is {found}, not that of its name")));
        }
        serde_json::from_slice(&bytes).map_err(|e| io::Error::other(format!("{name}: {e}")))
    }
}

/// `docker save` writes no compressed archive; one that somebody has compressed cannot be read by parts.
fn refuse_compressed(file: &File) -> io::Result<()> {
    let mut magic = [0; 6];
    let read = file.read_at(&mut magic, 0)?;
    let kinds: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"BZh", "bunzip2"),
    ];
    match kinds.iter().find(|(kind, _)| magic[..read].starts_with(kind)) {
        Some((_, tool)) => {
            Err(io::Error::other(format!("a compressed archive; unpack it with {tool} first")))
        }
        None => Ok(()),
    }
}

/// The name of a member without `.`; `None` for one that leads out, which is no part of an image.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(plain)
}

/// Where a link in `folder` leads by its text alone.
fn joined(folder: &Path, link: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for part in link.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            _ => {}
        }
    }
    path
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
