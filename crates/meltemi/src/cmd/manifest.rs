// SPDX-License-Identifier: Apache-2.0
//! `meltemi manifest generate`: the objects of a mesh as YAML, as Kubernetes takes them.

use std::process::ExitCode;

use clap::Subcommand;

use crate::manifests::{self, Engine};

/// The mesh's own manifests.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi manifest generate > meltemi.yaml")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Print every object in the order in which they are applied
    #[command(after_help = "Example:\n  meltemi manifest generate | kubectl diff -f -")]
    Generate,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Verb::Generate = args.verb;
    for object in manifests::objects(Engine::Kubernetes)? {
        print!("---\n{}", serde_yaml_ng::to_string(&object)?);
    }
    Ok(ExitCode::SUCCESS)
}
