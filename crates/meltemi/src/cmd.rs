// SPDX-License-Identifier: Apache-2.0
//! The commands a person types, one file each, and what they share: how a cluster is found.

pub mod analyze;
pub mod authz;
pub mod check;
pub mod columns;
pub mod demo;
pub mod down;
pub mod forward;
pub mod image;
pub mod install;
pub mod manifest;
mod output;
pub mod proxy_config;
pub mod proxy_status;
pub mod status;
pub mod uninstall;
pub mod up;
pub mod version;
pub mod waypoint;
pub mod ztunnel_config;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use kube::config::Kubeconfig;

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
    /// A client for the cluster that the options, the environment or the running mesh name; it has answered once.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let options = kube::config::KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let (source, kubeconfig) = self.kubeconfig()?;
        if let Some(context) = &self.context
            && !kubeconfig.contexts.iter().any(|c| c.name == *context)
        {
            let names: Vec<&str> = kubeconfig.contexts.iter().map(|c| c.name.as_str()).collect();
            bail!("--context {context}: {source} has no context of that name; it has: {}", names.join(", "));
        }
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("{source} cannot be used"))?;
        let address = config.cluster_url.to_string();
        let client = kube::Client::try_from(config)?;
        match client.apiserver_version().await {
            Ok(_) => Ok(client),
            Err(error) => Err(unanswered(error, &address, &source)),
        }
    }

    /// The kubeconfig, and where it is from in words.
    fn kubeconfig(&self) -> anyhow::Result<(String, Kubeconfig)> {
        let named =
            self.kubeconfig.as_ref().map(|path| (format!("--kubeconfig {}", path.display()), path.clone()));
        let own = || {
            let path = crate::machine::paths::Paths::find(None, None).ok()?.kubeconfig();
            path.exists().then(|| (path.display().to_string(), path))
        };
        let variable = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        if let Some((source, path)) = named.or_else(|| variable.is_none().then(own).flatten()) {
            if !path.exists() {
                bail!("{source}: there is no such file");
            }
            let read = Kubeconfig::read_from(&path).with_context(|| format!("reading {}", path.display()))?;
            return Ok((source, read));
        }
        if let Some(value) = &variable
            && !std::env::split_paths(value).any(|path| path.exists())
        {
            bail!(
                "$KUBECONFIG names {}, which does not exist: is the mesh running? `meltemi status`",
                value.display()
            );
        }
        let source = if variable.is_some() { "$KUBECONFIG" } else { "~/.kube/config" };
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        if variable.is_none() && !home.is_some_and(|path| path.exists()) {
            bail!(
                "no cluster found: start one with `meltemi up --detach`, or name one with --kubeconfig or $KUBECONFIG"
            );
        }
        let read = Kubeconfig::read().with_context(|| format!("reading {source}"))?;
        Ok((source.to_owned(), read))
    }

    /// The namespace that the options or the client's context name.
    pub fn namespace(&self, client: &kube::Client) -> String {
        self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
    }
}

/// A cluster that does not answer, in a user's words: the innermost cause, where it was looked for, and what to look at next.
fn unanswered(error: kube::Error, address: &str, source: &str) -> anyhow::Error {
    if let kube::Error::Api(status) = &error {
        return anyhow::anyhow!("the cluster at {address} ({source}) refuses: {}", status.message);
    }
    let error = anyhow::Error::from(error);
    let cause = error.root_cause();
    anyhow::anyhow!(
        "the cluster at {address} ({source}) does not answer: {cause}; `meltemi status` says whether the mesh of this machine runs"
    )
}
