// SPDX-License-Identifier: Apache-2.0
//! The sample programs, as subcommands: what the images of `samples/` run on this machine.

mod bookinfo;
mod mlflow;
mod page;

use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use clap::ValueEnum;

/// The programs.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// The page: calls details and reviews
    Productpage,
    /// Facts about the book
    Details,
    /// Stars for each reviewer
    Ratings,
    /// Reviews: v1 without stars, v2 with black, v3 with red ones, from ratings
    Reviews,
    /// A stand-in for an experiment tracker: answers every request with what it saw
    Mlflow,
}

/// Run one of the sample programs.
#[derive(clap::Args, Debug)]
#[command(disable_version_flag = true, after_help = "Example:\n  meltemi sample details --port 9080")]
pub struct Args {
    /// Which
    program: Program,
    /// Port to listen on, on all addresses
    #[arg(long)]
    port: Option<u16>,
    /// Version, for reviews: v1, v2 or v3
    #[arg(long, env = "SERVICE_VERSION", default_value = "v1")]
    version: String,
}

/// Serves until the process is told to stop.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let (routes, default_port): (Router, u16) = match args.program {
        Program::Productpage => (page::routes(bookinfo::Upstreams::from_env(env)), 9080),
        Program::Details => (bookinfo::details(), 9080),
        Program::Ratings => (bookinfo::ratings(), 9080),
        Program::Reviews => (bookinfo::reviews(&args.version, bookinfo::Upstreams::from_env(env)), 9080),
        Program::Mlflow => (mlflow::routes(), 5000),
    };
    let address = SocketAddr::from(([0, 0, 0, 0], args.port.unwrap_or(default_port)));
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("{:?} listens on {address}", args.program);
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            stop.recv().await;
        })
        .await?;
    Ok(ExitCode::SUCCESS)
}
