// SPDX-License-Identifier: Apache-2.0
//! `meltemi demo`: the walkthrough with real commands and their real output, each checked.

mod shell;
mod steps;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};

use self::shell::{Shell, Step};
use super::{down, up};
use crate::machine::launch::Options;
use crate::machine::paths::Paths;
use crate::machine::report::Running;

/// Walk through Istio's authorization task on this machine.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: the walkthrough, leaving the mesh running to be tried by hand\n  meltemi demo --keep"
)]
pub struct Args {
    /// Name of the mesh that is started for it
    #[arg(long, value_name = "N", default_value = "demo")]
    name: String,
    /// Data directory of that mesh
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    nodes: u16,
    /// kubectl to use; else the one in $PATH
    #[arg(long, value_name = "FILE")]
    kubectl: Option<PathBuf>,
    /// Leave the mesh running, and say what to try next
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::find(Some(&args.name), args.data_dir.as_deref())?;
    if Running::read(&paths)?.is_some() {
        bail!(
            "mesh {:?} is already running; stop it with `meltemi down --name {}` first",
            paths.name,
            paths.name
        );
    }
    let begun = Instant::now();
    println!("# A mesh on this machine: {} nodes, nothing of the host changed", args.nodes);
    println!("$ meltemi up --detach --name {} --nodes {}", args.name, args.nodes);
    up::start(&paths, &Options { nodes: args.nodes, port: None, detach: true })?;
    let walked = walk(args, &paths);
    if walked.is_ok() && args.keep {
        println!(
            "\nEvery step held, in {:.1} s. The mesh is still running. Try next:",
            begun.elapsed().as_secs_f32()
        );
        println!("  export KUBECONFIG={}", paths.kubeconfig().display());
        println!("  export PATH={}:$PATH", paths.bin().display());
        println!("  kubectl get pods -A");
        println!(
            "  meltemi authz explain --from default/curl --to productpage --method DELETE --path /productpage"
        );
        println!("  meltemi down --name {} --purge", args.name);
        return Ok(ExitCode::SUCCESS);
    }
    if walked.is_err() && args.keep {
        println!("\nThe mesh is still running: export KUBECONFIG={}", paths.kubeconfig().display());
    } else {
        println!(
            "\n# The mesh is stopped; nothing of it remains\n$ meltemi down --name {} --purge",
            args.name
        );
        if walked.is_err() {
            print_logs(&paths);
        }
        down::stop(&paths, true)?;
    }
    walked?;
    println!("\nEvery step held, in {:.1} s.", begun.elapsed().as_secs_f32());
    Ok(ExitCode::SUCCESS)
}

fn walk(args: &Args, paths: &Paths) -> anyhow::Result<()> {
    let dir = samples_dir()?;
    let mut path = vec![paths.bin()];
    if let Some(kubectl) = &args.kubectl {
        let link = paths.bin().join("kubectl");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(std::path::absolute(kubectl)?, &link).context("linking kubectl")?;
    }
    path.dedup();
    let shell = Shell { dir, kubeconfig: paths.kubeconfig(), path };
    shell.step(&Step {
        say: "kubectl, as it comes",
        run: "kubectl version".into(),
        shows: vec!["Server Version"],
        ..Step::default()
    })?;
    for step in steps::application() {
        shell.step(&step)?;
    }
    let port = free_port(8080)?;
    let forward = shell.background(&format!("kubectl port-forward svc/bookinfo-gateway-istio {port}:80"))?;
    shell.step(&steps::page("The page, through the ingress gateway", port))?;
    for step in steps::layer4() {
        shell.step(&step)?;
    }
    shell.step(&steps::page("The gateway still shows the page", port))?;
    for step in steps::layer7() {
        shell.step(&step)?;
    }
    shell.step(&steps::page("The gateway still shows the page", port))?;
    drop(forward);
    for step in steps::kagenti() {
        shell.step(&step)?;
    }
    Ok(())
}

/// The directory that has `samples/`: the current one, or the one of the checkout that the binary was built in.
fn samples_dir() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let executable = std::env::current_exe()?;
    let mut candidates = here.ancestors().chain(executable.ancestors());
    candidates
        .find(|dir| dir.join("samples/bookinfo/bookinfo.yaml").is_file())
        .map(Path::to_path_buf)
        .context("samples/bookinfo/bookinfo.yaml not found: run the demo in a checkout of Meltemi")
}

/// The wanted local port when it is free, else any.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    let listener =
        TcpListener::bind(("127.0.0.1", wanted)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.port())
}

/// The last lines of every log, so that a failed run can be understood after its mesh is gone.
fn print_logs(paths: &Paths) {
    let Ok(entries) = std::fs::read_dir(paths.logs()) else { return };
    for entry in entries.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        println!("--- last lines of {}", entry.path().display());
        for line in &lines[lines.len().saturating_sub(40)..] {
            println!("{line}");
        }
    }
}
