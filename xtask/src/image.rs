// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask image`: a container image without Docker and without a registry, as an OCI layout in a tar (image-spec 1.1),
//! as `ctr images import`, `k3s`, `kind load image-archive`, `podman load` and `skopeo` take it.
//!
//! One layer with the binary, and the libraries that it is linked to if it is not static. Times, users and order are fixed:
//! the same binary gives the same bytes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::Parser;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Where the binary is in the image.
const PROGRAM: &str = "usr/local/bin/meltemi";
/// Folders that are there although nothing is in them: mount points.
const FOLDERS: [&str; 4] = ["etc", "run", "tmp", "var"];

/// Pack the binary as a container image
#[derive(Parser)]
pub(crate) struct Args {
    /// The binary, e.g. of `make build`
    #[arg(long, default_value = "target/release/meltemi")]
    binary: PathBuf,
    /// Name of the image
    #[arg(long, default_value = concat!("ghcr.io/meltemi/meltemi:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// The archive that is written
    #[arg(long, default_value = "target/meltemi-oci.tar")]
    out: PathBuf,
}

/// Writes the archive and prints its digest.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut files = BTreeMap::new();
    let binary = std::fs::read(&args.binary).with_context(|| format!("reading {}", args.binary.display()))?;
    let machine = architecture(&binary)?;
    files.insert(PROGRAM.to_owned(), binary);
    for library in libraries(&args.binary)? {
        let inside = library.trim_start_matches('/').to_owned();
        files.insert(inside, std::fs::read(&library).with_context(|| format!("reading {library}"))?);
    }
    let (archive, digest) = pack(&files, machine, &args.name)?;
    std::fs::write(&args.out, archive).with_context(|| format!("writing {}", args.out.display()))?;
    println!("{}: {} ({machine}, {} files) {digest}", args.out.display(), args.name, files.len());
    Ok(ExitCode::SUCCESS)
}

/// The architecture in OCI's words, by the ELF header's `e_machine`.
fn architecture(binary: &[u8]) -> anyhow::Result<&'static str> {
    match binary.get(..20) {
        Some([0x7f, b'E', b'L', b'F', .., 0x3e, 0]) => Ok("amd64"),
        Some([0x7f, b'E', b'L', b'F', .., 0xb7, 0]) => Ok("arm64"),
        _ => bail!("the binary is no ELF file for amd64 or arm64"),
    }
}

/// The libraries that a binary is linked to, by their paths; none of a static one.
fn libraries(binary: &Path) -> anyhow::Result<Vec<String>> {
    let asked = Command::new("ldd").arg(binary).output().context("ldd")?;
    let text = String::from_utf8_lossy(&asked.stdout);
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    Ok(text.lines().filter_map(path).collect())
}

/// The archive and the digest of its image's manifest.
fn pack(files: &BTreeMap<String, Vec<u8>>, machine: &str, name: &str) -> anyhow::Result<(Vec<u8>, String)> {
    let layer = layer(files)?;
    let mut zipped = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    zipped.write_all(&layer)?;
    let mut blobs = BTreeMap::new();
    let layer_blob = blob(&mut blobs, "application/vnd.oci.image.layer.v1.tar+gzip", zipped.finish()?);
    let config = json!({
        "architecture": machine,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{PROGRAM}")], "Env": ["PATH=/usr/local/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config_blob =
        blob(&mut blobs, "application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config_blob, "layers": [layer_blob],
    });
    let mut manifest_blob = blob(&mut blobs, manifest_type, serde_json::to_vec(&manifest)?);
    let id = manifest_blob["digest"].as_str().unwrap_or_default().to_owned();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest_blob["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    manifest_blob["platform"] = json!({"architecture": machine, "os": "linux"});
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest_blob],
    });
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "oci-layout", &serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?, 0o644)?;
    add(&mut tar, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
    for (digest, bytes) in &blobs {
        add(&mut tar, &format!("blobs/sha256/{digest}"), bytes, 0o644)?;
    }
    Ok((tar.into_inner()?, id))
}

fn layer(files: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    let mut folders: Vec<String> = FOLDERS.map(str::to_owned).to_vec();
    for file in files.keys() {
        folders.extend(Path::new(file).ancestors().skip(1).map(|path| path.display().to_string()));
    }
    folders.retain(|folder| !folder.is_empty());
    folders.sort();
    folders.dedup();
    let mut tar = tar::Builder::new(Vec::new());
    for folder in folders {
        let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
        let mut header = header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
    }
    for (file, bytes) in files {
        add(&mut tar, file, bytes, 0o755)?;
    }
    Ok(tar.into_inner()?)
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    tar.append_data(&mut header(mode, bytes.len() as u64), path, bytes).with_context(|| path.to_owned())
}

/// Root's, of the epoch's first second.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Keeps a blob and describes it.
fn blob(blobs: &mut BTreeMap<String, Vec<u8>>, media_type: &str, bytes: Vec<u8>) -> Value {
    let digest = digest(&bytes);
    let described = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
    blobs.insert(digest.trim_start_matches("sha256:").to_owned(), bytes);
    described
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_bytes_and_every_digest_is_right() {
        let files =
            BTreeMap::from([(PROGRAM.to_owned(), vec![7; 1000]), ("lib/x.so".to_owned(), vec![8; 10])]);
        let (archive, id) = pack(&files, "amd64", "local/meltemi:1").unwrap();
        assert_eq!(pack(&files, "amd64", "local/meltemi:1").unwrap(), (archive.clone(), id.clone()));
        let mut seen = 0;
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            if let Some(named) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(format!("sha256:{named}"), digest(&bytes));
                seen += usize::from(digest(&bytes) == id);
            }
        }
        assert_eq!(seen, 1, "the manifest is there");
        let other = BTreeMap::from([(PROGRAM.to_owned(), vec![6; 1000])]);
        assert_ne!(pack(&other, "amd64", "local/meltemi:1").unwrap().1, id);
    }

    #[test]
    fn the_architecture_is_the_binarys() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let expected = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        assert_eq!(architecture(&this).unwrap(), expected);
        assert!(architecture(b"#!/bin/sh").is_err() && architecture(&[]).is_err());
    }
}
