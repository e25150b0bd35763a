// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz`: what policies say, live or from files: of one request, of all requests, of recorded ones.

mod diff;
mod explain;
pub(crate) mod objects;
mod simulate;
mod test;
mod who_can;

use std::process::ExitCode;

use clap::Subcommand;

use super::Global;

/// What policies say.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  meltemi authz explain --from default/curl --to productpage --method GET --path /productpage
  meltemi authz who-can --to productpage
  meltemi authz diff main/policies branch/policies --no-new-access")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Say whether a request is allowed, and by which policy, rule and clause; exit code 0 ALLOW, 1 DENY, 2 UNKNOWN
    Explain(Box<explain::Args>),
    /// Prove what a change of policies newly allows and newly denies; exit code 0 same, 1 different, 2 unknown
    Diff(diff::Args),
    /// List everybody who may reach a Service, each with the policy and rule that lets it
    WhoCan(who_can::Args),
    /// Hold policies against a table of requests with expected verdicts; exit code 0 when all hold
    Test(test::Args),
    /// Replay recorded decisions against other policies and list what would flip
    Simulate(simulate::Args),
}

/// Runs the command.
pub async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Explain(args) => explain::run(*args, global).await,
        Verb::Diff(args) => diff::run(args, global).await,
        Verb::WhoCan(args) => who_can::run(args, global).await,
        Verb::Test(args) => test::run(args, global).await,
        Verb::Simulate(args) => simulate::run(args, global).await,
    }
}
