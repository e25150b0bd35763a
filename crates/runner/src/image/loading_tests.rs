// SPDX-License-Identifier: Apache-2.0
//! Images that tests write themselves, good ones and hostile ones.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::loaded::{Config, Store};
use super::source::hex;
use super::tree::Bounds;
use super::{Entries, Entry};

/// An entry: type, path, content or link.
type Line = (EntryType, &'static str, &'static str);
use EntryType::{Block, Char, Directory as Dir, Fifo, GNUSparse, Link, Regular as Reg, Symlink as Sym};

fn header(kind: EntryType, path: &str, content: &str) -> Header {
    let mut header = Header::new_gnu();
    // Names as an archive may have them, which the library would not write.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    if matches!(kind, Link | Sym) {
        header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
    }
    let is_file = matches!(kind, Reg | GNUSparse);
    header.set_size(if is_file { content.len() as u64 } else { 0 });
    header.set_entry_type(kind);
    header.set_mode(if kind == Dir { 0o755 } else { 0o4755 });
    header.set_uid(33);
    header.set_gid(34);
    header.set_mtime(1_000_000);
    header.set_cksum();
    header
}

fn layer(lines: &[Line]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, content) in lines {
        let data = if matches!(kind, Reg | GNUSparse) { content.as_bytes() } else { &[] };
        tar.append(&header(*kind, path, content), data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// An OCI image layout whose layers are in parts as they are here: the tar, and what is stored of it.
struct Layout {
    folder: tempfile::TempDir,
}

impl Layout {
    fn new(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        let layout = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(layout.folder.path().join("blobs/sha256")).unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| format!("sha256:{}", digest(tar))).collect();
        let config =
            json!({"os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let manifest = json!({
            "config": layout.blob(config.to_string().as_bytes()),
            "layers": layers.iter().map(|(_, stored)| layout.blob(stored)).collect::<Vec<_>>()
        });
        let manifest = layout.blob(manifest.to_string().as_bytes());
        layout.write("index.json", json!({"manifests": [manifest]}).to_string().as_bytes());
        layout.write("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
        layout
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.write(&format!("blobs/sha256/{digest}"), bytes);
        json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    /// The same as a tar.
    fn packed(&self) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = Builder::new(file.reopen().unwrap());
        tar.append_dir_all(".", self.folder.path()).unwrap();
        tar.finish().unwrap();
        file
    }
}

/// A data directory.
struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> Store {
        Store::of(&self.0.path().join("images.json"))
    }

    /// Loads an image that is small; its root and configuration.
    fn load(&self, path: &Path) -> Result<(PathBuf, Config), String> {
        let store = self.store();
        let bounds = Bounds { bytes: 1 << 20, entries: 1_000, whiteouts: 100 };
        let loaded =
            store.change().unwrap().unpack_within("web:2", path, bounds).map_err(|e| e.to_string())?;
        Ok((store.root(&loaded), loaded.config))
    }

    /// The folders of images.
    fn folders(&self) -> usize {
        fs::read_dir(self.0.path().join("images")).unwrap().count()
    }
}

/// Every entry below a folder, with the content of files and links.
fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                folders.push(path);
                lines.push(format!("{name}/"));
            } else if meta.is_symlink() {
                lines.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else {
                lines.push(format!("{name} = {}", fs::read_to_string(&path).unwrap()));
            }
        }
    }
    lines.sort();
    lines
}

fn two_layers() -> Layout {
    let below = layer(&[
        (Dir, "./", ""),
        (Dir, "./usr/", ""),
        (Reg, "usr/a", "a"),
        (Sym, "bin", "usr"),
        (Reg, "gone", "x"),
        (Reg, "old/deep/x", "x"),
        (Reg, "kept/x", "x"),
        (Reg, "folder-to-file/x", "x"),
        (Sym, "etc", "/usr"),
        (Char, "dev/null", ""),
    ]);
    let above = layer(&[
        // What is taken away is that of the layers below, wherever it is said.
        (Reg, "old/new", "new"),
        (Reg, "old/.wh..wh..opq", ""),
        (Reg, ".wh.gone", ""),
        (Reg, "again", "new"),
        (Reg, ".wh.again", ""),
        (Reg, ".wh.never-there", ""),
        (Reg, ".wh..wh.plnk", ""),
        (Reg, "bin/b", "b"),
        (Reg, "etc/c", "c"),
        (Link, "d", "bin/b"),
        (Link, "e", "/usr/a"),
        (Reg, "folder-to-file", "file"),
    ]);
    let config =
        json!({"Entrypoint": ["/bin/a"], "Cmd": ["x"], "Env": ["A=1"], "WorkingDir": "/w", "User": "33:34"});
    Layout::new(&[(below.clone(), gzip(&below)), (above.clone(), above)], &config)
}

const TWO_LAYERS: [&str; 14] = [
    "again = new",
    "bin -> usr",
    "d = b",
    "e = a",
    "etc -> /usr",
    "folder-to-file = file",
    "kept/",
    "kept/x = x",
    "old/",
    "old/new = new",
    "usr/",
    "usr/a = a",
    "usr/b = b",
    "usr/c = c",
];

#[test]
fn layers_lie_upon_each_other() {
    let (data, layout) = (Data::new(), two_layers());
    let packed = layout.packed();
    for path in [layout.folder.path(), packed.path()] {
        let (root, config) = data.load(path).unwrap();
        assert_eq!(tree(&root), TWO_LAYERS);
        let (file, folder) = (fs::metadata(root.join("usr/a")).unwrap(), fs::metadata(&root).unwrap());
        // Without the set-user-id bit that the archive has.
        assert_eq!((file.mode() & 0o7777, file.mtime(), file.nlink()), (0o755, 1_000_000, 2));
        assert_eq!(folder.mode() & 0o7777, 0o755);
        if nix::unistd::geteuid().is_root() {
            assert_eq!((file.uid(), file.gid()), (33, 34));
        }
        assert_eq!(config.entrypoint, ["/bin/a"]);
        assert_eq!((config.cmd.as_slice(), config.env.as_slice()), (&["x".into()][..], &["A=1".into()][..]));
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/w", "33:34"));
    }
}

#[test]
fn what_docker_saves_is_loaded() {
    let first = layer(&[(Reg, "f", "1")]);
    let config = |diff: &[u8]| {
        let diff_ids = [format!("sha256:{}", digest(diff)), format!("sha256:{}", digest(diff))];
        json!({"config": {"Cmd": ["/f"], "Entrypoint": null}, "rootfs": {"diff_ids": diff_ids}}).to_string()
    };
    let config = config(&first);
    let name = format!("{}.json", digest(config.as_bytes()));
    let image = |tag: &str, config: &str| json!({"Config": config, "RepoTags": [tag], "Layers": ["1/layer.tar", "2/layer.tar"]});
    let save = |images: &Value| {
        let mut tar = Builder::new(Vec::new());
        let mut file = |name: &str, bytes: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        file(&name, config.as_bytes());
        file("1/layer.tar", &first);
        file("manifest.json", images.to_string().as_bytes());
        // A layer that stands twice.
        let mut header = Header::new_gnu();
        header.set_entry_type(Sym);
        header.set_size(0);
        tar.append_link(&mut header, "2/layer.tar", "../1/layer.tar").unwrap();
        let mut saved = tempfile::NamedTempFile::new().unwrap();
        saved.write_all(&tar.into_inner().unwrap()).unwrap();
        saved
    };
    let data = Data::new();
    let (root, config) = data.load(save(&json!([image("other:1", &name)])).path()).unwrap();
    assert_eq!((tree(&root), config.cmd), (vec!["f = 1".to_owned()], vec!["/f".to_owned()]));
    let several = json!([image("other:1", "none.json"), image("docker.io/library/web:2", &name)]);
    assert!(data.load(save(&several).path()).is_ok());
    let others = json!([image("other:1", &name), image("other:2", &name)]);
    let error = data.load(save(&others).path()).unwrap_err();
    assert!(error.contains("2 images, none of them web:2: other:1, other:2"), "{error}");
}

#[test]
fn what_is_hostile_is_refused_by_name_and_leaves_nothing() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "alive").unwrap();
    let out: &'static str = Box::leak(outside.path().display().to_string().into_boxed_str());
    let canary: &'static str = Box::leak(format!("{out}/canary").into_boxed_str());
    let up: &'static str = Box::leak(format!("../../../../../../../..{canary}").into_boxed_str());
    let refused: Vec<(Vec<Line>, &str)> = vec![
        (vec![(Reg, canary, "dead")], "must be relative and without `..`"),
        (vec![(Reg, "../x", "dead")], "../x: a path of an image must be relative"),
        (vec![(Reg, up, "dead")], "without `..`"),
        (vec![(Dir, "a/../../b", "")], "without `..`"),
        (vec![(Link, "a", up)], "without `..`"),
        (vec![(Link, "a", canary)], "no such file in the image"),
        (vec![(Sym, "l", out), (Link, "a", "l/canary")], "no such file in the image"),
        (vec![(Dir, "d", ""), (Link, "a", "d")], "hard link to d: not a file"),
        (vec![(Sym, "l", out), (Reg, "l/canary/x", "dead"), (Reg, "l/canary/x/y", "dead")], "symbolic links"),
        (vec![(Block, "disk", "")], "disk: device files are not taken"),
        (vec![(Char, "a/mem", "")], "a/mem: device files are not taken"),
        (vec![(GNUSparse, "s", "x")], "entries of type GNUSparse are not taken"),
        (vec![(Reg, "", "x")], "the root must be a folder"),
        (vec![(Sym, ".", "x")], "the root must be a folder"),
        (vec![(Sym, "a", "b"), (Sym, "b", "a"), (Reg, "a/x", "")], "symbolic links"),
        (vec![(Fifo, "f", ""), (Dir, "f/d", "")], "Not a directory"),
    ];
    for (lines, why) in refused {
        let data = Data::new();
        let tar = layer(&lines);
        let layout = Layout::new(&[(tar.clone(), gzip(&tar))], &json!({}));
        let error = data.load(layout.folder.path()).map(|(root, _)| tree(&root)).unwrap_err();
        assert!(error.contains(why), "{lines:?}: {error}");
        assert_eq!(data.folders(), 0, "{lines:?}");
    }
    // A link that leads out is a text, as in every Debian; what goes through it stays in the image, removal too.
    let through = layer(&[
        (Dir, &out[1..], ""),
        (Sym, "l", out),
        (Reg, "l/new", "1"),
        (Sym, "m", "../../../.."),
        (Reg, "m/n", "2"),
    ]);
    let clear = layer(&[(Reg, "l/.wh..wh..opq", ""), (Reg, "l/.wh.canary", ""), (Reg, "m/.wh.n", "")]);
    let layers = [(through.clone(), through), (clear.clone(), clear)];
    let data = Data::new();
    let loaded = data.load(Layout::new(&layers, &json!({})).folder.path());
    let left = loaded.map(|(root, _)| tree(&root));
    assert!(
        left.as_ref().is_ok_and(|left| left.iter().all(|l| !l.ends_with("1") && !l.ends_with("2"))),
        "{left:?}"
    );
    assert_eq!(fs::read_to_string(canary).unwrap(), "alive");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn what_is_too_large_or_is_not_what_it_says_is_refused() {
    let zeros = vec![0; 8 << 20];
    let bomb = {
        let zeros = &zeros[..2 << 20];
        let mut tar = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(zeros.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "zeros", zeros).unwrap();
        tar.into_inner().unwrap()
    };
    // More behind the end of the archive than in it.
    let tail = [layer(&[(Reg, "a", "a")]), zeros].concat();
    let huge = {
        let mut header = header(Reg, "huge", "");
        header.set_size(1 << 50);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let long_name = {
        let mut header = header(EntryType::GNULongName, "n", "");
        header.set_size(1 << 40);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let two_sizes = {
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions([("size", &b"3"[..])]).unwrap();
        tar.append(&header(Reg, "a", "abc"), &b"abc"[..]).unwrap();
        tar.into_inner().unwrap()
    };
    let many: Vec<Line> = vec![(Reg, "a", ""); 1_001];
    let whiteouts: Vec<Line> = vec![(Reg, ".wh.a", ""); 101];
    let deep = {
        let mut lines: Vec<(EntryType, String, String)> = Vec::new();
        let step = "d/".repeat(45);
        lines.push((Dir, step.clone(), String::new()));
        for n in 0..60 {
            let before = if n == 0 { String::new() } else { format!("l{}/", n - 1) };
            lines.push((Dir, format!("{before}{step}"), String::new()));
            lines.push((Sym, format!("l{n}"), format!("{before}{step}")));
        }
        let mut tar = Builder::new(Vec::new());
        for (kind, path, link) in &lines {
            tar.append(&header(*kind, path, link), &[][..]).unwrap();
        }
        tar.into_inner().unwrap()
    };
    for (tar, why) in [
        (bomb, "more than 1048576 bytes"),
        (tail, "more bytes when they are unpacked"),
        (huge, "unexpected EOF"),
        (long_name, "an extended header has more than"),
        (two_sizes, "a size in an extended header"),
        (layer(&many), "more than 1000 entries"),
        (layer(&whiteouts), "more than 100 whiteouts"),
        (deep, "the path is longer than"),
        (b"no tar".repeat(200), "numeric field was not a number"),
    ] {
        let data = Data::new();
        let layout = Layout::new(&[(tar.clone(), gzip(&tar))], &json!({}));
        let error = data.load(layout.folder.path()).map(|(root, _)| tree(&root)).unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(data.folders(), 0, "{why}");
    }
    let tar = layer(&[(Reg, "a", "a")]);
    let blob = |layout: &Layout, bytes: &[u8]| layout.folder.path().join("blobs/sha256").join(digest(bytes));
    let good = || Layout::new(&[(tar.clone(), tar.clone())], &json!({}));
    let mut other = tar.clone();
    other.extend([0; 1024]);
    type Spoil<'a> = Box<dyn Fn(&Layout) + 'a>;
    let cases: [(&str, Spoil<'_>, &str); 7] = [
        ("another layer", Box::new(|l| fs::write(blob(l, &tar), &other).unwrap()), "its digest is"),
        ("a missing layer", Box::new(|l| fs::remove_file(blob(l, &tar)).unwrap()), "No such file"),
        (
            "a layer that is a link out",
            Box::new(|l| {
                fs::remove_file(blob(l, &tar)).unwrap();
                symlink("/etc/passwd", blob(l, &tar)).unwrap();
            }),
            "blobs/sha256",
        ),
        (
            "a layer that is a pipe",
            Box::new(|l| {
                fs::remove_file(blob(l, &tar)).unwrap();
                nix::unistd::mkfifo(&blob(l, &tar), nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            "not a file",
        ),
        (
            "another machine's",
            Box::new(|l| {
                let platform = json!({"os": "linux", "architecture": "s390x"});
                let index = json!({"manifests": [{"digest": "sha256:x", "platform": platform}]});
                l.write("index.json", index.to_string().as_bytes());
            }),
            "it has no image for linux/",
        ),
        (
            "a digest that is a path",
            Box::new(|l| {
                let index = json!({"manifests": [{"digest": "sha256:../../../etc/passwd"}]});
                l.write("index.json", index.to_string().as_bytes());
            }),
            "is no sha256 digest",
        ),
        (
            "a manifest of zeros",
            Box::new(|l| l.write("index.json", &vec![b' '; (4 << 20) + 1])),
            "index.json: more than",
        ),
    ];
    for (what, spoil, why) in cases {
        let (data, layout) = (Data::new(), good());
        spoil(&layout);
        let error = data.load(layout.folder.path()).unwrap_err();
        assert!(error.contains(why), "{what}: {error}");
        assert_eq!(data.folders(), 0, "{what}");
    }
    let data = Data::new();
    let layers = vec![(tar.clone(), tar.clone()); 513];
    let error = data.load(Layout::new(&layers, &json!({})).folder.path()).unwrap_err();
    assert!(error.contains("more than 512 layers"), "{error}");
    assert!(data.load(Layout::new(&layers[..512], &json!({})).folder.path()).is_ok());
    let data = Data::new();
    let mut members = Builder::new(Vec::new());
    for n in 0..10_001 {
        members.append(&header(Reg, &format!("m{n}"), ""), &[][..]).unwrap();
    }
    let mut crowded = tempfile::NamedTempFile::new().unwrap();
    crowded.write_all(&members.into_inner().unwrap()).unwrap();
    assert!(data.load(crowded.path()).unwrap_err().contains("more than 10000 members"));
    let zstd = Layout::new(&[(tar.clone(), b"\x28\xb5\x2f\xfd....".to_vec())], &json!({}));
    assert!(data.load(zstd.folder.path()).unwrap_err().contains("zstd"));
    let mut packed = tempfile::NamedTempFile::new().unwrap();
    packed.write_all(&gzip(&tar)).unwrap();
    assert!(data.load(packed.path()).unwrap_err().contains("gunzip"));
    let mut plain = tempfile::NamedTempFile::new().unwrap();
    plain.write_all(&tar).unwrap();
    assert!(data.load(plain.path()).unwrap_err().contains("neither an OCI image layout"));
}

#[test]
fn a_folder_is_copied_as_it_is() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    fs::create_dir(at("bin")).unwrap();
    fs::write(at("bin/tool"), "tool").unwrap();
    fs::set_permissions(at("bin/tool"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(at("bin/tool"), at("bin/same")).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    let _listening = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let (root, config) = Data::new().load(source.path()).unwrap();
    assert_eq!(config, Config::default());
    // The data directory has gone with its guard: what was copied is seen in one that lives.
    assert!(!root.exists());
    let data = Data::new();
    let (root, _) = data.load(source.path()).unwrap();
    assert_eq!(tree(&root), ["absolute -> /etc/passwd", "bin/", "bin/same = tool", "bin/tool = tool"]);
    let (one, other) =
        (fs::metadata(root.join("bin/tool")).unwrap(), fs::metadata(root.join("bin/same")).unwrap());
    assert_eq!(
        (one.ino(), one.mode() & 0o7777),
        (other.ino(), 0o711 | (u32::from(!nix::unistd::geteuid().is_root()) * 0o400))
    );
}

#[test]
fn what_is_not_named_and_not_used_goes() {
    let data = Data::new();
    let layout = two_layers();
    let store = data.store();
    let changing = store.change().unwrap();
    let loaded = changing.unpack("web:2", layout.folder.path()).unwrap();
    let entry = Entry { loaded: Some(loaded.clone()), ..Entry::default() };
    let table = Entries::from([("web:2".to_owned(), entry)]);
    fs::write(data.0.path().join("images.json"), serde_json::to_vec(&table).unwrap()).unwrap();
    // What a load that was killed has left.
    fs::create_dir_all(data.0.path().join("images/1-2/root/usr")).unwrap();
    drop(changing);
    let changing = store.change().unwrap();
    assert_eq!(data.folders(), 1);
    assert!(store.root(&loaded).join("usr/a").exists() && !changing.is_used(&loaded));
    let held = store.hold(&loaded).unwrap();
    assert!(changing.is_used(&loaded));
    changing.sweep(&Entries::new());
    assert_eq!(data.folders(), 1);
    drop(held);
    changing.sweep(&Entries::new());
    assert_eq!(data.folders(), 0);
    assert!(store.hold(&loaded).is_err());
    // Nobody else changes the table meanwhile.
    let file = File::open(data.0.path().join("images")).unwrap();
    assert!(nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_err());
}
