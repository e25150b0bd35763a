// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz simulate`: recorded decisions against other policies.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};
use meltemi_analysis::World;
use meltemi_analysis::replay::{Replay, Writer, replay};

use super::objects;
use crate::cmd::Global;
use crate::cmd::output::TextOrJson;

/// Label of the Pods of a Gateway.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Replays recorded decisions.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
LOG is the access log of node proxies (text or JSON) and waypoints (text, or JSON with method, path, authority,
response_code and source_principal), one line each, as `kubectl logs` prints it. Without --flows the logs of the running
mesh are read. Without a cluster, what the log does not say (labels of Pods) has to be in the files.

Exit code 0 when nothing flips, 1 when something does, 2 when some decisions cannot be judged: what a log does not say
(headers, tokens, addresses) and the policies look at is UNKNOWN. Lines that record no decision are counted.

Examples:
  meltemi authz simulate -f new-policy.yaml --overlay
  kubectl logs -n istio-system -l app=ztunnel --tail=-1 > flows.log && meltemi authz simulate -f policies/ --flows flows.log")]
pub(crate) struct Args {
    /// Files or folders: the policies to try
    #[arg(short, long = "filename", value_name = "NEW", required = true)]
    files: Vec<PathBuf>,
    /// Recorded decisions; `-` for standard input
    #[arg(long, value_name = "LOG")]
    flows: Option<PathBuf>,
    /// The files are laid over the cluster's policies, as `kubectl apply` would: what they do not name stays
    #[arg(long)]
    overlay: bool,
    /// Lines of each Pod's log
    #[arg(long, default_value_t = 10_000)]
    tail: i64,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let mut world = objects::world(&objects::files(&args.files, global)?, false)?;
    // What runs is known by the cluster, when it is asked anyway.
    let live = args.overlay || args.flows.is_none();
    let mut lines: Vec<(String, Option<Writer>)> = Vec::new();
    if live {
        let client = global.client().await.context(
            "the logs and policies of a mesh are read from its cluster; to do without, give --flows and no --overlay",
        )?;
        let running: World = objects::world(&objects::live(client.clone()).await?, true)?;
        if args.overlay {
            world = running.overlaid(&world);
        } else {
            world.borrow(&running);
        }
        if args.flows.is_none() {
            lines = logs(client, args.tail).await?;
        }
    }
    if let Some(path) = &args.flows {
        let text = if path.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin()).context("reading standard input")?
        } else {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
        };
        let writer = global.namespace.clone().map(|namespace| Writer { namespace, gateway: None });
        lines.extend(text.lines().map(|l| (l.to_owned(), writer.clone())));
    }
    let found = replay(&world, lines.iter().map(|(line, writer)| (line.as_str(), writer.as_ref())));
    if args.output == TextOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found);
    }
    let judged = found.unknown.is_empty() && found.unreadable.is_empty();
    Ok(ExitCode::from(match (found.flips.is_empty(), judged) {
        (false, _) => 1,
        (true, false) => 2,
        (true, true) => 0,
    }))
}

/// The logs of every node proxy and waypoint, with the namespace of each.
async fn logs(client: kube::Client, tail: i64) -> anyhow::Result<Vec<(String, Option<Writer>)>> {
    let all: Api<Pod> = Api::all(client.clone());
    let mut out = Vec::new();
    for selector in ["app=ztunnel", GATEWAY_NAME] {
        let pods =
            all.list(&ListParams::default().labels(selector)).await.context("listing the mesh's proxies")?;
        for pod in pods.items {
            let (Some(namespace), Some(name)) = (pod.metadata.namespace, pod.metadata.name) else { continue };
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let params = LogParams { tail_lines: Some(tail), ..LogParams::default() };
            let text = api
                .logs(&name, &params)
                .await
                .with_context(|| format!("reading the log of {namespace}/{name}"))?;
            let gateway = pod.metadata.labels.as_ref().and_then(|labels| labels.get(GATEWAY_NAME)).cloned();
            let writer = Writer { namespace, gateway };
            out.extend(text.lines().map(|l| (l.to_owned(), Some(writer.clone()))));
        }
    }
    Ok(out)
}

fn print(found: &Replay) {
    let times = |count: usize| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    for flip in &found.flips {
        let request = flip.request.as_deref().map(|r| format!(" {r}")).unwrap_or_default();
        println!("{} -> {}: {} to {}{request}, {}", flip.was, flip.is, flip.from, flip.to, times(flip.count));
        println!("    at {}: {}", flip.enforced_at, flip.reason);
    }
    for (reason, count) in &found.unknown {
        println!("UNKNOWN: {reason}, {}", times(*count));
    }
    for (reason, count) in &found.unreadable {
        println!("UNREADABLE: {reason}, {}", times(*count));
    }
    let flipped: usize = found.flips.iter().map(|f| f.count).sum();
    println!(
        "{} decisions: {} as before, {flipped} otherwise, {} unknown; {} other lines",
        found.decisions,
        found.same,
        found.unknown.values().sum::<usize>(),
        found.other_lines
    );
}
