// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve runner`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use meltemi_runner::Config;
use meltemi_runtime::{Readiness, Tasks};

/// The kubelet's part of a node: runs in the node's network namespace.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  meltemi serve runner --node node-1 --address 172.30.0.11 --pod-cidr 10.244.1.0/24 --run-dir /run/meltemi --data-dir /tmp/api"
)]
pub struct Args {
    /// Name of the node
    #[arg(long)]
    node: String,
    /// Its address
    #[arg(long)]
    address: Ipv4Addr,
    /// Addresses of its Pods
    #[arg(long)]
    pod_cidr: ipnet::Ipv4Net,
    /// Which sixteenth of the machine's user ids the Pods have as root; no two meshes have the same
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..i64::from(meltemi_runner::users::BLOCKS)))]
    id_block: u32,
    /// Directory for sockets and roots
    #[arg(long)]
    run_dir: PathBuf,
    /// Data directory
    #[arg(long)]
    data_dir: PathBuf,
}

/// Starts it.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let config = Config::one_machine(&args.node, args.address, args.pod_cidr, &args.run_dir, &args.data_dir)?;
    let config = Config { ids_block: args.id_block, ..config };
    meltemi_runner::run(config, &tasks, &Readiness::new()).await?;
    Ok(())
}
