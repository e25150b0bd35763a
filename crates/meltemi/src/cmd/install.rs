// SPDX-License-Identifier: Apache-2.0
//! `meltemi install`: the mesh into a Kubernetes, by server-side apply under one field manager.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, DynamicObject};
use tokio::time::Instant;

use super::Global;
use crate::manifests::apply::{Applier, MANAGER, is_definition, title};
use crate::manifests::diff::differences;
use crate::manifests::{self, Engine};

/// Pause between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(200);
/// Label of objects that Helm owns.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// What something that is waited for still lacks; `None` when it is so.
pub type Missing = Option<String>;

/// Install the mesh into a Kubernetes, or bring it to this version.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: what would change, then the mesh itself\n  meltemi install --diff\n  meltemi install --wait"
)]
pub struct Args {
    /// Let the API server judge every object, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what would change of each object, as the API server would store it, and change nothing
    #[arg(long)]
    diff: bool,
    /// Return only when the control plane and every node are ready
    #[arg(long)]
    wait: bool,
    /// Seconds that each thing which is waited for may take
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Replace CustomResourceDefinitions that somebody else has installed (Gateway API, Istio)
    #[arg(long)]
    take_over: bool,
    /// Image of every component, in place of this version's
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
}

/// Runs the command.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    refuse_machine(&client, "install").await?;
    let objects = objects(args.image.as_deref())?;
    let mut applier = Applier::new(&client).await?;
    let mut progress = Progress { applied: 0, kept: 0 };
    for object in &objects {
        if manifests::is_of_node(object) && !args.only_judges() {
            let limit = Duration::from_secs(args.timeout);
            until("the control plane (deploy/istiod)", limit, async || control_plane(&client).await).await?;
            until("the mesh's root certificate", limit, async || root_certificate(&client).await).await?;
        }
        progress.take(&mut applier, object, args).await?;
    }
    let Progress { applied, kept } = progress;
    if args.only_judges() {
        println!(
            "{applied} objects would be applied, {kept} definitions of others stay. Nothing was changed."
        );
        return Ok(ExitCode::SUCCESS);
    }
    if args.wait {
        let limit = Duration::from_secs(args.timeout);
        until("the nodes (ds/ztunnel)", limit, async || nodes(&client).await).await?;
    }
    println!("{applied} objects applied, {kept} definitions of others stay.");
    println!("Enrol a namespace: kubectl label namespace NAME istio.io/dataplane-mode=ambient");
    Ok(ExitCode::SUCCESS)
}

struct Progress {
    applied: usize,
    kept: usize,
}

impl Progress {
    async fn take(
        &mut self,
        applier: &mut Applier,
        object: &DynamicObject,
        args: &Args,
    ) -> anyhow::Result<()> {
        if is_definition(object) && !args.take_over && is_of_others(applier, object).await? {
            println!("{} is somebody else's and stays (--take-over replaces it)", title(object));
            self.kept += 1;
            return Ok(());
        }
        self.applied += 1;
        if !args.only_judges() {
            return applier.apply(object).await;
        }
        match applier.try_apply(object, true).await {
            Ok(after) if args.diff => show_difference(applier, object, &after).await?,
            Ok(_) => println!("{} is accepted", title(object)),
            // In a namespace that is not there yet nothing can be judged.
            Err(error) if is_not_found(&error) => println!("{} is new", title(object)),
            Err(error) => return Err(error.context(title(object))),
        }
        Ok(())
    }
}

impl Args {
    /// Whether nothing is changed.
    fn only_judges(&self) -> bool {
        self.dry_run || self.diff
    }
}

/// Prints what of an object would change.
async fn show_difference(
    applier: &Applier,
    object: &DynamicObject,
    after: &DynamicObject,
) -> anyhow::Result<()> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let Some(before) = applier.api_of(object)?.get_opt(name).await? else {
        println!("{} is new", title(object));
        return Ok(());
    };
    let lines = differences(&serde_json::to_value(&before)?, &serde_json::to_value(after)?);
    if !lines.is_empty() {
        println!("{}\n  {}", title(object), lines.join("\n  "));
    }
    Ok(())
}

/// The objects, with the image that was asked for.
fn objects(image: Option<&str>) -> anyhow::Result<Vec<DynamicObject>> {
    let objects = manifests::objects(Engine::Kubernetes)?;
    let Some(image) = image else { return Ok(objects) };
    let ours = format!("ghcr.io/meltemi/meltemi:{}", env!("CARGO_PKG_VERSION"));
    let with_image = |object: DynamicObject| {
        let text = serde_json::to_string(&object)?.replace(&ours, image);
        serde_json::from_str(&text).context("an object with another image")
    };
    objects.into_iter().map(with_image).collect()
}

/// Whether a definition is there that was not applied by us.
async fn is_of_others(applier: &Applier, object: &DynamicObject) -> anyhow::Result<bool> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let Some(there) = applier.api_of(object)?.get_opt(name).await? else { return Ok(false) };
    let managers = there.metadata.managed_fields.into_iter().flatten();
    let is_ours = { managers }.any(|fields| fields.manager.as_deref() == Some(MANAGER));
    let is_helms = there.metadata.labels.is_some_and(|labels| labels.contains_key(MANAGED_BY));
    Ok(!is_ours || is_helms)
}

fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// A mesh of one machine has its own way in and out.
pub async fn refuse_machine(client: &Client, verb: &str) -> anyhow::Result<()> {
    let version = client.apiserver_version().await?.git_version;
    if version.contains("+meltemi.") {
        bail!(
            "this cluster is a mesh of one machine ({version}): `meltemi up` and `meltemi down` are for it, not `{verb}`"
        );
    }
    Ok(())
}

async fn control_plane(client: &Client) -> kube::Result<Missing> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), "istio-system");
    let found = api.get("istiod").await?;
    let status = found.status.unwrap_or_default();
    let seen = status.observed_generation >= found.metadata.generation;
    let (ready, updated) = (status.ready_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
    let wanted = found.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let is_done = seen && updated >= wanted && ready >= wanted;
    Ok((!is_done).then(|| format!("{ready} of {wanted} replicas are ready, {updated} are new")))
}

async fn root_certificate(client: &Client) -> kube::Result<Missing> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "istio-system");
    let found = api.get_opt("istio-ca-root-cert").await?;
    Ok(found.is_none().then(|| "ConfigMap istio-system/istio-ca-root-cert is not there yet".to_owned()))
}

async fn nodes(client: &Client) -> kube::Result<Missing> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), "istio-system");
    let found = api.get("ztunnel").await?;
    let status = found.status.unwrap_or_default();
    let seen = status.observed_generation >= found.metadata.generation;
    let wanted = status.desired_number_scheduled;
    let (ready, updated) = (status.number_ready, status.updated_number_scheduled.unwrap_or(0));
    let is_done = seen && wanted > 0 && ready >= wanted && updated >= wanted;
    Ok((!is_done).then(|| format!("{ready} of {wanted} nodes are ready, {updated} are new")))
}

/// Looks until `look` says that it is so, or the limit has passed; says what it waits for.
pub async fn until(
    what: &str,
    limit: Duration,
    look: impl AsyncFn() -> kube::Result<Missing>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut said = String::new();
    loop {
        let state = match look().await {
            Ok(None) => return Ok(()),
            Ok(Some(state)) => state,
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > limit {
            bail!("{what}: not ready within {} s: {state}", limit.as_secs());
        }
        if state != said {
            println!("waiting for {what}: {state}");
            said = state;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_image_is_everywhere() {
        let images = |objects: Vec<DynamicObject>| {
            let text = serde_json::to_string(&objects).unwrap();
            (text.matches("ghcr.io/meltemi/meltemi").count(), text.matches("local/meltemi:1").count())
        };
        let (ours, none) = images(objects(None).unwrap());
        assert!(ours >= 4 && none == 0);
        assert_eq!(images(objects(Some("local/meltemi:1")).unwrap()), (0, ours));
    }
}
