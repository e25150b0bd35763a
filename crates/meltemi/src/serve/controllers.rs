// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve controllers`.

use std::path::PathBuf;
use std::time::Duration;

use meltemi_controllers::Config;
use meltemi_runtime::Tasks;

/// Deployments, EndpointSlices, scheduling and the like, for a mesh on one machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi serve controllers --data-dir /tmp/api")]
pub struct Args {
    /// Data directory of the API server, whose credentials for the controllers are used
    #[arg(long)]
    data_dir: PathBuf,
    /// Seconds that a node may leave its lease unrenewed before it counts as lost
    #[arg(long, value_name = "SECONDS", env = "MELTEMI_NODE_GRACE", default_value_t = 40, value_parser = clap::value_parser!(u64).range(6..=86_400))]
    node_grace: u64,
}

/// Starts them.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let mut config = Config::new(args.data_dir.join("components/controllers.kubeconfig"));
    config.claims = Some(args.data_dir.join("claims"));
    config.node_grace = Duration::from_secs(args.node_grace);
    meltemi_controllers::start(config, &tasks).await?;
    Ok(())
}
