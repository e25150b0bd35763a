// SPDX-License-Identifier: Apache-2.0
//! The entries of a layer: a tar of which nothing is believed. Its records of extended headers are read here and not by the
//! tar library, which keeps as much of them in memory as an archive likes.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType, Header, PaxExtensions};

use super::tree::{Attributes, Content, Tree};

/// Most bytes of one extended header.
const MAX_EXTENSION: u64 = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of AUFS's own files begin so.
const RESERVED: &[u8] = b".wh..wh.";

/// What a layer takes away of those below it.
#[derive(Debug, PartialEq, Eq)]
enum Whiteout {
    /// An entry.
    Entry(PathBuf),
    /// All that is in a folder.
    Folder(PathBuf),
}

/// Applies a layer: what it takes away first, wherever in the layer that is said, then what it has. `open` gives the layer's
/// tar from its beginning.
pub(super) fn apply<R: Read>(tree: &mut Tree<'_>, open: impl Fn() -> io::Result<R>) -> io::Result<R> {
    let mut whiteouts = Vec::new();
    let mut first = open()?;
    let (most, most_whiteouts) = (tree.bounds().entries, tree.bounds().whiteouts);
    entries(&mut first, most, |entry, _| {
        let Some(whiteout) = whiteout(&entry.path) else { return Ok(()) };
        if whiteouts.len() == most_whiteouts {
            return Err(io::Error::other(format!("a layer has more than {most_whiteouts} whiteouts")));
        }
        whiteouts.extend(whiteout);
        Ok(())
    })?;
    for whiteout in &whiteouts {
        match whiteout {
            Whiteout::Entry(path) => tree.remove(path)?,
            Whiteout::Folder(path) => tree.clear(path)?,
        }
    }
    let mut second = open()?;
    entries(&mut second, most, |entry, reader| match whiteout(&entry.path) {
        Some(_) => Ok(()),
        None => put(tree, entry, reader),
    })?;
    Ok(second)
}

/// What a name takes away; the inner `None` for a reserved name, which is no file.
fn whiteout(path: &Path) -> Option<Option<Whiteout>> {
    let name = path.file_name()?.as_bytes();
    let parent = path.parent().unwrap_or(Path::new(""));
    let hidden = name.strip_prefix(WHITEOUT)?;
    Some(match name {
        OPAQUE => Some(Whiteout::Folder(parent.to_owned())),
        _ if name.starts_with(RESERVED) || hidden.is_empty() || hidden == b"." || hidden == b".." => None,
        _ => Some(Whiteout::Entry(parent.join(OsStr::from_bytes(hidden)))),
    })
}

/// An entry's header, with what extended headers say of it.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    link: OsString,
    kind: EntryType,
    attributes: Attributes,
    size: u64,
}

fn put(tree: &mut Tree<'_>, entry: &Entry, reader: &mut dyn Read) -> io::Result<()> {
    let Entry { path, kind, attributes, .. } = entry;
    let content = match kind {
        EntryType::Regular | EntryType::Continuous if path.as_os_str().as_bytes().ends_with(b"/") => {
            Content::Folder
        }
        EntryType::Regular | EntryType::Continuous => Content::File(reader, entry.size),
        EntryType::Directory => Content::Folder,
        EntryType::Symlink => Content::Symlink(&entry.link),
        EntryType::Link => {
            // Of the image's root, with or without a slash before it.
            let target = Path::new(&entry.link);
            Content::Link(target.strip_prefix("/").unwrap_or(target))
        }
        EntryType::Fifo => Content::Fifo,
        // A container has a /dev of its own.
        EntryType::Char | EntryType::Block if path.starts_with("dev") => return Ok(()),
        EntryType::Char | EntryType::Block => {
            return Err(io::Error::other(format!("{}: device files are not taken", path.display())));
        }
        other => {
            return Err(io::Error::other(format!(
                "{}: entries of type {other:?} are not taken",
                path.display()
            )));
        }
    };
    tree.put(path, content, *attributes)
}

/// What extended headers say of the entry that comes next.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    ids: [Option<u32>; 2],
    modified: Option<i64>,
}

/// Calls `each` for every entry, of which there may be as many as `most`.
fn entries(
    reader: impl Read,
    most: u64,
    mut each: impl FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = Archive::new(reader);
    let mut extended = Extended::default();
    let mut count = 0;
    for raw in archive.entries()?.raw(true) {
        count += 1;
        // Each may have an extended header before it.
        if count > most.saturating_mul(4) {
            return Err(io::Error::other(format!("a layer has more than {most} entries")));
        }
        let mut raw = raw?;
        let kind = raw.header().entry_type();
        match kind {
            EntryType::GNULongName => extended.path = Some(text(&mut raw)?),
            EntryType::GNULongLink => extended.link = Some(text(&mut raw)?),
            EntryType::XHeader => pax(&extension(&mut raw)?, &mut extended)?,
            EntryType::XGlobalHeader => {}
            _ => {
                let entry = entry(raw.header(), std::mem::take(&mut extended))?;
                each(&entry, &mut raw)?;
            }
        }
    }
    Ok(())
}

fn extension<R: Read>(raw: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    if raw.size() > MAX_EXTENSION {
        return Err(io::Error::other(format!("an extended header has more than {MAX_EXTENSION} bytes")));
    }
    let mut bytes = Vec::new();
    raw.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// GNU's long names end with a NUL.
fn text<R: Read>(raw: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    let mut bytes = extension(raw)?;
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    Ok(bytes)
}

fn pax(bytes: &[u8], extended: &mut Extended) -> io::Result<()> {
    for record in PaxExtensions::new(bytes) {
        let record = record?;
        let value = record.value_bytes();
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        match record.key_bytes() {
            b"path" => extended.path = Some(value.to_owned()),
            b"linkpath" => extended.link = Some(value.to_owned()),
            b"uid" => extended.ids[0] = number(),
            b"gid" => extended.ids[1] = number(),
            b"mtime" => {
                let whole = value.split(|b| *b == b'.').next().unwrap_or_default();
                extended.modified = std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok());
            }
            // Readers do not agree whether this or the header counts: the rest would be another archive to each.
            b"size" => return Err(io::Error::other("a size in an extended header is not taken")),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(io::Error::other("sparse files are not taken"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn entry(header: &Header, extended: Extended) -> io::Result<Entry> {
    let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extended.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    let id = |asked: Option<u32>, written: io::Result<u64>| {
        asked.unwrap_or_else(|| written.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0))
    };
    let modified = header.mtime().ok().and_then(|time| i64::try_from(time).ok());
    let attributes = Attributes {
        uid: id(extended.ids[0], header.uid()),
        gid: id(extended.ids[1], header.gid()),
        mode: header.mode()?,
        modified: extended.modified.or(modified).unwrap_or(0),
    };
    Ok(Entry {
        path: PathBuf::from(OsString::from_vec(path)),
        link: OsString::from_vec(link.unwrap_or_default()),
        kind: header.entry_type(),
        attributes,
        size: header.entry_size()?,
    })
}
