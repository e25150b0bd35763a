// SPDX-License-Identifier: Apache-2.0
//! `meltemi waypoint`: apply, generate, delete, list and status, with the words and texts of istioctl.

mod texts;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use gateway_api::gateways::Gateway;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::Global;
use crate::cmd::output::TableOrJson;

const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const REVISION: &str = "istio.io/rev";
const FIELD_MANAGER: &str = "istioctl";
/// Between two looks at a waypoint that is waited for.
const PAUSE: Duration = Duration::from_millis(200);

/// Manage waypoints: the layer 7 proxies of Services and workloads.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi waypoint apply --enroll-namespace --wait")]
pub struct Args {
    /// Name of the waypoint
    #[arg(long, global = true, default_value = "waypoint")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Apply a waypoint to a namespace
    Apply(ApplyArgs),
    /// Print a waypoint as YAML
    Generate(GenerateArgs),
    /// Delete waypoints
    Delete(DeleteArgs),
    /// List waypoints
    List(ListArgs),
    /// Show the status of waypoints
    Status(StatusArgs),
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi waypoint apply --enroll-namespace --wait\n  meltemi waypoint apply --name reviews -n shop --for service"
)]
struct ApplyArgs {
    /// Traffic that it takes: all, none, service or workload
    #[arg(long = "for", value_name = "TYPE")]
    traffic: Option<String>,
    /// Label the namespace with the waypoint's name
    #[arg(long)]
    enroll_namespace: bool,
    /// Replace the waypoint that the namespace uses
    #[arg(long)]
    overwrite: bool,
    /// Revision to label the waypoint with
    #[arg(short, long)]
    revision: Option<String>,
    /// Wait until the waypoint is ready
    #[arg(short, long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = texts::duration)]
    waypoint_timeout: Duration,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi waypoint generate --for all -n shop | kubectl apply -f -")]
struct GenerateArgs {
    /// Traffic that it takes: all, none, service or workload
    #[arg(long = "for", value_name = "TYPE")]
    traffic: Option<String>,
    /// Revision to label the waypoint with
    #[arg(short, long)]
    revision: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Only waypoints are deleted, no other Gateways. A name that is no waypoint is reported as not found, and the exit \
        code is 0 as istioctl's is.\n\nExample:\n  meltemi waypoint delete waypoint\n  meltemi waypoint delete --all -n shop"
)]
struct DeleteArgs {
    /// Names of the waypoints
    names: Vec<String>,
    /// Delete every waypoint of the namespace
    #[arg(long)]
    all: bool,
    /// Delete the waypoints of this revision
    #[arg(short, long)]
    revision: Option<String>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi waypoint list -A")]
struct ListArgs {
    /// Of every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi waypoint status -n shop")]
struct StatusArgs {
    /// Of every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
    /// Wait until the waypoint is ready
    #[arg(short, long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = texts::duration)]
    waypoint_timeout: Duration,
}

/// `meltemi waypoint …`.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let name = if args.name.is_empty() { "waypoint" } else { args.name.as_str() };
    match args.command {
        Command::Apply(apply) => apply_waypoint(name, &apply, global).await?,
        Command::Generate(generate) => {
            let namespace = global.namespace.as_deref();
            let gateway =
                texts::gateway(name, namespace, generate.traffic.as_deref(), generate.revision.as_deref())
                    .context("failed to create gateway")?;
            print!("{}", texts::yaml(&gateway)?);
        }
        Command::Delete(delete) => return delete_waypoints(&delete, global).await,
        Command::List(list) => {
            let (gateways, _) = waypoints(global, list.all_namespaces).await?;
            print!("{}", texts::list(&gateways, list.all_namespaces, list.output));
        }
        Command::Status(status) => {
            show_status(&status, global).await.context("failed to print waypoint status")?
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn apply_waypoint(name: &str, args: &ApplyArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.client().await?;
    let namespace = global.namespace(&client);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces
        .get_opt(&namespace)
        .await
        .with_context(|| format!("failed to get namespace {namespace}"))?;
    let Some(found) = found else { bail!("namespace: {namespace} not found") };
    let label = |key: &str| found.labels().get(key).map_or("", String::as_str);
    if args.enroll_namespace {
        if !args.overwrite && !label(USE_WAYPOINT).is_empty() {
            print!("{}", texts::already_enrolled(&namespace));
            return Ok(());
        }
        if label(DATAPLANE_MODE) != "ambient" {
            print!("{}", texts::not_ambient(&namespace));
        }
    }
    let gateway = texts::gateway(name, Some(&namespace), args.traffic.as_deref(), args.revision.as_deref())
        .context("failed to create gateway")?;
    let gateways: Api<Gateway> = Api::namespaced(client.clone(), &namespace);
    match gateways.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&gateway)).await {
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.code == 404 => {
            bail!(
                "missing Kubernetes Gateway CRDs need to be installed before applying a waypoint: {}",
                error.message
            )
        }
        Err(error) => return Err(error.into()),
    }
    println!("✅ waypoint {namespace}/{name} applied");
    if args.wait {
        wait_programmed(&gateways, &namespace, name, args.waypoint_timeout).await?;
        println!("✅ waypoint {namespace}/{name} is ready!");
    }
    if args.enroll_namespace {
        let labels = json!({ "metadata": { "labels": { USE_WAYPOINT: name } } });
        let labelled = namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&labels)).await;
        labelled.context("failed to label namespace with waypoint")?;
        println!("✅ namespace {namespace} labeled with \"{USE_WAYPOINT}: {name}\"");
    }
    Ok(())
}

async fn wait_programmed(
    gateways: &Api<Gateway>,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let found = gateways.get_opt(name).await;
        if let Ok(Some(gateway)) = &found
            && texts::programmed(gateway).is_some_and(|c| c.status == "True")
        {
            return Ok(());
        }
        if begun.elapsed() > timeout {
            let cause = found.err().map(|e| format!(": {e}")).unwrap_or_default();
            bail!("timed out while waiting for waypoint\t{namespace}/{name}{cause}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn delete_waypoints(args: &DeleteArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let many = args.all || args.revision.is_some();
    if many && !args.names.is_empty() {
        bail!("cannot specify waypoint names when deleting all waypoints");
    }
    if !many && args.names.is_empty() {
        bail!(
            "must specify a waypoint name or delete all using --all or delete specific revision using --revision"
        );
    }
    let (mut gateways, client) = waypoints(global, false).await?;
    let namespace = global.namespace(&client);
    if let Some(revision) = &args.revision {
        gateways.retain(|g| g.labels().get(REVISION) == Some(revision));
    }
    let names: Vec<String> =
        if many { gateways.iter().map(|g| g.name_any()).collect() } else { args.names.clone() };
    let api: Api<Gateway> = Api::namespaced(client, &namespace);
    let mut failed = Vec::new();
    for name in names {
        let known = gateways.iter().any(|g| g.name_any() == name);
        let deleted =
            if known { api.delete(&name, &DeleteParams::default()).await.map(|_| true) } else { Ok(false) };
        match deleted {
            Ok(true) => println!("waypoint {namespace}/{name} deleted"),
            Ok(false) => println!("waypoint {namespace}/{name} not found"),
            Err(kube::Error::Api(error)) if error.code == 404 => {
                println!("waypoint {namespace}/{name} not found")
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { bail!("{}", failed.join("; ")) }
}

async fn show_status(args: &StatusArgs, global: &Global) -> anyhow::Result<()> {
    let (gateways, client) = waypoints(global, args.all_namespaces).await?;
    let begun = Instant::now();
    let mut latest = Vec::new();
    for gateway in &gateways {
        let (namespace, name) = (gateway.namespace().unwrap_or_default(), gateway.name_any());
        let api: Api<Gateway> = Api::namespaced(client.clone(), &namespace);
        loop {
            let now = api.get(&name).await?;
            if !args.wait || texts::programmed(&now).is_some_and(|c| c.status == "True") {
                latest.push(now);
                break;
            }
            if begun.elapsed() > args.waypoint_timeout {
                bail!("timed out while retrieving status for waypoint\t{namespace}/{name}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    print!("{}", texts::status(&latest, args.all_namespaces, args.output));
    Ok(())
}

/// The waypoints of the namespace (or of all), sorted.
async fn waypoints(global: &Global, all: bool) -> anyhow::Result<(Vec<Gateway>, Client)> {
    let client = global.client().await?;
    let api: Api<Gateway> = if all {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), &global.namespace(&client))
    };
    let mut found = api.list(&ListParams::default()).await?.items;
    found.retain(|g| g.spec.gateway_class_name == texts::CLASS);
    found.sort_by_key(|g| (g.namespace(), g.name_any()));
    Ok((found, client))
}
