// SPDX-License-Identifier: Apache-2.0
//! The root of a container: a tmpfs with the host's programs bound read-only, own /proc and /dev, and the volumes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use meltemi_linux::beneath::{self, Links, Make};
use meltemi_linux::mount;

use super::ContainerSpec;

pub(super) mod image;

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
const PROC_READ_ONLY: [&str; 6] = ["sys", "sysrq-trigger", "irq", "bus", "fs", "pressure"];
/// Parts of /proc that say too much of the host.
const PROC_HIDDEN: [&str; 20] = [
    "acpi",
    "asound",
    "cmdline",
    "interrupts",
    "kallsyms",
    "kcore",
    "keys",
    "key-users",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "modules",
    "sched_debug",
    "scsi",
    "slabinfo",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

/// Builds the root at `spec.root` and returns that; what is in it belongs to `owner`.
pub(super) fn build(spec: &ContainerSpec, owner: (u32, u32)) -> io::Result<PathBuf> {
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
            let target = root.join("etc").join(name);
            make_place(&source, &target)?;
            mount::bind_read_only(&source, &target).map_err(|e| at("bind", &source, e))?;
        }
    }
    for (path, text) in &spec.files {
        let target = root.join(path.strip_prefix("/").unwrap_or(path));
        fs::write(&target, text).map_err(|e| at("file", path, e))?;
    }
    devices(root)?;
    proc(root)?;
    give(root, owner, fs::metadata(root)?.dev())?;
    Ok(root.clone())
}

/// Gives a folder of the root to its owner, with all that is in it and is not mounted there.
fn give(folder: &Path, owner: (u32, u32), device: u64) -> io::Result<()> {
    let failed = |e| at("owner of", folder, e);
    lchown(folder, Some(owner.0), Some(owner.1)).map_err(failed)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            give(&path, owner, device)?;
        } else {
            lchown(&path, Some(owner.0), Some(owner.1)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Mounts the volumes and makes the folder that the program starts in. The container's root must be the process's: other
/// containers may change what is in a volume meanwhile, and no link there may lead out.
pub(super) fn attach(spec: &ContainerSpec, mounts: Vec<OwnedFd>, owner: (u32, u32)) -> io::Result<()> {
    let root = File::open("/")?;
    for (bind, mount) in spec.binds.iter().zip(mounts) {
        let failed = |e| at("mount", &bind.target, e);
        let mount = File::from(mount);
        let make = if mount.metadata().map_err(failed)?.is_dir() { Make::Folder } else { Make::File };
        let target = beneath::open_or_make(root.as_fd(), &bind.target, Links::WithinRoot, make, Some(owner));
        mount::attach(mount.as_fd(), target.map_err(failed)?.as_fd()).map_err(failed)?;
    }
    let cwd = beneath::open_or_make(root.as_fd(), &spec.cwd, Links::WithinRoot, Make::Folder, Some(owner));
    cwd.map(drop).map_err(|e| at("working directory", &spec.cwd, e))
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

/// A place of the same kind as `source` to mount it on.
fn make_place(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(target, "")
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = root.join("dev");
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, "")?;
        mount::bind(&Path::new("/dev").join(name), &target).map_err(|e| at("device", &target, e))?;
    }
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
        if path.is_dir() {
            mount::empty(&path).map_err(|e| at("proc", &path, e))?;
        } else if path.exists() {
            mount::bind(Path::new("/dev/null"), &path).map_err(|e| at("proc", &path, e))?;
        }
    }
    Ok(())
}

fn at(what: &str, path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()))
}
