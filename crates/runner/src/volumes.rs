// SPDX-License-Identifier: Apache-2.0
//! Volumes of a Pod: folders on the node that are filled from the API and shown in containers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccount, Volume, VolumeProjection,
};
use kube::api::{Api, PostParams};

use crate::claims;
use crate::configs::{self, Data, Kind};
use crate::content::{ContentError, MountError};
use crate::context::Context;
use crate::downward;
use crate::rights;
use crate::sandbox::Sandbox;

/// Why a volume cannot be filled (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("MountVolume.SetUp failed for volume {name:?} : {reason}")]
    Setup { name: String, reason: ContentError },
}

/// Who a Pod's volumes belong to, as the runner counts ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
    /// The group is the Pod's `fsGroup`, whose members may do what the owner may.
    is_shared: bool,
}

impl Owner {
    /// Root of the Pod, and its `fsGroup` if it has one.
    pub(crate) fn of(sandbox: &Sandbox, pod: &Pod) -> Self {
        let group = rights::fs_group(pod).filter(|_| sandbox.users().is_some());
        let (uid, gid) = (sandbox.id_outside(0), sandbox.id_outside(group.unwrap_or(0)));
        Self { uid, gid, is_shared: group.is_some() }
    }

    fn take(self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.uid), Some(self.gid))
    }
}

/// Files of a volume: path below its root to content and mode.
type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// The folder of a Pod's volume.
pub(crate) fn folder(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// Fills every volume of a Pod; called again, it brings changed contents.
pub(crate) async fn prepare(
    ctx: &Arc<Context>,
    pod: &Pod,
    pod_dir: &Path,
    owner: Owner,
) -> Result<(), VolumeError> {
    let spec = pod.spec.clone().unwrap_or_default();
    for volume in spec.volumes.iter().flatten() {
        let failed = |reason: ContentError| VolumeError::Setup { name: volume.name.clone(), reason };
        let dir = folder(pod_dir, &volume.name);
        if let Some(claim) = &volume.persistent_volume_claim {
            claims::link(ctx, pod, &claim.claim_name, &dir).await.map_err(|e| failed(e.into()))?;
            continue;
        }
        match contents(ctx, pod, volume).await.map_err(failed)? {
            Some(files) => publish(&dir, &files, owner).map_err(|e| failed(e.into()))?,
            None => plain(ctx, pod, volume, &dir, owner).map_err(failed)?,
        }
    }
    if automount(pod) {
        let failed = |reason: ContentError| VolumeError::Setup { name: TOKEN_VOLUME.to_owned(), reason };
        let mut files = Files::new();
        token(ctx, pod, (None, 3607), ("token", 0o644), &mut files).await.map_err(failed)?;
        files.insert("ca.crt".to_owned(), (ctx.cluster_ca.clone(), 0o644));
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        files.insert("namespace".to_owned(), (namespace.into_bytes(), 0o644));
        publish(&folder(pod_dir, TOKEN_VOLUME), &files, owner).map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// The volume with the Pod's own token, when the API has not written one into the Pod.
pub(crate) const TOKEN_VOLUME: &str = "kube-api-access";
/// Where it is shown.
pub(crate) const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Whether the Pod gets its token although its manifest does not mount one.
pub(crate) fn automount(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mounted = spec
        .containers
        .iter()
        .flat_map(|c| c.volume_mounts.iter().flatten())
        .any(|m| m.mount_path == TOKEN_PATH);
    spec.automount_service_account_token != Some(false) && !mounted
}

/// Whether a Pod's volumes have contents that may change.
pub(crate) fn changes(pod: &Pod) -> bool {
    automount(pod)
        || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| {
            v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
        })
}

/// Volumes without contents of their own.
fn plain(
    ctx: &Arc<Context>,
    pod: &Pod,
    volume: &Volume,
    dir: &Path,
    owner: Owner,
) -> Result<(), ContentError> {
    if volume.empty_dir.is_some() {
        fs::create_dir_all(dir)?;
        // The mode after the owner: a change of the owner clears bits of it.
        lchown(dir, Some(owner.uid), Some(owner.gid))?;
        let set_group = if owner.is_shared { 0o2000 } else { 0 };
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777 | set_group))?;
        return Ok(());
    }
    if let Some(host) = &volume.host_path {
        let system = pod.metadata.namespace.as_deref() == Some("istio-system");
        if !system {
            return Err(ContentError::HostPath);
        }
        fs::create_dir_all(host_path(ctx, &host.path)?)?;
        return Ok(());
    }
    Err(ContentError::UnsupportedVolume)
}

/// A hostPath below the node's private root.
pub(crate) fn host_path(ctx: &Arc<Context>, path: &str) -> Result<PathBuf, MountError> {
    let relative = Path::new(path)
        .strip_prefix("/")
        .map_err(|_| MountError::RelativeHostPath { path: path.to_owned() })?;
    if relative.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return Err(MountError::HostPathLeadsUp { path: path.to_owned() });
    }
    // /var/run is /run everywhere; here one folder has both names.
    let relative =
        relative.strip_prefix("run").map_or_else(|_| relative.to_owned(), |r| Path::new("var/run").join(r));
    Ok(ctx.config.host_root.join(relative))
}

async fn contents(ctx: &Arc<Context>, pod: &Pod, volume: &Volume) -> Result<Option<Files>, ContentError> {
    let mut files = Files::new();
    if let Some(v) = &volume.config_map {
        let mode = mode_of(v.default_mode);
        let optional = v.optional == Some(true);
        let data = data(ctx, pod, Kind::ConfigMap, &v.name, optional).await?;
        choose(data, v.items.as_deref(), optional, mode, &mut files)?;
    } else if let Some(v) = &volume.secret {
        let mode = mode_of(v.default_mode);
        let name = v.secret_name.clone().unwrap_or_default();
        let optional = v.optional == Some(true);
        let data = data(ctx, pod, Kind::Secret, &name, optional).await?;
        choose(data, v.items.as_deref(), optional, mode, &mut files)?;
    } else if let Some(v) = &volume.downward_api {
        downward_files(ctx, pod, v.items.as_deref(), mode_of(v.default_mode), &mut files)?;
    } else if let Some(v) = &volume.projected {
        for source in v.sources.iter().flatten() {
            projected(ctx, pod, source, mode_of(v.default_mode), &mut files).await?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

async fn projected(
    ctx: &Arc<Context>,
    pod: &Pod,
    source: &VolumeProjection,
    mode: u32,
    files: &mut Files,
) -> Result<(), ContentError> {
    if let Some(s) = &source.config_map {
        let optional = s.optional == Some(true);
        let data = data(ctx, pod, Kind::ConfigMap, &s.name, optional).await?;
        choose(data, s.items.as_deref(), optional, mode, files)?;
    }
    if let Some(s) = &source.secret {
        let optional = s.optional == Some(true);
        let data = data(ctx, pod, Kind::Secret, &s.name, optional).await?;
        choose(data, s.items.as_deref(), optional, mode, files)?;
    }
    if let Some(s) = &source.downward_api {
        downward_files(ctx, pod, s.items.as_deref(), mode, files)?;
    }
    if let Some(s) = &source.service_account_token {
        let seconds = s.expiration_seconds.unwrap_or(3600);
        token(ctx, pod, (s.audience.clone(), seconds), (&s.path, mode), files).await?;
    }
    Ok(())
}

fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644)
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The data of an object; empty when it is not there but may be missing.
async fn data(
    ctx: &Arc<Context>,
    pod: &Pod,
    kind: Kind,
    name: &str,
    optional: bool,
) -> Result<Data, ContentError> {
    match configs::get(ctx, kind, namespace(pod), name).await? {
        Some(data) => Ok((*data).clone()),
        None if optional => Ok(Data::new()),
        None => Err(ContentError::NoObject { kind, name: name.to_owned() }),
    }
}

/// All keys under their own names, or those that are asked for under the names given.
fn choose(
    mut all: Data,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    files: &mut Files,
) -> Result<(), ContentError> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(all.into_iter().map(|(k, v)| (k, (v, mode))));
        return Ok(());
    };
    for item in items {
        match all.remove(&item.key) {
            Some(value) => {
                files.insert(item.path.clone(), (value, item.mode.map_or(mode, |m| mode_of(Some(m)))));
            }
            None if optional => {}
            None => return Err(ContentError::NoKey { key: item.key.clone() }),
        }
    }
    Ok(())
}

fn downward_files(
    ctx: &Arc<Context>,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: u32,
    files: &mut Files,
) -> Result<(), ContentError> {
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path, ctx.config.address)?,
            (None, Some(resource)) => {
                let name = resource.container_name.as_deref().unwrap_or_default();
                downward::resource(
                    pod,
                    name,
                    &resource.resource,
                    resource.divisor.as_ref().map(|d| d.0.as_str()),
                )?
            }
            (None, None) => String::new(),
        };
        files.insert(item.path.clone(), (value.into_bytes(), item.mode.map_or(mode, |m| mode_of(Some(m)))));
    }
    Ok(())
}

/// A token bound to the Pod, kept until four fifths of its life have passed.
async fn token(
    ctx: &Arc<Context>,
    pod: &Pod,
    (audience, seconds): (Option<String>, i64),
    (path, mode): (&str, u32),
    files: &mut Files,
) -> Result<(), ContentError> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.clone())
        .unwrap_or_else(|| "default".to_owned());
    let key = format!("{uid}/{}/{path}", audience.as_deref().unwrap_or_default());
    let now = jiff::Timestamp::now();
    if let Some((token, use_during)) = ctx.tokens().get(&key)
        && use_during.contains(&now)
    {
        files.insert(path.to_owned(), (token.clone(), mode));
        return Ok(());
    }
    let api: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), namespace(pod));
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.into_iter().collect()),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: Some(uid),
            }),
        }),
        ..TokenRequest::default()
    };
    let answer = api
        .create_token_request(&account, &PostParams::default(), &request)
        .await
        .map_err(ContentError::Token)?;
    let status = answer.status.ok_or(ContentError::NoToken)?;
    let token = status.token.filter(|t| !t.is_empty()).ok_or(ContentError::NoToken)?;
    let expiry = status.expiration_timestamp.map_or(now, |t| t.0);
    ctx.tokens().insert(key, (token.clone().into_bytes(), use_during(now, expiry)));
    files.insert(path.to_owned(), (token.into_bytes(), mode));
    Ok(())
}

/// Puts files in place as one step: readers see all of the old or all of the new.
///
/// The names are links to `..data/NAME`; `..data` is a link to a folder of this version and is replaced whole.
fn publish(dir: &Path, files: &Files, owner: Owner) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let current = dir.join("..data");
    if is_same(&current, files) {
        return Ok(());
    }
    let old = fs::read_link(&current).ok();
    let version = (0..).map(|n| format!("..v{n}")).find(|v| !dir.join(v).exists()).unwrap_or_default();
    let root = dir.join(&version);
    fs::create_dir_all(&root)?;
    for (path, (bytes, mode)) in files {
        if Path::new(path).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(io::Error::other(format!(
                "path {path:?} in a volume must be relative and without .."
            )));
        }
        let file = root.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        let group = if owner.is_shared { 0o440 } else { 0 };
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode | group))?;
    }
    give(&root, owner)?;
    owner.take(dir)?;
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&version, &next)?;
    fs::rename(&next, &current)?;
    let names: std::collections::BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &names {
        if fs::symlink_metadata(dir.join(name)).is_err() {
            symlink(Path::new("..data").join(name), dir.join(name))?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(())
}

/// Gives a version's folder to its owner.
fn give(folder: &Path, owner: Owner) -> io::Result<()> {
    owner.take(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { give(&path, owner)? } else { owner.take(&path)? }
    }
    Ok(())
}

fn is_same(current: &Path, files: &Files) -> bool {
    let count = fs::read_dir(current).map_or(0, Iterator::count);
    let tops =
        files.keys().filter_map(|p| p.split('/').next()).collect::<std::collections::BTreeSet<_>>().len();
    current.exists()
        && count == tops
        && files.iter().all(|(path, (bytes, _))| fs::read(current.join(path)).is_ok_and(|b| b == *bytes))
}

/// When a token is used: until four fifths of its life, and not when a clock was put back to before its begin.
fn use_during(made: jiff::Timestamp, expiry: jiff::Timestamp) -> std::ops::Range<jiff::Timestamp> {
    made..made + expiry.duration_since(made) * 4 / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_version_replaces_the_old_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = |list: &[(&str, &str)]| -> Files {
            list.iter().map(|(k, v)| ((*k).to_owned(), (v.as_bytes().to_vec(), 0o640))).collect()
        };
        let me = nix::unistd::getuid().as_raw();
        let owner = Owner { uid: me, gid: nix::unistd::getgid().as_raw(), is_shared: false };
        let publish = |dir: &Path, files: &Files| super::publish(dir, files, owner);
        publish(dir.path(), &files(&[("a", "1"), ("sub/b", "2")])).unwrap();
        let before = fs::read_link(dir.path().join("..data")).unwrap();
        publish(dir.path(), &files(&[("a", "1"), ("sub/b", "2")])).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), before);
        assert_eq!(fs::read_to_string(dir.path().join("sub/b")).unwrap(), "2");
        publish(dir.path(), &files(&[("a", "3")])).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("sub").exists() && !dir.path().join(before).exists());
        assert!(publish(dir.path(), &files(&[("../x", "1")])).is_err());
    }

    #[test]
    fn a_token_is_renewed_early_and_when_the_clock_was_put_back() {
        let made = jiff::Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| made + jiff::SignedDuration::from_secs(seconds);
        let during = use_during(made, at(3600));
        for (seconds, used) in [(0, true), (2879, true), (2880, false), (172_800, false), (-172_800, false)] {
            assert_eq!(during.contains(&at(seconds)), used, "{seconds}");
        }
    }
}
