// SPDX-License-Identifier: Apache-2.0
//! `meltemi uninstall`: the mesh out of a Kubernetes. The nodes first: their agents take the capture off the Pods, which
//! then speak by themselves, before what carried them goes.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::core::GroupVersionKind;

use super::Global;
use super::install::{Missing, refuse_machine, until};
use crate::manifests::apply::{Applier, is_definition, title};
use crate::manifests::{self, Engine};

/// The control plane's webhook, which refuses policies when nobody answers for it.
const WEBHOOK: &str = "istio-validator-istio-system";
/// The root certificate that the control plane writes into each namespace.
const ROOT: &str = "istio-ca-root-cert";

/// Remove the mesh from a Kubernetes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: what would lose its protection, then the removal\n  meltemi uninstall --dry-run\n  meltemi uninstall"
)]
pub struct Args {
    /// Say what would be removed and what would lose its protection, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the definitions with all policies, waypoints and routes in them, and the namespace with the CA's key
    #[arg(long)]
    purge: bool,
    /// Seconds that each thing which is waited for may take
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// Runs the command.
pub async fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    refuse_machine(&client, "uninstall").await?;
    for line in losses(&client).await? {
        println!("{line}");
    }
    let mut objects = manifests::objects(Engine::Kubernetes)?;
    objects.reverse();
    let is_kept = |object: &DynamicObject| {
        let is_namespace = object.types.as_ref().is_some_and(|types| types.kind == "Namespace");
        !args.purge && (is_namespace || is_definition(object))
    };
    objects.retain(|object| !is_kept(object));
    if args.dry_run {
        for object in &objects {
            println!("{} would be removed", title(object));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let limit = Duration::from_secs(args.timeout);
    let applier = Applier::new(&client).await?;
    // The node's part is the last of the manifests, and so the first here.
    let (node, rest): (Vec<_>, Vec<_>) = objects.iter().partition(|object| manifests::is_of_node(object));
    for object in node {
        remove(&applier, object).await?;
    }
    until("the nodes to let their Pods go", limit, async || agents_are_gone(&client).await).await?;
    remove_made_by_control(&client).await?;
    for object in rest {
        remove(&applier, object).await?;
    }
    // The control plane writes them while it is there.
    remove_roots(&client).await?;
    println!("The mesh is removed. Pods speak by themselves, without encryption and without policies.");
    if !args.purge {
        println!(
            "Definitions, what users wrote in them, and namespace istio-system with the CA's key stay: --purge removes them."
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What loses its protection.
async fn losses(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let enrolled = namespaces.list(&ListParams::default().labels("istio.io/dataplane-mode=ambient")).await?;
    let names: Vec<String> = enrolled.into_iter().filter_map(|namespace| namespace.metadata.name).collect();
    if !names.is_empty() {
        lines.push(format!(
            "no longer encrypted and no longer protected by policies: namespaces {}",
            names.join(", ")
        ));
    }
    for kind in ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("security.istio.io", "v1", kind));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let count = match api.list_metadata(&ListParams::default()).await {
            Ok(all) => all.items.len(),
            Err(kube::Error::Api(status)) if status.code == 404 => 0,
            Err(error) => return Err(error.into()),
        };
        if count > 0 {
            lines.push(format!("no longer enforced: {count} objects of kind {kind}"));
        }
    }
    Ok(lines)
}

async fn remove(applier: &Applier, object: &DynamicObject) -> anyhow::Result<()> {
    let Ok(api) = applier.api_of(object) else { return Ok(()) };
    let name = object.metadata.name.as_deref().unwrap_or_default();
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => println!("{} removed", title(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(anyhow::Error::from(error).context(format!("removing {}", title(object)))),
    }
    Ok(())
}

async fn agents_are_gone(client: &Client) -> kube::Result<Missing> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "istio-system");
    let left = api.list_metadata(&ListParams::default().labels("app=ztunnel")).await?.items.len();
    Ok((left > 0).then(|| format!("{left} Pods of ds/ztunnel are left")))
}

/// Takes away what the control plane has made itself.
async fn remove_made_by_control(client: &Client) -> anyhow::Result<()> {
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    gone(webhooks.delete(WEBHOOK, &DeleteParams::default()).await)?;
    let classes =
        ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GatewayClass"));
    let classes: Api<DynamicObject> = Api::all_with(client.clone(), &classes);
    for class in ["istio", "istio-waypoint"] {
        gone(classes.delete(class, &DeleteParams::default()).await)?;
    }
    Ok(())
}

async fn remove_roots(client: &Client) -> anyhow::Result<()> {
    let all: Api<ConfigMap> = Api::all(client.clone());
    let found = all.list_metadata(&ListParams::default().fields(&format!("metadata.name={ROOT}"))).await?;
    for namespace in found.into_iter().filter_map(|config| config.metadata.namespace) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        gone(api.delete(ROOT, &DeleteParams::default()).await)?;
    }
    Ok(())
}

/// A removal of what may be gone already.
fn gone<T>(removed: kube::Result<T>) -> anyhow::Result<()> {
    match removed {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
