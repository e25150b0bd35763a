// SPDX-License-Identifier: Apache-2.0
//! `meltemi proxy-config secret|route|policy POD`: what a proxy holds, read from its configuration dump.
//!
//! A waypoint or gateway answers for itself; for an enrolled Pod the node proxy of its node answers, and only
//! what concerns the Pod's identity is shown.

mod tables;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::{Global, forward};
use crate::cmd::output::ShortOrDocument;

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Show what a proxy holds.
#[derive(clap::Args, Debug)]
#[command(
    visible_alias = "pc",
    after_help = "Example:\n  meltemi proxy-config secret deploy/waypoint -n default"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Certificates, with the SPIFFE identity
    #[command(visible_alias = "secrets", visible_alias = "s")]
    #[command(after_help = "Example:\n  meltemi proxy-config secret productpage-v1-abc -n default")]
    Secret(PodArgs),
    /// HTTP routes of a waypoint or gateway
    #[command(visible_alias = "routes", visible_alias = "r")]
    #[command(after_help = "Example:\n  meltemi proxy-config route deploy/bookinfo-gateway-istio")]
    Route(PodArgs),
    /// Policies that a proxy enforces
    #[command(visible_alias = "policies")]
    #[command(after_help = "Example:\n  meltemi proxy-config policy deploy/waypoint -o yaml")]
    Policy(PodArgs),
}

#[derive(clap::Args, Debug)]
struct PodArgs {
    /// Pod, as NAME, NAME.NAMESPACE or a workload such as deploy/NAME
    pod: String,
    /// Output form
    #[arg(short, long, value_enum, default_value = "short")]
    output: ShortOrDocument,
}

/// `meltemi proxy-config …`.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = global.client().await?;
    let (pod_args, part) = match &args.command {
        Command::Secret(a) => (a, Part::Secret),
        Command::Route(a) => (a, Part::Route),
        Command::Policy(a) => (a, Part::Policy),
    };
    let proxied = find(&client, &pod_args.pod, &global.namespace(&client)).await?;
    let dump = dump(&client, &proxied, &global.istio_namespace).await?;
    let selected = match part {
        Part::Secret => tables::certificates(&dump, proxied.identity.as_ref()),
        Part::Route if proxied.own_proxy => tables::section(&dump, "routes"),
        Part::Route => bail!("Pod {} has no HTTP routes: only waypoints and gateways do", proxied.name),
        Part::Policy => tables::policies(&dump, proxied.workload.as_ref()),
    };
    match pod_args.output {
        ShortOrDocument::Json => println!("{}", serde_json::to_string_pretty(&selected)?),
        ShortOrDocument::Yaml => print!("{}", serde_yaml_ng::to_string(&selected)?),
        ShortOrDocument::Short => print!(
            "{}",
            match part {
                Part::Secret => tables::secret(&selected),
                Part::Route => tables::route(&selected),
                Part::Policy => tables::policy(&selected),
            }
        ),
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy)]
enum Part {
    Secret,
    Route,
    Policy,
}

/// A Pod and who speaks for it.
#[derive(Debug)]
struct Proxied {
    name: String,
    namespace: String,
    node: String,
    /// It is a proxy itself.
    own_proxy: bool,
    /// For an enrolled Pod: (namespace, service account).
    identity: Option<(String, String)>,
    /// For an enrolled Pod: (namespace, name).
    workload: Option<(String, String)>,
}

async fn find(client: &Client, text: &str, namespace: &str) -> anyhow::Result<Proxied> {
    let text = text.strip_prefix("pod/").unwrap_or(text);
    let (name, namespace) = match text.split_once('/') {
        Some(("deploy" | "deployment" | "deployments", workload)) => {
            (pod_of_deployment(client, workload, namespace).await?, namespace.to_owned())
        }
        Some((kind, _)) => bail!("{kind}: only Pods and Deployments can be named here"),
        None => match text.split_once('.') {
            Some((name, namespace)) => (name.to_owned(), namespace.to_owned()),
            None => (text.to_owned(), namespace.to_owned()),
        },
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = pods.get_opt(&name).await?.with_context(|| format!("Pod {namespace}/{name} not found"))?;
    read(&pod)
}

async fn pod_of_deployment(client: &Client, name: &str, namespace: &str) -> anyhow::Result<String> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::namespaced(client.clone(), namespace);
    let found = deployments.get_opt(name).await?;
    let found = found.with_context(|| format!("Deployment {namespace}/{name} not found"))?;
    let labels = found.spec.and_then(|s| s.selector.match_labels).unwrap_or_default();
    let selector = labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&kube::api::ListParams::default().labels(&selector)).await?;
    let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let first = list.items.into_iter().find(running);
    first.map(|p| p.name_any()).with_context(|| format!("Deployment {namespace}/{name} has no running Pod"))
}

fn read(pod: &Pod) -> anyhow::Result<Proxied> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = pod.name_any();
    let spec = pod.spec.as_ref();
    let own_proxy =
        pod.labels().contains_key(GATEWAY_NAME) || pod.labels().get("app").is_some_and(|a| a == "ztunnel");
    let enrolled = pod.annotations().get(REDIRECTION).is_some_and(|v| v == "enabled");
    if !own_proxy && !enrolled {
        bail!(
            "Pod {namespace}/{name} is not part of the mesh: it is not enrolled (label its namespace \
             istio.io/dataplane-mode=ambient) and it is no waypoint or gateway"
        );
    }
    let account = spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
    let enrolled = !own_proxy;
    Ok(Proxied {
        own_proxy,
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        identity: enrolled.then(|| (namespace.clone(), account)),
        workload: enrolled.then(|| (namespace.clone(), name.clone())),
        name,
        namespace,
    })
}

async fn dump(client: &Client, pod: &Proxied, istio_namespace: &str) -> anyhow::Result<Value> {
    let (namespace, name) = if pod.own_proxy {
        (pod.namespace.clone(), pod.name.clone())
    } else {
        (istio_namespace.to_owned(), forward::node_proxy(client, istio_namespace, &pod.node).await?)
    };
    let body = forward::get(client, &namespace, &name, forward::ADMIN, "/config_dump", None).await?;
    serde_json::from_slice(&body).with_context(|| format!("the configuration dump of {namespace}/{name}"))
}
