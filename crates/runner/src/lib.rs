// SPDX-License-Identifier: Apache-2.0
//! The kubelet's part: Pods as sandboxed processes, probes, logs, exec, image table, Service addresses.
//!
//! [`run`] registers the node and runs the Pods that are placed on it; [`pod_init::main`] is what the binary
//! must call, with one thread, when its first argument is [`pod_init::WORD`].

mod accounts;
pub mod cgroups;
mod claims;
mod configs;
mod container;
mod content;
mod context;
mod downward;
mod enrol;
mod env;
mod expand;
pub mod image;
mod links;
mod lock;
mod logs;
mod names;
pub mod net;
mod node;
mod pod;
pub mod pod_init;
mod probe;
mod repair;
mod restart;
mod rights;
pub mod sandbox;
mod server;
mod services;
mod state;
mod tail;
mod unenforced;
pub mod users;
mod vip;
mod volumes;
mod watches;

use std::io;

use meltemi_enrolment::zds;
use meltemi_runtime::{Readiness, Tasks};

pub use context::{Config, ServingFiles};

/// Why the runner could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file it needs.
    #[error("{what} {path}: {reason}")]
    File {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The API client could not be made.
    #[error("API client: {0}")]
    Client(String),
    /// The process could not be closed to inspection.
    #[error("protecting the process's memory: {0}")]
    Protection(#[source] io::Error),
    /// It is not known which user ids Pods may have.
    #[error("user ids of Pods: {0}")]
    Users(#[source] io::Error),
    /// The node's network namespace could not be prepared.
    #[error("node network: {0}")]
    Network(#[source] io::Error),
    /// The server of the kubelet's API.
    #[error("kubelet API: {0}")]
    Server(String),
}

/// Starts everything and returns; the tasks run until the drain. Ready when the node is registered and its Pods
/// are known.
///
/// # Errors
/// Something that cannot get better by waiting; an API server that is not there yet can.
pub async fn run(config: Config, tasks: &Tasks, readiness: &Readiness) -> Result<(), Error> {
    // What is forked from this process is a copy of it, with every Pod's tokens in its memory, until it executes.
    meltemi_linux::process::forbid_inspection().map_err(Error::Protection)?;
    let ready = readiness.register("node");
    prepare_folders(&config)?;
    let (client, ca) = client(&config).await?;
    net::prepare_node().map_err(Error::Network)?;
    net::hold_address(config.dns_address.into()).map_err(Error::Network)?;
    net::refuse_absent(config.pod_cidr).map_err(Error::Network)?;
    let entries = image::load(&config.images).unwrap_or_else(|error| {
        tracing::warn!(%error, "image table not read");
        image::Entries::new()
    });
    let users = users::Supply::new(&config.ids_dir, config.ids_block).map_err(Error::Users)?;
    let cgroups = cgroups::Cgroups::open(&config.group, &config.node_name, &config.groups_record);
    let ctx =
        context::Context::new(config, client, ca, tasks.clone(), entries, context::Shares { users, cgroups });
    server::start(&ctx).await?;
    let zds_path = ctx.config.host_root.join("var/run/ztunnel/ztunnel.sock");
    let zds_ctx = ctx.clone();
    tasks.spawn("zds", async move {
        let admits = |peer| enrol::is_proxy(&zds_ctx, peer);
        zds::serve(zds_ctx.enrolment.clone(), &zds_path, &zds_ctx.tasks, admits).await
    });
    names(&ctx).await?;
    watches::start(&ctx);
    node::register(&ctx).await;
    tasks.spawn("heartbeat", node::heartbeat(ctx.clone()));
    tasks.spawn("network repair", repair::run(ctx.clone()));
    ready.done();
    Ok(())
}

/// Serves the cluster's DNS at its address, which this node holds.
async fn names(ctx: &context::Context) -> Result<(), Error> {
    let address = std::net::SocketAddr::from((ctx.config.dns_address, 53));
    let udp = tokio::net::UdpSocket::bind(address).await.map_err(Error::Network)?;
    let tcp = tokio::net::TcpListener::bind(address).await.map_err(Error::Network)?;
    let nobody = std::sync::Arc::new(meltemi_dns::server::Nobody);
    let serving = meltemi_dns::serve(udp, tcp, ctx.names.clone(), nobody, ctx.tasks.clone());
    let mut drain = ctx.tasks.drain();
    ctx.tasks.spawn("dns", async move {
        tokio::select! {
            served = serving => served,
            () = drain.started() => Ok(()),
        }
    });
    Ok(())
}

fn prepare_folders(config: &Config) -> Result<(), Error> {
    let failed = |path: &std::path::Path, e: io::Error| Error::File {
        what: "folder",
        path: path.display().to_string(),
        reason: e.to_string(),
    };
    // Roots and volumes of Pods of an earlier life: their processes ended with it.
    if config.pods_dir.exists() {
        std::fs::remove_dir_all(&config.pods_dir).map_err(|e| failed(&config.pods_dir, e))?;
    }
    for folder in [&config.pods_dir, &config.logs_dir, &config.host_root] {
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder, mode).map_err(|e| failed(folder, e))?;
    }
    Ok(())
}

async fn client(config: &Config) -> Result<(kube::Client, Vec<u8>), Error> {
    let failed = |reason: String| Error::File {
        what: "kubeconfig",
        path: config.kubeconfig.display().to_string(),
        reason,
    };
    let file = kube::config::Kubeconfig::read_from(&config.kubeconfig).map_err(|e| failed(e.to_string()))?;
    let options = kube::config::KubeConfigOptions::default();
    let settings =
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| failed(e.to_string()))?;
    let ca = std::fs::read(&config.serving.client_ca).map_err(|e| Error::File {
        what: "CA",
        path: config.serving.client_ca.display().to_string(),
        reason: e.to_string(),
    })?;
    let client = meltemi_kubeclient::client(settings).map_err(|e| Error::Client(e.to_string()))?;
    Ok((client, ca))
}
