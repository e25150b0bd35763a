// SPDX-License-Identifier: Apache-2.0
//! Volumes that are claims: folders of the data directory that outlive their Pods.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;

use crate::content::ClaimError;
use crate::context::Context;
use crate::rights;

/// Puts a link to the folder of a claim in the place of a Pod's volume.
///
/// # Errors
/// The claim is not there, is not bound, or is being deleted.
pub(crate) async fn link(ctx: &Arc<Context>, pod: &Pod, claim: &str, place: &Path) -> Result<(), ClaimError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<PersistentVolumeClaim> = Api::namespaced(ctx.client.clone(), namespace);
    let name = || claim.to_owned();
    let found = api.get_opt(claim).await?.ok_or_else(|| ClaimError::NotFound { name: name() })?;
    let uid = found.metadata.uid.filter(|uid| uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    let uid = uid.filter(|uid| !uid.is_empty()).ok_or(ClaimError::NoUid)?;
    let folder = ctx.config.claims_dir.join(uid);
    // What is mounted already goes on to be there for a Pod that began before the deletion.
    if place.symlink_metadata().is_ok() && fs::read_link(place).is_ok_and(|to| to == folder) {
        return Ok(());
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Err(ClaimError::Deleted { name: name() });
    }
    if found.status.and_then(|status| status.phase).as_deref() != Some("Bound") {
        return Err(ClaimError::NotBound { name: name() });
    }
    let group = rights::fs_group(pod);
    let done = take(&folder, group).and_then(|()| {
        let _ = fs::remove_file(place);
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        symlink(&folder, place)
    });
    done.map_err(|error| ClaimError::Folder { folder: folder.display().to_string(), error })
}

/// Gives the folder to a Pod's `fsGroup`. The ids on the disk are those inside of Pods: the mount maps them.
fn take(folder: &Path, group: Option<u32>) -> io::Result<()> {
    let Some(group) = group.filter(|_| nix::unistd::geteuid().is_root()) else { return Ok(()) };
    chown(folder, None, Some(group))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o2777))
}
