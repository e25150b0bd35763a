// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz who-can`: everybody who may reach a Service.

use std::path::PathBuf;
use std::process::ExitCode;

use meltemi_analysis::who_can::{Question, WhoCan};
use meltemi_analysis::{table, who_can};

use super::objects;
use crate::cmd::Global;
use crate::cmd::output::TextOrJson;

/// Lists who may reach a Service.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Identities are those of ServiceAccounts that exist, those that policies name, and, in words, all others. Each stands with
the policy and the rule that lets it through, at the waypoint and at the node proxy.

Example:
  meltemi authz who-can --to productpage --method DELETE")]
pub(crate) struct Args {
    /// The Service, SERVICE or SERVICE.NAMESPACE
    #[arg(long, value_name = "SVC[.NS]")]
    to: String,
    /// Port of the Service; any that it has when not given
    #[arg(long)]
    port: Option<u16>,
    /// HTTP method; any when not given
    #[arg(long)]
    method: Option<String>,
    /// HTTP path; any when not given
    #[arg(long)]
    path: Option<String>,
    /// Files or folders to read instead of the cluster
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (namespace, objects) = objects::from(&args.files, global).await?;
    let world = objects::world(&objects, args.files.is_empty())?;
    let to = table::service(&args.to, &namespace);
    let question = Question { to, port: args.port, method: args.method, path: args.path };
    let answer = who_can(&world, &question)?;
    if args.output == TextOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(answer: &WhoCan) {
    println!("{}", answer.target);
    for door in &answer.doors {
        println!("{} ({}):", door.enforced_at, door.way);
        for line in door.lines() {
            println!("  {line}");
        }
        for unknown in &door.unknown {
            println!("  unknown: {unknown}");
        }
    }
    if answer.waypoint_admitted == Some(false) {
        println!(
            "warning: the node proxy does not admit the waypoint: nobody reaches the Service through it"
        );
    }
    for assumed in &answer.assumed {
        println!("assumed: {assumed}");
    }
}
