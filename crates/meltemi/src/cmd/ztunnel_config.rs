// SPDX-License-Identifier: Apache-2.0
//! `meltemi ztunnel-config workload|service|policy|certificate|connections|all|log`: what a node proxy holds.

mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::{Global, forward};
use crate::cmd::output::ShortOrDocument;
use tables::Filter;

/// Show what a node proxy holds.
#[derive(clap::Args, Debug)]
#[command(
    visible_alias = "zc",
    after_help = "Example:\n  meltemi ztunnel-config workload --workload-namespace default"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Workloads with their addresses, waypoints and protocols
    #[command(visible_aliases = ["w", "workloads"])]
    #[command(after_help = "Example:\n  meltemi ztunnel-config workload --workload-namespace default")]
    Workload {
        #[command(flatten)]
        from: From,
        /// Only the workload with this address
        #[arg(long)]
        address: Option<String>,
        /// Only workloads of this namespace
        #[arg(long)]
        workload_namespace: Option<String>,
        /// Only workloads on this node
        #[arg(long)]
        workload_node: Option<String>,
    },
    /// Services with their addresses, waypoints and endpoints
    #[command(visible_aliases = ["s", "svc", "services"])]
    #[command(after_help = "Example:\n  meltemi ztunnel-config service --node node-1")]
    Service {
        #[command(flatten)]
        from: From,
        /// Only services of this namespace
        #[arg(long)]
        service_namespace: Option<String>,
    },
    /// Layer 4 policies
    #[command(visible_aliases = ["p", "pol", "policies"])]
    #[command(after_help = "Example:\n  meltemi ztunnel-config policy -o yaml")]
    Policy {
        #[command(flatten)]
        from: From,
        /// Only policies of this namespace
        #[arg(long)]
        policy_namespace: Option<String>,
    },
    /// Certificates
    #[command(visible_aliases = ["cert", "certs", "certificates"])]
    #[command(after_help = "Example:\n  meltemi ztunnel-config certificate")]
    Certificate {
        #[command(flatten)]
        from: From,
    },
    /// Open connections
    #[command(visible_aliases = ["cons", "connection"])]
    #[command(
        after_help = "Example:\n  meltemi ztunnel-config connections --direction inbound --node node-1"
    )]
    Connections {
        #[command(flatten)]
        from: From,
        /// Only this direction
        #[arg(long, value_parser = ["inbound", "outbound"])]
        direction: Option<String>,
        /// Only workloads of this namespace
        #[arg(long)]
        workload_namespace: Option<String>,
        /// Addresses instead of names
        #[arg(long)]
        raw: bool,
    },
    /// Everything
    #[command(
        after_help = "Example:\n  meltemi ztunnel-config all -o json > dump.json && meltemi ztunnel-config workload --file dump.json"
    )]
    All {
        #[command(flatten)]
        from: From,
        /// With a heading before each section
        #[arg(long)]
        with_headers: bool,
    },
    /// Show or change the log level
    #[command(visible_alias = "o")]
    #[command(
        after_help = "Example:\n  meltemi ztunnel-config log --level debug\n  meltemi ztunnel-config log --reset"
    )]
    Log {
        #[command(flatten)]
        from: From,
        /// The new level (off, error, warn, info, debug, trace), or levels of targets: TARGET=LEVEL,...
        #[arg(long, value_parser = levels)]
        level: Option<String>,
        /// Back to info
        #[arg(short, long, conflicts_with = "level")]
        reset: bool,
    },
}

/// Which proxy, and how it is printed.
#[derive(clap::Args, Debug)]
struct From {
    /// A ztunnel Pod, or a Pod whose node's proxy is meant (NAME or NAME.NAMESPACE); else any proxy
    pod: Option<String>,
    /// The proxy of this node
    #[arg(long)]
    node: Option<String>,
    /// A saved configuration dump instead of a proxy
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "short")]
    output: ShortOrDocument,
    /// Port of the admin endpoint
    #[arg(long, default_value_t = forward::ADMIN)]
    proxy_admin_port: u16,
}

/// `meltemi ztunnel-config …`.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (from, section, filter) = match args.command {
        Command::Workload { from, address, workload_namespace, workload_node } => {
            let filter =
                Filter { address, namespace: workload_namespace, node: workload_node, ..Filter::default() };
            (from, "workloads", filter)
        }
        Command::Service { from, service_namespace } => {
            (from, "services", Filter { namespace: service_namespace, ..Filter::default() })
        }
        Command::Policy { from, policy_namespace } => {
            (from, "policies", Filter { namespace: policy_namespace, ..Filter::default() })
        }
        Command::Certificate { from } => (from, "certificates", Filter::default()),
        Command::Connections { from, direction, workload_namespace, raw } => {
            let filter = Filter { direction, namespace: workload_namespace, raw, ..Filter::default() };
            (from, "workloadState", filter)
        }
        Command::All { from, with_headers } => {
            let dump = dump(&from, global).await?;
            return print(from.output, &dump, || tables::all(&dump, with_headers));
        }
        Command::Log { from, level, reset } => {
            return log(&from, global, level.or_else(|| reset.then(|| "info".to_owned()))).await;
        }
    };
    let dump = dump(&from, global).await?;
    let selected = tables::select(&dump, section, &filter);
    print(from.output, &selected, || tables::table(&dump, section, &selected, &filter))
}

fn print(output: ShortOrDocument, value: &Value, short: impl FnOnce() -> String) -> anyhow::Result<ExitCode> {
    match output {
        ShortOrDocument::Json => println!("{}", serde_json::to_string_pretty(value)?),
        ShortOrDocument::Yaml => print!("{}", serde_yaml_ng::to_string(value)?),
        ShortOrDocument::Short => print!("{}", short()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn dump(from: &From, global: &Global) -> anyhow::Result<Value> {
    if [from.pod.is_some(), from.node.is_some(), from.file.is_some()]
        .into_iter()
        .filter(|given| *given)
        .count()
        > 1
    {
        bail!("at most one of --file, --node, or pod name must be passed");
    }
    if let Some(path) = &from.file {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        return serde_json::from_str(&text)
            .with_context(|| format!("{} is no configuration dump", path.display()));
    }
    let client = global.client().await?;
    let pod = target(&client, from, global).await?;
    let port = from.proxy_admin_port;
    let body = forward::get(&client, &global.istio_namespace, &pod, port, "/config_dump", None).await?;
    serde_json::from_slice(&body).with_context(|| format!("the configuration dump of {pod}"))
}

async fn log(from: &From, global: &Global, level: Option<String>) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    let pod = target(&client, from, global).await?;
    let path = level.map_or_else(|| "/logging".to_owned(), |level| format!("/logging?level={level}"));
    let body = forward::post(&client, &global.istio_namespace, &pod, from.proxy_admin_port, &path).await?;
    println!("{pod}.{}:\n{}", global.istio_namespace, String::from_utf8_lossy(&body).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Levels as the proxy takes them; it would read a misspelt level as a target of everything.
fn levels(text: &str) -> Result<String, String> {
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |directive: &str| directive.rsplit('=').next().is_some_and(|l| known.contains(&l));
    match text.split(',').find(|directive| !level(directive)) {
        None => Ok(text.to_owned()),
        Some(wrong) => {
            Err(format!("{wrong:?}: expected LEVEL or TARGET=LEVEL with one of {}", known.join(", ")))
        }
    }
}

/// The name of the proxy's Pod.
async fn target(client: &Client, from: &From, global: &Global) -> anyhow::Result<String> {
    let namespace = &global.istio_namespace;
    if let Some(node) = &from.node {
        return forward::node_proxy(client, namespace, node).await;
    }
    let Some(text) = &from.pod else {
        let all = forward::running(client, namespace, "app=ztunnel").await?;
        let first = all.into_iter().next().map(|p| p.name_any());
        return first.with_context(|| format!("no running ztunnel Pod in namespace {namespace}"));
    };
    let text = text.strip_prefix("pod/").unwrap_or(text);
    let proxies: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let is_proxy = |pod: &Pod| pod.labels().get("app").is_some_and(|app| app == "ztunnel");
    let alone = text.strip_suffix(&format!(".{namespace}")).unwrap_or(text);
    if proxies.get_opt(alone).await?.is_some_and(|pod| is_proxy(&pod)) {
        return Ok(alone.to_owned());
    }
    let own = global.namespace(client);
    let (name, of) = text.split_once('.').unwrap_or((text, &own));
    let pods: Api<Pod> = Api::namespaced(client.clone(), of);
    let pod = pods.get_opt(name).await?.with_context(|| format!("Pod {of}/{name} not found"))?;
    let node =
        pod.spec.and_then(|s| s.node_name).with_context(|| format!("Pod {of}/{name} is on no node yet"))?;
    forward::node_proxy(client, namespace, &node).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused() {
        for (text, good) in [
            ("debug", true),
            ("info,meltemi_node=trace", true),
            ("nonsense", false),
            ("info,a", false),
            ("", false),
        ] {
            assert_eq!(levels(text).is_ok(), good, "{text}");
        }
    }
}
