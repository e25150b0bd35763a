// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: requests, latency, connections and bytes through each path of a mesh of this machine, beside no
//! proxy and beside the peers that are installed, in one alternated run. Ratios of one run can be compared; figures of
//! two machines cannot.

mod chart;
mod load;
mod mesh;
mod paths;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use self::mesh::{Mesh, Tools};
use self::report::{Report, Run};

/// What to measure, with what, and for how long.
#[derive(clap::Args)]
#[command(after_help = "Example: a quick look, one round of two seconds for each figure\n  \
                  cargo xtask bench --seconds 2 --rounds 1")]
pub(crate) struct Args {
    /// The mesh's binary
    #[arg(long, value_name = "FILE", default_value = "target/release/meltemi")]
    meltemi: PathBuf,
    /// kubectl to use
    #[arg(long, value_name = "FILE", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Folder that holds the load generator oha, and Envoy where it is to be compared
    #[arg(long, value_name = "DIR", default_value = "target/tools")]
    tools: PathBuf,
    /// Seconds for each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds; each goes through all paths, and the median is reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Requests per second at which latency is measured; the same for every path
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Rules of the gateway that has many
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    rules: u32,
    /// Folder for results.json and the charts
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    out: PathBuf,
}

/// Measures every path `rounds` times and writes table, JSON and charts.
///
/// # Errors
/// A tool that is missing, a mesh that does not start, a load generator that fails. Requests that failed are no error:
/// they are counted in the report, and the exit code is 1.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tools = Tools::find(&args.meltemi, &args.kubectl, &args.tools)?;
    let mesh = Mesh::start(&tools)?;
    let paths = paths::prepare(&mesh, &tools, args.rules)?;
    let span = Duration::from_secs(args.seconds);
    let mut report = Report::new(args.seconds, args.rounds, args.rate)?;
    for round in 1..=args.rounds {
        for path in &paths {
            eprintln!("round {round} of {}: {}", args.rounds, path.name);
            let measured = path.measure(&mesh, span, args.rate).with_context(|| path.name.clone())?;
            report.runs.push(Run { path: path.name.clone(), against: path.against.clone(), round, measured });
        }
    }
    drop(mesh);
    print!("{}", report.table());
    report.write(&args.out)?;
    chart::write(&report, &args.out)?;
    println!("written to {}: results.json, requests.svg, latency.svg", args.out.display());
    let failed = report.failed_requests();
    if failed > 0 {
        eprintln!("bench: {failed} requests failed; see `failed` in results.json");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
