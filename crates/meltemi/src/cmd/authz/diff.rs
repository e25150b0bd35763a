// SPDX-License-Identifier: Apache-2.0
//! `meltemi authz diff`: what a change of policies newly allows and newly denies.

use std::path::PathBuf;
use std::process::ExitCode;

use meltemi_analysis::{Difference, Differences, diff};

use super::objects;
use crate::cmd::Global;
use crate::cmd::output::TextOrJson;

/// Compares two sets of policies over all requests.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Every difference is shown with its condition, in the policies' own terms, and with one request for which `authz explain`
says so. No difference is a proof: over connections, and over requests that can be read in one way only (normalised paths,
headers that occur once). What cannot be decided (an external provider) is named as unknown.
What one side says nothing about (Services, Namespaces, Gateways, ServiceAccounts, Pods) is taken from the other; policies
never are, unless --overlay is given.
Compared is what applies to each Service, Gateway and workload: its labels, whether it is in the mesh, its waypoint. What
differs and is not modelled (routes, ports and selectors behind a waypoint, workloads that are new) is unknown, by name; of tokens
it is said which are refused (401) on one side only.

Examples:
  meltemi authz diff main/policies branch/policies --no-new-access
  meltemi authz diff live new-policy.yaml --overlay -o json")]
pub(crate) struct Args {
    /// File, folder, `-` or `live`
    old: PathBuf,
    /// File, folder, `-` or `live`
    new: PathBuf,
    /// Fail only when something is newly allowed (1) or not known (2)
    #[arg(long)]
    no_new_access: bool,
    /// NEW is laid over OLD, as `kubectl apply` would: what NEW does not name stays
    #[arg(long)]
    overlay: bool,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let old = objects::side(&args.old, global).await?;
    let mut new = objects::side(&args.new, global).await?;
    if args.overlay {
        new = old.overlaid(&new);
    }
    let found = diff(&old, &new);
    if args.output == TextOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found);
    }
    let different =
        !found.newly_allowed.is_empty() || (!args.no_new_access && !found.newly_denied.is_empty());
    Ok(ExitCode::from(match (different, found.unknown.is_empty()) {
        (true, _) => 1,
        (false, false) => 2,
        (false, true) => 0,
    }))
}

fn print(found: &Differences) {
    if found.is_same() {
        println!("SAME: no request is decided differently; proven of");
        for place in &found.places {
            println!("  {} at {}", place.target, place.enforced_at);
        }
        return;
    }
    section("newly allowed", &found.newly_allowed);
    section("newly denied", &found.newly_denied);
    if !found.unknown.is_empty() {
        println!("unknown:");
    }
    for unknown in &found.unknown {
        println!("  {} at {}", unknown.target, unknown.enforced_at);
        if let Some(policy) = &unknown.policy {
            println!("    policy: {policy}");
        }
        println!("    reason: {}", unknown.reason);
    }
}

fn section(title: &str, list: &[Difference]) {
    if list.is_empty() {
        return;
    }
    println!("{title}:");
    for difference in list {
        println!("  {} at {}", difference.target, difference.enforced_at);
        let plaintext = if difference.plaintext { " (plaintext included)" } else { "" };
        println!("    condition: {}{plaintext}", difference.condition);
        for except in &difference.except {
            println!("       except: {except}");
        }
        println!("    because: {}", difference.because);
        println!("    witness: {}", difference.witness);
        if let Some(command) = &difference.explain {
            println!("    confirm: {command}");
        }
    }
}
