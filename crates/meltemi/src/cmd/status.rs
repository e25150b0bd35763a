// SPDX-License-Identifier: Apache-2.0
//! `meltemi status`, `doctor` and `kubeconfig`: what runs on this machine, and what is in the way.

mod parts;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use meltemi_linux::supervise::{NoIds, SubIds};
use meltemi_runner::cgroups::{self, Controller};
use serde::Serialize;

use self::parts::Part;
use super::Global;
use crate::cmd::output::TableOrJson;
use crate::machine::paths::Paths;
use crate::machine::report::Running;

/// Show what runs on this machine and how.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi status\n  meltemi status -o json | jq .running")]
pub struct Args {
    /// Name of the mesh; else it is the one of $KUBECONFIG, else `default`
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Data directory of the mesh
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
}

/// Say what is in the way of a mesh on this machine, and its fix.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi doctor")]
pub struct DoctorArgs {
    /// Output form
    #[arg(short, long, value_enum, default_value = "table")]
    output: TableOrJson,
}

/// Print the path of the kubeconfig of this machine's mesh.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  export KUBECONFIG=$(meltemi kubeconfig)")]
pub struct KubeconfigArgs {
    /// Name of the mesh
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Data directory of the mesh
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    running: Option<Running>,
    data_dir: PathBuf,
    nodes: Vec<Line>,
    pods: Vec<Line>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    ready: bool,
    detail: String,
}

/// `meltemi kubeconfig`.
pub fn kubeconfig(args: &KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let paths = Paths::find(args.name.as_deref(), args.data_dir.as_deref())?;
    let file = paths.kubeconfig();
    if !file.exists() {
        bail!("{} does not exist: start the mesh first with `{}`", file.display(), paths.how_to_start());
    }
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// `meltemi status`: exit code 0 when everything is ready and in step, 1 otherwise.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let paths = Paths::meant(
        args.name.as_deref(),
        args.data_dir.as_deref(),
        std::env::var_os("KUBECONFIG").as_deref(),
    )?;
    let running = Running::read(&paths)?;
    let mut status = Status {
        running,
        data_dir: paths.data.clone(),
        nodes: Vec::new(),
        pods: Vec::new(),
        parts: Vec::new(),
    };
    if status.running.is_some() {
        let global = Global { kubeconfig: Some(paths.kubeconfig()), ..Global::default() };
        let client = global.client().await?;
        let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
        status.nodes = nodes.items.iter().map(node_line).collect();
        let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
        let own = pods.items.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some("istio-system"));
        status.pods = own.map(pod_line).collect();
        status.parts = parts::ask(&client, &nodes.items, &pods.items).await;
    }
    let well = status.running.as_ref().is_some_and(|running| running.ready)
        && status.nodes.iter().chain(&status.pods).all(|l| l.ready)
        && status.parts.iter().all(|part| part.in_sync);
    if args.output == TableOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&paths, &status);
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(paths: &Paths, status: &Status) {
    let Some(running) = &status.running else {
        println!("mesh {:?} is not running; start it with `{}`", paths.name, paths.how_to_start());
        if let Some(other) = meant_by_kubeconfig(paths) {
            println!("$KUBECONFIG is that of another mesh: `meltemi status --data-dir {}`", other.display());
        }
        return;
    };
    let starting = if running.ready { "" } else { " (still starting)" };
    println!("mesh {:?}: version {}, since {}{starting}", running.name, running.version, running.started);
    println!(
        "API https://127.0.0.1:{}   data {}   supervisor pid {}",
        running.port,
        paths.data.display(),
        running.pid
    );
    for (title, lines) in [("NODE", &status.nodes), ("POD (istio-system)", &status.pods)] {
        println!("\n{title:<40} READY  DETAIL");
        for line in lines {
            println!("{:<40} {:<6} {}", line.name, if line.ready { "yes" } else { "no" }, line.detail);
        }
    }
    println!("\n{:<40} {:<6} {:<10} DETAIL", "PART", "SYNC", "LAST SYNC");
    for part in &status.parts {
        let last = part.last_sync.map_or_else(|| "never".to_owned(), |age| format!("{age} s ago"));
        println!(
            "{:<40} {:<6} {last:<10} {}",
            part.name,
            if part.in_sync { "yes" } else { "no" },
            part.detail
        );
    }
}

/// The data directory that `$KUBECONFIG` lies in, when a mesh runs on it and it is not the one that was asked for.
fn meant_by_kubeconfig(paths: &Paths) -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("KUBECONFIG")?).parent()?.to_owned();
    let other = Paths::find(None, Some(&directory)).ok().filter(|other| other.data != paths.data)?;
    Running::read(&other).ok().flatten().map(|_| other.data)
}

fn node_line(node: &Node) -> Line {
    let status = node.status.as_ref();
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let address = status
        .and_then(|s| s.addresses.as_ref())
        .and_then(|a| a.iter().find(|a| a.type_ == "InternalIP"))
        .map_or_else(String::new, |a| a.address.clone());
    Line { name: node.metadata.name.clone().unwrap_or_default(), ready, detail: address }
}

fn pod_line(pod: &Pod) -> Line {
    let status = pod.status.as_ref();
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let phase = status.and_then(|s| s.phase.clone()).unwrap_or_default();
    Line { name: pod.metadata.name.clone().unwrap_or_default(), ready, detail: format!("{phase} on {node}") }
}

/// One thing that a mesh on this machine needs, or is better with.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Nothing starts without it.
    needed: bool,
    fix: String,
}

/// `meltemi doctor`: exit code 0 when nothing is in the way.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = checks();
    if args.output == TableOrJson::Json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        for check in &checks {
            let mark = match (check.ok, check.needed) {
                (true, _) => "ok  ",
                (false, true) => "FAIL",
                (false, false) => "note",
            };
            println!(
                "{mark}  {}{}",
                check.name,
                if check.ok { String::new() } else { format!("\n      {}", check.fix) }
            );
        }
    }
    Ok(if checks.iter().all(|c| c.ok || !c.needed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checks() -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let limit = |file: &str| std::fs::read_to_string(format!("/proc/sys/{file}")).ok();
    let userns = limit("user/max_user_namespaces").is_none_or(|v| v.trim() != "0")
        && limit("kernel/unprivileged_userns_clone").is_none_or(|v| v.trim() != "0")
        && limit("kernel/apparmor_restrict_unprivileged_userns").is_none_or(|v| v.trim() != "1");
    let namespaces = ["net", "mnt", "pid", "uts", "ipc", "user"]
        .iter()
        .all(|ns| std::path::Path::new("/proc/self/ns").join(ns).exists());
    vec![
        Check {
            name: "namespaces: net, mnt, pid, uts, ipc, user",
            ok: namespaces,
            needed: true,
            fix: "this kernel lacks a kind of namespace; use a stock kernel of your distribution".into(),
        },
        Check {
            name: "permission to create namespaces",
            ok: root || userns,
            needed: true,
            fix: "run as root, or allow user namespaces: sysctl -w user.max_user_namespaces=15000 \
                  kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
                .into(),
        },
        Check {
            name: "nf_tables",
            ok: nf_tables(),
            needed: true,
            fix: "load the modules once as root: modprobe -a nf_tables nft_chain_nat nft_redir nft_ct nft_numgen".into(),
        },
        Check {
            name: "kubectl in $PATH",
            ok: in_path("kubectl"),
            needed: true,
            fix: "apt-get install kubernetes-client, or put a kubectl of yours into $PATH".into(),
        },
        Check {
            name: "curl in $PATH (sample clients run the host's)",
            ok: in_path("curl"),
            needed: true,
            fix: "apt-get install curl".into(),
        },
        user_ids(if root { Ok(()) } else { SubIds::of_caller().map(drop) }),
        limits(&cgroups::possible()),
    ]
}

/// Users of Pods beside the one that the mesh runs as.
fn user_ids(found: Result<(), NoIds>) -> Check {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let user = user.map_or_else(|| "USER".to_owned(), |user| user.name);
    let fix = match found {
        Ok(()) => String::new(),
        Err(NoIds::Programs) => "all users of a Pod are you: newuidmap and newgidmap are not in $PATH; \
                                 apt-get install uidmap (dnf install shadow-utils)"
            .to_owned(),
        Err(NoIds::Ranges) => format!(
            "all users of a Pod are you: /etc/subuid and /etc/subgid have no range of {user}; once as root: \
             usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user} (a range that nobody else has)"
        ),
    };
    Check { name: "user ids for Pods (newuidmap, /etc/subuid)", ok: found.is_ok(), needed: false, fix }
}

/// Limits of Pods that would be in force for a mesh started from here.
fn limits(possible: &[Controller]) -> Check {
    let missing: Vec<&str> =
        Controller::ALL.into_iter().filter(|c| !possible.contains(c)).map(Controller::name).collect();
    let fix = format!(
        "no limits of {}: no cgroup can be made from here; start the mesh as root, or with cgroups v2 by \
         systemd-run --user --scope meltemi up --detach",
        missing.join(", ")
    );
    Check { name: "cgroups for limits of Pods", ok: missing.is_empty(), needed: false, fix }
}

/// Whether the kernel has nf_tables, built in or as a module that is loaded or can be.
fn nf_tables() -> bool {
    let release =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let modules = |file: &str| {
        std::fs::read_to_string(format!("/lib/modules/{release}/{file}"))
            .is_ok_and(|t| t.contains("nf_tables.ko"))
    };
    std::path::Path::new("/sys/module/nf_tables").exists()
        || std::path::Path::new("/proc/net/netfilter").exists()
        || modules("modules.builtin")
        || modules("modules.dep")
}

fn in_path(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mesh_can_do_without_is_no_failure_and_says_what_to_install() {
        for (found, fix) in [(NoIds::Programs, "apt-get install uidmap"), (NoIds::Ranges, "--add-subuids")] {
            let check = user_ids(Err(found));
            assert!(!check.ok && !check.needed && check.fix.contains(fix), "{}", check.fix);
        }
        assert!(user_ids(Ok(())).ok && limits(&Controller::ALL).ok);
        let check = limits(&[Controller::Pids]);
        assert!(!check.ok && !check.needed && check.fix.contains("memory, cpu:"), "{}", check.fix);
    }
}
