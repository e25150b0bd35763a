// SPDX-License-Identifier: Apache-2.0
//! Objects into a cluster by server-side apply, and out of it.

use std::time::Duration;

use anyhow::Context as _;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Discovery};
use tokio::time::Instant;

/// Field manager of what `up` and `install` apply.
pub const MANAGER: &str = "meltemi";
/// How long a manifest may be refused because what it needs is not served yet (a new CRD's kind).
const APPLY_LIMIT: Duration = Duration::from_secs(15);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// What is served, asked again where a kind is missing.
pub struct Applier {
    client: Client,
    discovery: Discovery,
}

impl Applier {
    /// Asks what the cluster serves.
    pub async fn new(client: &Client) -> anyhow::Result<Self> {
        let discovery = Discovery::new(client.clone()).run().await?;
        Ok(Self { client: client.clone(), discovery })
    }

    /// Applies one object; what it needs may come to be served within [`APPLY_LIMIT`].
    pub async fn apply(&mut self, object: &DynamicObject) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let Err(error) = self.try_apply(object, false).await else { break };
            if is_guarded(object, &error) {
                // E.g. Gateway API's own manifests, newer than ours, with the policy that keeps them.
                tracing::warn!(name = object.metadata.name, %error, "a policy of the cluster keeps its own definition");
                break;
            }
            tracing::debug!(name = object.metadata.name, %error, "not applied yet");
            if begun.elapsed() > APPLY_LIMIT {
                return Err(error.context(format!("applying {}", title(object))));
            }
            tokio::time::sleep(PAUSE).await;
            self.discovery = Discovery::new(self.client.clone()).run().await?;
        }
        tracing::debug!(name = object.metadata.name, took = ?begun.elapsed(), "applied");
        Ok(())
    }

    /// One attempt; `dry_run` lets the API server judge the object and changes nothing.
    /// Returns the object as it is then, or would be.
    pub async fn try_apply(&self, object: &DynamicObject, dry_run: bool) -> anyhow::Result<DynamicObject> {
        let api = self.api_of(object)?;
        let name = object.metadata.name.as_deref().context("a manifest without name")?;
        let params = PatchParams { dry_run, ..PatchParams::apply(MANAGER).force() };
        Ok(api.patch(name, &params, &Patch::Apply(object)).await?)
    }

    /// The interface to objects like this one.
    pub fn api_of(&self, object: &DynamicObject) -> anyhow::Result<Api<DynamicObject>> {
        let types = object.types.as_ref().context("a manifest without kind")?;
        let gvk = GroupVersionKind::try_from(types)?;
        let (resource, capabilities) = self
            .discovery
            .resolve_gvk(&gvk)
            .with_context(|| format!("{} {} is not served", types.api_version, types.kind))?;
        let is_namespaced = capabilities.scope == kube::discovery::Scope::Namespaced;
        Ok(self.api(&resource, is_namespaced, object.metadata.namespace.as_deref()))
    }

    fn api(
        &self,
        resource: &ApiResource,
        is_namespaced: bool,
        namespace: Option<&str>,
    ) -> Api<DynamicObject> {
        if is_namespaced {
            Api::namespaced_with(self.client.clone(), namespace.unwrap_or("default"), resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        }
    }
}

/// `KIND NAME`, as messages name an object.
pub fn title(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("", |types| types.kind.as_str());
    format!("{kind} {}", object.metadata.name.as_deref().unwrap_or_default())
}

/// Whether an object is a CustomResourceDefinition.
pub fn is_definition(object: &DynamicObject) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind == "CustomResourceDefinition")
}

/// Whether a policy of the user refuses our definition in place of the one that is there.
fn is_guarded(object: &DynamicObject, error: &anyhow::Error) -> bool {
    is_definition(object)
        && matches!(error.downcast_ref(), Some(kube::Error::Api(status))
            if status.message.contains("ValidatingAdmissionPolicy") && status.message.contains("denied request"))
}
