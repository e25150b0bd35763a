// SPDX-License-Identifier: Apache-2.0
//! The root of a container: a tmpfs with the host's programs bound read-only, own /proc and /dev, and the volumes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use meltemi_linux::mount::{self, Forbid};

use super::{Bind, ContainerSpec};

const ROOT_SIZE: u64 = 1 << 30;
const SHM_SIZE: u64 = 64 << 20;
/// Folders of the host with its programs and libraries.
const PROGRAMS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What of the host's /etc programs need; nothing of it is secret.
const ETC: [&str; 12] = [
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "pki/tls/certs",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "services",
    "protocols",
    "mime.types",
];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of /proc that would let a process without capabilities but with user 0 change the kernel.
const PROC_READ_ONLY: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];
/// Parts of /proc that say too much.
const PROC_HIDDEN: [&str; 6] = ["kcore", "keys", "timer_list", "sched_debug", "kmsg", "latency_stats"];

/// Builds the root at `spec.root`.
pub(super) fn build(spec: &ContainerSpec) -> io::Result<()> {
    let root = &spec.root;
    mount::tmpfs(root, ROOT_SIZE, 0o755).map_err(|e| at("root", root, e))?;
    for dir in [
        "etc", "proc", "dev", "tmp", "run", "var/tmp", "var/log", "var/lib", "root", "opt", "home", "mnt",
        "srv",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    symlink("/run", root.join("var/run"))?;
    for dir in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(dir), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    }
    for name in PROGRAMS {
        show(&Path::new("/").join(name), &root.join(name))?;
    }
    for name in ETC {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            bind(root, &Bind { target: source.clone(), source, read_only: true })?;
        }
    }
    for (path, text) in &spec.files {
        let target = inside(root, path)?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, text).map_err(|e| at("file", path, e))?;
    }
    devices(root, spec.terminal)?;
    proc(root)?;
    for volume in &spec.binds {
        bind(root, volume)?;
    }
    fs::create_dir_all(inside(root, &spec.cwd)?)
}

/// Makes the root itself read-only; what is mounted in it stays as it is.
pub(super) fn seal() -> io::Result<()> {
    let flags = nix::mount::MsFlags::MS_REMOUNT
        | nix::mount::MsFlags::MS_BIND
        | nix::mount::MsFlags::MS_RDONLY
        | nix::mount::MsFlags::MS_NOSUID
        | nix::mount::MsFlags::MS_NODEV;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// A folder of the host, or a link as on merged-usr systems.
fn show(source: &Path, target: &Path) -> io::Result<()> {
    match fs::symlink_metadata(source) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_symlink() => symlink(fs::read_link(source)?, target),
        Ok(_) => {
            fs::create_dir_all(target)?;
            mount::bind_read_only(source, target).map_err(|e| at("bind", source, e))
        }
    }
}

fn bind(root: &Path, bind: &Bind) -> io::Result<()> {
    let target = inside(root, &bind.target)?;
    let meta = fs::metadata(&bind.source).map_err(|e| at("mount source", &bind.source, e))?;
    if meta.is_dir() {
        fs::create_dir_all(&target).map_err(|e| at("mount point", &bind.target, e))?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        if !target.exists() {
            fs::write(&target, "").map_err(|e| at("mount point", &bind.target, e))?;
        }
    }
    mount::bind(&bind.source, &target).map_err(|e| at("mount", &bind.target, e))?;
    let forbid = Forbid { write: bind.read_only, devices: true, execute: false };
    mount::tighten(&target, forbid).map_err(|e| at("mount", &bind.target, e))
}

/// The place of a container's path below its root, with links on the way followed inside of it.
fn inside(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut place = root.to_owned();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => place.push(name),
            std::path::Component::ParentDir => {
                return Err(at("path with ..", path, io::ErrorKind::InvalidInput.into()));
            }
            _ => continue,
        }
        for _ in 0..16 {
            let Ok(link) = fs::read_link(&place) else { break };
            place = if link.is_absolute() {
                root.join(link.strip_prefix("/").unwrap_or(&link))
            } else {
                place.parent().unwrap_or(root).join(link)
            };
        }
    }
    // A link must not lead out of the root.
    if place.components().any(|c| c == std::path::Component::ParentDir) || !place.starts_with(root) {
        return Err(at("path", path, io::ErrorKind::InvalidInput.into()));
    }
    Ok(place)
}

fn devices(root: &Path, terminal: bool) -> io::Result<()> {
    let dev = root.join("dev");
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, "")?;
        mount::bind(&Path::new("/dev").join(name), &target).map_err(|e| at("device", &target, e))?;
    }
    let _ = terminal;
    for dir in ["pts", "shm", "mqueue"] {
        fs::create_dir_all(dev.join(dir))?;
    }
    mount::devpts(&dev.join("pts")).map_err(|e| at("terminals", &dev, e))?;
    mount::tmpfs(&dev.join("shm"), SHM_SIZE, 0o1777).map_err(|e| at("shared memory", &dev, e))?;
    for (link, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(link))?;
    }
    Ok(())
}

fn proc(root: &Path) -> io::Result<()> {
    let proc = root.join("proc");
    mount::proc(&proc).map_err(|e| at("proc", &proc, e))?;
    for name in PROC_READ_ONLY {
        let path = proc.join(name);
        if path.exists() {
            mount::bind_read_only(&path, &path).map_err(|e| at("proc", &path, e))?;
        }
    }
    for name in PROC_HIDDEN {
        let path = proc.join(name);
        if path.exists() {
            mount::bind(Path::new("/dev/null"), &path).map_err(|e| at("proc", &path, e))?;
        }
    }
    Ok(())
}

fn at(what: &str, path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()))
}
