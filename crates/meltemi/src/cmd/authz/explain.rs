// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz explain`: one request.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use meltemi_analysis::{Answer, At, Request, Verdict, explain, table};

use super::objects;
use crate::cmd::Global;

/// Says whether a request is allowed.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi authz explain --from default/curl --to productpage --method GET --path /productpage"
)]
pub(crate) struct Args {
    /// The client: NAMESPACE/SERVICEACCOUNT, a principal (cluster.local/ns/a/sa/b), or `plaintext` for one without an
    /// identity
    #[arg(long, value_name = "NS/SA")]
    from: String,
    /// Address of the client
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// The Service, SERVICE or SERVICE.NAMESPACE
    #[arg(long, value_name = "SVC[.NS]")]
    to: String,
    /// Port of the Service
    #[arg(long)]
    port: Option<u16>,
    /// Ask one enforcement point only: the waypoint, or the node proxy of a connection that does not come through it
    #[arg(long, value_parser = ["waypoint", "node-proxy"])]
    at: Option<String>,
    /// HTTP method
    #[arg(long)]
    method: Option<String>,
    /// HTTP path
    #[arg(long)]
    path: Option<String>,
    /// HTTP host; the Service's name when not given
    #[arg(long)]
    host: Option<String>,
    /// HTTP header, NAME=VALUE
    #[arg(long, value_name = "K=V")]
    header: Vec<String>,
    /// Files or folders to read instead of the cluster; what they lack is assumed and listed
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Output form
    #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
    output: String,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (namespace, objects) = objects::from(&args.files, global).await?;
    let world = objects::world(&objects, args.files.is_empty())?;
    let answer = explain(&world, &request(&args, &namespace)?).map_err(anyhow::Error::msg)?;
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print(&answer);
    }
    Ok(ExitCode::from(match answer.verdict {
        Verdict::Allow => 0,
        Verdict::Deny => 1,
        Verdict::Unknown => 2,
    }))
}

fn request(args: &Args, namespace: &str) -> anyhow::Result<Request> {
    let header = |text: &String| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("--header {text:?}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    Ok(Request {
        from: table::client(&args.from).map_err(|e| anyhow::anyhow!("--from: {e}"))?,
        from_ip: args.from_ip,
        to: table::service(&args.to, namespace),
        at: args.at.as_deref().map(|at| if at == "waypoint" { At::Waypoint } else { At::NodeProxy }),
        port: args.port,
        method: args.method.clone(),
        path: args.path.clone(),
        host: args.host.clone(),
        headers: args.header.iter().map(header).collect::<anyhow::Result<_>>()?,
    })
}

fn print(answer: &Answer) {
    println!("{}", answer.verdict);
    let lines = [
        ("policy", answer.policy.clone()),
        ("rule", answer.rule.map(|r| r.to_string())),
        ("clause", answer.clause.clone()),
        ("enforced at", answer.enforced_at.clone()),
        ("reason", Some(answer.reason.clone())),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            println!("{name}: {value}");
        }
    }
    if answer.halves.len() > 1 {
        for half in &answer.halves {
            println!("at {}: {} (sees {}): {}", half.enforced_at, half.verdict, half.sees, half.reason);
        }
    }
    for assumed in &answer.assumed {
        println!("assumed: {assumed}");
    }
    for warning in &answer.warnings {
        println!("warning: {warning}");
    }
}
