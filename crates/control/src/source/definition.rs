// SPDX-License-Identifier: Apache-2.0
//! Whether a cluster serves a kind, and in which version: that of Gateway API which somebody has installed, whole or in part.

use std::time::Duration;

use kube::Client;
use kube::api::ApiResource;
use tokio::sync::mpsc::error::SendError;

use super::Event;

/// Versions that say the same as `v1` of what the mesh reads, the best first.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha2"];
/// Pause before the cluster is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits until the cluster serves a kind and returns it in the version served. `missing` is told why it waits, when that
/// changes. Returns `None` when nobody hears that any more.
pub(super) async fn served<F>(
    client: &Client,
    wanted: &ApiResource,
    missing: impl Fn(String) -> F,
) -> Option<ApiResource>
where
    F: Future<Output = Result<(), SendError<Event>>>,
{
    let mut said = String::new();
    loop {
        match look(client, wanted).await {
            Ok(Some(served)) => {
                if served.version != wanted.version {
                    tracing::warn!(kind = wanted.kind, version = served.version, "read in an older version");
                }
                return Some(served);
            }
            Ok(None) => {
                let why = format!(
                    "the cluster does not serve {}.{}; it is asked again until the definition is installed",
                    wanted.plural, wanted.group
                );
                if why != said {
                    missing(why.clone()).await.ok()?;
                }
                said = why;
            }
            // Whether there is one is not known: it must not be taken for missing.
            Err(error) => {
                let why = error.to_string();
                if why != said {
                    tracing::warn!(kind = wanted.kind, %error, "the cluster does not say whether it serves it, asking again");
                }
                said = why;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(client: &Client, wanted: &ApiResource) -> kube::Result<Option<ApiResource>> {
    for version in VERSIONS {
        let api_version = format!("{}/{version}", wanted.group);
        let list = match client.list_api_group_resources(&api_version).await {
            Ok(list) => list,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        if list.resources.iter().any(|served| served.name == wanted.plural) {
            return Ok(Some(ApiResource { version: version.to_owned(), api_version, ..wanted.clone() }));
        }
    }
    Ok(None)
}
