// SPDX-License-Identifier: Apache-2.0
//! Packed images: an OCI image layout or what `docker save` writes, in a folder or a tar.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Reference;
use super::layer;
use super::loaded::Config;
use super::source::{Source, hex};
use super::tree::{Attributes, Content, Tree};

/// Most layers of an image.
const MAX_LAYERS: usize = 512;
/// Most indexes that lead to each other.
const MAX_INDEXES: u32 = 4;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// A manifest, or another index where a manifest is expected.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
    Index(Index),
}

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Config>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// A layer: its part, the digest that its bytes must have if one is said, and that of its tar.
struct Layer {
    part: String,
    digest: Option<String>,
    diff_id: String,
}

/// Whether there is a packed image.
pub(super) fn is_packed(source: &Source) -> bool {
    source.has("index.json") || source.has("manifest.json")
}

/// Unpacks the image that `reference` names, or the only one; its configuration.
pub(super) fn unpack(source: &Source, reference: &str, tree: &mut Tree<'_>) -> io::Result<Config> {
    let (document, layers) = match source.has("index.json") {
        true => of_layout(source, reference)?,
        false => of_docker(source, reference)?,
    };
    check_platform(&document)?;
    let diff_ids = document.rootfs.diff_ids;
    if layers.len() > MAX_LAYERS {
        return Err(io::Error::other(format!("the image has more than {MAX_LAYERS} layers")));
    }
    if layers.len() != diff_ids.len() {
        return Err(io::Error::other(format!(
            "{} layers in the manifest, {} in the configuration",
            layers.len(),
            diff_ids.len()
        )));
    }
    tree.put(Path::new(""), Content::Folder, Attributes { mode: 0o755, ..Attributes::default() })?;
    // They are read twice, and headers are no files.
    let left = Rc::new(Cell::new(tree.bounds().bytes.saturating_mul(3)));
    for ((part, digest), diff_id) in layers.into_iter().zip(diff_ids) {
        let layer = Layer { part, digest, diff_id: of_digest(&diff_id)?.to_owned() };
        let done = apply(source, &layer, tree, &left);
        done.map_err(|e| io::Error::new(e.kind(), format!("layer {}: {e}", layer.part)))?;
    }
    Ok(document.config.unwrap_or_default())
}

type Parts = (Document, Vec<(String, Option<String>)>);

fn of_layout(source: &Source, reference: &str) -> io::Result<Parts> {
    let mut index: Index = source.json("index.json", None)?;
    for _ in 0..MAX_INDEXES {
        let chosen = choose(&index.manifests, reference)?;
        match source.json(&blob(&chosen.digest)?, Some(of_digest(&chosen.digest)?))? {
            Named::Manifest { config, layers } => {
                let document = source.json(&blob(&config.digest)?, Some(of_digest(&config.digest)?))?;
                let part = |layer: &Descriptor| {
                    Ok((blob(&layer.digest)?, Some(of_digest(&layer.digest)?.to_owned())))
                };
                return Ok((document, layers.iter().map(part).collect::<io::Result<_>>()?));
            }
            Named::Index(next) => index = next,
        }
    }
    Err(io::Error::other("too many indexes lead to each other"))
}

fn of_docker(source: &Source, reference: &str) -> io::Result<Parts> {
    let images: Vec<Saved> = source.json("manifest.json", None)?;
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let named = |image: &&Saved| tags(image).iter().any(|tag| is_same(tag, reference));
    let saved = match images.as_slice() {
        [only] => only,
        _ => images.iter().find(named).ok_or_else(|| {
            let names: Vec<String> = images.iter().flat_map(tags).collect();
            io::Error::other(format!(
                "it has {} images, none of them {reference}: {}",
                images.len(),
                names.join(", ")
            ))
        })?,
    };
    // Its name is its digest: `HEX.json`, later `blobs/sha256/HEX`.
    let name = saved.config.rsplit('/').next().unwrap_or_default();
    let digest = name.strip_suffix(".json").unwrap_or(name);
    let document = source.json(&saved.config, Some(digest))?;
    Ok((document, saved.layers.iter().map(|part| (part.clone(), None)).collect()))
}

/// The manifest for this machine, that has the reference's name where there are several.
fn choose<'a>(all: &'a [Descriptor], reference: &str) -> io::Result<&'a Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture())
    };
    let fitting: Vec<&Descriptor> = all.iter().filter(fits).collect();
    let name = |d: &Descriptor| {
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        keys.iter().find_map(|key| d.annotations.get(*key)).cloned().unwrap_or_default()
    };
    let named = |d: &&&Descriptor| is_same(&name(d), reference);
    match fitting.as_slice() {
        [] => Err(io::Error::other(format!("it has no image for linux/{}", architecture()))),
        [only] => Ok(only),
        several => several.iter().find(named).copied().ok_or_else(|| {
            let names: Vec<String> = several.iter().map(|d| name(d)).collect();
            io::Error::other(format!(
                "it has {} images, none of them {reference}: {}",
                several.len(),
                names.join(", ")
            ))
        }),
    }
}

/// Whether a name of an image, or its tag alone, is that of a reference.
fn is_same(name: &str, reference: &str) -> bool {
    let full = |text: &str| Reference::parse(text).map(|r| r.full());
    let tag = Reference::parse(reference).and_then(|r| r.version.strip_prefix(':').map(str::to_owned));
    !name.is_empty() && (full(name) == full(reference) || tag.is_some_and(|tag| tag == name))
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn check_platform(document: &Document) -> io::Result<()> {
    let Document { architecture: arch, os, .. } = document;
    let fits = |text: &str, own: &str| text.is_empty() || text == own;
    if fits(os, "linux") && fits(arch, architecture()) {
        return Ok(());
    }
    Err(io::Error::other(format!("the image is for {os}/{arch}, this machine is linux/{}", architecture())))
}

/// The hexadecimal part of a SHA-256 digest.
fn of_digest(digest: &str) -> io::Result<&str> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    hex.ok_or_else(|| io::Error::other(format!("digest {digest:?} is no sha256 digest")))
}

fn blob(digest: &str) -> io::Result<String> {
    Ok(format!("blobs/sha256/{}", of_digest(digest)?))
}

fn apply(source: &Source, layer: &Layer, tree: &mut Tree<'_>, left: &Rc<Cell<u64>>) -> io::Result<()> {
    let mut reader = layer::apply(tree, || Unpacking::open(source, &layer.part, left.clone()))?;
    let (digest, diff_id) = reader.digests()?;
    for (found, wanted) in [(&diff_id, Some(&layer.diff_id)), (&digest, layer.digest.as_ref())] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            return Err(io::Error::other(format!("its digest is {found}, and should be {wanted}")));
        }
    }
    Ok(())
}

/// A layer's tar out of its part, with the digests of both.
struct Unpacking {
    decoder: Decoder,
    digest: Sha256,
    left: Rc<Cell<u64>>,
}

enum Decoder {
    Plain(BufReader<Hashing>),
    Gzip(Box<MultiGzDecoder<BufReader<Hashing>>>),
}

struct Hashing {
    reader: Box<dyn Read>,
    digest: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}

impl Unpacking {
    fn open(source: &Source, part: &str, left: Rc<Cell<u64>>) -> io::Result<Self> {
        let hashing = Hashing { reader: source.part(part)?.reader, digest: Sha256::new() };
        let mut reader = BufReader::with_capacity(256 << 10, hashing);
        let begin = reader.fill_buf()?;
        if begin.starts_with(b"\x28\xb5\x2f\xfd") {
            return Err(io::Error::other("compressed with zstd, which is not taken; gzip is"));
        }
        let decoder = match begin.starts_with(b"\x1f\x8b") {
            true => Decoder::Gzip(Box::new(MultiGzDecoder::new(reader))),
            false => Decoder::Plain(reader),
        };
        Ok(Self { decoder, digest: Sha256::new(), left })
    }

    /// Reads the rest; the digests of the part and of the tar.
    fn digests(&mut self) -> io::Result<(String, String)> {
        io::copy(self, &mut io::sink())?;
        let part = match &mut self.decoder {
            Decoder::Plain(reader) => reader,
            Decoder::Gzip(decoder) => decoder.get_mut(),
        };
        io::copy(part, &mut io::sink())?;
        Ok((hex(&part.get_ref().digest.clone().finalize()), hex(&self.digest.clone().finalize())))
    }
}

impl Read for Unpacking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.decoder {
            Decoder::Plain(reader) => reader.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
        };
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| {
            io::Error::other("the layers have more bytes when they are unpacked than an image may have")
        })?);
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}
