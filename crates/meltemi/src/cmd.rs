// SPDX-License-Identifier: Apache-2.0
//! The commands a person types, one file each, and what they share: how a cluster is found.

pub mod analyze;
pub mod authz;
pub mod columns;
pub mod demo;
pub mod down;
pub mod forward;
pub mod image;
pub mod proxy_config;
pub mod proxy_status;
pub mod status;
pub mod up;
pub mod version;
pub mod waypoint;
pub mod ztunnel_config;

use std::path::PathBuf;

use anyhow::Context as _;

/// Options that every command talking to a cluster has, named as istioctl names them. They stand last in every help.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options of every command that talks to a cluster")]
pub struct Global {
    /// Path of the kubeconfig; else $KUBECONFIG, else the running mesh of this machine, else ~/.kube/config
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the command; else the context's
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", global = true, default_value = "istio-system")]
    pub istio_namespace: String,
}

impl Global {
    /// A client for the cluster that the options, the environment or the running mesh name.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let options = kube::config::KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let path = self.kubeconfig.clone().or_else(|| {
            if std::env::var_os("KUBECONFIG").is_some() {
                return None;
            }
            crate::machine::paths::Paths::find(None, None).ok().map(|p| p.kubeconfig()).filter(|p| p.exists())
        });
        let config = match path {
            Some(path) => {
                let kubeconfig = kube::config::Kubeconfig::read_from(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None => kube::Config::from_kubeconfig(&options).await.context(
                "no cluster found: start one with `meltemi up --detach`, or name one with --kubeconfig or $KUBECONFIG",
            )?,
        };
        Ok(kube::Client::try_from(config)?)
    }

    /// The namespace that the options or the client's context name.
    pub fn namespace(&self, client: &kube::Client) -> String {
        self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
    }
}
