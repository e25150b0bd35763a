// SPDX-License-Identifier: Apache-2.0
//! `meltemi serve controllers`.

use std::path::PathBuf;

use meltemi_controllers::Config;
use meltemi_runtime::Tasks;

/// Deployments, EndpointSlices, scheduling and the like, for a mesh on one machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  meltemi serve controllers --data-dir /tmp/api")]
pub struct Args {
    /// Data directory of the API server, whose credentials for the controllers are used
    #[arg(long)]
    data_dir: PathBuf,
}

/// Starts them.
pub async fn start(args: Args, tasks: Tasks) -> anyhow::Result<()> {
    let config = Config::new(args.data_dir.join("components/controllers.kubeconfig"));
    meltemi_controllers::start(config, &tasks).await?;
    Ok(())
}
