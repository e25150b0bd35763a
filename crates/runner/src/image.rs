// SPDX-License-Identifier: Apache-2.0
//! The image table: which command of this machine, or which loaded root, an image reference stands for. Nothing is ever pulled.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::loaded::Loaded;
use crate::pod_init::Bind;

pub(crate) mod folder;
mod layer;
pub mod loaded;
mod packed;
mod source;
pub(crate) mod tree;

/// Where the running binary is found in every Pod.
pub(crate) const BINARY: &str = "/opt/meltemi/bin/meltemi";

/// A user's entries: reference (with `*` for any characters) to what it stands for.
pub type Entries = BTreeMap<String, Entry>;

/// What an image reference stands for on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Entry {
    /// The entrypoint: a command and its arguments.
    pub command: Vec<String>,
    /// Folders of the machine that its containers see.
    pub mounts: Vec<HostFolder>,
    /// A root of its own. `None` for programs of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Loaded>,
}

/// A folder of the machine, read-only in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFolder {
    /// On the machine.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
}

/// An entry in the file: a command alone, as it is written by hand, or the whole.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Command(Vec<String>),
    Whole {
        command: Vec<String>,
        #[serde(default)]
        mounts: Vec<HostFolder>,
        #[serde(default)]
        loaded: Option<Loaded>,
    },
}

impl From<Written> for Entry {
    fn from(written: Written) -> Self {
        match written {
            Written::Command(command) => Self { command, ..Self::default() },
            Written::Whole { command, mounts, loaded } => Self { command, mounts, loaded },
        }
    }
}

/// Folders of a container that nothing of the machine can take the place of.
const RESERVED: [&str; 4] = ["/proc", "/dev", "/sys", "/opt/meltemi"];

impl HostFolder {
    /// Reads `DIR[:PATH]`; without a path it is shown where it is on the machine.
    ///
    /// # Errors
    /// A path is not absolute or has `..`, or the place is the container's own.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (source, target) = text.split_once(':').unwrap_or((text, text));
        for path in [source, target] {
            let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
            if !path.starts_with('/') || !Path::new(path).components().all(plain) {
                return Err(format!("{path:?} must be an absolute path without `..`"));
            }
        }
        let target: PathBuf = Path::new(target).components().collect();
        if target == Path::new("/") || RESERVED.iter().any(|own| target.starts_with(own)) {
            return Err(format!("{} is a container's own; name another place", target.display()));
        }
        Ok(Self { source: Path::new(source).components().collect(), target })
    }
}

/// A reference as Docker normalises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Registry and path: `docker.io/library/nginx`.
    pub name: String,
    /// `:tag` or `@digest`; `:latest` if not given.
    pub version: String,
}

impl Reference {
    /// Parses and normalises; `None` when it is no reference.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.chars().any(char::is_whitespace) {
            return None;
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (path, tag) = match rest[slash..].rfind(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if path.is_empty() || path.starts_with('/') || path.ends_with('/') || tag == Some("") {
            return None;
        }
        let name = match path.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => path.to_owned(),
            Some(_) => format!("docker.io/{path}"),
            None => format!("docker.io/library/{path}"),
        };
        let version = match (digest, tag) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        Some(Self { name, version })
    }

    /// The whole reference.
    pub(crate) fn full(&self) -> String {
        format!("{}{}", self.name, self.version)
    }
}

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// The normalised reference.
    pub reference: String,
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// What of the machine it shows beside the programs that every container sees.
    pub mounts: Vec<HostFolder>,
    /// Its own root, which shows nothing of the machine.
    pub loaded: Option<Loaded>,
}

impl Image {
    /// What its configuration says of its containers; empty for programs of the machine.
    pub(crate) fn config(&self) -> loaded::Config {
        self.loaded.as_ref().map(|loaded| loaded.config.clone()).unwrap_or_default()
    }

    /// The command of a container whose manifest has this command and these arguments.
    pub(crate) fn argv(&self, command: Vec<String>, arguments: Vec<String>) -> Vec<String> {
        let mut argv = command;
        if argv.is_empty() {
            argv.clone_from(&self.entrypoint);
            if arguments.is_empty() {
                argv.extend(self.config().cmd);
            }
        }
        argv.extend(arguments);
        argv
    }

    /// Its folders in a container; one that is above another one comes first.
    pub(crate) fn binds(&self) -> Vec<Bind> {
        let mut mounts: Vec<&HostFolder> = self.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.components().count());
        let bind = |mount: &HostFolder| Bind {
            source: mount.source.clone(),
            beneath: PathBuf::new(),
            target: mount.target.clone(),
            read_only: true,
            map_ids: false,
        };
        mounts.into_iter().map(bind).collect()
    }
}

/// Why an image cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    /// Not a reference.
    #[error("couldn't parse image name {0:?}: invalid reference format")]
    Invalid(String),
    /// Not in the table.
    #[error(
        "image {reference:?} is not in the image table of this machine (no image is ever pulled); \
         say what it stands for: meltemi image add {reference} -- COMMAND, or give it its files: \
         meltemi image load {reference} PATH"
    )]
    Unknown {
        /// The reference as the manifest has it.
        reference: String,
    },
}

/// Looks a reference up: the user's entries first, then the built-in ones.
///
/// # Errors
/// No reference, or not in the table.
pub(crate) fn resolve(text: &str, entries: &Entries) -> Result<Image, ImageError> {
    let reference = Reference::parse(text).ok_or_else(|| ImageError::Invalid(text.to_owned()))?;
    let full = reference.full();
    let user = entries.iter().find(|(pattern, _)| {
        let normal = Reference::parse(pattern).map(|r| r.full());
        glob(pattern, text) || glob(pattern, &full) || normal.is_some_and(|p| glob(&p, &full))
    });
    let entry = match user {
        Some((_, entry)) => Some(entry.clone()),
        None => built_in(&reference.name).map(|command| Entry { command, ..Entry::default() }),
    };
    match entry {
        Some(Entry { command, mounts, loaded }) => {
            Ok(Image { reference: full, entrypoint: command, mounts, loaded })
        }
        None => Err(ImageError::Unknown { reference: text.to_owned() }),
    }
}

fn built_in(name: &str) -> Option<Vec<String>> {
    let words = |text: &[&str]| Some(text.iter().map(|w| (*w).to_owned()).collect());
    let (rest, last) = name.rsplit_once('/')?;
    if let Some(part) = last.strip_prefix("examples-bookinfo-") {
        return match part {
            "productpage-v1" => words(&[BINARY, "sample", "productpage", "--version", "v1"]),
            "details-v1" => words(&[BINARY, "sample", "details", "--version", "v1"]),
            "ratings-v1" => words(&[BINARY, "sample", "ratings", "--version", "v1"]),
            "reviews-v1" => words(&[BINARY, "sample", "reviews", "--version", "v1"]),
            "reviews-v2" => words(&[BINARY, "sample", "reviews", "--version", "v2"]),
            "reviews-v3" => words(&[BINARY, "sample", "reviews", "--version", "v3"]),
            _ => None,
        };
    }
    let group = rest.rsplit_once('/').map_or(rest, |(_, g)| g);
    match (group, last) {
        ("curlimages", "curl") => words(&["curl"]),
        ("meltemi", "meltemi") => words(&[BINARY]),
        _ => None,
    }
}

/// `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// Reads the user's entries; a file that is not there has none.
///
/// # Errors
/// The file cannot be read or is no table; the message names it.
pub fn load(path: &Path) -> Result<Entries, String> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Entries::new()),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

#[cfg(test)]
mod loading_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised_as_docker_does() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("curlimages/curl", "docker.io/curlimages/curl:latest"),
            ("curlimages/curl:8.1", "docker.io/curlimages/curl:8.1"),
            ("ghcr.io/a/b/c:1", "ghcr.io/a/b/c:1"),
            ("localhost/x", "localhost/x:latest"),
            ("reg:5000/x:2", "reg:5000/x:2"),
            ("reg:5000/x", "reg:5000/x:latest"),
            ("a/b:1@sha256:00", "docker.io/a/b@sha256:00"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().full(), full);
        }
        for text in ["", "a b", "/x", "x/", "x:"] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }

    #[test]
    fn folders_are_read_as_they_are_written() {
        let folder = |text: &str| {
            HostFolder::parse(text).map(|f| format!("{} {}", f.source.display(), f.target.display()))
        };
        for (text, expected) in [
            ("/srv/app", "/srv/app /srv/app"),
            ("/srv/app/:/app", "/srv/app /app"),
            ("/home/ann/a b:/opt/b", "/home/ann/a b /opt/b"),
        ] {
            assert_eq!(folder(text).as_deref(), Ok(expected));
        }
        for text in [
            "srv",
            "",
            "/srv:",
            "/srv:app",
            "/srv:/",
            "/",
            "/a:/../b",
            "/a/../b",
            "/a:/proc/x",
            "/dev",
            "/a:/opt/meltemi",
        ] {
            assert!(folder(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_entry_is_a_command_or_more_and_comes_back_as_it_was() {
        let text = r#"{"a": ["/bin/a", "x"], "b": {"command": ["/srv/b/run"], "mounts": [
            {"source": "/srv/b/lib", "target": "/app/lib"}, {"source": "/srv/b", "target": "/app"}]}}"#;
        let entries: Entries = serde_json::from_str(text).unwrap();
        let again: Entries = serde_json::from_str(&serde_json::to_string(&entries).unwrap()).unwrap();
        assert_eq!(again, entries);
        assert_eq!(resolve("a", &entries).unwrap().binds(), []);
        let binds = resolve("b", &entries).unwrap().binds();
        let shown: Vec<_> = binds.iter().map(|b| (b.target.to_str().unwrap(), b.read_only)).collect();
        assert_eq!(shown, [("/app", true), ("/app/lib", true)]);
    }

    #[test]
    fn the_users_entries_come_first_and_unknown_ones_name_the_fix() {
        let mut entries = Entries::new();
        let known = |text: &str, entries: &Entries| resolve(text, entries).unwrap().entrypoint;
        assert_eq!(
            known("docker.io/istio/examples-bookinfo-reviews-v3:1.20.3", &entries)[2..],
            ["reviews", "--version", "v3"]
        );
        assert_eq!(known("curlimages/curl", &entries), ["curl"]);
        assert_eq!(known("ghcr.io/meltemi/meltemi:0.1.0", &entries), [BINARY]);
        let entry = |program: &str| Entry { command: vec![program.into()], ..Entry::default() };
        entries.insert("*/mlflow:*".into(), entry("/bin/mlflow"));
        entries.insert("curlimages/curl".into(), entry("/bin/true"));
        assert_eq!(known("ghcr.io/mlflow/mlflow:v2", &entries), ["/bin/mlflow"]);
        assert_eq!(known("curlimages/curl", &entries), ["/bin/true"]);
        assert_eq!(known("curlimages/curl:8", &entries), ["curl"]);
        let config = loaded::Config { cmd: vec!["c".into()], ..loaded::Config::default() };
        let loaded = Some(Loaded { folder: "1".into(), config });
        entries.insert("web:2".into(), Entry { command: vec!["e".into()], mounts: Vec::new(), loaded });
        let text = serde_json::to_string(&entries).unwrap();
        assert_eq!(serde_json::from_str::<Entries>(&text).unwrap(), entries);
        let argv = |command: &[&str], arguments: &[&str]| {
            let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect();
            resolve("web:2", &entries).unwrap().argv(words(command), words(arguments)).join(" ")
        };
        // The table of "Define a Command and Arguments for a Container".
        let four = [argv(&[], &[]), argv(&["k"], &[]), argv(&[], &["a"]), argv(&["k"], &["a"])];
        assert_eq!(four, ["e c", "k", "e a", "k a"]);
        let error = resolve("acme/api:1", &entries).unwrap_err().to_string();
        assert!(error.contains("meltemi image add acme/api:1 -- COMMAND"), "{error}");
    }
}
