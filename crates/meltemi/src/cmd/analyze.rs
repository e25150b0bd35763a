// SPDX-License-Identifier: Apache-2.0
//! `meltemi analyze`: what policies probably do not mean, as istioctl shows it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use meltemi_analysis::findings::CODES;
use meltemi_analysis::{Finding, Level, World, analyze};

use super::Global;
use super::authz::objects;
use crate::cmd::output::LogOrDocument;

/// Exit code of istioctl when something is found.
const FOUND: u8 = 79;

/// A level on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Threshold {
    Info,
    Warning,
    Error,
}

impl From<Threshold> for Level {
    fn from(threshold: Threshold) -> Self {
        match threshold {
            Threshold::Info => Self::Info,
            Threshold::Warning => Self::Warning,
            Threshold::Error => Self::Error,
        }
    }
}

/// Finds what policies probably do not mean.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each finding has its reason and its fix. The exit code is 79 when one reaches the failure threshold, as istioctl's is.

Examples:
  meltemi analyze -A
  meltemi analyze samples/kagenti --failure-threshold Warning
  meltemi analyze policy.yaml --use-kube      # the file laid over what the cluster has")]
pub struct Args {
    /// Files or folders, `-` for standard input; the cluster when there are none
    files: Vec<PathBuf>,
    /// Analyze all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Lay the files over what the cluster has
    #[arg(short = 'k', long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    use_kube: Option<bool>,
    /// Level from which on the exit code is 79
    #[arg(long, value_enum, default_value = "Error", ignore_case = true)]
    failure_threshold: Threshold,
    /// Level from which on findings are shown
    #[arg(long, value_enum, default_value = "Info", ignore_case = true)]
    output_threshold: Threshold,
    /// Leave out a finding, CODE=Kind NAMESPACE/NAME; `*` at the end of the name stands for anything
    #[arg(short = 'S', long, value_name = "CODE=ORIGIN")]
    suppress: Vec<String>,
    /// List what is looked for
    #[arg(short = 'L', long)]
    list_analyzers: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "log")]
    output: LogOrDocument,
}

/// Runs the command.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if args.list_analyzers {
        for code in CODES {
            println!("{}: {} ({})", code.code, code.about, code.level);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = args.use_kube.unwrap_or(args.files.is_empty());
    let (world, namespace) = world(&args, global, cluster).await?;
    let least = Level::from(args.output_threshold);
    let mut found = analyze(&world, namespace.as_deref());
    found.retain(|f| f.level >= least && !args.suppress.iter().any(|s| suppressed(f, s)));
    let target = match &namespace {
        None if cluster => "all namespaces".to_owned(),
        None => args.files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join("\n"),
        Some(namespace) => format!("namespace: {namespace}"),
    };
    match args.output {
        LogOrDocument::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        LogOrDocument::Yaml => print!("{}", serde_yaml_ng::to_string(&found)?),
        LogOrDocument::Log => found.iter().for_each(|f| println!("{f}")),
    }
    if found.is_empty() && args.output == LogOrDocument::Log {
        eprintln!("\u{2714} No validation issues found when analyzing {target}.");
    }
    let fails = Level::from(args.failure_threshold);
    if found.iter().any(|f| f.level >= fails) {
        eprintln!("Error: Analyzers found issues when analyzing {target}.");
        return Ok(ExitCode::from(FOUND));
    }
    Ok(ExitCode::SUCCESS)
}

async fn world(args: &Args, global: &Global, cluster: bool) -> anyhow::Result<(World, Option<String>)> {
    let files = if args.files.is_empty() { Vec::new() } else { objects::some(&args.files, global)? };
    let mut running = None;
    let mut namespace = global.namespace.clone();
    if cluster {
        let client = global.client().await?;
        namespace = Some(global.namespace(&client));
        let mut found = objects::live(client.clone()).await?;
        found.extend(objects::live_inert(&client).await?);
        if let Some(wanted) = &global.namespace
            && !found.iter().any(|o| o["kind"] == "Namespace" && o["metadata"]["name"] == wanted.as_str())
        {
            bail!("namespace: {wanted} not found");
        }
        running = Some((World::read(&found, objects::mesh(&found)?), found));
    }
    let world = match running {
        None => World::read(&files, objects::mesh(&files)?),
        Some((mut world, found)) => {
            let mesh = objects::mesh(&found)?;
            if !files.is_empty() {
                world = world.overlaid(&World::read(&files, mesh));
            }
            world.complete = true;
            world
        }
    };
    Ok((world, namespace.filter(|_| !args.all_namespaces)))
}

/// `CODE=Kind NAMESPACE/NAME`, with `*` at the end for anything.
fn suppressed(finding: &Finding, text: &str) -> bool {
    let Some((code, origin)) = text.split_once('=') else { return false };
    let same = match origin.strip_suffix('*') {
        Some(start) => finding.origin.starts_with(start),
        None => finding.origin == origin,
    };
    finding.code == code && same
}
